"""Training methods: the rows that each learns from, and its TRL trainer. One module per method."""
