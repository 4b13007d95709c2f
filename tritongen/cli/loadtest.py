"""`tritongen loadtest`: does this server keep its promise at this rate?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from tritongen.loadtest.settings import Settings
    from tritongen.runs.events import Event

DEFAULT_URL = "http://127.0.0.1:8000"
INTERRUPTED = 130

EXAMPLES = """\b
Examples:
  tritongen loadtest digits --rate 200 --p99-ms 20
  tritongen loadtest digits --rate 500 --slo 'p99<=20ms' --slo 'error_rate<=0.1%' --duration 2m
  tritongen loadtest digits --concurrency 8 --url grpc://127.0.0.1:8001
  tritongen loadtest bert --rate 50 --shape 'input_ids=128' --range 'input_ids=0..30521'

\b
Exit codes: 0 every objective met, 3 one missed, 4 cannot tell, 5 server or model not ready,
2 the command line or data cannot be used, 130 stopped by Ctrl-C, 1 anything else.
"""


class Seconds(click.ParamType):  # type: ignore[type-arg]
    """A length of time: `60`, `60s`, `500ms`, `2m`, `1h`."""

    name = "time"
    _UNITS = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}  # noqa: RUF012

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]*)?|\.[0-9]+)\s*(ms|s|m|h|)\s*", value)
        if match is None:
            self.fail(f"'{value}' is not a length of time; write for example 60s, 500ms or 2m", param, ctx)
        return float(match[1]) * self._UNITS[match[2]]


SECONDS = Seconds()


@click.command(help=f"Check requests/s and P99 of MODEL against a running server.\n\n{EXAMPLES}")
@click.argument("model")
@click.option(
    "--url", help=f"http://HOST:PORT or grpc://HOST:PORT; default: the background server, or {DEFAULT_URL}."
)
@click.option("--protocol", type=click.Choice(["http", "grpc"]), help="Default: as --url says, else http.")
@click.option("--model-version", "version", default="", help="Default: the server's choice.")
@click.option(
    "--rate", type=float, help="Requests per second, open loop: they leave on schedule, answers or not."
)
@click.option(
    "--concurrency", type=int, help="Calls in flight, closed loop (default 1, if nothing promises a rate)."
)
@click.option("--arrival", type=click.Choice(["poisson", "constant"]), default="poisson", show_default=True)
@click.option("--duration", type=SECONDS, default="60s", show_default=True, help="Warm-up included.")
@click.option(
    "--warmup", type=SECONDS, help="Left out at the start. Default: a tenth of the duration, at most 5s."
)
@click.option(
    "--slo", "slos", multiple=True, metavar="SLO", help="As 'p99<=20ms'; repeatable. Default: the manifest's."
)
@click.option("--p99-ms", type=float, help="Short for --slo 'p99<=…ms'.")
@click.option("--batch-size", type=int, default=1, show_default=True, help="Items in each request.")
@click.option("--data", help="Inputs to send: .npz, .npy, a folder of them, or module:function.")
@click.option(
    "--shape", "shapes", multiple=True, metavar="INPUT=SIZES", help="Sizes of dynamic axes; repeatable."
)
@click.option("--range", "ranges", multiple=True, metavar="INPUT=MIN..MAX", help="Values of integer inputs.")
@click.option(
    "--repository", type=click.Path(path_type=Path), help="Where the model's manifest.json is looked for."
)
@click.option(
    "--timeout", type=SECONDS, default="10s", show_default=True, help="Later answers count as failed."
)
@click.option(
    "--max-in-flight", type=int, default=1024, show_default=True, help="Requests beyond it count as failed."
)
@click.option("--workers", type=int, help="Processes that send. Default: by rate and cores.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same schedule.")
@click.option(
    "--json",
    "json_file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report; - is stdout.",
)
def command(**options: Any) -> int:
    """Run one load test and print its report."""
    from tritongen.loadtest.run import run_load_test
    from tritongen.loadtest.verdict import EXIT_CODES
    from tritongen.report.loadtest import render
    from tritongen.runs.store import write_record

    json_file: Path | None = options.pop("json_file")
    settings = _settings(**options)
    report = run_load_test(settings, events=_show)
    if json_file == Path("-"):
        click.echo(report.model_dump_json(by_alias=True, indent=2))
    else:
        click.echo(render(report))
        if json_file is not None:
            write_record(json_file, report)
    return INTERRUPTED if report.partial else EXIT_CODES[report.outcome]


def _settings(
    *,
    slos: tuple[str, ...],
    p99_ms: float | None,
    shapes: tuple[str, ...],
    ranges: tuple[str, ...],
    repository: Path | None,  # noqa: ARG001
    url: str | None,
    protocol: Any,
    duration: float,
    warmup: float | None,
    timeout: float,
    **same: Any,
) -> Settings:
    from tritongen.loadtest.settings import Settings
    from tritongen.shapes import split_assignment
    from tritongen.slo import parse_slo

    texts = [*slos, *([f"p99<={p99_ms:.15g}ms"] if p99_ms is not None else [])]
    return Settings(
        url=url or DEFAULT_URL,
        protocol=protocol,
        duration_s=duration,
        warmup_s=warmup,
        timeout_s=timeout,
        slos=tuple(parse_slo(text) for text in texts),
        shapes=dict(split_assignment(text, "--shape") for text in shapes),
        ranges=dict(split_assignment(text, "--range") for text in ranges),
        **same,
    )


def _show(event: Event) -> None:
    """What is going on, on stderr; the report alone goes to stdout."""
    if event.status == "started":
        click.echo(event.message, err=True)
