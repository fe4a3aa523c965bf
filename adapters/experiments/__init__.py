"""A/B tests: plan, assignment, exposures, metrics, analysis and decision."""
