"""The GitHub Actions example: GitHub takes it, and every command in it has the options that it uses."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any

import click
import pytest
import yaml

from tritongen.cli import cli

WORKFLOW = Path(__file__).parents[2] / "examples/github-actions/release-gate.yml"
SCHEMA = "builtin_schemas/vendor/github-workflows.json"


@pytest.fixture(scope="module")
def workflow() -> dict[Any, Any]:
    loaded: dict[Any, Any] = yaml.safe_load(WORKFLOW.read_text(encoding="utf-8"))
    return loaded


def scripts(workflow: dict[Any, Any]) -> str:
    steps = (step for job in workflow["jobs"].values() for step in job["steps"])
    return "\n".join(step["run"] for step in steps if "run" in step).replace("\\\n", " ")


def own_commands(workflow: dict[Any, Any]) -> list[list[str]]:
    """The words after `tritongen` of each line that calls it."""
    lines = (line.strip() for line in scripts(workflow).splitlines())
    return [shlex.split(line)[1:] for line in lines if line.startswith("tritongen ")]


def test_github_takes_it(workflow: dict[Any, Any]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    package = resources.files(pytest.importorskip("check_jsonschema"))
    schema = json.loads(package.joinpath(SCHEMA).read_text(encoding="utf-8"))
    # YAML 1.1 reads the key `on` as true.
    document = {("on" if key is True else key): value for key, value in workflow.items()}
    jsonschema.validate(document, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**document, "jobs": {"x": {"step": []}}}, schema)


def test_every_command_has_its_options(workflow: dict[Any, Any]) -> None:
    commands = own_commands(workflow)
    assert {words[0] for words in commands} == {"build", "compose", "verify", "loadtest"}
    for words in commands:
        command, rest = resolved(words)
        known = {name for each in command.params for name in each.opts}
        unknown = {word for word in rest if word.startswith("-")} - known
        assert not unknown, f"tritongen {words[0]} has no {unknown}"


def resolved(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command itself, below its groups, and the words that are left."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, words[0]
        command, words = found, words[1:]
    return command, words


def test_its_variables_are_set(workflow: dict[Any, Any]) -> None:
    used = set(re.findall(r"\$\{?([A-Z][A-Z0-9_]*)", scripts(workflow)))
    assert used == set(workflow["env"])


def test_the_evidence_is_kept_whatever_happens(workflow: dict[Any, Any]) -> None:
    (job,) = workflow["jobs"].values()
    (upload,) = (step for step in job["steps"] if "upload-artifact" in step.get("uses", ""))
    assert upload["if"] == "always()"
    assert "report/" in upload["with"]["path"]
    assert "--junit report/" in scripts(workflow)
    assert job["timeout-minutes"] <= 60
