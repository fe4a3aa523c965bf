"""Types of learning: jobs, learning policies and rounds."""
