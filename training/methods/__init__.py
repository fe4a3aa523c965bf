"""Training methods: which rows each learns from, and the TRL trainer that learns them. One file a method."""
