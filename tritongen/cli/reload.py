"""`tritongen reload`: let a running server take over a new version of a model, checked, without downtime."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tritongen.cli import load_options, options
from tritongen.cli.stopping import INTERRUPTED, until_stopped
from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.cli.servers import Server
    from tritongen.runs.reload import ReloadReport


@click.command(
    help="""Let a running Triton take over the version of MODEL that `tritongen build` has just written.

    The new version is loaded beside the old one under another name, and its answers are compared with those
    that it gave when it was built. Only then do clients get it; no request is lost. If it does not load,
    answers differently or is not what was built, the old version serves on, and is what the repository holds
    again, as far as it is kept beside it (else the message says so). The server has to run with
    --model-control-mode=explicit, as `tritongen serve` and our compose files start it.

    \b
    Examples:
      tritongen build && tritongen reload digits
      tritongen reload digits --url http://127.0.0.1:8000 --repository model_repository
      tritongen reload digits --to 3            # back to version 3, if it is kept

    \b
    Exit codes: 0 clients get the new version     1 it was refused: the old one serves on
                2 cannot be used as given         5 the server cannot be reached, or died meanwhile
                130 stopped by Ctrl-C             143 stopped by SIGTERM
    """
)
@click.argument("model", metavar="MODEL")
@click.option("--url", help="http://HOST:PORT or grpc://HOST:PORT.  [default: as `serve` says, else 8000]")
@options.repository
@click.option(
    "--to", type=click.IntRange(min=1), metavar="N", help="A version that is kept beside the new one."
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=300.0,
    show_default=True,
    metavar="S",
    help="Seconds for the server to load it.",
)
@load_options.access_flags
@click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
def command(
    *,
    model: str,
    url: str | None,
    repository: Path | None,
    to: int | None,
    timeout: float,
    as_json: bool,
    **access: Any,
) -> int:
    from rich.console import Console

    from tritongen.cli.servers import find_server
    from tritongen.reload.run import reload_model
    from tritongen.report.terminal import progress
    from tritongen.serving.control import connect

    server = find_server(url, repository)
    held = _repository(server, repository)
    control = connect(server.url, access=load_options.access_of(**access))

    def work() -> int:
        try:
            with progress(Console(stderr=True, highlight=False)) as events:
                report = reload_model(control, held, model, to=to, timeout_s=timeout, events=events)
        except KeyboardInterrupt:
            click.echo("stopped: what serves was checked, and the same command goes on from here", err=True)
            return INTERRUPTED
        click.echo(report.model_dump_json(by_alias=True, indent=2) if as_json else _text(report))
        return 0

    try:
        return until_stopped(work)
    finally:
        control.close()


def _repository(server: Server, named: Path | None) -> Path:
    """The repository on this machine that the server serves; InputError if it serves another than `named`."""
    from tritongen.errors import InputError

    if named is not None and server.repository and server.repository.resolve() != named.resolve():
        raise InputError(
            f"the server at {server.url} serves another repository",
            found=str(server.repository),
            expected=str(named),
            fix="leave --repository away, or give the address of its server with --url",
        )
    return named or server.repository or DEFAULT_REPOSITORY


def _text(report: ReloadReport) -> str:
    if report.outcome == "unchanged":
        return f"{report.model}: version {report.version} is being served already; its answers are as built"
    before = (
        f"; version {report.before} served until then" if report.before not in (None, report.version) else ""
    )
    lost = "".join(f"\nwarning: {one}" for one in report.lost)
    back = f"\nBack: tritongen reload {report.model} --to {report.kept}" if report.kept else ""
    return f"{report.model}: clients get version {report.version}{before}{lost}{back}"
