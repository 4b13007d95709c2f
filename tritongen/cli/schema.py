"""`tritongen schema`: the JSON schemas of the spec and of the run directory's records."""

from __future__ import annotations

import json
from typing import Any

import click

EXAMPLES = """\b
Examples:
  tritongen schema spec > tritongen.schema.json     # for editors
  tritongen schema spec --markdown                  # the reference, as in docs/spec.md
  tritongen schema trial
"""


@click.command(epilog=EXAMPLES, short_help="Print the JSON schema of the spec or of a record.")
@click.argument("name", default="spec")
@click.option("--markdown", is_flag=True, help="Print the spec's reference as Markdown instead.")
@click.option("--list", "list_names", is_flag=True, help="Print the names that have a schema.")
def command(name: str, markdown: bool, list_names: bool) -> None:
    """Print the JSON schema of NAME: `spec` (the default), or a record of the run directory."""
    from tritongen.errors import SpecError
    from tritongen.spec import json_schema

    records = _records()
    if list_names:
        click.echo("\n".join(["spec", *records]))
    elif markdown:
        if name != "spec":
            raise SpecError("only the spec has a reference in Markdown", found=name, expected="spec")
        from tritongen.spec.reference import markdown as reference

        click.echo(reference(json_schema()), nl=False)
    elif name == "spec":
        click.echo(json.dumps(json_schema(), indent=2))
    elif name in records:
        click.echo(json.dumps(records[name], indent=2))
    else:
        from tritongen.spec.problems import nearest

        near = nearest(name, ("spec", *records))
        raise SpecError(
            f"there is no schema '{name}'",
            expected=", ".join(["spec", *records]),
            fix=f"did you mean '{near}'?" if near else "use one of these",
        )


def _records() -> dict[str, dict[str, Any]]:
    """JSON schema by the middle of a record's name ("trial" of "tritongen/trial/1")."""
    from tritongen.repository.manifest import Manifest
    from tritongen.runs.build import Build, ModelBuild, Preparation
    from tritongen.runs.loadtest import LoadReport
    from tritongen.runs.peak import PeakReport
    from tritongen.runs.records import Calibration, Comparison, Selection, Sensitivity, Trial, schema_name
    from tritongen.runs.reload import ReloadReport

    records = (
        Preparation,
        Calibration,
        Trial,
        Comparison,
        Sensitivity,
        Selection,
        ModelBuild,
        Build,
        Manifest,
        LoadReport,
        PeakReport,
        ReloadReport,
    )
    return {schema_name(record).split("/")[1]: record.model_json_schema() for record in records}
