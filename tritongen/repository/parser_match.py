"""Whether TensorRT's parser takes an ONNX file: asked before GPU time is spent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tritongen.errors import RequirementError
from tritongen.repository.findings import Finding, Severity

if TYPE_CHECKING:
    from tritongen.engines.tensorrt.report import ParserReport


def check_parser(
    name: str, model: Path, severity: Severity = "error", plugins: Sequence[Path] = ()
) -> Iterator[Finding]:
    """A finding of `severity` for each node that is refused; `unknown` if TensorRT itself was not asked."""
    from tritongen.engines.tensorrt.report import check_graph

    try:
        report = check_graph(model, plugins)
    except RequirementError as error:
        yield unasked(name, model, error)
        return
    yield from refusals(name, report, severity)
    if report.caveat:
        yield Finding(
            name, "parser", f"{report.parser} takes {model.name}, and TensorRT's own parser was not asked",
            report.caveat, "verify it on a machine with TensorRT and a GPU to know", "unknown",
        )  # fmt: skip


def unasked(name: str, model: Path, error: RequirementError) -> Finding:
    """No parser works here."""
    return Finding(
        name, "parser", f"{error.message}: {error.found}", f"whether TensorRT takes {model.name} is unknown",
        error.fix or "", "unknown",
    )  # fmt: skip


def refusals(name: str, report: ParserReport, severity: Severity = "error") -> Iterator[Finding]:
    """A finding for each node that a parser refused."""
    for problem in report.problems:
        yield Finding(
            name, "parser", f"{report.parser} refuses {problem}",
            "`tritongen build --engine tensorrt` would fail on it"
            if severity == "error"
            else "TensorRT leaves this node to another execution provider",
            "give the operator as a plugin (--plugin lib.so), or use --engine onnxruntime", severity,
        )  # fmt: skip


def uses_tensorrt(config: object) -> bool:
    """Whether a parsed config.pbtxt lets ONNX Runtime give the graph to TensorRT."""
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator  # type: ignore[attr-defined]
    return any(one.name == "tensorrt" for one in accelerators)
