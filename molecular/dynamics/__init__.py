"""Langevin dynamics and parallel tempering of many copies of one molecule in a single batch."""

from molecular.dynamics.frames import Frames, FrameWriter, list_shards, read_shard
from molecular.dynamics.langevin import BOLTZMANN, EnergyAndForce, Langevin, maxwell_velocities
from molecular.dynamics.relax import relax
from molecular.dynamics.replicas import TemperingSettings
from molecular.dynamics.tempering import Trajectories, geometric_temperatures, parallel_tempering

__all__ = [
    "BOLTZMANN",
    "EnergyAndForce",
    "FrameWriter",
    "Frames",
    "Langevin",
    "TemperingSettings",
    "Trajectories",
    "geometric_temperatures",
    "list_shards",
    "maxwell_velocities",
    "parallel_tempering",
    "read_shard",
    "relax",
]
