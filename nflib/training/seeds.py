"""For what a run's random numbers are: the first number of the path of `nflib.random.derived_seed`."""

EPOCH, AUGMENTATION, OBJECTIVE, REFRESH, VALIDATION, DATA = range(6)
