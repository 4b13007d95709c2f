"""Models made in code, with random weights: for speed only."""
