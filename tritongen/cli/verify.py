"""`tritongen verify`: check a repository against its manifests, its models and a server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tritongen.cli import options
from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.cli.launching import Serving
    from tritongen.repository.findings import Finding
    from tritongen.repository.verify import Place

EXAMPLES = """\b
Examples:
  tritongen verify
  tritongen verify model_repository digits
  tritongen verify --image nvcr.io/nvidia/tritonserver:26.08-py3
  tritongen verify --image 26.08 --elsewhere
  tritongen verify --image tritongen-cpu --compose-file docker-compose.cpu.yml
  tritongen verify --tensorrt              # would TensorRT take the ONNX models?
  tritongen verify model.onnx              # would `build --engine tensorrt`? Before any GPU time is spent
  tritongen verify --json | jq '.findings[].message'
"""


@click.command(
    "verify",
    help="Check digests, config.pbtxt against the models, and whether this machine, or a serving image, "
    "may serve them. With --image also whether this machine can run the image: GPU, driver, NVIDIA runtime, "
    "ports, shared memory, disk, who may read the mounted folder. Exit code 0: nothing wrong; 1: errors "
    "(warnings, and what is unknown, do not count).\n\n" + EXAMPLES,
)
@click.argument(
    "repository", required=False, metavar="[REPOSITORY|MODEL.onnx]", type=click.Path(path_type=Path)
)
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option(
    "--repository",
    "-r",
    "named",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The same as REPOSITORY.",
)
@click.option(
    "--image", metavar="IMAGE", help="The image that will serve: …:YY.MM-py3, YY.MM or a local one."
)
@click.option(
    "--compose-file",
    "compose_files",
    multiple=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="With --image: the compose file that starts it; more may follow (default: docker-compose.yml).",
)
@click.option(
    "--elsewhere", is_flag=True, help="With --image: another machine will run it; leave this one out."
)
@click.option(
    "--tensorrt", is_flag=True, help="Ask TensorRT's parser (or tensorrt_rtx's) about every ONNX model, too."
)
@options.parser_plugins
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(
    repository: Path | None,
    names: tuple[str, ...],
    *,
    named: Path | None,
    image: str | None,
    tensorrt: bool,
    plugins: tuple[Path, ...],
    compose_files: tuple[Path, ...],
    elsewhere: bool,
    as_json: bool,
) -> int:
    """Check a repository; 1 if anything is wrong."""
    from tritongen.repository.verify import model_names, verify_repository

    if (compose_files or elsewhere) and image is None:
        raise click.UsageError("--compose-file and --elsewhere go with --image")
    if named is not None:  # then every word is a model's name
        repository, names = named, ((str(repository), *names) if repository else names)
    repository = repository or DEFAULT_REPOSITORY
    if repository.suffix == ".onnx":
        return _ask_parser(repository, plugins, as_json)
    if plugins and not tensorrt:
        raise click.UsageError("--plugin goes with MODEL.onnx or --tensorrt")
    place, serving = _place(image, compose_files)
    place = replace(place, ask_tensorrt=tensorrt, plugins=plugins)
    findings = list(verify_repository(repository, names, place))
    if serving is not None and not elsewhere:
        from tritongen.cli.launching import launch_findings

        findings += launch_findings(serving, repository, names)
    errors = [finding for finding in findings if finding.severity == "error"]
    checked = names or model_names(repository)
    if as_json:
        _print_json(repository, checked, place, findings)
    else:
        _print_text(checked, place, findings, errors)
    return 1 if errors else 0


def _ask_parser(model: Path, plugins: Sequence[Path], as_json: bool) -> int:
    """What TensorRT's parser says of one ONNX file; 1 if it refuses nodes."""
    import json

    from tritongen.engines.tensorrt.report import check_graph
    from tritongen.errors import RequirementError
    from tritongen.graph import inspect_model
    from tritongen.repository.parser_match import refusals, unasked

    path, taken = inspect_model(model).path, ""
    asked: dict[str, str | None] = {"parser": None, "caveat": None}
    try:
        report = check_graph(path, plugins)
    except RequirementError as error:
        findings = [unasked(model.name, path, error)]
    else:
        findings = list(refusals(model.name, report))
        asked = {"parser": report.parser, "caveat": report.caveat or None}
        taken = f"{report.parser} takes it" + (f"; {report.caveat}" if report.caveat else "")
    refused = any(finding.severity == "error" for finding in findings)
    if as_json:
        entries = [finding.to_json() for finding in findings]
        found = {"schema": "tritongen/verify/1", "repository": str(model), "target": "tensorrt",
                 "models": [model.name], "ok": not refused, **asked, "findings": entries}  # fmt: skip
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n".join(map(str, findings)) or f"{model.name}: {taken}")
    return int(refused)


def _place(image: str | None, compose_files: Sequence[Path]) -> tuple[Place, Serving | None]:
    from tritongen.repository.targets import EMBEDDED, embedded
    from tritongen.repository.verify import Place

    if image is None or image == EMBEDDED:
        from tritongen.autotune.machine import current_machine

        return Place(embedded(), current_machine()), None
    from tritongen.cli.launching import look

    serving = look(image, compose_files)
    return Place(serving.image.target), serving


def _print_json(repository: Path, checked: Sequence[str], place: Place, findings: Sequence[Finding]) -> None:
    import json

    report = {
        "schema": "tritongen/verify/1",
        "repository": str(repository),
        "target": place.target.name,
        "models": list(checked),
        "ok": not any(finding.severity == "error" for finding in findings),
        "findings": [finding.to_json() for finding in findings],
    }
    click.echo(json.dumps(report, indent=2))


def _print_text(
    checked: Sequence[str], place: Place, findings: Sequence[Finding], errors: Sequence[Finding]
) -> None:
    for finding in findings:
        click.echo(str(finding))
    where = "this machine" if place.machine is not None else place.target.name
    unknown = sum(finding.severity == "unknown" for finding in findings)
    warnings = len(findings) - len(errors) - unknown
    rest = "".join(
        f", {count} {words}" for count, words in ((warnings, "to know about"), (unknown, "unknown")) if count
    )
    if errors:
        click.echo(f"{len(errors)} wrong{rest}")
    elif unknown:
        click.echo(f"{', '.join(checked)}: nothing found against {where}{rest}")
    else:
        click.echo(f"{', '.join(checked)}: fit for {where}{rest}")
