"""`tritongen inspect` on TensorRT: a plan's layers, and what a parser says of an ONNX file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import click


def about(plan: Path, as_json: bool, plugins: Sequence[Path] = ()) -> int:
    """Print what is known of a plan: from its manifest, which needs no GPU, else from TensorRT itself."""
    from tritongen.repository.plan_report import describe

    found = describe(plan, plugins)
    if as_json:
        click.echo(json.dumps({"schema": "tritongen/plan/1", **found.to_json()}, indent=2))
        return 0
    from rich.table import Table
    from rich.text import Text

    from tritongen.report.console import console

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in found.rows():
        table.add_row(label, Text(text))
    console().print(Text(str(plan), "bold"), soft_wrap=True)
    console().print(table)
    return 0


def layers(plan: Path, profile: int, as_json: bool, plugins: Sequence[Path] = ()) -> int:
    """Print time, precision, fused nodes and tactic of each layer; `plugins` beside those of its manifest."""
    from tritongen.engines.tensorrt.report import plan_layers
    from tritongen.repository.plan_report import needs_of

    own, host_code = needs_of(plan)
    report = plan_layers(plan, profile, plugins=[*own, *plugins], host_code=host_code)
    if as_json:
        click.echo(json.dumps({"schema": "tritongen/layers/1", **asdict(report)}, indent=2))
        return 0
    from rich.table import Table
    from rich.text import Text

    from tritongen.report.console import console

    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in report.shapes.items())
    table = Table(box=None, pad_edge=False, header_style="bold", title=f"profile {profile}: {shapes}")
    for column in ("ms", "precision", "nodes", "tactic"):
        table.add_column(column, overflow="fold", justify="right" if column == "ms" else "left")
    for layer in report.layers:
        time = "" if layer.time_ms is None else f"{layer.time_ms:.4f}"
        kind = "reformat" if layer.reformat else layer.precision
        nodes = " + ".join(layer.fused) or layer.name
        table.add_row(time, kind, Text(nodes), Text(layer.tactic))
    console().print(table)
    click.echo(report.summary())
    return 0


def parser(model: Path, as_json: bool, plugins: Sequence[Path] = ()) -> int:
    """Print what TensorRT's parser says of an ONNX file; 2 if it refuses nodes."""
    from tritongen.engines.tensorrt.report import check_graph
    from tritongen.graph import inspect_model

    report = check_graph(inspect_model(model).path, plugins)
    if as_json:
        click.echo(json.dumps({"schema": "tritongen/parser/1", **asdict(report)}, indent=2))
    elif report.problems:
        click.echo(f"{report.parser} refuses {model}:\n  " + "\n  ".join(report.problems))
        click.echo("give the operators as a plugin (--plugin lib.so), or use --engine onnxruntime")
    else:
        click.echo(f"{report.parser} takes {model}" + (f"; {report.caveat}" if report.caveat else ""))
    return 2 if report.problems else 0
