"""Training that neither shows nor logs anything beside what a test reads, on the CPU."""

QUIET = {"progress_bar": False, "tensorboard": False, "accelerator": "cpu"}
QUIET_OPTIONS = ["--training.progress_bar", "false", "--training.tensorboard", "false", "--training.accelerator", "cpu"]
