"""`tritongen inspect`: what an ONNX model is, and how its batch axis was established."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tritongen.cli import options

if TYPE_CHECKING:
    from tritongen.graph import Graph
    from tritongen.shapes import ResolvedInput
    from tritongen.tensors import TensorSpec

EXAMPLES = """\b
Examples:
  tritongen inspect detector.onnx
  tritongen inspect detector.onnx --shape 'images=3x640x640'    # confirms the batch axis by running it
  tritongen inspect encoder.onnx --range 'input_ids=0..30521' --json
  tritongen inspect detector.onnx --tensorrt                    # does TensorRT's parser take it?
  tritongen inspect model_repository/net/1/model.plan           # what built it, and for what; needs no GPU
  tritongen inspect model.plan --layers                         # each layer's time, precision, fusion, tactic
"""

PLANS = (".plan", ".engine")
_MOST_OPERATORS = 12
_MEGABYTE = 1_000_000


@click.command(epilog=EXAMPLES, short_help="Show a model's inputs, outputs, batch axis, opset and size.")
@options.model
@options.shape
@options.value_range
@click.option("--no-run", is_flag=True, help="Do not run the model to confirm the batch axis.")
@click.option("--tensorrt", "parser", is_flag=True, help="Only ask TensorRT's parser (or tensorrt_rtx's).")
@click.option("--layers", is_flag=True, help="Of a TensorRT plan: tactic, precision and time of each layer.")
@click.option(
    "--profile",
    type=click.IntRange(min=0),
    default=0,
    help="With --layers: the optimization profile to run.",
    metavar="N",
)
@options.parser_plugins
@options.seed
@options.as_json
def command(  # noqa: PLR0917 - click passes every option by name
    model: Path,
    shapes: dict[str, str],
    ranges: dict[str, str],
    no_run: bool,
    parser: bool,
    layers: bool,
    profile: int,
    plugins: tuple[Path, ...],
    seed: int | None,
    as_json: bool,
) -> int | None:
    """Show what tritongen sees in an ONNX file, or what is known of a TensorRT plan.

    Where ONNX Runtime is installed and the sizes of dynamic axes are known, the batch axis is confirmed by
    running a batch of 3 against three times a batch of 1.
    """
    from tritongen.graph import inspect_model
    from tritongen.shapes import MissingInputError, resolve_inputs

    if layers or parser or model.suffix in PLANS:
        from tritongen.cli import plans

        if layers:
            return plans.layers(model, profile, as_json, plugins)
        ask = plans.parser if parser else plans.about
        return ask(model, as_json, plugins)
    if plugins:
        raise click.UsageError("--plugin goes with --tensorrt, --layers or a plan")
    graph = inspect_model(model)
    inputs: tuple[ResolvedInput, ...] = ()
    note = None
    try:
        inputs = resolve_inputs(graph, shapes, ranges)
    except MissingInputError as error:
        note = f"{error.message}; {error.fix}"
    if inputs and graph.batched:
        graph, note = (graph, "not run (--no-run)") if no_run else _confirm(graph, inputs, seed or 0)
    if as_json:
        click.echo(json.dumps(_as_json(graph, inputs, note), indent=2))
    else:
        _show(graph, inputs, note)
    return None


def _confirm(graph: Graph, inputs: tuple[ResolvedInput, ...], seed: int) -> tuple[Graph, str | None]:
    """The graph with what running it says about the batch axis, or why it could not be run."""
    from tritongen.autotune.batch_axis import confirm_batch_axis
    from tritongen.engines.onnxruntime import OnnxRuntimeEngine
    from tritongen.errors import TritongenError

    reason = OnnxRuntimeEngine().unavailable_reason()
    if reason is not None:
        return graph, reason
    from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner

    try:
        with OnnxRuntimeRunner(graph.path, spinning=False) as runner:
            return replace(graph, batch=confirm_batch_axis(graph, inputs, runner.infer, seed)), None
    except TritongenError as error:
        return graph, f"{error.message}: {error.found}" if error.found else error.message
    except MemoryError as error:
        return graph, f"not run, as memory ran out: {error}"


def _as_json(graph: Graph, inputs: tuple[ResolvedInput, ...], note: str | None) -> dict[str, Any]:
    resolved = {entry.spec.name: entry for entry in inputs}
    return {
        "schema": "tritongen/inspection/1",
        "path": str(graph.path),
        "digest": graph.digest,
        "inputs": [_tensor_json(spec, resolved.get(spec.name)) for spec in graph.inputs],
        "outputs": [_tensor_json(spec, None) for spec in graph.outputs],
        "batch": {"status": graph.batch.status.value, "reason": graph.batch.reason, "note": note},
        "ir_version": graph.ir_version,
        "opsets": {domain or "ai.onnx": version for domain, version in graph.opsets.items()},
        "operators": graph.operators,
        "parameters": graph.parameters,
        "size_bytes": graph.size_bytes,
        "external_data": list(graph.external_data),
        "quantized": graph.quantized,
        "half": graph.half,
        "value_ranges": {name: list(values) for name, values in graph.value_ranges.items()},
    }


def _tensor_json(spec: TensorSpec, entry: ResolvedInput | None) -> dict[str, Any]:
    shown: dict[str, Any] = {"name": spec.name, "dtype": spec.dtype.name, "shape": list(spec.shape)}
    if entry is not None:
        shown["trial_shape"] = {"min": list(entry.min), "opt": list(entry.opt), "max": list(entry.max)}
        shown["trial_shape_source"] = entry.shape_source
        if entry.value_range is not None:
            shown["value_range"] = list(entry.value_range)
            shown["value_range_source"] = entry.range_source
    return shown


def _show(graph: Graph, inputs: tuple[ResolvedInput, ...], note: str | None) -> None:
    from rich.table import Table
    from rich.text import Text

    from tritongen.report.console import console as make_console

    console = make_console()
    tensors = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("", "name", "dtype", "shape", "in trials"):
        tensors.add_column(column, overflow="fold")
    resolved = {entry.spec.name: entry for entry in inputs}
    for role, specs in (("input", graph.inputs), ("output", graph.outputs)):
        for spec in specs:
            shape = ", ".join(str(dim) for dim in spec.shape)
            used = _used(resolved.get(spec.name) if role == "input" else None)
            tensors.add_row(role, Text(spec.name), spec.dtype.name, Text(f"[{shape}]"), Text(used))
    console.print(Text(str(graph.path), "bold"), soft_wrap=True)
    console.print(tensors)
    console.print()
    facts = Table(box=None, pad_edge=False, show_header=False)
    facts.add_column(style="bold", no_wrap=True)
    facts.add_column(overflow="fold")
    for label, text in _facts(graph, note):
        facts.add_row(label, Text(text))
    console.print(facts)


def _used(entry: ResolvedInput | None) -> str:
    """What trials feed the input with."""
    if entry is None:
        return ""
    values = ""
    if entry.value_range is not None:
        values = f" of {entry.value_range[0]}..{entry.value_range[1]} ({entry.range_source})"
    return (str(entry) or "one value") + values


def _facts(graph: Graph, note: str | None) -> list[tuple[str, str]]:
    opsets = ", ".join(f"{domain or 'ai.onnx'} {version}" for domain, version in graph.opsets.items())
    carries = [text for text, holds in (("Q/DQ or integer kernels", graph.quantized),
                                        ("FP16 or BF16 weights", graph.half)) if holds]  # fmt: skip
    facts = [
        ("batch axis", f"{graph.batch.status.value}: {graph.batch.reason}"),
        ("", f"→ {note}" if note else ""),
        ("opset", f"{opsets}; IR version {graph.ir_version}"),
        ("parameters", f"{graph.parameters:,}"),
        ("size", _size(graph)),
        ("carries", " and ".join(carries) or "neither Q/DQ nor FP16"),
        ("operators", _operators(graph)),
        ("SHA-256", graph.digest),
    ]
    return [(label, text) for label, text in facts if text]


def _size(graph: Graph) -> str:
    size = graph.size_bytes
    text = f"{size / 1e6:.1f} MB" if size >= _MEGABYTE else f"{size / 1e3:.1f} KB"
    return text + (f", with external data in {', '.join(graph.external_data)}" if graph.external_data else "")


def _operators(graph: Graph) -> str:
    counted = sorted(graph.operators.items(), key=lambda entry: (-entry[1], entry[0]))
    shown = ", ".join(f"{name} × {count}" for name, count in counted[:_MOST_OPERATORS])
    return shown + (
        f", and {len(counted) - _MOST_OPERATORS} more kinds" if len(counted) > _MOST_OPERATORS else ""
    )
