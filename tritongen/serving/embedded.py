"""A real tritonserver on this machine, from the nvidia-pytriton wheel, without Docker or a GPU.

The server gets a prepared backend folder (copied from the wheel, plus tritongen's Python-based backends)
and runs under `supervisor.py`, which ends it when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Literal

from tritongen.errors import RepositoryError, RequirementError, ServerError
from tritongen.serving import supervisor
from tritongen.serving.control import connect
from tritongen.serving.diagnosis import cause_of_failure, port_taken
from tritongen.serving.installation import Installation, find_installation
from tritongen.serving.ports import check_port, free_ports

if TYPE_CHECKING:
    from typing_extensions import Self

BACKENDS = Path(__file__).parent / "backends"
# How long Triton waits for requests in flight; also for idle keep-alive connections, before it unloads.
EXIT_TIMEOUT_S = 4
POLL_S = 0.05
PORT_ATTEMPTS = 3

# Triton hands these paths to bash without quotes.
_SAFE_PATH = re.compile(r"[\w./+@%:,=-]+", re.ASCII)


@dataclass
class EmbeddedServer:
    """A tritonserver that serves `repository` from entering the context to leaving it."""

    repository: Path
    host: str = "127.0.0.1"
    http_port: int = 0
    """0: a free one, chosen at start and readable here afterwards; likewise the next two."""
    grpc_port: int = 0
    metrics_port: int = 0
    model_control: Literal["none", "explicit"] = "none"
    load: Sequence[str] | None = None
    """Models to load at start; None: all of them (with explicit control: none). Implies explicit control."""
    cache_bytes: int = 0
    """Size of the response cache; 0: none."""
    log_file: Path | None = None
    """Where Triton's log goes; without one it vanishes with the server."""
    extra_args: Sequence[str] = ()
    ready_timeout_s: float = 300.0
    detached: bool = False
    """Let the server outlive this process; its end is then `stop_process` on its `pid`."""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _lifeline: int | None = field(default=None, init=False, repr=False)
    _scratch: Path | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        return f"http://{_dialled(self.host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{_dialled(self.host)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{_dialled(self.host)}:{self.metrics_port}/metrics"

    @property
    def pid(self) -> int:
        """The supervisor's PID: SIGTERM to it ends the server."""
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process.pid

    def start(self) -> None:
        """Start the server and wait until it and its models are ready.

        RequirementError if this machine lacks a piece or a port; ServerError with Triton's words otherwise.
        """
        installation = find_installation()
        if not self.repository.is_dir():
            raise RepositoryError(
                f"there is no model repository at {self.repository}",
                found="nothing" if not self.repository.exists() else "a file",
                expected="a folder with one folder per model",
                fix="tritongen build MODEL.onnx writes one",
            )
        for attempt in range(PORT_ATTEMPTS):
            chosen = self._choose_ports()
            self._launch(installation)
            try:
                self._wait_ready()
            except BaseException as error:
                log = self._log_text()
                self.stop()
                if not isinstance(error, ServerError):
                    raise
                # Another process may take a free port between our choosing it and Triton's opening it.
                if not (chosen and port_taken(log)) or attempt == PORT_ATTEMPTS - 1:
                    raise
                self._forget(chosen)
            else:
                return

    def stop(self) -> None:
        """End the server and everything it started; nothing happens if it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(3 * EXIT_TIMEOUT_S)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._close_lifeline()
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)

    def poll(self) -> int | None:
        """The server's exit code, or None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self) -> int:
        """Wait until the server ends by itself or is stopped by someone else; its exit code."""
        if self._process is None:
            raise ServerError("the server was not started")
        return self._process.wait()

    def _choose_ports(self) -> list[str]:
        """Fill in the ports that were left to us; the names of those."""
        names = ("http_port", "grpc_port", "metrics_port")
        open_ones = [name for name in names if getattr(self, name) == 0]
        for name in names:
            if name not in open_ones:
                check_port(getattr(self, name), self.host, "--" + name.replace("_", "-"))
        for name, port in zip(open_ones, free_ports(len(open_ones), self.host), strict=True):
            setattr(self, name, port)
        return open_ones

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            setattr(self, name, 0)

    def _launch(self, installation: Installation) -> None:
        scratch = _scratch_folder()
        self._scratch = scratch
        backends = prepare_backends(installation, scratch)
        read_end, write_end = (None, None) if self.detached else os.pipe()
        job = {
            "command": self._command(installation, scratch, backends),
            "set": {},
            "prepend": {
                "PATH": [str(_interpreter_folder(scratch))],
                "LD_LIBRARY_PATH": [str(installation.libpython.parent), str(installation.libraries)],
            },
            "lifeline": read_end,
            "grace_s": 2 * EXIT_TIMEOUT_S,
            "shm_prefix": _shm_prefix(scratch),
            "scratch": str(scratch),
        }
        log = self.log_file or scratch / "triton.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            with log.open("wb") as output:
                self._process = subprocess.Popen(
                    [sys.executable, "-I", "-S", supervisor.__file__, json.dumps(job)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=() if read_end is None else (read_end,),
                    # Ctrl-C in a terminal goes to the whole group; the server must hear it from us alone.
                    start_new_session=True,
                )
        finally:
            if read_end is not None:
                os.close(read_end)
        self._lifeline = write_end

    def _command(self, installation: Installation, scratch: Path, backends: Path) -> list[str]:
        command = [
            str(installation.binary),
            f"--model-repository={_safe_path(self.repository, scratch)}",
            f"--backend-directory={backends}",
            f"--cache-directory={installation.caches}",
            f"--backend-config=python,shm-region-prefix-name={_shm_prefix(scratch)}",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={EXIT_TIMEOUT_S}",
            f"--http-address={self.host}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.host}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        if self.model_control == "explicit" or self.load is not None:
            command.append("--model-control-mode=explicit")
            command += [f"--load-model={name}" for name in self.load or ()]
        if self.cache_bytes:
            command.append(f"--cache-config=local,size={self.cache_bytes}")
        return [*command, *self.extra_args]

    def _wait_ready(self) -> None:
        control = connect(self.http_url, timeout_s=5.0)
        deadline = time.monotonic() + self.ready_timeout_s
        while not control.is_ready():
            if (code := self.poll()) is not None:
                raise cause_of_failure(self._log_text(), code, self.repository, self.log_file)
            if time.monotonic() > deadline:
                raise ServerError(
                    f"the server was not ready after {self.ready_timeout_s:.0f} s",
                    found=(self._log_text().splitlines() or ["an empty log"])[-1],
                    fix="give it more time with --ready-timeout, or look into the log (--log-file)",
                )
            time.sleep(POLL_S)

    def _log_text(self) -> str:
        if self._scratch is None:
            return ""
        log = self.log_file or self._scratch / "triton.log"
        return log.read_text(errors="replace") if log.exists() else ""

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def stop_process(pid: int, timeout_s: float = 3.0 * EXIT_TIMEOUT_S) -> bool:
    """End the server whose supervisor is `pid`; False if it still runs after `timeout_s`."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if _is_gone(pid):
                return True
            time.sleep(POLL_S)
        return False
    return True


def prepare_backends(installation: Installation, scratch: Path) -> Path:
    """A backend folder: the wheel's Python backend with the right stub, and tritongen's own backends.

    Copies, because Triton refuses a library whose real path lies outside the backend folder.
    """
    backends = scratch / "backends"
    python = backends / "python"
    python.mkdir(parents=True)
    for file in installation.python_backend.iterdir():
        if file.is_file() and file.name != "triton_python_backend_utils.py":
            shutil.copy(file, python)
    shutil.copy(installation.stub, python)
    utilities = (installation.python_backend / "triton_python_backend_utils.py").read_text()
    (python / "triton_python_backend_utils.py").write_text(_module_path_lines() + utilities)
    for model in BACKENDS.glob("*/model.py"):
        (backends / model.parent.name).mkdir()
        shutil.copy(model, backends / model.parent.name)
    return backends


def _module_path_lines() -> str:
    """Python lines that let the stub import what this process can import.

    The stub finds its packages through `python3` on PATH, and ignores PYTHONPATH. That is not enough where
    packages do not belong to the interpreter's own prefix (conda, --target, PYTHONPATH, user site).
    """
    mine = [path for path in sys.path if Path(path).is_absolute() and Path(path).exists()]
    return (
        "import sys as _sys\n"
        f"_known = [p for p in _sys.path if not p.endswith('-packages')]\n"
        f"_mine = [p for p in {mine!r} if p not in _known]\n"
        "_sys.path[:] = _known + _mine + [p for p in _sys.path if p not in _known + _mine]\n"
    )


def _scratch_folder() -> Path:
    """A new folder with a path that bash takes unquoted, where programs may be executed."""
    places = (tempfile.gettempdir(), "/tmp", "/var/tmp", str(Path.home()))  # noqa: S108
    for place in places:
        if _SAFE_PATH.fullmatch(place) and os.access(place, os.W_OK) and not _forbids_programs(place):
            return Path(tempfile.mkdtemp(prefix="tritongen-serve-", dir=place))
    raise RequirementError(
        "there is no folder for the embedded Triton's own files",
        found=f"none of {', '.join(places)} is writable, free of spaces and mounted without noexec",
        fix="name such a folder: TMPDIR=/some/folder tritongen serve …",
    )


def _forbids_programs(place: str) -> bool:
    return bool(os.statvfs(place).f_flag & os.ST_NOEXEC)


def _safe_path(repository: Path, scratch: Path) -> Path:
    resolved = repository.resolve()
    if _SAFE_PATH.fullmatch(str(resolved)):
        return resolved
    link = scratch / "repository"
    link.symlink_to(resolved)
    return link


def _interpreter_folder(scratch: Path) -> Path:
    """A folder whose `python3` is the running interpreter."""
    folder = Path(sys.executable).parent
    if (folder / "python3").exists() and (folder / "python3").samefile(sys.executable):
        return folder
    link = scratch / "bin" / "python3"
    link.parent.mkdir()
    link.symlink_to(sys.executable)
    return link.parent


def _shm_prefix(scratch: Path) -> str:
    return scratch.name.replace("-", "_") + "_"


def _dialled(host: str) -> str:
    """The address to reach a server that listens on `host`."""
    if host in ("0.0.0.0", "::"):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
