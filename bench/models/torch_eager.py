"""ResNet-50 and BERT-Large in PyTorch, eager: what TensorRT is compared with (any Python with PyTorch).

python3 bench/models/torch_eager.py OUT.json
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional

BATCHES = (1, 8, 64)


class Block(nn.Module):
    def __init__(self, inputs: int, inner: int, stride: int) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(inputs, inner, 1, bias=False)
        self.b1 = nn.BatchNorm2d(inner)
        self.c2 = nn.Conv2d(inner, inner, 3, stride, 1, bias=False)
        self.b2 = nn.BatchNorm2d(inner)
        self.c3 = nn.Conv2d(inner, 4 * inner, 1, bias=False)
        self.b3 = nn.BatchNorm2d(4 * inner)
        self.down = None
        if inputs != 4 * inner:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, 4 * inner, 1, stride, bias=False), nn.BatchNorm2d(4 * inner)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = functional.relu(self.b1(self.c1(x)), inplace=True)
        y = functional.relu(self.b2(self.c2(y)), inplace=True)
        y = self.b3(self.c3(y))
        return functional.relu(y + (x if self.down is None else self.down(x)), inplace=True)


class ResNet50(nn.Sequential):
    def __init__(self) -> None:
        layers: list[nn.Module] = [
            nn.Conv2d(3, 64, 7, 2, 3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, 2, 1),
        ]  # fmt: skip
        channels = 64
        for stage, (inner, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
            for index in range(blocks):
                layers.append(Block(channels, inner, 2 if stage and not index else 1))
                channels = 4 * inner
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))


class Layer(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))
        self.n1, self.n2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.up, self.out = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        n, s, w = x.shape
        q, k, v = (f(x).view(n, s, w // 64, 64).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = self.n1(x + self.o(mixed.transpose(1, 2).reshape(n, s, w)))
        return self.n2(x + self.out(functional.gelu(self.up(x))))


class Bert(nn.Module):
    def __init__(self, layers: int = 24, width: int = 1024, sequence: int = 128) -> None:
        super().__init__()
        self.words = nn.Embedding(30522, width)
        self.positions = nn.Parameter(torch.randn(1, sequence, width) * 0.02)
        self.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList(Layer(width) for _ in range(layers))

    def forward(self, ids: torch.Tensor, attention: torch.Tensor) -> torch.Tensor:
        mask = (attention[:, None, None, :] == 0) * -10000.0
        x = self.norm(self.words(ids) + self.positions)
        mask = mask.to(x.dtype)
        for layer in self.layers:
            x = layer(x, mask)
        return x


def median_ms(model: nn.Module, inputs: tuple[torch.Tensor, ...]) -> float:
    """Median GPU time of one call by CUDA events, host gaps between kernels included."""
    with torch.inference_mode():
        for _ in range(10):
            model(*inputs)
        times = []
        for _ in range(50):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            start.record()
            model(*inputs)
            end.record()
            torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def inputs_for(name: str, batch: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    if name == "resnet50":
        return (torch.randn(batch, 3, 224, 224, device="cuda", dtype=dtype),)
    ids = torch.randint(0, 30522, (batch, 128), device="cuda")
    return ids, torch.ones_like(ids)


def main(out: Path) -> None:
    results = []
    for name, make in (("resnet50", ResNet50), ("bert-large", Bert)):
        model = make().cuda().eval()
        for label, tf32, dtype in (
            ("fp32", False, torch.float32), ("tf32", True, torch.float32), ("fp16", False, torch.float16)
        ):  # fmt: skip
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
            model = model.to(dtype)
            for batch in BATCHES:
                ms = median_ms(model, inputs_for(name, batch, dtype))
                results.append({"model": name, "precision": label, "batch": batch, "median_ms": round(ms, 4)})
                print(results[-1], flush=True)
    machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__}
    out.write_text(json.dumps({"machine": machine, "eager": results}, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
