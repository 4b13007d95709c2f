"""`loadtest --compose`: the server of a Compose project, up for the length of one command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from tritongen.cli.options import Function, finite
from tritongen.cli.servers import mounted_repository

_READY_TIMEOUT_S = 300.0


def compose_flags(command: Function) -> Function:
    """--compose and its details."""
    for option in (
        click.option(
            "--compose-timeout",
            type=click.FloatRange(min=0, min_open=True),
            callback=finite,
            default=_READY_TIMEOUT_S,
            show_default=True,
            metavar="S",
            help="Seconds for the container to be ready.",
        ),
        click.option(
            "--compose-file",
            "compose_files",
            multiple=True,
            metavar="FILE",
            help="With another file than docker-compose.yml; repeatable.",
        ),
        click.option(
            "--compose",
            is_flag=True,
            help="Start the server with Docker Compose, test it, and stop what was started, for CI.",
        ),
    ):
        command = option(command)
    return command


@contextmanager
def composed(
    flags: dict[str, Any], *, compose: bool, compose_files: tuple[str, ...], compose_timeout: float
) -> Iterator[dict[str, Any]]:
    """`flags` with the address of the server that Compose runs meanwhile; as they are without --compose."""
    if not compose and not compose_files:
        yield flags
        return
    from tritongen.errors import InputError
    from tritongen.serving.container.session import NotServingError, compose_project, serving

    if flags["url"] is not None:
        raise InputError(
            "--compose and --url name two servers", fix="leave one of them away", found=flags["url"]
        )
    project = compose_project(compose_files, Path.cwd())
    click.echo(f"{project.compose.words} up: waiting until it is ready …", err=True)
    try:
        with serving(project, compose_timeout) as (address, ours):
            url = address.grpc_url if flags["protocol"] == "grpc" and address.grpc_url else address.http_url
            there = "started" if ours else "it ran before, and goes on"
            click.echo(f"{url}: {there}", err=True)
            yield {
                **flags,
                "url": url,
                "metrics_url": flags["metrics_url"] or address.metrics_url,
                "repository": flags["repository"] or mounted_repository(project.folder),
            }
    except NotServingError as error:
        click.echo(error.log, err=True)
        raise
