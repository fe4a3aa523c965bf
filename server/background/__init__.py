"""What runs beside requests: the keeper with its duties, and the training worker's process."""
