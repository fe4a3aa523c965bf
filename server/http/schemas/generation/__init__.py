"""Of the routes that generate text."""
