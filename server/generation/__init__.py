"""What happens to a generation request between its route and the engine."""
