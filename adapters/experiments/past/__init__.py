"""What the log says of the time before an experiment."""
