"""How far a candidate's outputs are from the reference's, output by output, where there are no labels."""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from tritongen.runs.records import OutputError
from tritongen.spec import Precision

Array = NDArray[np.generic]

AGREEMENT, RELATIVE_L2, COSINE, EQUAL = "top1_agreement", "relative_l2", "cosine_distance", "equal"

_SHARES = {
    Precision.FP32: 0.1,
    Precision.FP16: 0.5,
    Precision.BF16: 1.0,
    Precision.INT8: 2.0,
    Precision.FP8: 2.0,
}
_DISTANCES = {
    Precision.FP32: 0.1,
    Precision.FP16: 1.0,
    Precision.BF16: 3.0,
    Precision.INT8: 5.0,
    Precision.FP8: 5.0,
}
DEFAULT_LIMITS: dict[str, dict[Precision, float]] = {
    AGREEMENT: _SHARES,
    EQUAL: _SHARES,
    RELATIVE_L2: _DISTANCES,
    COSINE: {
        Precision.FP32: 0.0001,
        Precision.FP16: 0.005,
        Precision.BF16: 0.045,
        Precision.INT8: 0.125,
        Precision.FP8: 0.125,
    },
}
"""Largest accepted loss in percent, by measure and precision; docs/accuracy.md gives the reasons."""

_NO_SCORES = re.compile(r"box|coord|landmark|keypoint|embed|feature|hidden|pool", re.IGNORECASE)
"""In the names of outputs of rank 2 that are not scores of classes."""


class Closeness:
    """One output's distance, gathered batch by batch."""

    def __init__(self, output: str, measure: str) -> None:
        self.output = output
        self.measure = measure
        self.broken: str | None = None
        self.scored = 0
        self.values = 0
        self.not_finite = 0
        """Of `values` in the reference: NaN or infinity there cannot be compared."""
        self._agreed = 0
        self._squares = np.zeros(3)  # of the difference, the reference, the candidate
        self._product = 0.0

    def update(self, reference: Array, candidate: Array) -> None:
        """Take one batch of both."""
        if reference.shape != candidate.shape:
            self.broken = self.broken or (
                f"its shape is {list(candidate.shape)}, the reference's {list(reference.shape)}"
            )
            return
        if reference.dtype.kind not in "fV" and candidate.dtype.kind not in "fV":
            self._agreed += int((reference == candidate).sum())
            self.scored += reference.size
            return
        expected, found = reference.astype(np.float64), candidate.astype(np.float64)
        self.values += expected.size
        self.not_finite += int((~np.isfinite(expected)).sum())
        strange = ~np.isfinite(found) & ~((expected == found) | (np.isnan(expected) & np.isnan(found)))
        if strange.any():
            what = "NaN" if np.isnan(found[strange]).any() else "infinity"
            self.broken = self.broken or f"it holds {what} where the reference does not"
            return
        if self.measure == AGREEMENT:
            self._agreed += int((expected.argmax(axis=-1) == found.argmax(axis=-1)).sum())
            self.scored += expected.size // max(expected.shape[-1], 1)
        self._gather(expected, found)

    def _gather(self, expected: NDArray[np.float64], found: NDArray[np.float64]) -> None:
        both = np.isfinite(expected) & np.isfinite(found)
        expected, found = np.where(both, expected, 0.0), np.where(both, found, 0.0)
        difference = found - expected
        self._squares += [np.vdot(difference, difference), np.vdot(expected, expected), np.vdot(found, found)]
        self._product += float(np.vdot(expected, found))

    def relative_l2(self) -> float:
        """‖candidate - reference‖ ÷ ‖reference‖ over all samples."""
        difference, norm, _ = self._squares
        return math.sqrt(difference / norm) if norm > 0 else (0.0 if difference == 0 else math.inf)

    def loss_percent(self) -> float:
        """The loss in percent that limits are about; infinite where nothing could be compared."""
        if self.broken:
            return math.inf
        if self.measure in (AGREEMENT, EQUAL):
            return 100 * (1 - self._agreed / self.scored) if self.scored else 0.0
        if self.measure == COSINE:
            _, norm, other = self._squares
            scale = math.sqrt(norm * other)
            return 100 * (1 - self._product / scale) if scale > 0 else 100 * float(norm != other)
        return 100 * self.relative_l2()

    def result(self, precision: Precision, limit_percent: float | None) -> OutputError:
        """The verdict: agreement and equality are shares with a lower limit, the others distances."""
        limit = DEFAULT_LIMITS[self.measure][precision] if limit_percent is None else limit_percent
        loss = self.loss_percent()
        if 0 < self.values == self.not_finite and precision is not Precision.FP32:
            loss = math.inf  # nothing was compared, so nothing is proven
        shares = self.measure in (AGREEMENT, EQUAL)
        return OutputError(
            output=self.output,
            measure=self.measure,
            value=_finite((1 - loss / 100) if shares else loss / 100),
            limit=(1 - limit / 100) if shares else limit / 100,
            # A share of a few samples is only exact to the last bit.
            passed=loss <= limit + 1e-9,
        )

    def doubt(self) -> str | None:
        """What the reference's own values leave unproven, in words."""
        if not self.not_finite:
            return None
        share = "all" if self.not_finite == self.values else f"{100 * self.not_finite / self.values:.3g} %"
        return f"{share} of the reference's '{self.output}' is NaN or infinite, which cannot be compared"


def measure_of(reference: Array, name: str = "") -> str:
    """How an output is compared: equality for integers, bools and strings; top-1 agreement for scores.

    Scores are floats of rank 2 with at least two columns, or of rank 3 whose rows are distributions.
    Relative L2 for all other floats, and for what is no score by its name (boxes, embeddings) or because its
    rows are unit vectors: which of their numbers is the largest says nothing.
    """
    if reference.dtype.kind not in "fV":
        return EQUAL
    classes = reference.shape[-1] if reference.ndim else 0
    if classes < 2 or _NO_SCORES.search(name) or _is_unit(reference):  # noqa: PLR2004
        return RELATIVE_L2
    if reference.ndim == 2 or (reference.ndim == 3 and _is_distribution(reference)):  # noqa: PLR2004
        return AGREEMENT
    return RELATIVE_L2


def _is_unit(rows: Array) -> bool:
    """Whether all rows have length 1 without being certain of one class."""
    values = rows.astype(np.float64)
    unit = np.allclose(np.linalg.norm(values, axis=-1), 1, atol=1e-3)
    return bool(unit and not _is_distribution(rows))


def _is_distribution(rows: Array) -> bool:
    values = rows.astype(np.float64)
    return bool((values >= 0).all() and np.allclose(values.sum(axis=-1), 1, atol=1e-2))


def _finite(value: float) -> float:
    """Records are JSON, which has no infinity."""
    return value if math.isfinite(value) else math.copysign(1e9, value)
