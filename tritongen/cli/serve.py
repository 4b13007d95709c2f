"""`tritongen serve`: a real Triton on this machine, in the foreground or in the background."""

from __future__ import annotations

import os
import shlex
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tritongen.cli import options
from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tritongen.serving.embedded import EmbeddedServer
    from tritongen.serving.registry import RunningServer

EPILOG = """\b
Examples:
  tritongen serve                                  # ./model_repository on ports 8000, 8001 and 8002
  tritongen serve --background && tritongen stop
  tritongen serve repo --model digits --http-port 0 --grpc-port 0 --metrics-port 0
  tritongen serve -- --model-control-mode=none                     # nobody may load models while it runs
"""

STDOUT = Path("-")
_LOOPBACK = ("127.", "localhost")
OWN_FLAGS = {
    "--model-repository": "REPOSITORY",
    **{f"--{each}-port": f"tritongen's --{each}-port, before the --" for each in ("http", "grpc", "metrics")},
    **{f"--{each}-address": "--host" for each in ("http", "grpc", "metrics")},
}
"""Triton's flags that have another name here."""


@click.command(epilog=EPILOG, short_help="Serve a repository with a real Triton on this machine.")
@click.argument("words", nargs=-1, metavar="[REPOSITORY] [-- TRITON-FLAG…]")
@click.option("--repository", "-r", "named", metavar="DIR", help="The same as REPOSITORY.")
@click.option("--http-port", default=8000, show_default=True, help="0: any free port; likewise the next two.")
@click.option("--grpc-port", default=8001, show_default=True)
@click.option("--metrics-port", default=8002, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="0.0.0.0: reachable from the network.")
@click.option("--model", "models", multiple=True, metavar="NAME", help="Serve only this one (repeatable).")
@click.option("--background", is_flag=True, help="Return once it is ready; `tritongen stop` ends it.")
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    help="Where Triton's log goes; - is stdout.",
)
@click.option(
    "--cache-mb",
    type=click.IntRange(min=0),
    metavar="N",
    help="Size of the response cache; 0: none. Default: 100 if a model asks for one.",
)
@click.option(
    "--ready-timeout",
    type=click.FloatRange(min=0, min_open=True),
    callback=options.finite,
    default=300.0,
    show_default=True,
    metavar="S",
    help="Seconds to load all models.",
)
def command(  # noqa: PLR0917  (click passes every option by position or name)
    words: tuple[str, ...],
    named: str | None,
    http_port: int,
    grpc_port: int,
    metrics_port: int,
    host: str,
    models: tuple[str, ...],
    background: bool,
    log_file: Path | None,
    cache_mb: int | None,
    ready_timeout: float,
) -> int:
    """Serve the model repository REPOSITORY (by default ./model_repository) with a real Triton.

    What follows -- goes to tritonserver as it is.

    Every model is loaded before the command reports that it serves. It listens on this machine only,
    unless --host says otherwise, and ends with Ctrl-C (or `tritongen stop`). `tritongen reload` lets it take
    over new versions while it runs; with --host it does not, unless its flags say so.
    """
    from tritongen.serving.embedded import EmbeddedServer
    from tritongen.serving.registry import new_log, state_folder

    repository, flags = _repository_and_flags((named, *words) if named else words)
    state = state_folder(os.environ)
    _refuse_second(state, repository)
    _refuse_ports(
        state, host, {"--http-port": http_port, "--grpc-port": grpc_port, "--metrics-port": metrics_port}
    )
    if background and log_file in (None, STDOUT):
        log_file = new_log(state, repository)
    to_stdout = log_file == STDOUT
    server = EmbeddedServer(
        repository,
        host=host,
        http_port=http_port,
        grpc_port=grpc_port,
        metrics_port=metrics_port,
        load=models or _loaded(host, flags),
        cache_bytes=None if cache_mb is None else cache_mb << 20,
        log_file=log_file.absolute() if log_file and not to_stdout else None,
        log_stream=sys.stdout.buffer if to_stdout else None,
        extra_args=flags,
        ready_timeout_s=ready_timeout,
    )
    # A terminated service manager's or container's SIGTERM means the same as Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server.check()
    click.echo(f"starting Triton on {repository} …", err=True)
    server.start()
    return _keep(server, state) if background else _attend(server, state)


def _repository_and_flags(words: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    """What is served, and what is handed on to tritonserver; SpecError for a second repository."""
    from tritongen.errors import SpecError

    flags = tuple(word for word in words if word.startswith("-"))
    names = [word for word in words if word not in flags]
    if len(names) > 1 or words[: len(names)] != tuple(names):
        raise SpecError(
            "one server serves one repository",
            found=" ".join(words),
            expected="[REPOSITORY] [-- --TRITON-FLAG=VALUE …]",
            fix="write each of Triton's flags as one word, with =",
        )
    for flag in flags:
        name = flag.partition("=")[0]
        if name in OWN_FLAGS:
            raise SpecError(f"{name} of Triton is set by tritongen", found=flag, fix=f"use {OWN_FLAGS[name]}")
    return Path(names[0] if names else DEFAULT_REPOSITORY), flags


def _loaded(host: str, flags: tuple[str, ...]) -> tuple[str, ...] | None:
    """Every model by explicit control, as `tritongen reload` needs it; None: as the flags say, or closed.

    Whoever may load models may run programs of their own: not for everyone who reaches this machine.
    """
    said = any(flag.startswith("--model-control-mode") for flag in flags)
    return None if said or not host.startswith(_LOOPBACK) else ("*",)


def _refuse_second(state: Path, repository: Path) -> None:
    """Before a server is started for nothing; two that start at once are told apart by `register`."""
    from tritongen.serving.registry import already_served, find_server

    if running := find_server(state, repository):
        raise already_served(running)


def _refuse_ports(state: Path, host: str, ports: Mapping[str, int]) -> None:
    """RequirementError naming the server of ours that has one of `ports`; else `check` names the process."""
    from urllib.parse import urlsplit

    from tritongen.errors import RequirementError
    from tritongen.serving.ports import any_free, dialled
    from tritongen.serving.registry import listing, running_servers

    for server in running_servers(state):
        places = [urlsplit(url) for url in (server.http_url, server.grpc_url, server.metrics_url)]
        taken = {place.port for place in places if place.hostname == dialled(host)}
        hit = {flag: port for flag, port in ports.items() if port in taken}
        if hit:
            raise RequirementError(
                "; ".join(f"port {port} is taken" for port in hit.values()),
                found=f"by the server of {listing([server])}",
                fix=f"tritongen stop {shlex.quote(server.repository)}, or let any free ones be chosen: "
                f"{any_free(hit)}",
            )


def _keep(server: EmbeddedServer, state: Path) -> int:
    """Leave the server running and return."""
    from tritongen.serving.registry import forget, register

    try:
        register(state, _record(server, background=True))
        _announce(server)
        server.detach()  # until here the server ends with this process, however that ends
    except BaseException:
        forget(state, server.repository, server.pid)
        server.stop()
        raise
    click.echo(
        f"It runs in the background (PID {server.pid}, log {server.log_file}); `tritongen stop` ends it."
    )
    return 0


def _attend(server: EmbeddedServer, state: Path) -> int:
    """Wait until the server is stopped, by Ctrl-C or by someone else."""
    from tritongen.errors import ServerError
    from tritongen.serving.registry import forget, register

    try:
        register(state, _record(server, background=False))
        _announce(server)
        click.echo("Ctrl-C ends it.")
        code = server.wait()
    except KeyboardInterrupt:
        click.echo("\nstopping …", err=True)
        code = 0
    finally:
        # A second Ctrl-C must not leave the record behind; the server ends with this process anyway.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        forget(state, server.repository, server.pid)
        server.stop()
    if code:
        raise ServerError(
            f"Triton ended by itself (exit code {code})",
            fix="see its log"
            + (f": {server.log_file}" if server.log_file else ", kept with --log-file PATH"),
        )
    click.echo("stopped")
    return 0


def _record(server: EmbeddedServer, *, background: bool) -> RunningServer:
    from tritongen.serving.registry import RunningServer, process_identity

    return RunningServer(
        repository=str(server.repository.resolve()),
        pid=server.pid,
        process=process_identity(server.pid),
        http_url=server.http_url,
        grpc_url=server.grpc_url,
        metrics_url=server.metrics_url,
        log_file=str(server.log_file) if server.log_file else None,
        background=background,
    )


def _announce(server: EmbeddedServer) -> None:
    """Say what is served where, and what to do next."""
    from tritongen.serving.control import connect
    from tritongen.serving.embedded import EVERY_ADDRESS

    control = connect(server.http_url)
    about = control.server_metadata()
    ready = [entry for entry in control.index() if entry.state == "READY"]
    names = sorted({entry.name for entry in ready})
    click.echo(f"Triton {about.version} serves {server.repository}")
    click.echo(f"  HTTP     {server.http_url}\n  gRPC     {server.grpc_url}\n  metrics  {server.metrics_url}")
    if server.host == EVERY_ADDRESS:
        click.echo("  Everyone who reaches this machine can use it: Triton asks for no password.")
    for name in names:
        versions = ", ".join(entry.version for entry in ready if entry.name == name)
        click.echo(f"  model    {name} (version {versions})")
    if names:
        # loadtest finds this server by itself, whatever its port.
        click.echo(f"Next: {_load_test(server.repository, names)}")
    else:
        click.echo("  no models: the repository is empty (`tritongen build MODEL.onnx` fills it)")


def _load_test(repository: Path, names: list[str]) -> str:
    """What `build` proposes, by the numbers in the manifest; a model that others wrote has none."""
    from tritongen.errors import RepositoryError
    from tritongen.report.build import first_load_test
    from tritongen.repository.manifest import read_manifest

    others = len(names) - 1
    try:
        known = read_manifest(repository / names[0])
    except RepositoryError:
        return first_load_test(names[0], (), served=({}, 1), others=others)
    return first_load_test(names[0], known.curve, served=(known.runtime, known.instances), others=others)
