"""From the run directory's JSON files to what a person reads."""
