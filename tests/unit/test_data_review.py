"""Warnings about calibration data: each where it is due, and none about ordinary data."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.unit.test_calibrate import Samples, images
from tritongen.autotune.data_review import review, same_data


def labelled(labels: Any, count: int = 64) -> Samples:
    data = Samples(x=images(count))
    data.labels = np.asarray(labels)  # type: ignore[assignment]
    return data


def test_ordinary_data_are_not_warned_about() -> None:
    photographs = np.random.default_rng(0).integers(0, 256, (64, 3, 16, 16)).astype(np.uint8)
    marks = (images(64) > 0).astype(np.float32)  # two values: a mask, nothing clipped
    tokens = np.random.default_rng(1).integers(0, 30000, (64, 32))
    assert review(Samples(x=images(64)), Samples(x=images(64, seed=1))) == ()
    assert review(Samples(photo=photographs, mask=marks, tokens=tokens)) == ()
    padded = np.concatenate([images(64), np.zeros((64, 3, 8, 24), np.float32)], axis=-1)
    assert review(Samples(x=np.maximum(padded, 0))) == ()  # zeros are padding or ReLU, not saturation
    assert review(labelled(np.arange(64) % 10)) == ()


def clipped() -> Samples:
    return Samples(x=np.clip(images(64), -5, 1))


def outlier() -> Samples:
    x = images(64)
    x[17] *= 30
    return Samples(x=x)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (Samples(x=images(9)), "only 9 calibration samples"),
        (Samples(x=np.ones((40, 4), np.float32)), "the same value everywhere"),
        (Samples(x=np.repeat(images(20), 3, axis=0)), "40 of 60 calibration samples repeat others"),
        (clipped(), "16 % of input 'x' in the calibration data sit on its largest value 1"),
        (outlier(), "sample 17 of the calibration data reaches"),
        (labelled(np.zeros(64, int)), "all calibration samples are of class 0"),
        (labelled([3] * 60 + [1, 2, 1, 2]), "class 3 makes up 94 %"),
    ],
    ids=["few", "constant", "repeated", "clipped", "outlier", "one-class", "lopsided"],
)
def test_what_is_suspicious_is_said(data: Samples, words: str) -> None:
    found = review(data)
    assert any(words in warning for warning in found), found


def test_validation_data_beyond_the_calibration_data_are_named() -> None:
    (warning,) = review(Samples(x=images(64)), Samples(x=3 * images(64, seed=1)))
    assert "INT8 clips what lies beyond" in warning
    (shifted,) = review(Samples(x=images(64) + 2), Samples(x=images(64, seed=1) - 2))
    assert "input 'x' goes from" in shifted


def test_what_is_not_finite_does_not_hide_the_rest() -> None:
    x = images(64)
    x[0, 0, 0, 0] = np.nan
    assert review(Samples(x=images(64)), Samples(x=x)) == ()


def test_validation_data_that_are_the_calibration_data_are_named() -> None:
    ours, held_back = Samples(x=images(64)), Samples(x=images(64, seed=1))
    held_back.digest = "other"
    assert "hold some back" in same_data(ours, ours)[0]
    assert same_data(ours, held_back) == same_data(ours, None) == ()
