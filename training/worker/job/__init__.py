"""The process of one job's run."""
