"""`tritongen compose`: the files with which Docker Compose (or Kubernetes) serves a repository."""

from __future__ import annotations

import click

from tritongen.cli import LazyGroup

# name → (module with a `command` object, the help line), as in tritongen.cli: imported when they run.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("tritongen.cli.compose_init", "Write docker-compose.yml and triton.env."),
    "k8s": ("tritongen.cli.compose_k8s", "Print Kubernetes manifests for a repository."),
}


@click.group(
    "compose", cls=LazyGroup, lazy=COMMANDS, short_help="Files with which Docker serves a repository."
)
def command() -> None:
    """Write the files with which Docker Compose serves a repository."""
