"""Is the graph valid ONNX? The checker's verdict, in words that name the node and the remedy."""

from __future__ import annotations

import difflib
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto

from tritongen.errors import ModelError
from tritongen.graph.onnx_file import elements, walk_nodes, walk_tensors

STANDARD_DOMAINS = ("", "ai.onnx.ml", "ai.onnx.preview.training")
"""Domains whose operators the onnx package knows; all others are for the engines to judge."""

_REMOVED = frozenset(
    ("ATen", "Affine", "ConstantFill", "Crop", "DynamicSlice", "GRUUnit", "GivenTensorFill", "ImageScaler",
     "ParametricSoftplus", "Scale", "ScaledTanh")
)  # fmt: skip
"""Experimental operators that onnx dropped and ONNX Runtime still runs."""

_SKELETON_ELEMENTS = 1024
"""Larger tensors are never read as shapes or axes, so their values can be left out of the check."""


def check_valid(model: ModelProto, path: Path) -> None:
    """ModelError if the model is not valid ONNX; empties large tensors in `model`, a throw-away copy."""
    local = {(function.domain, function.name) for function in model.functions}
    for node, opsets in walk_nodes(model):
        if (node.domain, node.op_type) not in local:
            _check_operator(node, opsets, path)
    _check_outputs(model.graph, path)
    _tolerate_what_engines_tolerate(model)
    _hide_dropped_values(model)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise _explain(str(error), model.graph, path) from error


def _check_outputs(graph: GraphProto, path: Path) -> None:
    """ModelError for an output that nothing makes, which older checkers let pass."""
    made = {name for node in graph.node for name in node.output}
    made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    made |= {tensor.values.name for tensor in graph.sparse_initializer}
    for value in graph.output:
        if value.name not in made:
            raise ModelError(
                f"{path}: output '{value.name}' is made by no node",
                expected="the output of a node, an input or an initializer",
                fix="export the model again",
            )


def _check_operator(node: NodeProto, opsets: dict[str, int], path: Path) -> None:
    domain = "" if node.domain == "ai.onnx" else node.domain
    version = opsets.get(domain)
    if domain not in STANDARD_DOMAINS or version is None or node.op_type in _REMOVED:
        return
    if not onnx.defs.has(node.op_type, version, domain):
        raise _unknown_operator(node, domain, version, path)
    if onnx.defs.get_schema(node.op_type, version, domain).deprecated:
        raise ModelError(
            f"{path}: operator '{node.op_type}' (node '{node_name(node)}') is no longer in ONNX",
            found=f"{node.op_type} in a model of opset {version}",
            fix="export the model again, or convert it with onnx.version_converter",
        )


def _unknown_operator(node: NodeProto, domain: str, version: int, path: Path) -> ModelError:
    shown = f"{domain}:{node.op_type}" if domain else node.op_type
    if onnx.defs.has(node.op_type, domain):
        since = min(
            schema.since_version
            for schema in onnx.defs.get_all_schemas_with_history()
            if schema.name == node.op_type and schema.domain == domain
        )
        return ModelError(
            f"{path}: operator '{shown}' (node '{node_name(node)}') is newer than the model's opset",
            found=f"{shown} in a model of opset {version}",
            expected=f"opset {since} or later",
            fix=f"export the model with opset {since}, or without this operator",
        )
    known = {schema.name for schema in onnx.defs.get_all_schemas() if schema.domain == domain}
    near = difflib.get_close_matches(node.op_type, known, n=3)
    return ModelError(
        f"{path}: unknown operator '{shown}' (node '{node_name(node)}')",
        found=f"{shown} in opset {version}",
        expected=f"an ONNX operator, such as {', '.join(near)}" if near else "an ONNX operator",
        fix="export the model without it, or under the domain of the library that implements it",
    )


def node_name(node: NodeProto) -> str:
    """The node's name, or what tells it apart where it has none."""
    return node.name or f"unnamed, makes '{next(iter(node.output), '')}'"


def _tolerate_what_engines_tolerate(model: ModelProto) -> None:
    """Mend in the copy what the checker refuses and every engine accepts: undeclared com.microsoft."""
    declared = {entry.domain for entry in model.opset_import}
    used = {node.domain for node in model.graph.node}
    if "com.microsoft" in used - declared:
        model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def drop_large_values(model: ModelProto) -> None:
    """Drop the values of large tensors, so that checks and shape inference copy only what they look at."""
    for tensor in walk_tensors(model, sparse=False):
        if elements(tensor) > _SKELETON_ELEMENTS:
            name, kind, dims = tensor.name, tensor.data_type, list(tensor.dims)
            tensor.Clear()
            tensor.name, tensor.data_type, tensor.data_location = name, kind, TensorProto.EXTERNAL
            tensor.dims.extend(dims)


def _hide_dropped_values(model: ModelProto) -> None:
    """Give external tensors no elements: the checker refuses files that are links, and we have looked."""
    for tensor in walk_tensors(model, sparse=False):
        if tensor.data_location == TensorProto.EXTERNAL:
            name, kind = tensor.name, tensor.data_type
            tensor.Clear()
            tensor.name, tensor.data_type = name, kind
            tensor.dims.append(0)


def _explain(message: str, graph: GraphProto, path: Path) -> ModelError:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if "topologically sorted" in message:
        return _explain_order(graph, path, " ".join(lines))
    if "higher than the checker" in message:
        return ModelError(
            f"{path} is written in a newer ONNX format than this machine's onnx package reads",
            found=lines[0],
            fix="upgrade onnx (pip install -U onnx), or export with a lower ir_version",
        )
    return ModelError(
        f"{path} is not valid ONNX",
        found=" ".join(lines).replace("==> Context:", "in"),
        fix="export the model again; onnx.checker.check_model shows the same",
    )


def _explain_order(graph: GraphProto, path: Path, message: str) -> ModelError:
    made = {output: index for index, node in enumerate(graph.node) for output in node.output if output}
    given = {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        for name in node.input:
            if name and name not in made and name not in given:
                return ModelError(
                    f"{path}: node '{node_name(node)}' reads '{name}', which nothing makes",
                    found=f"{node.op_type}({', '.join(node.input)})",
                    expected="the name of an input, an initializer or another node's output",
                    fix="export the model again",
                )
    needs = {i: [made[name] for name in node.input if name in made] for i, node in enumerate(graph.node)}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        names = [node_name(graph.node[index]) for index in error.args[1]]
        return ModelError(
            f"{path}: the graph runs in a circle",
            found=" → ".join(reversed(names)),
            expected="a graph without cycles",
            fix="export the model again; loops are written with the Loop and Scan operators",
        )
    return ModelError(
        f"{path}: the nodes are not in the order in which they run",
        found=message,
        fix="sort them topologically (for example with onnx-graphsurgeon's Graph.toposort)",
    )
