"""What is shipped for readers and programs says what the code does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tritongen.cli import run
from tritongen.errors import EXIT_CODE_MEANINGS, ExitCode

DOCS = Path(__file__).parents[2] / "docs"
RECORDS = (
    "preparation", "calibration", "trial", "comparison", "sensitivity", "selection", "model-build", "build",
    "manifest", "loadtest", "peak", "reload",
)  # fmt: skip


def test_every_record_has_a_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", "--list"]) == 0
    assert tuple(capsys.readouterr().out.split()) == ("spec", *RECORDS)


@pytest.mark.parametrize("name", RECORDS)
def test_the_shipped_schemas_are_current(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["schema", name]) == 0
    shipped = (DOCS / "schema" / f"{name}.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == json.loads(capsys.readouterr().out), (
        f"run: tritongen schema {name} > docs/schema/{name}.schema.json"
    )


@pytest.mark.parametrize("name", RECORDS)
def test_the_run_directory_page_names_every_record(name: str) -> None:
    assert f"schema/{name}.schema.json" in (DOCS / "run-directory.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", ExitCode, ids=lambda code: code.name.lower())
def test_the_exit_codes_page_is_the_table_of_the_code(code: ExitCode) -> None:
    row = f"| {int(code)} | {EXIT_CODE_MEANINGS[code]} |"
    assert row in (DOCS / "exit-codes.md").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("page", sorted(path.name for path in DOCS.glob("*.md")))
def test_the_readme_lists_every_page(page: str) -> None:
    more = (DOCS.parent / "README.md").read_text(encoding="utf-8").partition("\n## More\n")[2]
    assert f"](docs/{page})" in more
