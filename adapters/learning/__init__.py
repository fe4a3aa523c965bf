"""Training jobs, learning policies, files, data sets and hyperparameters."""
