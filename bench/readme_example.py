"""Run the README's three commands on the demo's model and put what they print between its markers.

    python bench/readme_example.py [--write]

The model and its data come from examples/digits/train.py. Progress lines are left out.
"""

from __future__ import annotations

import argparse
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- bench/readme_example.py -->\n", "<!-- end -->\n"
COMMANDS = (
    "tritongen build digits.onnx --calibration-data calibration.npz --validation-data validation.npz",
    "tritongen serve --background",
    "tritongen loadtest digits --rate 200 --p99-ms 20",
)
PROGRESS = re.compile(r"^(recorded|inspect|trial|latency|calibrate|compare|select|write|loadtest) +\S")


def shown(command: str, folder: Path) -> str:
    """The command with what it printed, as a person would see it."""
    program = [str(Path(sys.executable).with_name("tritongen")), *shlex.split(command)[1:]]
    done = subprocess.run(program, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3, 4):
        sys.exit(f"{command} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.match(line)]
    text = "\n".join(lines).replace(str(Path.home()), "~").strip("\n")
    return f"$ {command}\n{text}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="put it into README.md")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        train = [sys.executable, str(ROOT / "examples/digits/train.py"), "--out", name]
        subprocess.run(train, check=True, stdout=subprocess.DEVNULL)
        try:
            text = "\n".join(shown(command, folder) for command in COMMANDS)
        finally:
            subprocess.run(
                [str(Path(sys.executable).with_name("tritongen")), "stop"], cwd=folder, check=False
            )
    block = f"{BEGIN}```console\n{text}```\n{END}"
    print(block)
    if arguments.write:
        readme = ROOT / "README.md"
        before, _, rest = readme.read_text(encoding="utf-8").partition(BEGIN)
        after = rest.partition(END)[2]
        readme.write_text(before + block + after, encoding="utf-8")


if __name__ == "__main__":
    main()
