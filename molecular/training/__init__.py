"""Training of flows on ensembles, corpora and their own samples."""
