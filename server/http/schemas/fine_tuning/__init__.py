"""The JSON of answers of ``/v1/fine_tuning``."""
