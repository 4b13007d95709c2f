"""The tables of docs/tensorrt.md, from bench/results/: between markers, replaced in place.

python bench/tensorrt_tables.py
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGE = ROOT / "docs" / "tensorrt.md"


def read(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    heads = list(head)
    lines = [heads, ["---"] * len(heads), *([str(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def smoke() -> str:
    found = read("tensorrt_smoke.json")
    rows = [(test["shows"], "yes", "`" + test["test"] + "`") for test in found["tests"]]
    fp16 = next(row for row in found["results"] if row["variant"] == "fp16")
    rows.insert(2, ("FP16", "yes", f"smoke bench: {fp16['words']}; relative L2 {fp16['relative_l2']}"))
    return table(("candidate", "builds and runs", "shown by"), rows)


BATCHES = (1, 8, 64)
EAGER = (
    ("fp32", "PyTorch eager FP32 (TF32 off)"),
    ("tf32", "PyTorch eager TF32"),
    ("fp16", "PyTorch eager FP16"),
)
PLANS = {
    "fp32": "FP32, TF32 off",
    "tf32": "TF32",
    "fp16": "FP16",
    "int8-implicit": "INT8 implicit (ranges)",
    "int8-residual": "INT8 explicit (Q/DQ, our placement)",
    "int8-shared": "INT8 explicit (Q/DQ, shared ranges)",
    "int8-residual-no-jit": "INT8 explicit, without JIT_CONVOLUTIONS",
}
NAMES = {"resnet50": "ResNet-50, 224²", "yolov8n": "YOLOv8n, 320²", "bert-large": "BERT-Large, sequence 128"}


def latency(model: str, file: str) -> str:
    """Median ms of PyTorch and of each plan, with and without CUDA graph, and with copies; ratios at 64."""
    plans = {row["variant"]: row for row in results(file)}
    base = medians(plans["fp32"], graph=True)[64] if "fp32" in plans else None
    rows: list[list[object]] = []
    eager = {
        (r["precision"], r["batch"]): r["median_ms"]
        for found in map(read, names("torch_eager*.json"))
        if found["machine"]["gpu"] == gpu(file)
        for r in found["eager"]
        if r["model"] == model
    }
    if eager:
        rows += [
            [name, *(f"{eager[key, b]:.2f}" for b in BATCHES), ratio(base, eager[key, 64])]
            for key, name in EAGER
        ]
    for name, words in PLANS.items():
        for graph, transfers, how in (
            (True, False, ""), (False, False, ", without CUDA graph"), (True, True, ", with copies")
        ):  # fmt: skip
            if name in plans:
                found = medians(plans[name], graph=graph, transfers=transfers)
                rows.append([words + how, *(f"{found[b]:.3f}" for b in BATCHES), ratio(base, found[64])])
    head = f"{NAMES[model]}, {short(gpu(file))}, median ms"
    return table((head, *(f"batch {b}" for b in BATCHES), "× FP32 plan at 64"), rows)


def results(file: str) -> list[dict[str, Any]]:
    """The rows of a results file; none if that bench has not been run."""
    return list(read(file)["results"]) if (RESULTS / file).exists() else []


def names(pattern: str) -> list[str]:
    """The results files of that pattern."""
    return sorted(file.name for file in RESULTS.glob(pattern))


def gpu(file: str) -> str:
    return str(read(file)["machine"]["gpu"])


def short(name: str) -> str:
    """ "NVIDIA H100 80GB HBM3" → "H100"."""
    return name.removeprefix("NVIDIA ").split()[0]


def medians(row: dict[str, Any], *, graph: bool, transfers: bool = False) -> dict[int, float]:
    """Median ms by batch size under one way of running."""
    return {
        p["batch"]: p["median_ms"]
        for p in row["points"]
        if p["cuda_graph"] == graph and p.get("transfers", False) == transfers
    }


def ratio(base: float | None, found: float) -> str:
    return f"{base / found:.2f}" if base else ""


def layers() -> str:
    """Where the time of each plan goes at batch 64."""
    rows = []
    for file in LATENCY.values():
        for row in results(file):
            found = row["layers_at_64"]
            kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in sorted(found["ms_by_precision"].items()))
            where = f"{row['variant']}, {short(gpu(file))}"
            rows.append((row["model"], where, found["layers"], found["reformats"], kinds))
    return table(("model", "plan", "layers", "of them reformats", "ms at batch 64, layer by layer"), rows)


LATENCY = {
    "resnet50": "tensorrt_latency_resnet50.json",
    "yolov8n": "tensorrt_latency_yolov8n.json",
    "bert-large": "tensorrt_latency_bert.json",
}


def builds() -> str:
    rows = [
        (short(gpu(file)), b["model"], b["variant"], b["seconds"], b["beside"])
        for file in names("tensorrt_builds*.json")
        for b in read(file)["builds"]
    ]
    return table(("GPU", "model", "candidate", "seconds", "timing cache before; what else ran"), rows)


def profiles() -> str:
    """Profiles, CUDA graphs and tuning axes of ResNet-50 FP16, a table for each GPU."""
    return "\n\n".join(map(profiles_of, names("tensorrt_profiles*.json")))


def profiles_of(file: str) -> str:
    rows = [
        [PROFILE_NAMES[row["variant"]] + ("" if graph else ", without CUDA graph"), row["build_seconds"],
         *(f"{medians(row, graph=graph)[b]:.3f}" for b in BATCHES)]
        for row in results(file)
        for graph in (True, False)
    ]  # fmt: skip
    head = f"ResNet-50 FP16, {short(gpu(file))}, median ms"
    return table((head, "built in s", *(f"batch {b}" for b in BATCHES)), rows)


PROFILE_NAMES = {
    "wide-cold": "one profile 1 … 64",
    "wide-cached": "one profile 1 … 64, built again with the timing cache",
    "own-profiles": "profiles for 1, 8 and 64",
    "two-profiles": "profiles for 1 and 64",
    "level-1": "optimization level 1",
    "level-2": "optimization level 2",
    "level-4": "optimization level 4",
    "timing-x8": "eight timing iterations",
    "jit-only": "only JIT_CONVOLUTIONS",
    "no-aux-streams": "no auxiliary streams",
    "sparsity": "sparse weights allowed",
}


def contexts() -> str:
    """k contexts at once, copies included."""
    rows = [
        (f"{short(gpu(file))}, {PROFILE_NAMES[row['variant']]}", p["contexts"], p["batch"],
         f"{p['median_ms']:.3f}", f"{p['p99_ms']:.3f}", f"{p['per_second']:,.0f}",
         # Of several, each counts what the others take meanwhile.
         f"{p['device_bytes'] / 2**20:.0f}" if p["contexts"] == 1 else "")
        for file in names("tensorrt_profiles*.json")
        for row in results(file)
        for p in row["contexts"]
    ]  # fmt: skip
    head = ("plan", "at once", "batch", "median ms", "P99 ms", "inferences/s", "MiB of GPU memory")
    return table(head, rows)


def serving() -> str:
    """The bare engine beside what the embedded server answers, and where a request's time goes."""
    rows: list[tuple[str, ...]] = []
    for file in names("tensorrt_serving_*.json"):
        found = read(file)
        who = f"{found['model']} {found['variant']}, {short(gpu(file))}"
        rows += [
            (who, f"bare engine, batch {p['batch_size']}", f"{p['throughput']:,.0f}", f"{p['median_ms']:.2f}",
             f"{p['p99_ms']:.2f}", "", "")
            for p in found["bare_engine"] if p["instances"] == 1
        ]  # fmt: skip
        slo = [found["slo"]] if "slo" in found else []
        rows += [(who, *served(run)) for run in (*found.get("closed_loop", []), *slo) if "waterfall" in run]
    head = (
        *("model", "load", "inferences/s", "median ms", "P99 ms", "mean batch"),
        "mean ms: network + queue + input + compute + output",
    )
    return table(head, rows)


def served(run: dict[str, Any]) -> tuple[str, ...]:
    """One load test's cells."""
    load, times = run["load"], run["response_ms"]["percentiles"]
    how = f"{load['concurrency']} in flight × {load['batch_size']}"
    if load["rate"]:
        how = f"{load['rate']:g} requests/s (promise {run['objectives'][0]['slo']}: {run['outcome']})"
    return (
        how,
        f"{run['inferences_per_s']:,.0f}",
        f"{times['p50']:.2f}",
        f"{times['p99']:.2f}",
        f"{run['server_figures']['mean_batch']:.1f}",
        " + ".join(f"{run['waterfall'][part]:.2f}" for part in PARTS),
    )


PARTS = ("network_ms", "queue_ms", "compute_input_ms", "compute_infer_ms", "compute_output_ms")


def ranges() -> str:
    """Every range method on both placements; `shared` is s8-shared's."""
    shared = (
        {**row, "method": f"{row['method']}, shared"} for row in read("int8_ranges_shared.json")["results"]
    )
    found = [*read("int8_ranges.json")["results"], *shared]
    return by_model(found, "method", lambda row: f"{row['model']} ({row['quantized']} nodes quantized)")


def accuracy() -> str:
    """The same by plans."""
    if not (RESULTS / "tensorrt_accuracy.json").exists():
        return "**Not measured.**"
    found = results("tensorrt_accuracy.json")
    return by_model(found, "variant", lambda row: f"{row['model']} ({row['pictures']} pictures)")


def by_model(found: list[dict[str, Any]], first: str, head: Callable[[dict[str, Any]], str]) -> str:
    """One table for each model: `first`, then every figure that its rows have."""
    text = []
    for model in dict.fromkeys(row["model"] for row in found):
        rows = [row for row in found if row["model"] == model]
        keys = [key for key in rows[0] if key not in _LEFT_OUT]
        names = (head(rows[0]), *(key.replace("_", " ") for key in keys))
        text.append(table(names, [(row[first], *(row[key] for key in keys)) for row in rows]))
    return "\n\n".join(text)


def mixed() -> str:
    rows = []
    for row in read("int8_mixed.json")["results"]:
        points = ", ".join(f"{p['held']}: {100 * p['relative_l2']:.1f} %" for p in row["points"])
        share = f"{100 * row['int8_share_of_weights']:.0f} %"
        held = next(p["held"] for p in row["points"] if p["passed"])
        rows.append((row["model"], row["blocks"], held, share, points))
    head = ("model", "blocks", "held in FP16", "weights in INT8", "blocks held: relative L2")
    return table(head, rows)


_LEFT_OUT = (
    "model", "method", "quantized", "top_score", "text_share", "steps_with_text", "variant", "pictures",
)  # fmt: skip

SECTIONS: dict[str, Callable[[], str]] = {
    "smoke": smoke,
    "resnet": lambda: latency("resnet50", LATENCY["resnet50"]),
    "yolo": lambda: latency("yolov8n", LATENCY["yolov8n"]),
    "bert": lambda: latency("bert-large", LATENCY["bert-large"]),
    "layers": layers,
    "profiles": profiles,
    "contexts": contexts,
    "serving": serving,
    "builds": builds,
    "ranges": ranges,
    "accuracy": accuracy,
    "mixed": mixed,
}


def filled(page: str) -> str:
    """The page with every marked section made anew."""
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        text = make().replace("\\", r"\\")
        page = pattern.sub(rf"\g<1>{text}\n\g<2>", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
