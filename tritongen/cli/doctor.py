"""`tritongen doctor`: what works on this machine and what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from tritongen.doctor import Check

MARKS = {"ok": ("✓", "green"), "warning": ("!", "yellow"), "absent": ("–", "dim"), "missing": ("✗", "red")}


@click.command(short_help="Say what works on this machine and what is missing.")
@click.option("--json", "as_json", is_flag=True, help="Print the checks as JSON.")
def command(as_json: bool) -> int:
    """Look at everything that tritongen uses, and name the command that brings what is missing.

    Exit code 0 if build, serve and loadtest work here (a GPU, TensorRT and Docker are extras), else 1.
    """
    from tritongen.doctor import examine, road_works

    checks = examine()
    works = road_works(checks)
    if as_json:
        click.echo(json.dumps({"works": works, "checks": [check.to_json() for check in checks]}, indent=2))
    else:
        _show(checks)
        click.echo(
            "build, serve and loadtest work on this machine"
            if works
            else "something that build, serve or loadtest needs is missing (✗)"
        )
    return 0 if works else 1


def _show(checks: Sequence[Check]) -> None:
    from rich.table import Table
    from rich.text import Text

    from tritongen.report.console import console

    table = Table(box=None, pad_edge=False)
    # Paths make what is found long: behind it, nothing has to be aligned.
    for column in ("", "what", "needed for", "found"):
        table.add_column(column, overflow="fold")
    for check in checks:
        mark, style = MARKS[check.state]
        table.add_row(Text(mark, style), check.name, Text(check.needed_for), Text(check.found))
        if check.fix and check.state != "ok":
            table.add_row("", "", "", Text(f"→ {check.fix}", "bold"))
    console().print(table)
