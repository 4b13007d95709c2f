"""`tritongen verify`: check a repository against its manifests, its models and a server."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tritongen.cli.options import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.repository.findings import Finding
    from tritongen.repository.verify import Place

EXAMPLES = """\b
Examples:
  tritongen verify
  tritongen verify model_repository digits
  tritongen verify --image nvcr.io/nvidia/tritonserver:26.08-py3
  tritongen verify --json | jq '.findings[].message'
"""


@click.command(
    "verify",
    help="Check digests, config.pbtxt against the models, and whether this machine, or a serving image, "
    "may serve them. Exit code 0: nothing wrong; 1: findings (warnings alone do not count).\n\n" + EXAMPLES,
)
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option("--image", metavar="IMAGE", help="The serving image, instead of this machine: …:YY.MM-py3.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def command(repository: Path | None, names: tuple[str, ...], image: str | None, as_json: bool) -> int:
    """Check a repository; 1 if anything is wrong."""
    from tritongen.repository.verify import model_names, verify_repository

    repository = repository or DEFAULT_REPOSITORY
    place = _place(image)
    findings = list(verify_repository(repository, names, place))
    errors = [finding for finding in findings if finding.severity == "error"]
    checked = names or model_names(repository)
    if as_json:
        _print_json(repository, checked, place, findings)
    else:
        _print_text(checked, place, findings, errors)
    return 1 if errors else 0


def _place(image: str | None) -> Place:
    from tritongen.autotune.machine import current_machine
    from tritongen.repository.targets import EMBEDDED, find_target
    from tritongen.repository.verify import Place

    target = find_target(image)
    return Place(target, current_machine() if target.name == EMBEDDED else None)


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
    if not errors:
        warnings = f", {len(findings)} to know about" if findings else ""
        click.echo(f"{', '.join(checked)}: fit for {where}{warnings}")
    else:
        click.echo(f"{len(errors)} wrong, {len(findings) - len(errors)} to know about")
