"""Files and logged feedback, read into rows."""
