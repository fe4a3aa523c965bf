"""What is learned, when and from what: jobs, policies, files, data sets and hyperparameters."""
