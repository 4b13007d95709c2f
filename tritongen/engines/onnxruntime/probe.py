"""Whether ONNX Runtime really starts an execution provider on this machine, and what it lacks if not."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from tritongen.engines.onnxruntime import providers
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner, explanation
from tritongen.errors import TritongenError
from tritongen.spec import Precision

_TIMEOUT_S = 120.0
_MAIN = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from tritongen.engines.onnxruntime.probe import error_at_start
sys.exit(error_at_start(sys.argv[2]))
"""
_MISSING = re.compile(r"(lib[^\s/:]+\.so[.\d]*): cannot open shared object file")


@functools.cache
def start_failure(provider: str) -> str | None:
    """None if a session starts on `provider`, otherwise what is missing and what brings it.

    Asked in a process of its own, since this one would keep the GPU's memory.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", _MAIN, json.dumps(sys.path), provider],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        name = providers.NAMES[provider]
        return f"{name} did not start in {_TIMEOUT_S:.0f} s; nvidia-smi tells the GPU's state"
    return None if done.returncode == 0 else explained_failure(provider, done.stderr)


def explained_failure(provider: str, log: str) -> str:
    """What a start that failed lacked, from ONNX Runtime's log, whose last line is the error raised."""
    import onnxruntime

    lead = f"ONNX Runtime {onnxruntime.__version__} cannot start {providers.NAMES[provider]}"
    if missing := _MISSING.search(log):
        return f"{lead}: {missing[1]} is not found; {_what_brings(missing[1])}"
    words = log.strip().splitlines() or ["it crashed"]
    return f"{lead}: {words[-1]}; nvidia-smi tells whether there is a GPU"


def error_at_start(provider: str) -> str | None:
    """Open a session on `provider` in this process; None, or the error in one line."""
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model.onnx")
        model.write_bytes(_model())
        chain = providers.session_providers(provider, Precision.FP32)
        try:
            with OnnxRuntimeRunner(model, providers=chain):
                return None
        except TritongenError as error:
            return explanation(Exception(error.found or error.message))


def _model() -> bytes:
    """Text in, text out: no GPU provider takes the node, so TensorRT has nothing to build meanwhile."""
    from onnx import TensorProto, helper

    x, y = (helper.make_tensor_value_info(name, TensorProto.STRING, [1]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "probe", [x], [y])
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    return bytes(model.SerializeToString())


def _what_brings(library: str) -> str:
    if library.startswith("libcuda.so"):
        return "NVIDIA's driver brings it (nvidia-smi tells whether it is there)"
    if library.startswith("libnv"):
        release = library.rpartition(".so.")[2].partition(".")[0]
        return (
            f"install TensorRT {release or ''}".rstrip()
            + " and name the folder of its libraries in LD_LIBRARY_PATH, or use the provider cuda"
        )
    return "`pip install 'onnxruntime-gpu[cuda,cudnn]'` brings it, or name its folder in LD_LIBRARY_PATH"
