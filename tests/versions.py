"""Versions of one model as `build` writes them, with the answers that `reload` compares, but no trials."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests import models
from tests.repository_models import to_write
from tritongen.repository.writer import Written, write_model

NAME = "tiny"
ITEMS = np.random.default_rng(1).normal(size=(2, 4)).astype(np.float32)
"""Two items of the model's one input, "x"."""


def answers_of(path: Path) -> NDArray[Any]:
    """What ONNX Runtime gives for ITEMS."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    answers: NDArray[Any] = session.run(None, {"x": ITEMS})[0]
    return answers


def write_version(base: Path, seed: int, *, lie: float = 0.0, **serving: Any) -> Written:
    """Write a linear model with the weights of `seed` into `base`/repository.

    `lie` is added to the answers that are kept: the version will then differ from them wherever it runs.
    """
    path = models.save(models.linear(seed=seed), base / f"seed{seed}" / "linear.onnx")
    model = to_write(path, base / f"runs{seed}", name=NAME, **serving)
    reference = {"input/x": ITEMS, "output/y": answers_of(path) + np.float32(lie)}
    return write_model(base / "repository", replace(model, reference=reference))
