"""Running servers: the embedded Triton, containers, and the control of either."""
