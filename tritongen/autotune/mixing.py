"""The sensitivity analysis of one model, in a child process: which blocks must not run in INT8.

Blocks are ordered on calibration data by what quantizing each alone costs; how many are held back is settled
by the accuracy gate on the validation data, by bisection.
"""

from __future__ import annotations

import math
import tempfile
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.autotune.calibrate import calibrate
from tritongen.autotune.candidates import RANGES
from tritongen.autotune.jobs import MixingJob, prepared_graph, resolved_inputs
from tritongen.autotune.judging import error_percent
from tritongen.autotune.preparation import opened_data
from tritongen.autotune.sensitivity import Accept, block_costs, mix
from tritongen.autotune.trial import gate, recipe_of, validation_data
from tritongen.engines import load_engine
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
from tritongen.errors import BuildError
from tritongen.precision.int8 import prepared
from tritongen.precision.placement import place
from tritongen.precision.prepare import load
from tritongen.precision.recipe import Int8Recipe
from tritongen.precision.weights import WEIGHTED
from tritongen.runs.events import Event, EventSink
from tritongen.runs.records import Sensitivity
from tritongen.runs.store import read_record, write_record

if TYPE_CHECKING:
    from tritongen.graph import Graph

FILENAME = "sensitivity.json"
_SAMPLES = 16
"""Calibration samples that the blocks' costs are measured on: their order needs no more."""


def analyse(job_file: Path, events: EventSink) -> None:
    """Write sensitivity.json beside `job_file`; BuildError if the candidate has no Q/DQ nodes."""
    job = read_record(job_file, MixingJob)
    graph = prepared_graph(job.spec, job.preparation)
    engine = load_engine(job.candidate.engine).configured(job.spec, job.effort)
    engine = engine.with_shapes(resolved_inputs(graph, job.preparation), job.max_batch_size)
    recipe = recipe_of(engine, job.candidate)
    if not isinstance(recipe, Int8Recipe) or recipe.implicit or job.spec.data.calibration is None:
        raise BuildError(f"{job.candidate.id} has no Q/DQ nodes that could be left out")
    data = opened_data(job.spec, graph, job.spec.data.calibration)
    batches = list(islice(data.batches(1), 0, data.count, max(1, data.count // _SAMPLES)))[:_SAMPLES]
    with tempfile.TemporaryDirectory(dir=job_file.parent) as scratch, \
         prepared(graph.path, recipe, beside=Path(scratch) / "x") as ready:  # fmt: skip
        ranges = calibrate(
            ready, recipe, data, job.calibration_folder, model_digest=graph.digest, events=events
        ).by(str(job.candidate.options[RANGES]))
        block = _block(ready, recipe, job.blocks)
        costs = block_costs(ready, ranges, recipe, batches, block=block, events=events)
        try:
            # That holding back nothing fails is why we are here.
            mixture = mix(
                ready, ranges, recipe,
                costs=costs, accept=_gated(job, graph, events), out=Path(scratch) / "mixed.onnx", fewest=1,
            )  # fmt: skip
        except BuildError:
            mixture = None
    write_record(
        job_file.parent / FILENAME,
        Sensitivity(
            key=job.key,
            candidate=job.candidate.id,
            simulated=job.simulated,
            blocks=tuple(costs),
            points=mixture.points if mixture else (),
            held=next(point.held for point in mixture.points if point.passed) if mixture else None,
        ),
    )


def _block(model: Path, recipe: Int8Recipe, blocks: int) -> int:
    """Weighted nodes in a block, so that there are at most `blocks` of them."""
    proto = load(model, weights=False)
    kinds = {node.name: node.op_type for node in proto.graph.node}
    weighted = sum(kinds[name] in WEIGHTED for name in place(proto, recipe, model.name).nodes)
    return max(1, math.ceil(weighted / blocks))


def _gated(job: MixingJob, graph: Graph, events: EventSink) -> Accept:
    """The trial's own accuracy gate, on a quantized file as the engine will compute it."""
    # Optimized, a CPU without VNNI saturates: true for ONNX Runtime, and for no other engine.
    level = "disabled" if job.simulated else "all"
    largest = max(1, job.max_batch_size)
    validation = validation_data(job.spec, graph, job.preparation)

    def accept(path: Path) -> tuple[bool, float]:
        with OnnxRuntimeRunner(path, graph_optimization_level=level) as runner:
            verdict = gate(
                runner, graph, job.spec, validation, job.candidate.precision,
                batch_size=largest, events=events,
            )  # fmt: skip
        events(Event("sensitivity", "progress", verdict.summary))
        return verdict.passed, error_percent(verdict)

    return accept


def held_nodes(found: Sensitivity, held: int) -> tuple[str, ...]:
    """The nodes of the `held` dearest blocks."""
    return tuple(node for block in found.blocks[:held] for node in block.nodes)
