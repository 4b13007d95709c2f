"""A new version of a model on a running Triton: loaded beside the old one, checked, then switched to."""
