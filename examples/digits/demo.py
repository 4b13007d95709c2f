"""The main job from beginning to end, on a model that is trained here: what `make demo` runs.

Train a digit recogniser → build (FP32 and INT8, accuracy gate) → serve with a real Triton on this machine →
load test against a promise → verdict → stop. Nothing is downloaded, and nothing is left running.
"""

from __future__ import annotations

import argparse
import contextlib
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from verdict import int8_verdict

HERE = Path(__file__).resolve().parent
OUT = HERE / "out"
SPEC = HERE / "tritongen.yaml"
REPOSITORY = OUT / "model_repository"
TRITONGEN = Path(sys.executable).with_name("tritongen")

RATE = 200
"""Requests per second of the load test: modest, so that two shared cores can carry it."""
WINDOW = ("--min-duration", "15s", "--max-duration", "45s")
"""A verdict on P99 needs 2500 requests at least; on a restless machine more."""
QUICK_WINDOW = ("--duration", "3s")
PROMISE = "p99<=100ms"
"""That of tritongen.yaml."""
TRITON_PORTS = (8000, 8001, 8002)
"""Triton's own HTTP, gRPC and metrics ports."""

EXIT_WORDS = {
    0: "PASS: the promise is kept",
    3: "FAIL: the promise is not kept on this machine",
    4: "INVALID: the machine was too restless for so short a run to tell",
}
"""What the load test's exit codes mean; all others are errors that it has explained."""


class DemoError(Exception):
    """A step failed; it has said why."""


class Terminated(KeyboardInterrupt):
    """SIGTERM came, for this process alone."""


def main() -> int:
    """Run every step; 0 unless one could not be done."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="a walk without trustworthy numbers")
    quick: bool = parser.parse_args().quick
    signal.signal(signal.SIGTERM, _interrupt)
    started = time.perf_counter()
    try:
        train()
        build("quick" if quick else "normal")
        with serving() as ports:
            verdict = load_test(ports, QUICK_WINDOW if quick else WINDOW)
    except DemoError as error:
        print(f"\nThe demo stops here: {error}. Nothing is left running.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nStopped. Nothing is left running.", file=sys.stderr)
        return 130
    farewell(verdict, time.perf_counter() - started)
    return 0


def train() -> None:
    """Train the model and write it with its data, unless an earlier demo did."""
    say(
        "1. Train a model",
        "A convolutional net for handwritten digits (scikit-learn's own data), with NumPy. A third of the "
        "digits is held out: training never sees them, and accuracy is judged on them alone.",
    )
    if all((OUT / name).exists() for name in ("digits.onnx", "calibration.npz", "validation.npz")):
        print(f"  trained by an earlier demo: {_short(OUT / 'digits.onnx')} (`make clean` forgets it)")
        return
    run(sys.executable, HERE / "train.py", "--out", OUT)


def build(effort: str) -> None:
    """Build the repository, and tell in words whether INT8 was worth it."""
    say(
        "2. Build the Triton model repository",
        "The model is tried in FP32 and in INT8. Each candidate must pass the accuracy gate (at most 1 point "
        "of top-1 lost on the held-out digits) and is then timed; the fastest that passes is selected.",
    )
    run(TRITONGEN, "build", SPEC, *([] if effort == "normal" else ["--effort", effort]))
    print(f"\n  {int8_verdict(OUT / 'run' / 'digits')}")


@contextlib.contextmanager
def serving() -> Iterator[dict[str, int]]:
    """A server on the repository, by port name; it is stopped however the block ends."""
    ports = dict(zip(("http", "grpc", "metrics"), choose_ports(), strict=True))
    usual = tuple(ports.values()) == TRITON_PORTS
    say(
        "3. Serve it",
        "A real Triton Inference Server, without Docker and without a GPU, on this machine's loopback"
        + (
            "."
            if usual
            else f" (ports {', '.join(map(str, TRITON_PORTS))} are not all free; others are used)."
        ),
    )
    flags = [] if usual else [part for name in ports for part in (f"--{name}-port", ports[name])]
    try:
        run(TRITONGEN, "serve", REPOSITORY, "--background", *flags)
    except KeyboardInterrupt:
        _stop()
        raise
    try:
        yield ports
    finally:
        say("5. Stop the server")
        _stop()


def load_test(ports: dict[str, int], window: tuple[str, ...]) -> int:
    """The load test's exit code: 0, 3 or 4; anything else ends the demo."""
    say(
        "4. Load test",
        f"{RATE} requests arrive per second, at random moments, whether or not earlier answers are back; "
        f"each latency counts from the moment its request was due. The promise, as in {SPEC.name}: "
        f"{PROMISE}.",
    )
    command = ["loadtest", "digits", "--url", f"grpc://127.0.0.1:{ports['grpc']}"]
    command += ["--rate", str(RATE), *window, "--slo", PROMISE]
    command += ["--data", str(OUT / "validation.npz")]
    code = run(TRITONGEN, *command, "--json", OUT / "loadtest.json", accept=tuple(EXIT_WORDS))
    print(f"\n  {EXIT_WORDS[code]}: {PROMISE} at {RATE} requests/s.")
    return code


def farewell(verdict: int, seconds: float) -> None:
    """What happened, where it lies, and what to try next."""
    say(
        f"Done in {seconds:.0f} s",
        f"{EXIT_WORDS[verdict]}. The repository, ready for any Triton, is {_short(REPOSITORY)}; what was "
        f"measured is in {_short(OUT / 'run')}. Three commands to try next:",
    )
    bin_folder = _short(TRITONGEN)
    print(f"  {bin_folder} serve {_short(REPOSITORY)}")
    print(
        f"  {bin_folder} loadtest digits --rate {2 * RATE} --p99-ms 100    # meanwhile, in another terminal"
    )
    print(f"  {bin_folder} init YOUR_MODEL.onnx    # writes tritongen.yaml; then: {bin_folder} build")


def choose_ports() -> tuple[int, ...]:
    """Triton's usual three ports if all are free, otherwise three that are."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in TRITON_PORTS]
        try:
            for probe, port in zip(probes, TRITON_PORTS, strict=True):
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(("127.0.0.1", port))
        except OSError:
            others = [stack.enter_context(socket.socket()) for _ in TRITON_PORTS]
            for probe in others:
                probe.bind(("127.0.0.1", 0))
            return tuple(probe.getsockname()[1] for probe in others)
    return TRITON_PORTS


def run(program: Path | str, *arguments: object, accept: tuple[int, ...] = (0,)) -> int:
    """Show a command, run it with this terminal, and return its exit code; DemoError if not accepted."""
    words = [str(word) for word in (program, *arguments)]
    print(f"  $ {shlex.join(_short(word) for word in words)}\n", flush=True)
    with _held_back_interrupts() as interrupted:
        child = subprocess.Popen(words)
    try:
        if interrupted:
            raise Terminated
        code = child.wait()
    except KeyboardInterrupt as stop:
        if isinstance(stop, Terminated):  # Ctrl-C reaches the child by itself, a signal to us does not
            child.send_signal(signal.SIGINT)
        child.wait()
        raise
    if code not in accept:
        raise DemoError(f"`{Path(words[0]).name} {words[1]}` ended with exit code {code}")
    return code


def say(title: str, text: str = "") -> None:
    """A step's heading, and what is about to happen."""
    import textwrap

    print(f"\n\033[1m{title}\033[0m" if sys.stdout.isatty() else f"\n{title}")
    if text:
        print(textwrap.fill(text, 100, initial_indent="  ", subsequent_indent="  "))
    sys.stdout.flush()


def _stop() -> None:
    """Stop the server, also while another Ctrl-C comes in."""
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        subprocess.run([TRITONGEN, "stop", REPOSITORY], check=False)
    finally:
        signal.signal(signal.SIGINT, previous)


def _interrupt(_signal: int, _frame: FrameType | None) -> None:
    raise Terminated


@contextlib.contextmanager
def _held_back_interrupts() -> Iterator[list[int]]:
    """The signals that came meanwhile: a child is always known here, so that it can be ended and awaited.

    A signal between fork and exec is lost to the child; it must be sent again.
    """
    came: list[int] = []
    before = {
        number: signal.signal(number, lambda each, _frame: came.append(each))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _short(path: Path | str) -> str:
    """A path as seen from here, if it lies below."""
    here = f"{Path.cwd()}/"
    return str(path).removeprefix(here)


if __name__ == "__main__":
    raise SystemExit(main())
