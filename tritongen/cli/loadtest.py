"""`tritongen loadtest`: does this server keep its promise at this rate?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from tritongen.cli import load_options, options
from tritongen.cli.composed import compose_flags, composed
from tritongen.cli.sections import SectionedCommand
from tritongen.cli.stopping import INTERRUPTED, until_stopped

if TYPE_CHECKING:
    from tritongen.runs.loadtest import LoadReport
    from tritongen.runs.peak import PeakReport

_UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}


def _seconds(_ctx: click.Context, param: click.Parameter, text: str | None) -> float | None:
    """Seconds from `60`, `60s`, `500ms`, `2m` or `1h`."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|min|m|h|)\s*", text)
    if match is None:
        raise click.BadParameter(f"'{text}' is not a length of time; write for example 60s, 500ms or 2m")
    seconds = float(match[1]) * _UNITS[match[2]]
    if not seconds and param.name != "warmup":
        raise click.BadParameter(f"'{text}' is no time at all; it must be more than 0")
    return seconds


def _time(flag: str, help_text: str, default: str | None = None) -> options.Decorator[Any]:
    return click.option(
        flag, metavar="TIME", default=default, show_default=True, callback=_seconds, help=help_text
    )


def _file(flag: str, help_text: str) -> options.Decorator[Any]:
    return click.option(flag, type=click.Path(path_type=Path), metavar="FILE", help=help_text)


_SECTIONS = {
    "Promise": ("--slo", "--p99-ms", "--find-max"),
    "Load": ("--rate", "--concurrency", "--arrival", "--trace", "--mix", "--seed"),
    "Time": ("--duration", "--min-duration", "--max-duration", "--warmup"),
    "Server": ("--url", "--protocol", "--model-version", "--repository", "--metrics-url"),
    "Server of Docker Compose": ("--compose", "--compose-file", "--compose-timeout"),
    "Requests": ("--batch-size", "--data", "--shape", "--range"),
    "Sending": (
        "--timeout", "--max-in-flight", "--workers", "--compression", "--streaming", "--shared-memory",
        "--grpc-client",
    ),
    "TLS, tokens and headers": (
        "--header", "--token-env", "--token-file", "--tls-ca", "--tls-cert", "--tls-key", "--tls-insecure",
    ),
    "What is written": ("--json", "--samples", "--junit", "--prometheus", "--svg"),
}  # fmt: skip


@click.command(
    cls=SectionedCommand,
    sections=_SECTIONS,
    help="""Check requests/s and P99 of MODEL against a running server (Triton, or any KServe v2 server).

    With objectives it looks at the data a few times, from --min-duration on, and ends as soon as all are
    decided; what is undecided at --max-duration is INVALID. --duration runs for a fixed time instead.

    \b
    Examples:
      tritongen loadtest digits --rate 200 --p99-ms 20
      tritongen loadtest digits --rate 500 --slo 'p99<=20ms' --slo 'error_rate<=0.1%' --max-duration 10m
      tritongen loadtest digits --p99-ms 20 --find-max
      tritongen loadtest digits --concurrency 8 --url grpc://127.0.0.1:8001
      tritongen loadtest digits --rate 100@50s,1000@10s --slo 'p99<=50ms' --duration 5m
      tritongen loadtest digits --rate 200 --compose         # for CI: docker compose up, test, down
      tritongen loadtest bert --rate 50 --shape 'input_ids=128' --range 'input_ids=0..30521'

    \b
    Exit codes: 0 every objective is met (PASS)     3 one is missed (FAIL)
                4 cannot tell (INVALID)             5 server or model not ready, or gone (ERROR)
                2 cannot be used as given           130 stopped by Ctrl-C      1 anything else
                143 stopped by SIGTERM
    """,
)
@click.argument("model", metavar="MODEL", required=False)
@click.option(
    "--url", help="http://HOST:PORT or grpc://HOST:PORT.  [default: as `serve` or triton.env says, else 8000]"
)
@click.option("--protocol", type=click.Choice(["http", "grpc"]), help="[default: as --url says, else http]")
@click.option("--model-version", "version", default="", metavar="N", help="[default: the server's choice]")
@load_options.rate
@click.option(
    "--concurrency",
    type=int,
    metavar="N",
    help="Calls in flight, closed loop.  [default: 1 if no rate is promised]",
)
@click.option("--arrival", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True)
@_time("--duration", "Send for exactly this long, warm-up included.  [default without objectives: 60s]")
@_time(
    "--min-duration",
    "The shortest window that may decide; of an open loop a plain miss ends it earlier.  "
    "[default: 60s; with --find-max 15s]",
)
@_time("--max-duration", "Undecided until then is INVALID.  [default: 5m; with --find-max 1m]")
@_time("--warmup", "Left out at the start.  [default: a tenth of the duration, at most 5s]")
@options.slo
@options.p99_ms
@load_options.batch_size
@click.option(
    "--data", metavar="DATA", help="Inputs to send: .npz, .npy, a folder of them, or module:function."
)
@options.shape
@options.value_range
@options.repository
@_time("--timeout", "A later answer counts as failed.", "10s")
@click.option(
    "--max-in-flight",
    type=int,
    default=1024,
    show_default=True,
    metavar="N",
    help="Requests beyond it fail unsent.",
)
@load_options.transport_flags
@compose_flags
@click.option("--workers", type=int, metavar="N", help="Sending processes.  [default: by rate and cores]")
@click.option("--metrics-url", metavar="URL", help="Triton's metrics.  [default: as `serve` says]")
@click.option("--find-max", is_flag=True, help="Search the highest rate that keeps the objectives.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same schedule.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report; - is stdout.",
)
@_file("--samples", "Write every request (.npz).")
@_file("--junit", "Write the verdict as JUnit XML.")
@_file("--prometheus", "Write a Prometheus textfile.")
@_file("--svg", "With --find-max: draw latency against rate.")
def command(
    *,
    json_file: Path | None,
    samples: Path | None,
    junit: Path | None,
    prometheus: Path | None,
    svg: Path | None,
    find_max: bool,
    compose: bool,
    compose_files: tuple[str, ...],
    compose_timeout: float,
    model: str | None,
    mix: tuple[str, ...],
    **same: Any,
) -> int:
    flags = {**same, "mix": mix, "model": model or _first_of(mix)}
    _check_outputs(
        find_max=find_max, both=(json_file,), only_search=(svg,), only_test=(samples, junit, prometheus)
    )

    def work() -> int:
        with composed(
            flags, compose=compose, compose_files=compose_files, compose_timeout=compose_timeout
        ) as complete:
            if find_max:
                return _search(complete, json_file, svg)
            return _test(complete, json_file, samples, junit, prometheus)

    return until_stopped(work)


def _first_of(mix: tuple[str, ...]) -> str:
    """The first model of a mix, where none is given beside it."""
    if not mix:
        raise click.MissingParameter(param_type="argument", param_hint="'MODEL'")
    return next(iter(load_options.weights("--mix", mix)))


def _search(flags: dict[str, Any], json_file: Path | None, svg: Path | None) -> int:
    from tritongen.autotune.machine import current_machine
    from tritongen.cli.loadtest_settings import settings_of
    from tritongen.loadtest.peak import find_max
    from tritongen.loadtest.verdict import EXIT_CODES
    from tritongen.report.console import console
    from tritongen.report.terminal import progress

    settings, _ = settings_of(find_max=True, **flags)
    with progress(console(stderr=True)) as events:
        peak = find_max(settings, events=events, machine=current_machine())
    _show_peak(peak, json_file, svg)
    return INTERRUPTED if peak.partial else EXIT_CODES[peak.outcome]


def _test(
    flags: dict[str, Any],
    json_file: Path | None,
    samples: Path | None,
    junit: Path | None,
    prometheus: Path | None,
) -> int:
    from tritongen.autotune.machine import current_machine
    from tritongen.cli.loadtest_settings import settings_of
    from tritongen.loadtest.run import measure
    from tritongen.loadtest.sample_export import write_samples
    from tritongen.loadtest.verdict import EXIT_CODES
    from tritongen.report.console import console
    from tritongen.report.terminal import progress

    settings, repository = settings_of(find_max=False, **flags)
    with progress(console(stderr=True)) as events:
        report, measured = measure(settings, events=events, machine=current_machine(), samples_file=samples)
    recorded = None
    if repository is not None:
        from tritongen.cli.proofs import loaded, record

        recorded = record(report, repository, loaded(report))
    if recorded is not None and json_file != Path("-"):
        click.echo(recorded)
    _show(report, json_file)
    _write_exports(report, junit, prometheus)
    if samples is not None:
        write_samples(samples, measured.samples, measured.start_ns)
    return INTERRUPTED if report.partial else EXIT_CODES[report.outcome]


_Files: TypeAlias = "tuple[Path | None, ...]"


def _check_outputs(*, find_max: bool, both: _Files, only_search: _Files, only_test: _Files) -> None:
    """Complain before the run, not after it."""
    from tritongen.errors import InputError
    from tritongen.files import check_writable

    if any(only_test if find_max else only_search):
        raise InputError(
            "a search and a single test write different files",
            expected="--svg with --find-max; --samples, --junit and --prometheus without it",
            fix="both take --json",
        )
    files = [path for path in (*both, *only_search, *only_test) if path is not None and path != Path("-")]
    for path in files:
        if sum(path.absolute() == other.absolute() for other in files) > 1:
            raise InputError("two flags write the same file", found=str(path), fix="name a file for each")
        check_writable(path)


def _write_exports(report: LoadReport, junit_file: Path | None, prometheus_file: Path | None) -> None:
    from tritongen.files import write_output
    from tritongen.report.exports import junit, prometheus

    if junit_file is not None:
        write_output(junit_file, junit(report))
    if prometheus_file is not None:
        write_output(prometheus_file, prometheus(report))


def _show(report: LoadReport, json_file: Path | None) -> None:
    from tritongen.report.loadtest import render

    _show_or_write(report, render(report), json_file)


def _show_peak(report: PeakReport, json_file: Path | None, svg_file: Path | None) -> None:
    from tritongen.files import write_output
    from tritongen.report.peak import curve_svg, render

    _show_or_write(report, render(report), json_file)
    if svg_file is not None:
        write_output(svg_file, curve_svg(report))


def _show_or_write(report: LoadReport | PeakReport, text: str, json_file: Path | None) -> None:
    """The text on the terminal first, so that a full disk loses nothing; `-` is JSON instead."""
    from tritongen.files import write_output

    record = report.model_dump_json(by_alias=True, indent=2)
    click.echo(record if json_file == Path("-") else text)
    if json_file is not None and json_file != Path("-"):
        write_output(json_file, record + "\n")
