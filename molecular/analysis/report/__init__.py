"""Evaluations as folders: a table, figures, and a page of HTML with a rotatable view of conformations."""

from molecular.analysis.report.figures import DrawnFigure, draw_figures
from molecular.analysis.report.page import write_page
from molecular.analysis.report.viewer import ViewedEnsemble, view_of

__all__ = ["DrawnFigure", "ViewedEnsemble", "draw_figures", "view_of", "write_page"]
