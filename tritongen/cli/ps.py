"""`tritongen ps`: the servers that `tritongen serve` has running."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click

from tritongen.cli import options

if TYPE_CHECKING:
    from tritongen.serving.registry import RunningServer

_ANSWERS_S = 2.0
_UNITS = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


@click.command(short_help="List the servers that `serve` has running.")
@options.as_json
def command(as_json: bool) -> None:
    """List your servers that `tritongen serve` has running on this machine, whichever folder they serve.

    Whether it is ready is what the server itself answers; instances that have died, which Triton does not
    notice, are counted here. `docker compose ps` lists the servers of Compose.
    """
    from tritongen.serving.registry import dead_instances, running_servers, state_folder

    servers = running_servers(state_folder(os.environ))
    states = [(_state(each), dead_instances(each.pid)) for each in servers]
    if as_json:
        rows = [_as_json(server, *state) for server, state in zip(servers, states, strict=True)]
        click.echo(json.dumps({"schema": "tritongen/servers/1", "servers": rows}, indent=2))
    elif servers:
        _show(servers, states)
    else:
        click.echo("no server runs")


def _state(server: RunningServer) -> str:
    """ "ready", "not ready" or "no answer"."""
    from tritongen.serving.control import connect

    control = connect(server.http_url, timeout_s=_ANSWERS_S)
    try:
        if control.is_ready():
            return "ready"
        return "not ready" if control.is_live() else "no answer"
    finally:
        control.close()


def _as_json(server: RunningServer, state: str, dead: int) -> dict[str, Any]:
    fields = asdict(server)
    del fields["process"]
    started = datetime.fromtimestamp(server.started_s, timezone.utc)
    return {
        **fields,
        "started": started.isoformat(timespec="seconds"),
        "state": state,
        "dead_instances": dead,
    }


def _show(servers: Sequence[RunningServer], states: Sequence[tuple[str, int]]) -> None:
    from rich.table import Table
    from rich.text import Text

    from tritongen.report.console import console

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("pid", "ready", "up", "HTTP", "gRPC", "metrics"):
        table.add_column(column, no_wrap=True)
    table.add_column("repository", overflow="fold")
    for server, (answer, dead) in zip(servers, states, strict=True):
        state = f"{answer}, but {dead} instance{'s' if dead > 1 else ''} dead" if dead else answer
        ports = (str(urlsplit(url).port) for url in (server.grpc_url, server.metrics_url))
        age_s = datetime.now(timezone.utc).timestamp() - server.started_s
        cells = (str(server.pid), state, _age(age_s), server.http_url, *ports, server.repository)
        table.add_row(*map(Text, cells))
    console().print(table)


def _age(seconds: float) -> str:
    """In the largest unit that fits."""
    size, unit = next((each for each in _UNITS if seconds >= each[0]), _UNITS[-1])
    return f"{int(seconds / size)} {unit}"
