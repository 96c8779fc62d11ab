"""Trajectories of other programs, as the ensemble of one molecule."""

from molecular.data.trajectories.importing import import_trajectory
from molecular.data.trajectories.report import ImportReport

__all__ = ["ImportReport", "import_trajectory"]
