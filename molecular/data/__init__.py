"""Ensembles, trajectories and corpora: what flows are trained on."""
