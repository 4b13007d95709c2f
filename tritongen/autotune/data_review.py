"""What calibration data look like, before INT8 ranges are taken from them: warnings, each with what it does.

Only inputs are looked at, in one pass over each data set; what activations do, the accuracy gate finds.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from tritongen.samples import Dataset

FEW_SAMPLES = 32
SATURATED_SHARE = 0.05
"""Of the values that sit on the very largest or smallest one (zeros, which are often padding, apart)."""
OUTLIER_RATIO = 4.0
"""A sample that reaches so many times further than the middle one stretches every range by itself."""
EXCEEDED_SHARE = 0.10
"""Validation inputs may reach beyond the calibration's by this share of its range."""
EQUAL_SHARE = 0.2
LOPSIDED_SHARE = 0.8
"""One class may make up so much of the labelled calibration samples, and no more."""
_SMALLEST = 1000
"""Fewer values say nothing about saturation."""


@dataclass
class _Extremes:
    """One input's values, as far as the warnings need them."""

    low: float = np.inf
    high: float = -np.inf
    at_low: int = 0
    at_high: int = 0
    count: int = 0
    reaches: list[float] = field(default_factory=list)
    """Largest magnitude by sample."""

    def take(self, sample: NDArray[np.generic]) -> None:
        values = sample.astype(np.float64, copy=False)
        values = values[np.isfinite(values)]
        if not values.size:
            return
        low, high = float(values.min()), float(values.max())
        self.at_low = (self.at_low if self.low <= low else 0) + int((values == low).sum()) * (low <= self.low)
        self.at_high = (self.at_high if self.high >= high else 0) + int((values == high).sum()) * (
            high >= self.high
        )
        self.low, self.high = min(self.low, low), max(self.high, high)
        self.count += values.size
        self.reaches.append(max(abs(low), abs(high)))

    @property
    def varies(self) -> bool:
        return self.high > self.low


def review(calibration: Dataset, validation: Dataset | None = None) -> tuple[str, ...]:
    """What is suspicious about the calibration data, in sentences; empty if nothing is."""
    seen, digests = _look(calibration)
    found = list(_about_samples(calibration, digests))
    for name, extremes in seen.items():
        found += _about_input(name, extremes)
    if validation is not None:
        found += _exceeded(seen, _look(validation)[0])
    return tuple(found)


def same_data(calibration: Dataset, validation: Dataset | None) -> tuple[str, ...]:
    """The warning that both are the same, if they are."""
    if validation is None or validation.digest != calibration.digest:
        return ()
    warning = (
        "the validation data are the calibration data: the gate judges INT8 on what its ranges are from, "
        "and new data may fare worse; hold some back"
    )
    return (warning,)


def few_samples(count: int) -> tuple[str, ...]:
    """The warning on too few calibration samples, which needs no look at them."""
    if count >= FEW_SAMPLES:
        return ()
    return (f"only {count} calibration samples: ranges miss what is rare; 100 to 500 typical ones are usual",)


def _look(dataset: Dataset) -> tuple[dict[str, _Extremes], Counter[bytes]]:
    seen: dict[str, _Extremes] = {}
    digests: Counter[bytes] = Counter()
    for sample in dataset.batches(1):
        digest = hashlib.blake2b(digest_size=16)
        for name, array in sample.items():
            digest.update(
                np.ascontiguousarray(array).tobytes() if array.dtype.kind != "O" else repr(array).encode()
            )
            # Other integers are indices and masks, which nobody quantizes.
            if array.dtype.kind == "f" or array.dtype.name in ("bfloat16", "uint8", "int8"):
                seen.setdefault(name, _Extremes()).take(array)
        digests[digest.digest()] += 1
    return seen, digests


def _about_samples(dataset: Dataset, digests: Mapping[bytes, int]) -> Iterator[str]:
    total = sum(digests.values())
    if dataset.synthetic:
        yield "the calibration inputs are made up: ranges from them say nothing about real data"
    yield from few_samples(total)
    repeated = total - len(digests)
    if total > 1 and repeated > EQUAL_SHARE * total:
        yield (
            f"{repeated} of {total} calibration samples repeat others: ranges and thresholds follow "
            "what is there often"
        )
    yield from _about_labels(dataset.labels)


def _about_labels(labels: NDArray[np.generic] | None) -> Iterator[str]:
    if labels is None or labels.ndim != 1 or labels.dtype.kind not in "iub" or len(labels) < FEW_SAMPLES:
        return
    classes, counts = np.unique(labels, return_counts=True)
    share = counts.max() / len(labels)
    if len(classes) == 1:
        yield f"all calibration samples are of class {classes[0]}: what other classes need may be clipped"
    elif share > LOPSIDED_SHARE:
        yield (
            f"class {classes[counts.argmax()]} makes up {100 * share:.0f} % of the calibration samples: "
            "percentile, entropy and mse may clip what the others need"
        )


def _about_input(name: str, seen: _Extremes) -> Iterator[str]:
    if len(seen.reaches) > 1 and not seen.varies:
        yield f"input '{name}' has the same value everywhere in the calibration data: INT8 learns nothing"
        return
    for what, value, count in (("largest", seen.high, seen.at_high), ("smallest", seen.low, seen.at_low)):
        two_valued = seen.at_low + seen.at_high == seen.count
        if value and not two_valued and seen.count >= _SMALLEST and count > SATURATED_SHARE * seen.count:
            share = 100 * count / seen.count
            yield (
                f"{share:.0f} % of input '{name}' in the calibration data sit on its {what} "
                f"value {value:g}: if they were clipped on the way, so is what INT8 learns of them"
            )
    middle = float(np.median(seen.reaches)) if seen.reaches else 0.0
    largest = max(seen.reaches, default=0.0)
    if middle and largest > OUTLIER_RATIO * middle:
        sample = int(np.argmax(seen.reaches))
        yield (
            f"sample {sample} of the calibration data reaches {largest:.4g} in input '{name}', the middle "
            f"one {middle:.4g}: minmax ranges stretch to it, and everything else loses steps"
        )


def _exceeded(calibration: Mapping[str, _Extremes], validation: Mapping[str, _Extremes]) -> Iterator[str]:
    for name, ours in calibration.items():
        theirs = validation.get(name)
        if theirs is None or not ours.varies:
            continue
        beyond = max(theirs.high - ours.high, ours.low - theirs.low)
        if beyond > EXCEEDED_SHARE * (ours.high - ours.low):
            yield (
                f"input '{name}' goes from {theirs.low:.4g} to {theirs.high:.4g} in the validation data, and "
                f"from {ours.low:.4g} to {ours.high:.4g} in the calibration data: INT8 clips what lies beyond"
            )
