"""Link the ONNX models that `pip install rapidocr magika` brought into out/, under short names.

rapidocr: text detection, line orientation, text recognition; magika: file types. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

MODELS = {
    "detection": ("rapidocr", "models/*det*.onnx"),
    "orientation": ("rapidocr", "models/*cls*.onnx"),
    "recognition": ("rapidocr", "models/*rec*.onnx"),
    "filetype": ("magika", "models/standard*/model.onnx"),
}
"""Name here → (package, where its model lies inside it)."""


def find(package: str, pattern: str) -> Path:
    """The package's model; SystemExit naming what is missing."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        raise SystemExit(f"{package} is not installed: pip install {package}")
    found = sorted(Path(spec.origin).parent.glob(pattern))
    if not found:
        raise SystemExit(f"this version of {package} has no {pattern}")
    return found[-1]


def collect(folder: Path) -> dict[str, Path]:
    """Links in `folder` by model name."""
    folder.mkdir(parents=True, exist_ok=True)
    links = {}
    for name, (package, pattern) in MODELS.items():
        link = folder / f"{name}.onnx"
        link.unlink(missing_ok=True)
        link.symlink_to(find(package, pattern))
        links[name] = link
    return links


def main() -> int:
    """Link the models and say where."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "out")
    for name, link in collect(parser.parse_args().out).items():
        print(f"{name}: {link} -> {link.resolve()}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
