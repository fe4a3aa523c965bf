"""Graders, computed: grades of answers, for rewards and for the gates. Without torch."""
