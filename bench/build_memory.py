"""Peak memory of a build: under 3 × the model's size + 1 GB in every process of it.

    python bench/build_memory.py [--megabytes 400] [--folder DIR]

Makes a model of that size with external data (matrix products in a row), with calibration and validation
data in .npy files, builds FP32 and INT8, and reads the peak resident memory (VmHWM) of the parent and of each
child process. Exit code 0 if all stay under the limit, 1 if not.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

WIDTH = 2048
SAMPLES = 64
MEGABYTE = 1 << 20


def make_model(path: Path, megabytes: int) -> None:
    """x [batch, 2048] → y [batch, 2048] through layers of 16 MB each, weights in one file beside it."""
    layers = max(1, megabytes * MEGABYTE // (WIDTH * WIDTH * 4))
    data = path.with_suffix(".data")
    random = np.random.default_rng(0)
    nodes, weights, source = [], [], "x"
    with data.open("wb") as stream:
        for i in range(layers):
            target = "y" if i == layers - 1 else f"h{i}"
            values = random.standard_normal((WIDTH, WIDTH), dtype=np.float32) / np.float32(np.sqrt(WIDTH))
            tensor = TensorProto(name=f"w{i}", data_type=TensorProto.FLOAT, dims=[WIDTH, WIDTH])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", stream.tell()), ("length", values.nbytes)):
                tensor.external_data.add(key=key, value=str(value))
            stream.write(values.tobytes())
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [source, f"w{i}"], [f"m{i}"]))
            nodes.append(helper.make_node("Tanh", [f"m{i}"], [target]))
            source = target
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", WIDTH]) for name in "xy"]
    graph = helper.make_graph(nodes, "wide", tensors[:1], tensors[1:], weights)
    opset = [helper.make_opsetid("", 17)]
    path.write_bytes(helper.make_model(graph, opset_imports=opset, ir_version=8).SerializeToString())
    onnx.checker.check_model(str(path))


def peaks_of(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """VmHWM by stage, watched until the process ends."""
    found: dict[str, int] = {}
    while process.poll() is None:
        for pid in [process.pid, *_children(process.pid)]:
            name, peak = _peak(pid)
            found[name] = max(found.get(name, 0), peak)
        time.sleep(0.05)
    return found


def _children(parent: int) -> list[int]:
    try:
        return [int(pid) for pid in Path(f"/proc/{parent}/task/{parent}/children").read_text().split()]
    except OSError:
        return []


def _peak(pid: int) -> tuple[str, int]:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "gone", 0
    jobs = [Path(word.decode()).parent.name for word in words if word.endswith(b"job.json")]
    lines = [line for line in status.splitlines() if line.startswith("VmHWM:")]
    return (jobs[0] if jobs else "parent"), int(lines[0].split()[1]) * 1024 if lines else 0


def run(folder: Path, megabytes: int) -> int:
    """Make, build, watch, report."""
    model = folder / "wide.onnx"
    make_model(model, megabytes)
    random = np.random.default_rng(1)
    for name in ("calibration", "validation"):
        np.save(folder / f"{name}.npy", random.standard_normal((SAMPLES, WIDTH), dtype=np.float32))
    size = sum(path.stat().st_size for path in (model, model.with_suffix(".data")))
    limit = 3 * size + (1 << 30)
    command = [sys.executable, "-m", "tritongen", "build", model.name, "--effort", "quick", "--json"]
    command += ["--calibration-data", "calibration.npy", "--validation-data", "validation.npy"]
    process = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    output: list[bytes] = []
    reader = threading.Thread(target=lambda: output.append(process.stdout.read() if process.stdout else b""))
    reader.start()
    peaks = peaks_of(process)
    reader.join()
    for trial in json.loads(output[0])["models"][0]["trials"]:
        peaks[trial["candidate"]["id"]] = max(
            peaks.get(trial["candidate"]["id"], 0), trial["peak_memory_bytes"] or 0
        )
        print(f"{trial['candidate']['id']:<30} {trial['outcome']:<9} {trial['reason'][:100]}")
    print(f"model {size / MEGABYTE:,.0f} MB, limit 3 x that + 1 GB = {limit / MEGABYTE:,.0f} MB")
    for name, peak in sorted(peaks.items()):
        if peak:
            print(f"{name:<30} {peak / MEGABYTE:>8,.0f} MB  {'ok' if peak <= limit else 'TOO MUCH'}")
    return 0 if process.returncode == 0 and max(peaks.values()) <= limit else 1


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--megabytes", type=int, default=400)
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    if arguments.folder is not None:
        return run(arguments.folder, arguments.megabytes)
    with tempfile.TemporaryDirectory() as folder:
        return run(Path(folder), arguments.megabytes)


if __name__ == "__main__":
    sys.exit(main())
