"""The accuracy gate: may a candidate be selected, given the task's labels, real data, or made-up inputs?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tritongen.autotune.closeness import AGREEMENT, COSINE, EQUAL, RELATIVE_L2, Closeness, measure_of
from tritongen.autotune.metrics import Metric, default_metric, make_metric
from tritongen.autotune.order_statistics import Z_95
from tritongen.errors import BuildError, DataError, ModelError, SpecError
from tritongen.runs.events import Event, EventSink, discard
from tritongen.runs.records import Accuracy, OutputError
from tritongen.spec import AccuracySpec, Precision

if TYPE_CHECKING:
    from tritongen.engines import Runner
    from tritongen.samples import Dataset
    from tritongen.tensors import TensorSpec

Array = NDArray[np.generic]
Outputs = Mapping[str, Array]

DEFAULT_LOSS_LIMIT = 1.0
"""Points of the metric (percent) that may be lost on labelled data."""

_LOSSY = (Precision.INT8, Precision.FP8)

_WITHOUT_LABELS = {"agreement": AGREEMENT, "relative_l2": RELATIVE_L2, "cosine": COSINE}


def judge(
    reference: Runner,
    candidate: Runner,
    dataset: Dataset,
    settings: AccuracySpec,
    precision: Precision,
    *,
    batch_size: int,
    batched: bool = True,
    by_itself: bool = False,
    reference_inputs: Sequence[TensorSpec] | None = None,
    spec_folder: Path | None = None,
    events: EventSink = discard,
) -> Accuracy:
    """Run both on `dataset` side by side and judge what the candidate loses; both are entered already.

    `batched`: axis 0 of every input holds samples. `by_itself`: the candidate is the given model, untouched,
    and there is no other to judge it by. `reference_inputs`: what the reference takes, where it is another
    file. SpecError or DataError where labels, metric and outputs do not fit together, ModelError
    where the reference's inputs or outputs have other names.
    """
    pairs = _Pairs(
        reference,
        candidate,
        dataset,
        batch_size=batch_size,
        reference_inputs=reference_inputs,
        events=events,
    )
    metric = settings.metric
    if dataset.labels is not None and metric not in _WITHOUT_LABELS:
        return _by_labels(
            pairs, dataset.labels, settings, batched=batched, lossy=precision in _LOSSY, folder=spec_folder
        )
    if metric is not None and metric not in _WITHOUT_LABELS:
        raise SpecError(
            f"the metric '{metric}' needs labels",
            found="validation data without labels",
            expected="an array of labels beside the inputs (data.labels names it)",
        )
    exact = Precision.FP32 if by_itself else precision
    return _by_outputs(pairs, settings, exact, batched=batched, synthetic=dataset.synthetic)


class _Pairs:
    """Outputs of reference and candidate for each batch, checked to be comparable."""

    def __init__(
        self,
        reference: Runner,
        candidate: Runner,
        dataset: Dataset,
        *,
        batch_size: int,
        reference_inputs: Sequence[TensorSpec] | None,
        events: EventSink,
    ) -> None:
        self._reference = reference
        self._candidate = candidate
        self._dataset = dataset
        self._batch_size = batch_size
        self._wanted = reference_inputs
        self._events = events
        self.samples = 0

    def __iter__(self):  # type: ignore[no-untyped-def]  # noqa: ANN204
        """(samples in the call, reference's outputs, candidate's outputs), batch by batch."""
        for batch in self._dataset.batches(self._batch_size):
            expected = self._referred(batch)
            found = self._candidate.infer(batch)
            missing = sorted(set(found) - set(expected))
            if missing:
                raise ModelError(
                    "the accuracy reference lacks outputs of the model",
                    found=", ".join(sorted(expected)),
                    expected=", ".join(missing),
                    fix="give a reference with the same output names",
                )
            yield batch, {name: expected[name] for name in found}, found
            fraction = min(self.samples / max(self._dataset.count, 1), 1.0)
            self._events(Event("trial", "progress", "judging accuracy", fraction=fraction))

    def _referred(self, batch: Outputs) -> Outputs:
        """What the reference answers; ModelError where it is another file and does not run on the data."""
        try:
            return self._reference.infer(self._reference_feed(batch))
        except (BuildError, DataError) as error:
            if self._wanted is None:
                raise
            raise ModelError(
                "the accuracy reference does not run on the model's inputs",
                found=error.found,
                expected="; ".join(map(str, self._wanted)),
                fix="give a reference that takes inputs of the same shapes",
            ) from error

    def _reference_feed(self, batch: Outputs) -> dict[str, Array]:
        if self._wanted is None:
            return dict(batch)
        missing = [spec.name for spec in self._wanted if spec.name not in batch]
        if missing:
            raise ModelError(
                "the accuracy reference takes other inputs than the model",
                found=", ".join(missing),
                expected=", ".join(batch),
                fix="give a reference with the same input names",
            )
        return {
            spec.name: batch[spec.name].astype(spec.dtype.numpy) if spec.dtype.is_float else batch[spec.name]
            for spec in self._wanted
        }


def _by_labels(
    pairs: _Pairs, labels: Array, settings: AccuracySpec, *, batched: bool, lossy: bool, folder: Path | None
) -> Accuracy:
    name = settings.metric or default_metric(labels)
    limit = DEFAULT_LOSS_LIMIT if settings.limit is None else settings.limit
    metrics: tuple[Metric, Metric] | None = None
    won = lost = 0
    unfit: str | None = None
    for batch, expected, found in pairs:
        count = _samples(batch) if batched else 1
        if metrics is None:
            output = _metric_output(settings.output, found, count)
            metrics = make_metric(name, output, folder), make_metric(name, output, folder)
        wanted = labels[pairs.samples : pairs.samples + count]
        if len(wanted) != count:
            raise DataError(
                "there are fewer labels than samples",
                found=f"{len(labels)} labels",
                expected="one per sample",
            )
        right = metrics[0].update(_per_sample(expected, batched=batched), wanted)
        mine = metrics[1].update(_per_sample(found, batched=batched), wanted)
        unfit = unfit or _unfit(expected, found)
        if right is not None and mine is not None:
            won += int((mine & ~right).sum())
            lost += int((right & ~mine).sum())
        pairs.samples += count
    if metrics is None:
        raise DataError("the validation data hold no sample", expected="at least one")
    return _labelled_verdict(
        name, metrics, limit=limit, samples=pairs.samples, flips=(won, lost), unfit=unfit, lossy=lossy
    )


def _labelled_verdict(
    name: str,
    metrics: tuple[Metric, Metric],
    *,
    limit: float,
    samples: int,
    flips: tuple[int, int],
    unfit: str | None,
    lossy: bool,
) -> Accuracy:
    before, after = metrics[0].value(), metrics[1].value()
    loss = 100 * (before - after)
    if lossy and before <= 0:
        unfit = unfit or (
            f"{name} of the reference itself is 0 on {samples} samples, so nothing is proven: "
            "do the labels belong to these data and to this model?"
        )
    passed = loss <= limit + 1e-9 and unfit is None
    margin = _margin(flips, samples) if name.startswith("top") else 0.0
    noise = f", ± {margin:.2f} at 95 %; {_flips_text(flips)}" if margin else ""
    summary = (
        f"{name} {100 * after:.2f} % against {100 * before:.2f} % of the reference on {samples} samples: "
        f"{_loss_text(loss, limit)} (limit {limit:g}{noise})"
    )
    if passed and lossy and loss + margin > limit:
        summary += f"; so few samples cannot rule out a loss of {loss + margin:.2g} points"
    return Accuracy(
        basis="labels",
        passed=passed,
        summary=unfit or summary,
        metric=name,
        reference_value=before,
        value=after,
        loss=loss,
        limit=limit,
        samples=samples,
    )


def _by_outputs(
    pairs: _Pairs, settings: AccuracySpec, precision: Precision, *, batched: bool, synthetic: bool
) -> Accuracy:
    outputs = _compared(pairs, settings, batched=batched, synthetic=synthetic)
    results = tuple(one.result(precision, settings.limit) for one in outputs.values())
    worst = max(results, key=lambda one: _strain(one, outputs[one.output]))
    passed = all(one.passed for one in results)
    summary = _closeness_text(worst, outputs[worst.output], pairs.samples, len(results))
    if passed and precision in _LOSSY and worst.measure in (AGREEMENT, EQUAL) and not synthetic:
        possible = _possible_loss(100 * (1 - worst.value), pairs.samples)
        if possible > 100 * (1 - worst.limit):
            summary += f"; so few samples cannot rule out a loss of {possible:.2g} %"
    summary += "".join(f"; warning: {doubt}" for one in outputs.values() if (doubt := one.doubt()))
    if synthetic and precision in _LOSSY:
        passed = False
        name = str(precision).upper()
        summary = f"{name} is never selected on made-up inputs: give --validation-data ({summary})"
    return Accuracy(
        basis="synthetic" if synthetic else "reference",
        passed=passed,
        summary=summary,
        metric=worst.measure,
        value=worst.value,
        limit=worst.limit,
        outputs=results,
        samples=pairs.samples,
    )


def _compared(
    pairs: _Pairs, settings: AccuracySpec, *, batched: bool, synthetic: bool
) -> dict[str, Closeness]:
    """How close each judged output came to the reference, over all pairs; SpecError if there is none."""
    asked = _WITHOUT_LABELS.get(settings.metric or "")
    outputs: dict[str, Closeness] = {}
    for batch, expected, found in pairs:
        for name, value in found.items():
            if settings.output not in (None, name):
                continue
            if name not in outputs:
                measure = _measure(asked, name, expected[name], batched=batched, synthetic=synthetic)
                outputs[name] = Closeness(name, measure)
            outputs[name].update(expected[name], value)
        pairs.samples += _samples(batch) if batched else 1
    if not outputs:
        raise SpecError(
            "there is no output to judge",
            found=f"accuracy.output: {settings.output}",
            expected="an output's name",
        )
    return outputs


def _measure(asked: str | None, name: str, reference: Array, *, batched: bool, synthetic: bool) -> str:
    """The measure for one output: what was asked for where that fits, else what the output looks like.

    On made-up inputs scores are nearly tied, and their order means nothing: floats are compared as numbers.
    """
    if reference.dtype.kind not in "fV":
        return EQUAL
    if asked == AGREEMENT and (reference.ndim <= batched or reference.shape[-1] == 1):
        return RELATIVE_L2
    return asked or (RELATIVE_L2 if synthetic else measure_of(reference, name))


def _strain(result: OutputError, closeness: Closeness) -> float:
    """Loss as a share of its limit: the largest one is the worst output."""
    share = closeness.measure in (AGREEMENT, EQUAL)
    limit = 100 * ((1 - result.limit) if share else result.limit)
    return closeness.loss_percent() / max(limit, 1e-12)


def _metric_output(asked: str | None, outputs: Outputs, count: int) -> str:
    if asked is not None:
        if asked not in outputs:
            raise SpecError(
                f"accuracy.output names '{asked}', which the model does not have",
                found=asked,
                expected=", ".join(outputs),
            )
        return asked
    numbers = [name for name, value in outputs.items() if value.dtype.kind not in "OSU"]
    fitting = [name for name in numbers if outputs[name].ndim > 0 and outputs[name].shape[0] == count]
    return (fitting or numbers or list(outputs))[0]


def _per_sample(outputs: Outputs, *, batched: bool) -> dict[str, Array]:
    """Outputs with samples along axis 0; one call of a model without a batch axis is one sample."""
    if batched:
        return dict(outputs)
    return {name: v if v.ndim and v.shape[0] == 1 else v[None] for name, v in outputs.items()}


def _unfit(expected: Outputs, found: Outputs) -> str | None:
    """Why the candidate's outputs cannot be trusted at all, whatever its metric says."""
    for name, value in found.items():
        if value.dtype.kind != "f" or value.shape != expected[name].shape:
            continue
        if (np.isnan(value) & ~np.isnan(expected[name].astype(value.dtype))).any():
            return f"output '{name}' holds NaN where the reference does not"
    return None


def _samples(batch: Outputs) -> int:
    sizes = [array.shape[0] for array in batch.values() if array.ndim > 0]
    return max(sizes, default=1)


def _loss_text(loss: float, limit: float) -> str:
    if abs(loss) < 0.005:  # noqa: PLR2004
        return "no loss"
    return f"{'loss' if loss > 0 else 'gain'} {_beside(abs(loss), limit, '.2f', '.4g')} points"


def _beside(value: float, limit: float, *formats: str) -> str:
    """`value` in the first format that leaves it on its side of `limit`, or in the last."""
    texts = [f"{value:{form}}" for form in formats]
    sides = [(shown < limit, shown > limit) for shown in (value, *map(float, texts))]
    return next((text for text, side in zip(texts, sides[1:], strict=True) if side == sides[0]), texts[-1])


def _margin(flips: tuple[int, int], samples: int) -> float:
    """Half-width of the 95 % interval of the loss in points, from the answers that flipped each way.

    Half a sample is added to each cell of the table (Agresti & Min, Statistics in Medicine 24, 2005): without
    it ten samples that all agree would prove a loss of 0.
    """
    won, lost = flips
    total = samples + 2
    return 100 * Z_95 * math.sqrt(won + lost + 1 - (won - lost) ** 2 / total) / total


def _flips_text(flips: tuple[int, int]) -> str:
    won, lost = flips
    return f"{lost} right answer{'' if lost == 1 else 's'} lost, {won} won"


def _possible_loss(loss_percent: float, samples: int) -> float:
    """The upper end of Wilson's 95 % interval of a share lost, in percent."""
    share, z2 = loss_percent / 100, Z_95**2 / samples
    root = math.sqrt(share * (1 - share) * z2 + z2**2 / 4)
    return 100 * (share + z2 / 2 + root) / (1 + z2)


def _closeness_text(result: OutputError, closeness: Closeness, samples: int, count: int) -> str:
    where = f"output '{result.output}'" + (f", the worst of {count}," if count > 1 else "")
    if closeness.broken:
        return f"{where} cannot be compared: {closeness.broken}"
    relation = "≥" if result.measure in (AGREEMENT, EQUAL) else "≤"
    names = {
        AGREEMENT: "agrees in its highest score in",
        EQUAL: "is equal in",
        RELATIVE_L2: "differs (relative L2) by",
        COSINE: "differs (cosine) by",
    }
    return (
        f"{where} {names[result.measure]} "
        f"{_beside(100 * result.value, 100 * result.limit, '.3g', '.5g', '.7g')} % on {samples} samples "
        f"(limit {relation} {100 * result.limit:.4g} %)"
    )
