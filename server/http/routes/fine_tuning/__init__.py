"""``/v1/fine_tuning``: jobs, and the graders that they learn from."""
