"""Common parts of benchmarks: guarded processes, test adapters, a description of the machine, progress and output."""
