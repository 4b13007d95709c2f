"""`tritongen init`: a commented spec from what ONNX models say about themselves."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tritongen.cli import options

if TYPE_CHECKING:
    from tritongen.graph import Graph

EXAMPLES = """\b
Examples:
  tritongen init detector.onnx
  tritongen init detector.onnx --shape 'images=3x640x640' -o specs/detector.yaml
  tritongen init detector.onnx recogniser.onnx --schema
"""

SCHEMA_NAME = "tritongen.schema.json"

_HEAD = """\
# What tritongen should do. Keys behind '#' show defaults, examples or guesses.
# Paths count from this file's folder.
# Every key: `tritongen schema spec --markdown`. Next: `tritongen build {file}`

# repository: model_repository
models:
"""

_KEYS = """\
    # Each model takes these keys too:
    # max_batch_size: 8            # largest batch to measure and serve; 0: no batching
    # precision: [fp32, int8]      # default: all that the engine has and the data can prove
    # objective: throughput        # or latency, or latency@4
    # slo: ["p99<=20ms"]           # also p50, p95, error_rate<=0.1%, throughput>=500/s
    # data:                        # .npz, .npy, a folder of them, or module:function
    #   calibration: calibration.npz   # INT8 needs it: a few hundred usual inputs
    #   validation: validation.npz     # held-out inputs, with an array 'labels' if there are any
"""


@click.command(epilog=EXAMPLES, short_help="Write a commented tritongen.yaml from what an ONNX model says.")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="MODEL.onnx …")
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path, allow_dash=True),
    default=options.DEFAULT_SPEC,
    show_default=True,
    help="File to write; '-' prints it.",
)
@click.option("--force", is_flag=True, help="Overwrite the file if it exists.")
@click.option("--schema", is_flag=True, help=f"Write {SCHEMA_NAME} beside it, for completion in editors.")
@options.name
@options.shape
@options.value_range
def command(  # noqa: PLR0917 - click passes every option by name
    models: tuple[Path, ...],
    output: Path,
    force: bool,
    schema: bool,
    name: str | None,
    shapes: dict[str, str],
    ranges: dict[str, str],
) -> None:
    """Write a commented spec for one or more ONNX models, with proposals where the models do not tell."""
    from tritongen.graph import inspect_model
    from tritongen.spec import override, spec_for_models

    spec = override(spec_for_models(models), name=name)
    printed = str(output) == "-"
    folder = Path() if printed else output.parent
    if not printed:
        _check_output(output, force=force)
    text = _HEAD.format(file="FILE" if printed else shlex.quote(output.name))
    if schema and not printed:
        text = f"# yaml-language-server: $schema={SCHEMA_NAME}\n{text}"
    graphs = {key: inspect_model(entry.path) for key, entry in spec.models.items()}
    _check_flags(graphs, shapes, ranges)
    entries = [_entry(key, graph, folder, shapes, ranges) for key, graph in graphs.items()]
    text += "\n".join([entries[0] + _KEYS, *entries[1:]])
    if printed:
        click.echo(text, nl=False)
        return
    _write(output, text, schema=schema)
    names = [name for graph in graphs.values() for name in _left_open(graph, shapes, ranges)]
    todo = (
        f"it only guesses for {', '.join(names)} (behind '#'): put that in, or data"
        if names
        else "look at it"
    )
    click.echo(f"wrote {output}; {todo}, then: tritongen build {shlex.quote(str(output))}")


def _check_output(output: Path, *, force: bool) -> None:
    """SpecError for a file that is there already, or whose folder is not."""
    from tritongen.errors import SpecError

    if output.exists() and not force:
        # In the same folder, from which the paths count.
        beside = output.with_name(f"{output.stem}-more{output.suffix}")
        raise SpecError(
            f"{output} exists",
            fix=f"to add to it, write another file with -o {shlex.quote(str(beside))} and copy what is there "
            "below `models:` into it; or overwrite it with --force",
        )
    folder = output.parent
    if not folder.is_dir():
        raise SpecError(
            f"{output} cannot be written: there is no folder {folder}",
            found="a file of that name" if folder.exists() else "nothing",
            fix=f"make it first (mkdir -p {shlex.quote(str(folder))}), or choose another file with -o",
        )


def _write(output: Path, text: str, *, schema: bool) -> None:
    from tritongen.errors import SpecError
    from tritongen.files import write_output, write_text
    from tritongen.spec import json_schema

    try:
        write_output(output, text)
        if schema:
            write_text(output.parent / SCHEMA_NAME, json.dumps(json_schema(), indent=2) + "\n")
    except OSError as error:
        raise SpecError(
            f"{output} cannot be written", found=str(error), fix="choose another file with -o"
        ) from error


def _entry(name: str, graph: Graph, folder: Path, shapes: dict[str, str], ranges: dict[str, str]) -> str:
    lines = [f"  {_text(name)}:", f"    path: {_text(_relative(graph.path, folder))}"]
    lines += [f"    # input  {spec}" for spec in graph.inputs]
    lines += [f"    # output {spec}" for spec in graph.outputs]
    lines.append(f"    # batch axis: {graph.batch.status.value}: {graph.batch.reason}")
    lines += _shape_lines(graph, shapes) + _range_lines(graph, ranges)
    return "\n".join(lines) + "\n"


def _check_flags(graphs: dict[str, Graph], shapes: dict[str, str], ranges: dict[str, str]) -> None:
    """SpecError for flags that no model can use, before anything is written."""
    from tritongen.shapes import (
        MissingInputError,
        check_input_names,
        parse_range,
        parse_shape,
        resolve_inputs,
    )

    for text in shapes.values():
        parse_shape(text)
    for text in ranges.values():
        parse_range(text)
    names = [spec.name for graph in graphs.values() for spec in graph.inputs]
    check_input_names(shapes, names, "--shape")
    check_input_names(ranges, names, "--range")
    for graph in graphs.values():
        own = {spec.name for spec in graph.inputs}
        with contextlib.suppress(MissingInputError):
            resolve_inputs(
                graph,
                {name: text for name, text in shapes.items() if name in own},
                {name: text for name, text in ranges.items() if name in own},
            )


def _shape_lines(graph: Graph, given: dict[str, str]) -> list[str]:
    """`shapes:`; guesses stand behind '#', since sizes in the file overrule what data tell."""
    from tritongen.graph.proposals import is_guess, proposal_source, propose_shape
    from tritongen.shapes import known_sizes, lacks_sizes

    lines, guesses = [], []
    known = known_sizes(graph, given)
    for spec in graph.inputs:
        if spec.name in given:
            lines.append(f"      {_text(spec.name)}: {_text(given[spec.name])}")
        elif lacks_sizes(spec, graph, given):
            proposal = _text(propose_shape(spec, graph, known).rpartition("=")[2])
            source, entry = proposal_source(spec, graph), f"{_text(spec.name)}: {proposal}"
            if is_guess(spec, graph):
                guesses += [f"    #   # {source}; put in your sizes, or min..opt..max", f"    #   {entry}"]
            else:
                lines += [f"      # {source}; put in your sizes, or min..opt..max", f"      {entry}"]
    return _section("shapes", lines, guesses)


def _range_lines(graph: Graph, given: dict[str, str]) -> list[str]:
    """`ranges:`, guesses behind '#' as well, and what the graph tells."""
    from tritongen.graph.proposals import propose_range
    from tritongen.shapes import lacks_range

    lines, guesses, known = [], [], []
    for spec in graph.inputs:
        if spec.name in given:
            lines.append(f"      {_text(spec.name)}: {_text(given[spec.name])}")
        elif lacks_range(spec, graph):
            guesses.append(
                f"    #   {_text(spec.name)}: {propose_range(spec)}  # a guess: put in the valid values"
            )
        elif spec.name in graph.value_ranges:
            low, high = graph.value_ranges[spec.name]
            known.append(f"    # {spec.name}: {low}..{high}, as the graph tells")
    return known + _section("ranges", lines, guesses)


def _left_open(graph: Graph, shapes: dict[str, str], ranges: dict[str, str]) -> list[str]:
    """The inputs whose sizes or values are guesses: the spec leaves them to the user, or to data."""
    from tritongen.graph.proposals import is_guess
    from tritongen.shapes import lacks_range, lacks_sizes

    return [
        spec.name
        for spec in graph.inputs
        if (lacks_sizes(spec, graph, shapes) and is_guess(spec, graph))
        or (spec.name not in ranges and lacks_range(spec, graph))
    ]


def _section(key: str, lines: list[str], guesses: list[str]) -> list[str]:
    """A key with its lines; one that holds only guesses is behind '#' itself."""
    if not lines + guesses:
        return []
    return [f"    {key}:" if lines else f"    # {key}:", *lines, *guesses]


def _relative(path: Path, folder: Path) -> str:
    """The path as it counts from the spec's folder; absolute paths stay absolute."""
    return str(path) if path.is_absolute() else os.path.relpath(path, folder)


def _text(value: str) -> str:
    """A YAML scalar that is read back as the same text."""
    import yaml

    if re.fullmatch(r"[A-Za-z0-9_./-][A-Za-z0-9_./ -]*", value) and yaml.safe_load(value) == value:
        return value
    quoted: str = yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf"))
    return quoted.rstrip("\n")
