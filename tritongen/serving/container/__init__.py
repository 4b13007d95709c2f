"""Triton in a container: which image, what it needs, and whether this machine gives it."""
