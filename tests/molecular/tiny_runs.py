"""Settings of runs so short that a test can afford them."""

from tests.quiet import QUIET

SIMULATION = {
    "picoseconds": 0.04, "hot_ps": 0.0, "equilibration_ps": 0.0, "num_replica_groups": 3, "num_temperatures": 2,
    "save_ps": 0.001, "swap_ps": 0.01, "progress": False,
}  # fmt: skip
DIPEPTIDES = {
    "picoseconds": 0.004, "hot_ps": 0.0, "equilibration_ps": 0, "num_replica_groups": 1, "num_temperatures": 2,
    "save_ps": 0.002, "swap_ps": 0.002, "progress": False, "validation_fraction": 0, "test_fraction": 0.5, "tar": True,
}  # fmt: skip
TRAINING = {"max_steps": 2, "checkpoint_interval": 1, "checkpoints_kept": 2, "batch_size": 4, **QUIET}
IMPROVEMENT = {"samples_per_round": 8, "batch_size": 8}
FILES_OF_SAMPLES = {
    "molecule.json", "system.xml", "topology.pdb", "samples.xtc", "weights.npz", "summary.json", "ramachandran.png",
}  # fmt: skip
