"""What the embedded server's TensorRT backend costs the host: a served batch on a "GPU" that takes no time.

    python bench/tensorrt_backend.py [--backend OTHER/model.py] [--out OUT.json]

A real tritonserver, and the stand-ins of tests/standin with STANDIN_IDLE: CUDA and TensorRT do nothing at
all, so "compute" is the Python stub, its messages, and the one copy from Triton's shared memory into pinned
memory. Each round sends requests that make one batch together; times are means from Triton's own
statistics, and what the stub's process spent on a batch, which other work on the machine moves less.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.standin.plans import FOLDER, plan_bytes
from tritongen.engines.tensorrt.profiles import Extent
from tritongen.serving import scratch
from tritongen.serving.embedded import EmbeddedServer

ITEM = (3, 224, 224)
OUTPUTS = 1000
LARGEST = 64
CASES = ((1, 1), (16, 1), (1, 16), (64, 1), (1, 64))
"""(requests, items in each) of one batch."""
CONFIG = """\
name: "m"
backend: "tensorrt"
max_batch_size: %d
input { name: "x" data_type: TYPE_FP32 dims: [ %s ] }
output { name: "y" data_type: TYPE_FP32 dims: [ %d ] }
instance_group { count: 1 kind: KIND_CPU }
dynamic_batching { preferred_batch_size: [ %s ] max_queue_delay_microseconds: 5000000 }
optimization { cuda { graphs: true %s } }
"""


def repository(folder: Path, batch: int) -> Path:
    """One model, whose plan is tuned for and waits for exactly `batch` items."""
    take = numpy_helper.from_array(np.arange(OUTPUTS, dtype=np.int64) % 224, "i")
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["r"], axes=[1, 2], keepdims=0),
        helper.make_node("Gather", ["r", "i"], ["y"], axis=1),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", *ITEM])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", OUTPUTS])]
    graph = helper.make_graph(nodes, "m", inputs, outputs, [take])
    made = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 13)])
    onnx.save(made, folder / "m.onnx")
    dims = ", ".join(map(str, ITEM))
    spec = f'graph_spec {{ batch_size: {batch} input {{ key: "x" value {{ dim: [ {dims} ] }} }} }}'
    version = folder / "repository" / "m" / "1"
    version.mkdir(parents=True)
    profile = {"x": Extent((1, *ITEM), (batch, *ITEM), (LARGEST, *ITEM))}
    (version / "model.plan").write_bytes(plan_bytes(folder / "m.onnx", [profile]))
    (version.parent / "config.pbtxt").write_text(CONFIG % (LARGEST, dims, OUTPUTS, batch, spec))
    return folder / "repository"


def backends(folder: Path, other: Path | None) -> Path:
    """tritongen's backends, that of TensorRT taking a CPU for a GPU: Triton has no KIND_GPU without one."""
    shutil.copytree(scratch.BACKENDS, folder)
    model = folder / "tensorrt" / "model.py"
    source = (other or model).read_text(encoding="utf-8")
    model.write_text(source.replace('!= "GPU"', '!= "CPU"'), encoding="utf-8")
    return folder


def measured(server: EmbeddedServer, requests: int, items: int, rounds: int) -> dict[str, Any]:
    """Means over `rounds` batches of `requests` × `items`."""
    from tritonclient.grpc import InferenceServerClient, InferInput

    client = InferenceServerClient(server.grpc_url.removeprefix("grpc://"))
    tensor = InferInput("x", [items, *ITEM], "FP32")
    tensor.set_data_from_numpy(np.ones((items, *ITEM), np.float32))

    def batch() -> None:
        answers: list[Future[Any]] = [Future() for _ in range(requests)]
        for answer in answers:
            client.async_infer("m", [tensor], lambda result, error, to=answer: to.set_result(error or result))
        for answer in answers:
            answer.result(60).as_numpy("y")

    def statistics() -> dict[str, Any]:
        (found,) = client.get_inference_statistics("m", as_json=True)["model_stats"]
        return found

    for _ in range(10):
        batch()
    before, (cpu, faults) = statistics(), spent(stub())
    for _ in range(rounds):
        batch()
    after, (cpu_after, faults_after) = statistics(), spent(stub())
    executions = int(after["execution_count"]) - int(before["execution_count"])
    client.close()
    stages = {}
    for stage in ("compute_input", "compute_infer", "compute_output"):
        ns, count = (
            int(after["inference_stats"][stage][key]) - int(before["inference_stats"][stage].get(key, 0))
            for key in ("ns", "count")
        )
        stages[f"{stage}_ms"] = round(ns / count / 1e6, 3)
    return {
        "requests": requests,
        "items": items,
        "batches": executions,
        **stages,
        "stub_cpu_ms": round((cpu_after - cpu) / executions, 2),
        "stub_page_faults": (faults_after - faults) // executions,
    }


def stub() -> int:
    """The process id of the Python stub that a child of ours started."""
    parents = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            name, _, rest = entry.read_text().partition("(")[2].rpartition(")")
        except OSError:  # it ended meanwhile
            continue
        parents[int(entry.parent.name)] = (name, int(rest.split()[1]))
    for pid, (name, _) in parents.items():
        above = pid
        while name.startswith("triton_python") and above in parents:
            above = parents[above][1]
            if above == os.getpid():
                return pid
    raise SystemExit("no Python stub was found")


def spent(pid: int) -> tuple[float, int]:
    """(CPU time in ms, page faults) of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    ticks = int(fields[11]) + int(fields[12])
    return 1000 * ticks / os.sysconf("SC_CLK_TCK"), int(fields[7])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--backend", type=Path, help="another model.py, to compare with")
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    os.environ["STANDIN_IDLE"] = "1"
    sys.path.insert(0, str(FOLDER))  # the server's stub looks where we do, after PYTHONPATH
    above = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(FOLDER), *([above] if above else [])])
    results = []
    with tempfile.TemporaryDirectory() as folder:
        scratch.BACKENDS = backends(Path(folder, "backends"), args.backend)
        for requests, items in CASES:
            place = Path(folder, f"{requests}x{items}")
            place.mkdir()
            with EmbeddedServer(repository(place, requests * items)) as server:
                results.append(measured(server, requests, items, args.rounds))
            print(results[-1], flush=True)
    if args.out:
        record = {"command": " ".join(["python", *sys.argv]), "cores": os.cpu_count(), "results": results}
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
