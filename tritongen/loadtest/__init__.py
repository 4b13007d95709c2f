"""Load generation, its statistics and its verdict."""
