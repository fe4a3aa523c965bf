"""One training run, from its plan to a finished PEFT folder."""
