"""What every benchmark uses: guarded processes, adapters to measure with, the machine, progress and output."""
