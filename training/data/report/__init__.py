"""The report of a data set: its statistics, their names, and an HTML page."""
