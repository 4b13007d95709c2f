"""Where a run keeps its records, and how they are read and written.

<run_dir>/.lock                        held by the build that is running
<run_dir>/<model>/spec.json            the effective spec of the model
                  selection.json       the winner and the losers
                  build.json           how the last finished build came out
                  events.jsonl         progress, one JSON object a line
                  fingerprint.json     what the last finished build depended on, and what it wrote
                  preparation/         the data and the batch axis, looked at once (preparation.json)
                  comparison/<n>/      two candidates measured in alternation (comparison.json)
                  calibration/         ranges by data and model digest
                  sensitivity/         what INT8 costs block by block (sensitivity.json)
                  trials/<candidate>/  trial.json, samples.npz, log.txt, the artifact
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from tritongen.errors import TritongenError
from tritongen.files import write_text

AnyModel = TypeVar("AnyModel", bound=BaseModel)


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one model's run."""

    root: Path

    @property
    def spec(self) -> Path:
        return self.root / "spec.json"

    @property
    def selection(self) -> Path:
        return self.root / "selection.json"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def result(self) -> Path:
        return self.root / "build.json"

    @property
    def fingerprint(self) -> Path:
        return self.root / "fingerprint.json"

    @property
    def preparation(self) -> Path:
        return self.root / "preparation"

    @property
    def comparison(self) -> Path:
        return self.root / "comparison"

    @property
    def calibration(self) -> Path:
        return self.root / "calibration"

    @property
    def sensitivity(self) -> Path:
        return self.root / "sensitivity"

    def trial(self, candidate: str) -> Path:
        """The folder of one candidate's trial."""
        return self.root / "trials" / candidate


def write_record(path: Path, record: BaseModel) -> None:
    """Write a record as JSON, whole or not at all."""
    write_text(path, record.model_dump_json(by_alias=True, indent=2) + "\n")


def read_record(path: Path, kind: type[AnyModel]) -> AnyModel:
    """Read a record; TritongenError if the file is not one of that kind and version."""
    try:
        return kind.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        raise TritongenError(
            f"{path} is not a {kind.__name__} that this version of tritongen can read",
            found=f"{'.'.join(map(str, first['loc']))}: {first['msg']}",
            fix="remove the file; it will be made again",
        ) from error
