"""The training worker: claims jobs, runs each in a process of its own, publishes what comes of it."""
