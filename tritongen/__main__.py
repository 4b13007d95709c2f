"""`python -m tritongen`."""

from tritongen.cli import main

main()
