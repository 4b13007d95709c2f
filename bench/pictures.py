"""Crops of scikit-learn's two sample photographs, as calibration and validation pictures (uint8, NCHW).

    python bench/pictures.py OUT.npz --size 320

The validation crops come from other places, scales and brightness than the calibration crops: the benches say
how far INT8 moves the outputs on such pictures, not how good a detector is.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np


def crops(count: int, size: int, seed: int) -> np.ndarray:
    """`count` random crops, mirrored and brightened at random."""
    from sklearn.datasets import load_sample_images

    photographs = load_sample_images().images
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        photograph = photographs[rng.integers(len(photographs))]
        side = int(rng.integers(size // 2, min(photograph.shape[:2])))
        top = int(rng.integers(photograph.shape[0] - side + 1))
        left = int(rng.integers(photograph.shape[1] - side + 1))
        index = (np.arange(size) * side) // size
        crop = photograph[top : top + side, left : left + side][index][:, index]
        crop = crop[:, ::-1] if rng.random() < 0.5 else crop
        found.append(np.clip(crop * rng.uniform(0.6, 1.3), 0, 255).astype(np.uint8).transpose(2, 0, 1))
    return np.stack(found)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=320)
    parser.add_argument("--count", type=int, default=32)
    args = parser.parse_args()
    np.savez_compressed(
        args.out, calibration=crops(args.count, args.size, 1), validation=crops(args.count, args.size, 2)
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
