"""The names of TensorRT that the code uses, held against what was found in NVIDIA's bindings (no GPU needed).

`bench/tensorrt_api.py` asks each version for the names in its list. Here that list is held against the code,
and the features that the code finds by the list against those that it found in the bindings themselves.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import tritongen
from bench.tensorrt_api import ALWAYS, SINCE, VERSIONS, missing, offered
from tritongen.engines.tensorrt import api

PACKAGE = Path(tritongen.__file__).parent
RESULTS: dict[str, Any] = json.loads(
    (PACKAGE.parent / "bench" / "results" / "tensorrt_api.json").read_text(encoding="utf-8")
)["results"]
OBJECTS = {
    "config": "IBuilderConfig", "builder": "Builder", "network": "INetworkDefinition", "parser": "OnnxParser",
    "engine": "ICudaEngine", "context": "IExecutionContext", "inspector": "EngineInspector",
    "tensor": "ITensor",
}  # fmt: skip
"""What objects of TensorRT's are called in the code."""
RTX_ALONE = {
    "ComputeCapability", "IBuilderConfig.set_compute_capability", "IBuilderConfig.num_compute_capabilities",
}  # fmt: skip


def chain(node: ast.expr) -> tuple[str, ...]:
    """`trt.BuilderFlag.TF32` as ("trt", "BuilderFlag", "TF32"), also by getattr; empty for anything else."""
    if isinstance(node, ast.Name):
        return (node.id,)
    if isinstance(node, ast.Attribute):
        inner = chain(node.value)
        return (*inner, node.attr) if inner else ()
    if isinstance(node, ast.Call) and chain(node.func) in {("hasattr",), ("getattr",)}:
        inner, name = chain(node.args[0]), node.args[1]
        return (*inner, str(name.value)) if inner and isinstance(name, ast.Constant) else ()
    return ()


def aliases(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(name, what of TensorRT it stands for), as in `flags = trt.BuilderFlag`."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Assign):
            continue
        target, value = node.targets[0], node.value
        several = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
        pairs = zip(target.elts, value.elts, strict=True) if several else [(target, value)]  # type: ignore[attr-defined]
        for one, other in pairs:
            found = chain(other) if isinstance(other, ast.Attribute) else ()
            if isinstance(one, ast.Name) and found[:1] == ("trt",):
                yield one.id, ".".join(found[1:])


def names_used(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    known = {"trt": "", "tensorrt": "", **OBJECTS, **dict(aliases(tree))}
    for node in ast.walk(tree):
        found = chain(node) if isinstance(node, (ast.Attribute, ast.Call)) else ()
        if len(found) > 1 and found[0] in known and "__" not in found[-1]:
            yield ".".join(filter(None, (known[found[0]], *found[1:])))


def test_each_name_in_the_code_is_one_that_the_bindings_were_asked_for() -> None:
    used = {name for path in (PACKAGE / "engines" / "tensorrt").glob("*.py") for name in names_used(path)}
    assert {"BuilderFlag.FP16", "DataType.FP8", "IBuilderConfig.set_flag", "ILogger.Severity.VERBOSE"} <= used
    asked = {*ALWAYS.split(), *SINCE}
    parts = {".".join(name.split(".")[:depth]) for name in asked for depth in (1, 2, 3)}
    assert sorted(used - parts - RTX_ALONE) == []
    types = {
        f"DataType.{name}" for name in ("FLOAT", "HALF", "BF16", "INT8", "INT32", "INT64", "UINT8", "BOOL")
    }
    assert types <= asked


def surface(version: str) -> Any:
    """A module with the names that the version was found to have."""
    root = SimpleNamespace(__version__=version)
    for name in sorted(offered(version)):
        place = root
        for part in name.split("."):
            if not hasattr(place, part):
                setattr(place, part, SimpleNamespace())
            place = getattr(place, part)
    return root


@pytest.mark.parametrize("version", ["8.6.0", *VERSIONS])
def test_versions_are_told_apart_by_names_that_were_seen(version: str) -> None:
    assert RESULTS[version]["problems"] == []
    module = surface(version)
    assert missing(module) == []
    found = vars(api.features(module))
    assert {**found, "tactic_sources": list(found["tactic_sources"])} == RESULTS[version]["features"]


def test_the_generations_differ_in_what_decides_how_a_plan_is_built() -> None:
    def kinds(version: str) -> tuple[bool, ...]:
        has = api.features(surface(version))
        return has.weakly_typed, has.strongly_typed, has.implicit_int8, has.build_routes

    assert kinds("8.6.0") == (True, False, True, False)
    assert kinds("10.8.0.43") == (True, True, True, False)
    assert kinds("11.4.0.106") == (False, True, False, True)
