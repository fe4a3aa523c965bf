"""Generation requests, from the route to the engine and back."""
