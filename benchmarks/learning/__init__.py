"""Training speed, training beside serving, and the whole loop from feedback to a better version."""
