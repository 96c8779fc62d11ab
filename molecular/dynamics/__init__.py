"""Langevin dynamics and parallel tempering of many copies of one molecule in a single batch."""

from molecular.dynamics.frames import STORAGE, Frames, FrameWriter, list_shards, read_shard, write_shard
from molecular.dynamics.langevin import EnergyAndForce, Integrator, Langevin, maxwell_velocities
from molecular.dynamics.relaxation import relax
from molecular.dynamics.replicas import TemperingSettings
from molecular.dynamics.report import concerns, report_lines, torsion_statistics
from molecular.dynamics.simulation import simulate
from molecular.dynamics.starts import start_structures
from molecular.dynamics.tempering import Trajectories, geometric_temperatures, parallel_tempering

__all__ = [
    "STORAGE",
    "EnergyAndForce",
    "FrameWriter",
    "Frames",
    "Integrator",
    "Langevin",
    "TemperingSettings",
    "Trajectories",
    "concerns",
    "geometric_temperatures",
    "list_shards",
    "maxwell_velocities",
    "parallel_tempering",
    "read_shard",
    "relax",
    "report_lines",
    "simulate",
    "start_structures",
    "torsion_statistics",
    "write_shard",
]
