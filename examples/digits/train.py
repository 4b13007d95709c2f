"""Train a convolutional network on scikit-learn's handwritten digits and export it to ONNX.

Writes into --out: digits.onnx, calibration.npz (images of the training split, no labels) and
validation.npz (images and labels that training never saw). NumPy only; half a minute on two cores.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import onnx
from network import Adam, Floats, Network, to_onnx
from numpy.typing import NDArray

SIDE = 16
CHANNELS = (32, 64, 128, 128)
STRIDES = (1, 2, 1, 2)
"""Of each convolution."""
EPOCHS = 6
BATCH = 32
RATE = 2e-3
HELD_OUT = 597
CALIBRATION = 256
SEED = 0

Labels = NDArray[np.int64]


def load_digits() -> tuple[Floats, Labels]:
    """1797 digits that scikit-learn ships: images [n, 16, 16, 1] in 0 … 1, and their labels."""
    from sklearn import datasets

    digits = datasets.load_digits()
    images = digits.images.astype(np.float32) / 16
    return enlarge(images)[..., None], digits.target.astype(np.int64)


def enlarge(images: Floats) -> Floats:
    """[n, 8, 8] → [n, 16, 16], bilinear."""
    position = np.clip((np.arange(SIDE) + 0.5) * images.shape[1] / SIDE - 0.5, 0, images.shape[1] - 1)
    low = np.minimum(position.astype(int), images.shape[1] - 2)
    part = (position - low).astype(np.float32)
    rows = images[:, low] * (1 - part)[:, None] + images[:, low + 1] * part[:, None]
    larger: Floats = rows[:, :, low] * (1 - part) + rows[:, :, low + 1] * part
    return larger


def shifted(images: Floats, rng: np.random.Generator) -> Floats:
    """Every image moved by up to one pixel each way, so that position does not matter."""
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows, cols = rng.integers(0, 3, (2, len(images)))
    moved = [image[i : i + SIDE, j : j + SIDE] for image, i, j in zip(padded, rows, cols, strict=True)]
    return np.stack(moved)


def train(network: Network, images: Floats, labels: Labels, rng: np.random.Generator) -> None:
    """Adam with a rate that rises for one epoch and then falls along a cosine."""
    optimizer = Adam(network.parameters())
    per_epoch = len(images) // BATCH
    total = EPOCHS * per_epoch
    for epoch in range(EPOCHS):
        order, loss = rng.permutation(len(images)), 0.0
        for i in range(per_epoch):
            chosen = order[i * BATCH : (i + 1) * BATCH]
            done = epoch * per_epoch + i
            rate = RATE * min(1, (done + 1) / per_epoch) * 0.5 * (1 + np.cos(np.pi * done / total))
            step_loss, gradients = network.gradients(shifted(images[chosen], rng), labels[chosen])
            optimizer.update(gradients, rate)
            loss += step_loss / per_epoch
        print(f"  epoch {epoch + 1}/{EPOCHS}: training loss {loss:.4f}", flush=True)


def main() -> int:
    """Train, check, export."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    parser.add_argument("--channels", type=int, nargs=len(STRIDES), default=CHANNELS)
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)

    started = time.perf_counter()
    rng = np.random.default_rng(SEED)
    images, labels = load_digits()
    order = rng.permutation(len(images))
    held_out, training = order[:HELD_OUT], order[HELD_OUT:]
    network = Network.create(SIDE, list(zip(arguments.channels, STRIDES, strict=True)), 10, rng)
    print(
        f"  {len(training)} images to train on, {len(held_out)} held out, "
        f"{sum(array.size for array in network.parameters()):,} parameters",
        flush=True,
    )
    train(network, images[training], labels[training], rng)
    accuracy = (network.scores(images[held_out]).argmax(axis=1) == labels[held_out]).mean()
    print(
        f"  {accuracy:.2%} of the {len(held_out)} held-out digits right, "
        f"after {time.perf_counter() - started:.0f} s",
        flush=True,
    )
    onnx.save(to_onnx(network, SIDE), out / "digits.onnx")
    planes = np.ascontiguousarray(images.transpose(0, 3, 1, 2))  # as the model takes them
    np.savez(out / "calibration.npz", images=planes[training[:CALIBRATION]])
    np.savez(out / "validation.npz", images=planes[held_out], labels=labels[held_out])
    for name in ("digits.onnx", "calibration.npz", "validation.npz"):
        print(f"  wrote {out / name} ({(out / name).stat().st_size / 1024:.0f} KiB)")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
