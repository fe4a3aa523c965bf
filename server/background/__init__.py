"""Work beside requests: the keeper with its periodic duties, and the training worker's process."""
