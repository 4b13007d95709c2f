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


def resnet() -> str:
    points = read("tensorrt_latency_resnet50.json")["results"][0]["points"]
    eager = {(r["precision"], r["batch"]): r["median_ms"] for r in read("torch_eager.json")["eager"]
             if r["model"] == "resnet50"}  # fmt: skip
    ours = {(p["cuda_graph"], p["transfers"], p["batch"]): p["median_ms"] for p in points}
    batches = (1, 8, 64)
    rows: list[list[object]] = [
        [f"PyTorch eager {name}", *(f"{eager[key, b]:.2f}" for b in batches)]
        for key, name in (("fp32", "FP32 (TF32 off)"), ("tf32", "TF32"), ("fp16", "FP16"))
    ]
    for (graph, transfers), name in (
        ((True, False), "INT8 explicit, CUDA graph"),
        ((False, False), "INT8 explicit, without CUDA graph"),
        ((True, True), "INT8 explicit, CUDA graph, copies to and from the GPU included"),
    ):
        rows.append([name, *(f"{ours[graph, transfers, b]:.3f}" for b in batches)])
    return table(("ResNet-50, 224², median ms", *(f"batch {b}" for b in batches)), rows)


def bert() -> str:
    eager = {(r["precision"], r["batch"]): r["median_ms"] for r in read("torch_eager.json")["eager"]
             if r["model"] == "bert-large"}  # fmt: skip
    rows = [
        [f"PyTorch eager {name}", *(f"{eager[key, b]:.2f}" for b in (1, 8, 64))]
        for key, name in (("fp32", "FP32 (TF32 off)"), ("tf32", "TF32"), ("fp16", "FP16"))
    ]
    return table(("BERT-Large, sequence 128, median ms", "batch 1", "batch 8", "batch 64"), rows)


def builds() -> str:
    rows = [
        (b["model"], b["variant"], b["seconds"], b["beside"]) for b in read("tensorrt_builds.json")["builds"]
    ]
    return table(("model", "candidate", "seconds", "beside it on the same GPU"), rows)


def ranges() -> str:
    text = []
    results = read("int8_ranges.json")["results"]
    for model in dict.fromkeys(row["model"] for row in results):
        rows = [row for row in results if row["model"] == model]
        keys = [key for key in rows[0] if key not in _LEFT_OUT]
        head = (f"{model} ({rows[0]['quantized']} nodes quantized)", *(key.replace("_", " ") for key in keys))
        text.append(table(head, [(row["method"], *(row[key] for key in keys)) for row in rows]))
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


_LEFT_OUT = ("model", "method", "quantized", "top_score", "text_share", "steps_with_text")

SECTIONS: dict[str, Callable[[], str]] = {
    "smoke": smoke, "resnet": resnet, "bert": bert, "builds": builds, "ranges": ranges, "mixed": mixed
}  # fmt: skip


def filled(page: str) -> str:
    """The page with every marked section made anew."""
    for name, make in SECTIONS.items():
        pattern = re.compile(rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
        page = pattern.sub(lambda match, make=make: f"{match[1]}{make()}\n{match[2]}", page)
    return page


if __name__ == "__main__":
    PAGE.write_text(filled(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
