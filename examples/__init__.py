"""Experiments, which lean on the packages; no package leans on them."""
