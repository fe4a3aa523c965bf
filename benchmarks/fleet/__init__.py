"""A fleet of engines on a simulated clock, with the router and the adapter cache that serve."""
