"""Task metrics on labelled data: built-in ones that stream, or a function of the user's."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from tritongen.errors import DataError, SpecError

Array = NDArray[np.generic]
Correct = NDArray[np.bool_]

_LEFT_OUT = 255
"""The usual label of pixels that do not count."""

_ROUNDING = 0.05
"""So far beyond 0…1 a probability may lie that went through 8 bits."""


class Metric(Protocol):
    """Takes outputs and labels batch by batch; `value` is a share from 0 to 1, higher is better."""

    def update(self, outputs: Mapping[str, Array], labels: Array) -> Correct | None:
        """Take a batch; per sample whether its answer was right, where the metric has right answers."""
        ...

    def value(self) -> float: ...


class TopK:
    """Share of samples whose label is among the k highest of [n, classes], or equals an integer output."""

    def __init__(self, output: str, k: int) -> None:
        self._output = output
        self._k = k
        self._right = 0
        self._seen = 0

    def update(self, outputs: Mapping[str, Array], labels: Array) -> Correct:
        scores, wanted = outputs[self._output], _class_labels(labels, 1)
        if scores.dtype.kind in "iub" and scores.size == wanted.size:
            right = scores.reshape(-1) == wanted
        else:
            scores = _class_scores(scores, len(wanted), self._output)
            _check_classes(wanted, scores.shape[1], self._output)
            # Ties count for the label only if fewer than k others are at least as high: no luck by order.
            mine = np.take_along_axis(scores, wanted[:, None], axis=1)
            right = ((scores >= mine).sum(axis=1) <= self._k) & ~np.isnan(scores).any(axis=1)
        self._right += int(right.sum())
        self._seen += len(wanted)
        return np.asarray(right, np.bool_)

    def value(self) -> float:
        return self._right / max(self._seen, 1)


class MeanIoU:
    """Mean over classes of intersection ÷ union, from class maps or [n, classes, …] scores.

    Labels below 0 and 255 are left out, beside scores all labels beyond the classes, and so are classes that
    never occur.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._confusion = np.zeros((0, 0), np.int64)

    def update(self, outputs: Mapping[str, Array], labels: Array) -> None:
        found = outputs[self._output]
        if found.dtype.kind == "f" and found.ndim == labels.ndim + 1:
            classes = found.shape[1]
            found = found.argmax(axis=1)
        else:
            # A map does not tell how many classes there are, least of all one that forgot some of them.
            classes = int(max(found.max(initial=0), labels[labels != _LEFT_OUT].max(initial=0), 0)) + 1
        if found.shape != labels.shape:
            raise _misfit(
                self._output, found, labels, "[n, classes, …] scores or a class map like the labels"
            )
        self._grow(classes)
        size = len(self._confusion)
        wanted = labels.astype(np.int64)
        counted = (wanted >= 0) & (wanted < size) & (wanted != _LEFT_OUT)
        pairs = wanted[counted] * size + found[counted].astype(np.int64)
        self._confusion += np.bincount(pairs, minlength=size * size).reshape(size, size)

    def _grow(self, classes: int) -> None:
        extra = classes - len(self._confusion)
        if extra > 0:
            self._confusion = np.pad(self._confusion, (0, extra))

    def value(self) -> float:
        hits = np.diag(self._confusion)
        union = self._confusion.sum(axis=0) + self._confusion.sum(axis=1) - hits
        occurs = union > 0
        return float((hits[occurs] / union[occurs]).mean()) if occurs.any() else 0.0


class F1:
    """F1 of class 1 for two classes, the mean over classes (macro) for more, or over labels (multi-label).

    A single score per sample and multi-label scores are cut at 0.5 if all lie in 0…1, else (logits) at 0.
    One integer per sample is the number of a class.
    """

    def __init__(self, output: str) -> None:
        self._output = output
        self._scores: list[NDArray[np.float64]] = []
        self._labels: list[Array] = []
        self._numbers = False

    def update(self, outputs: Mapping[str, Array], labels: Array) -> None:
        scores = outputs[self._output]
        self._numbers = scores.dtype.kind in "iu" and scores.size == labels.size == len(labels)
        self._scores.append(scores.reshape(len(labels), -1).astype(np.float64))
        self._labels.append(labels.reshape(len(labels), -1))

    def value(self) -> float:
        scores = np.concatenate(self._scores)
        labels = np.concatenate(self._labels).astype(np.float64)
        if self._numbers:
            found, wanted = scores[:, 0].astype(np.int64), labels[:, 0].astype(np.int64)
            return _f1_of_classes(found, wanted, binary=max(found.max(), wanted.max()) <= 1)
        if scores.shape == labels.shape:
            is_share = scores.min() >= -_ROUNDING and scores.max() <= 1 + _ROUNDING
            cut = 0.5 if is_share else 0.0
            return float(np.mean([_f1(scores[:, i] > cut, labels[:, i] > 0) for i in range(scores.shape[1])]))
        if labels.shape[1] != 1:
            raise _misfit(self._output, scores, labels, "one label per sample, or one per score")
        wanted = _class_labels(labels, 1)
        _check_classes(wanted, scores.shape[1], self._output)
        return _f1_of_classes(scores.argmax(axis=1), wanted, binary=scores.shape[1] == 2)  # noqa: PLR2004


class UserMetric:
    """`function(outputs, labels)`: called once with all outputs by name (axis 0: samples), held in memory."""

    def __init__(self, name: str, function: Callable[[dict[str, Any], Array], float]) -> None:
        self._name = name
        self._function = function
        self._outputs: dict[str, list[Array]] = {}
        self._labels: list[Array] = []

    def update(self, outputs: Mapping[str, Array], labels: Array) -> None:
        for name, array in outputs.items():
            self._outputs.setdefault(name, []).append(array)
        self._labels.append(labels)

    def value(self) -> float:
        joined = {name: _joined(arrays) for name, arrays in self._outputs.items()}
        try:
            value = float(self._function(joined, np.concatenate(self._labels)))
        except Exception as error:
            raise DataError(
                f"the metric '{self._name}' failed", found=f"{type(error).__name__}: {error}"
            ) from error
        if not 0 <= value <= 1:
            raise DataError(
                f"the metric '{self._name}' returned {value}",
                found=str(value),
                expected="a share from 0 to 1, higher is better",
            )
        return value


def default_metric(labels: Array) -> str:
    """`top1` for one class number per sample, `mean_iou` for maps of them; SpecError for anything else."""
    whole = labels.dtype.kind in "iub"
    if whole and labels.ndim == 1:
        return "top1"
    if whole and labels.ndim >= 3:  # noqa: PLR2004
        return "mean_iou"
    if labels.dtype.kind in "OSU":
        raise _named(labels)
    raise SpecError(
        "no metric follows from the labels alone",
        found=f"labels of {labels.dtype}[{', '.join(map(str, labels.shape))}]",
        expected="accuracy.metric: f1, mean_iou, topK or module:function",
        fix="set accuracy: {metric: …} in the spec",
    )


def make_metric(name: str, output: str, folder: Path | None = None) -> Metric:
    """The metric by its name in the spec; SpecError for an unknown one or a function that is not there."""
    if match := re.fullmatch(r"top([1-9][0-9]*)", name):
        return TopK(output, int(match[1]))
    if name == "mean_iou":
        return MeanIoU(output)
    if name == "f1":
        return F1(output)
    if ":" in name:
        return UserMetric(name, _function(name, folder))
    raise SpecError(
        f"'{name}' is not a metric on labels",
        found=name,
        expected="top1, topK, mean_iou, f1 or module:function",
    )


def _function(name: str, folder: Path | None) -> Callable[..., float]:
    module_name, _, attribute = name.partition(":")
    paths = [str(Path.cwd()), *([str(folder)] if folder else [])]
    sys.path[:0] = paths
    try:
        target: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise SpecError(
            f"the metric '{name}' cannot be found",
            found=str(error),
            expected="module:function, in the working directory or beside the spec",
        ) from error
    finally:
        del sys.path[: len(paths)]
    if not callable(target):
        raise SpecError(f"the metric '{name}' is not a function", found=type(target).__name__)
    return target  # type: ignore[no-any-return]


def _joined(arrays: list[Array]) -> Any:
    """One array along axis 0, or the list where shapes differ."""
    same = len({array.shape[1:] for array in arrays}) == 1 and arrays[0].ndim > 0
    return np.concatenate(arrays) if same else arrays


def _named(labels: Array) -> DataError:
    """The error for labels that are names of classes."""
    return DataError(
        "the labels are text, and models answer with numbers of classes",
        found=repr(str(labels.flat[0])) if labels.size else "text",
        expected="one class number per sample",
        fix="save the number of each sample's class, in the order of the model's scores, and not its name",
    )


def _class_labels(labels: Array, rank: int) -> NDArray[np.int64]:
    if labels.dtype.kind in "OSU":
        raise _named(labels)
    if labels.ndim > 1 and labels.size == labels.shape[0]:
        labels = labels.reshape(-1)
    if labels.ndim != rank or labels.dtype.kind not in "iubf":
        raise DataError(
            "the labels do not fit the metric",
            found=f"{labels.dtype}[{', '.join(map(str, labels.shape))}]",
            expected="one class number per sample",
        )
    with np.errstate(invalid="ignore"):  # NaN is no whole number, either
        numbers = labels.astype(np.int64)
    if (numbers != labels).any():
        raise DataError(
            "the labels do not fit the metric",
            found=f"{labels[numbers != labels][0]}, in labels of {labels.dtype}",
            expected="whole class numbers",
        )
    return numbers


def _check_classes(wanted: NDArray[np.int64], classes: int, output: str) -> None:
    """DataError for a label that no answer can ever equal."""
    low, high = int(wanted.min(initial=0)), int(wanted.max(initial=0))
    if low < 0 or high >= classes:
        raise DataError(
            "the labels hold class numbers that the model does not have",
            found=f"{low if low < 0 else high}",
            expected=f"0 to {classes - 1}, as output '{output}' has scores for {classes} classes",
            fix="count the classes from 0, or leave samples without a class out",
        )


def _class_scores(scores: Array, count: int, output: str) -> NDArray[np.float64]:
    if scores.shape[0] != count and count == 1:
        scores = scores[None]
    if scores.ndim > 2 and scores.size == scores.shape[0] * max(scores.shape[1:]):  # noqa: PLR2004
        scores = scores.reshape(scores.shape[0], -1)
    if scores.ndim != 2 or scores.shape[0] != count or scores.dtype.kind not in "fiu":  # noqa: PLR2004
        raise DataError(
            f"output '{output}' does not fit the metric",
            found=f"{scores.dtype}[{', '.join(map(str, scores.shape))}] for {count} labels",
            expected="[samples, classes] scores",
            fix="name the right one as accuracy.output, or choose another metric",
        )
    return scores.astype(np.float64)


def _misfit(output: str, found: Array, labels: Array, expected: str) -> DataError:
    return DataError(
        f"output '{output}' and the labels do not fit together",
        found=f"output [{', '.join(map(str, found.shape))}], labels [{', '.join(map(str, labels.shape))}]",
        expected=expected,
    )


def _f1_of_classes(found: NDArray[np.int64], wanted: NDArray[np.int64], *, binary: bool) -> float:
    if binary:
        return _f1(found == 1, wanted == 1)
    return float(np.mean([_f1(found == c, wanted == c) for c in np.union1d(found, wanted)]))


def _f1(found: Correct, wanted: Correct) -> float:
    hits = int((found & wanted).sum())
    total = int(found.sum()) + int(wanted.sum())
    return 2 * hits / total if total else 1.0
