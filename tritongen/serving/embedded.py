"""A real tritonserver on this machine, from the nvidia-pytriton wheel, without Docker or a GPU.

The server gets a prepared backend folder (copied from the wheel, plus tritongen's Python-based backends)
and runs under `supervisor.py`, which ends it when this process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import difflib
import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

from tritongen.errors import InputError, RepositoryError, RequirementError, ServerError
from tritongen.repository.manifest import check_repository
from tritongen.scratch import Scratch
from tritongen.serving import supervisor
from tritongen.serving.control import connect, read_metrics
from tritongen.serving.diagnosis import cause_of_failure, port_taken
from tritongen.serving.installation import Installation, find_installation
from tritongen.serving.log_relay import LogRelay
from tritongen.serving.ports import check_port, check_ports, dialled, free_ports, ipv4_address
from tritongen.serving.scratch import (
    interpreter_folder,
    is_safe,
    make_scratch,
    prepare_backends,
    safe_path,
    shm_prefix,
)

if TYPE_CHECKING:
    from typing_extensions import Self

# How long Triton waits for requests in flight; also for idle keep-alive connections, before it unloads.
EXIT_TIMEOUT_S = 4
_EXIT_TIMEOUT = re.compile(r"--exit-timeout-secs=(\d+)")
# After that it unloads its models, before it is killed.
UNLOAD_S = 4
POLL_S = 0.05
PORT_ATTEMPTS = 3
METRICS_TIMEOUT_S = 5.0
EVERY_ADDRESS = "0.0.0.0"  # noqa: S104
EXPLICIT_CONTROL = "--model-control-mode=explicit"

DEFAULT_CACHE_BYTES = 100 << 20
_WANTS_CACHE = re.compile(r"^[^#\n]*response_cache\s*:?\s*\{\s*enable\s*:\s*(true|True|t|1)", re.MULTILINE)


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
    cache_bytes: int | None = None
    """Size of the response cache; 0: none; None: 100 MB if a model's config asks for one."""
    log_file: Path | None = None
    """Where Triton's log goes; without one it vanishes with the server."""
    log_stream: BinaryIO | None = None
    """Where the log is passed on to as it comes, instead of into a file."""
    extra_args: Sequence[str] = ()
    """Triton's own flags."""
    ready_timeout_s: float = 300.0
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False, repr=False)
    _lifeline: int | None = field(default=None, init=False, repr=False)
    _scratch: Scratch | None = field(default=None, init=False, repr=False)
    _log_start: int = field(default=0, init=False, repr=False)
    _relay: LogRelay | None = field(default=None, init=False, repr=False)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def http_url(self) -> str:
        return f"http://{dialled(self.host)}:{self.http_port}"

    @property
    def grpc_url(self) -> str:
        return f"grpc://{dialled(self.host)}:{self.grpc_port}"

    @property
    def metrics_url(self) -> str:
        return f"http://{dialled(self.host)}:{self.metrics_port}/metrics"

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
        installation = self.check()
        for attempt in range(PORT_ATTEMPTS):
            chosen = self._choose_ports()
            try:
                self._launch(installation)
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

    def check(self) -> Installation:
        """What the server will run from, once repository, models and ports are found to be fit for it."""
        check_servable(self.repository, self.load or ())
        self.host = ipv4_address(self.host)
        check_ports(self._ports(), self.host)
        return find_installation()

    def _ports(self) -> dict[str, int]:
        return {
            "--http-port": self.http_port,
            "--grpc-port": self.grpc_port,
            "--metrics-port": self.metrics_port,
        }

    def stop(self) -> None:
        """End the server and everything it started; nothing happens if it does not run."""
        if self._process is not None:
            if self._process.poll() is None:
                self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(self._exit_timeout_s() + 2 * UNLOAD_S)
            if self._process.poll() is None:
                self._process.kill()
                self._process.wait()
        self._close_lifeline()
        if self._relay is not None:
            self._relay.finish()
        if self._scratch is not None:
            self._scratch.remove()

    def detach(self) -> None:
        """Let the server outlive this process; its end is then `stop_process` on its `pid`.

        ServerError if it has ended by itself meanwhile.
        """
        if self._lifeline is None:
            raise ServerError("the server was not started")
        try:
            os.write(self._lifeline, supervisor.DETACH)
        except BrokenPipeError:
            raise cause_of_failure(self._log_text(), self.wait(), self.repository, self.log_file) from None
        self._close_lifeline()

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
        try:
            self._scratch = make_scratch()
            scratch = self._scratch.path
            backends = prepare_backends(installation, scratch)
            log = self.log_file or scratch / "triton.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            self._log_start = log.stat().st_size if log.exists() else 0
            if self.log_stream is not None:
                self._relay = LogRelay(self.log_stream, log)
            with self._relay or log.open("ab") as output:
                self._start_supervisor(self._job(installation, scratch, backends), output)
        except OSError as error:
            raise RequirementError(
                "the embedded Triton cannot be prepared",
                found=str(error),
                fix="free the disk, or check the path",
            ) from error

    def _job(self, installation: Installation, scratch: Path, backends: Path) -> dict[str, Any]:
        """What the supervisor is to run, and to clean up."""
        return {
            "command": self._command(installation, scratch, backends),
            "prepend": {
                "PATH": [str(interpreter_folder(scratch))],
                "LD_LIBRARY_PATH": [str(installation.libpython.parent), str(installation.libraries)],
            },
            "grace_s": self._exit_timeout_s() + UNLOAD_S,
            "shm_prefix": shm_prefix(scratch),
            "scratch": str(scratch),
        }

    def _start_supervisor(self, job: dict[str, Any], output: BinaryIO) -> None:
        read_end, self._lifeline = os.pipe()
        lock = self._scratch.lock if self._scratch is not None else None
        held = {"lifeline": read_end, "lock": lock}
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", supervisor.__file__, json.dumps({**job, **held})],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[each for each in held.values() if each is not None],
                # Ctrl-C in a terminal goes to the whole group; the server must hear it from us alone.
                start_new_session=True,
            )
        finally:
            os.close(read_end)

    def _command(self, installation: Installation, scratch: Path, backends: Path) -> list[str]:
        command = [
            str(installation.binary),
            f"--model-repository={safe_path(self.repository, scratch)}",
            f"--backend-directory={backends}",
            f"--cache-directory={installation.caches}",
            f"--backend-config=python,shm-region-prefix-name={shm_prefix(scratch)}",
            "--disable-auto-complete-config",
            f"--exit-timeout-secs={self._exit_timeout_s()}",
            f"--http-address={self.host}",
            f"--grpc-address={self.host}",
            f"--metrics-address={self.host}",
            f"--http-port={self.http_port}",
            f"--grpc-port={self.grpc_port}",
            f"--metrics-port={self.metrics_port}",
        ]
        if self.model_control == "explicit" or self.load is not None:
            command.append(EXPLICIT_CONTROL)
            command += [f"--load-model={name}" for name in self.load or ()]
        if self._loads_while_it_runs() and not any("--strict-readiness" in arg for arg in self.extra_args):
            # Strict (Triton's default) means: not ready while any model loads or unloads, and for good once a
            # load has failed; whoever watches readiness would take a server away that answers all the while.
            command.append("--strict-readiness=false")
        if size := _default_cache_bytes(self.repository) if self.cache_bytes is None else self.cache_bytes:
            command.append(f"--cache-config=local,size={size}")
        return [*command, *self.extra_args]

    def _exit_timeout_s(self) -> int:
        """How long requests in flight have at the end: as Triton's own flag says, if it is given."""
        given = [int(found[1]) for arg in self.extra_args if (found := _EXIT_TIMEOUT.fullmatch(arg))]
        return given[-1] if given else EXIT_TIMEOUT_S

    def _loads_while_it_runs(self) -> bool:
        explicit = self.model_control == "explicit" or self.load is not None
        return explicit or EXPLICIT_CONTROL in self.extra_args

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
        self._check_metrics()

    def _check_metrics(self) -> None:
        """ServerError if Triton goes on without its metrics because another process has their port."""
        deadline = time.monotonic() + METRICS_TIMEOUT_S
        while time.monotonic() < deadline and not any("allow-metrics" in arg for arg in self.extra_args):
            with contextlib.suppress(ServerError):
                read_metrics(self.metrics_url, timeout_s=1.0)
                return
            if port_taken(self._log_text()):
                raise ServerError(
                    "Triton could not open its metrics port",
                    found=f"port {self.metrics_port} was taken meanwhile",
                    fix="choose another, or 0 for a free one",
                )
            time.sleep(POLL_S)

    def _log_text(self) -> str:
        if self._scratch is None:
            return ""
        log = self.log_file or self._scratch.path / "triton.log"
        if not log.exists():
            return ""
        return log.read_bytes()[self._log_start :].decode(errors="replace")

    def _close_lifeline(self) -> None:
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def check_servable(repository: Path, models: Sequence[str]) -> None:
    """InputError unless it is a folder that holds `models`; RepositoryError for names it cannot serve."""
    check_repository(repository)
    known = sorted(path.name for path in repository.iterdir() if path.is_dir())
    for name in known:
        if not is_safe(name):
            raise RepositoryError(
                f"the model folder '{name}' in {repository} cannot be served",
                found="characters that Triton would hand to a shell unquoted",
                expected="letters, digits and _ . -",
                fix="rename the folder, and the name in its config.pbtxt",
            )
    for name in models:
        if name not in ("*", *known):
            near = difflib.get_close_matches(name, known, n=1)
            raise InputError(
                f"{repository} holds no model '{name}'",
                found=", ".join(known) or "no models",
                fix=f"did you mean '{near[0]}'?" if near else "name one of these",
            )


def stop_process(pid: int, timeout_s: float = 120.0) -> bool:
    """End the server whose supervisor is `pid`; False if it still runs after `timeout_s`.

    The supervisor kills it when its time for requests in flight is over: by default that is long before.
    """
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            if _is_gone(pid):
                return True
            time.sleep(POLL_S)
        return False
    return True


def _default_cache_bytes(repository: Path) -> int:
    configs = (path.read_text(errors="replace") for path in repository.glob("*/config.pbtxt"))
    return DEFAULT_CACHE_BYTES if any(map(_WANTS_CACHE.search, configs)) else 0


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
