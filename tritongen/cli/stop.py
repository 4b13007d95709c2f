"""`tritongen stop`: end a server that `tritongen serve` started."""

from __future__ import annotations

import os
from pathlib import Path

import click

from tritongen.serving.registry import DEFAULT_REPOSITORY


@click.command(short_help="Stop a server that `serve --background` started.")
@click.argument("repository", type=click.Path(path_type=Path), required=False)
@click.option("--all", "every", is_flag=True, help="Stop every server that tritongen started.")
def command(repository: Path | None, every: bool) -> int:
    """End the server of REPOSITORY: by default ./model_repository, or without models there the only one.

    `tritongen ps` lists what runs. Requests in flight are given a few seconds. Nothing to stop is no error.
    """
    from tritongen.errors import InputError
    from tritongen.serving.registry import choose_server, listing, running_servers, state_folder

    if every and repository is not None:
        raise InputError(
            "one server and all of them at once",
            found=f"{repository} --all",
            fix="leave --all away, or the repository",
        )
    state = state_folder(os.environ)
    running = running_servers(state)
    if every:
        chosen = running
    else:
        server = choose_server(state, repository)
        chosen = [] if server is None else [server]
    if not chosen and repository is not None and not repository.is_dir():
        raise InputError(
            f"there is no folder {repository}",
            found="a file" if repository.exists() else "nothing",
            expected="the repository of a running server" + (f": {listing(running)}" if running else ""),
            fix="name its repository, or stop every server with --all",
        )
    if not chosen:
        meant = repository or DEFAULT_REPOSITORY
        click.echo(f"no server of {meant} runs; but {listing(running)}" if running else "no server runs")
    for server in chosen:
        _stop(state, server.pid, server.repository)
    return 0


def _stop(state: Path, pid: int, repository: str) -> None:
    from tritongen.errors import ServerError
    from tritongen.serving.embedded import stop_process
    from tritongen.serving.registry import forget

    if not stop_process(pid):
        raise ServerError(
            f"the server of {repository} does not end",
            found=f"PID {pid} runs on",
            fix=f"wait, where --exit-timeout-secs gives requests in flight so long; else kill -9 {pid}",
        )
    forget(state, Path(repository), pid)
    click.echo(f"stopped the server of {repository}")
