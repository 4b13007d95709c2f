"""TCP ports of this machine: free ones, and who holds a taken one."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterable, Mapping
from pathlib import Path

from tritongen.errors import InputError, RequirementError

LISTEN = "0A"
MAXIMUM_PORT = 65535


def ipv4_address(host: str) -> str:
    """The IPv4 address of `host`, since Triton listens on no other kind; InputError if it has none."""
    try:
        return socket.gethostbyname(host)
    except OSError as error:
        raise InputError(
            f"cannot listen on '{host}'",
            found=str(error),
            expected="an IPv4 address of this machine, or a name that has one",
            fix="use --host 127.0.0.1, or 0.0.0.0 for every network of this machine",
        ) from error


def dialled(host: str) -> str:
    """Where this machine reaches what listens on `host`, as a URL has it."""
    if host in ("", "0.0.0.0", "::"):  # noqa: S104
        return "127.0.0.1"
    return f"[{host}]" if ":" in host else host


def free_ports(count: int, host: str = "127.0.0.1") -> list[int]:
    """`count` different ports that were free a moment ago."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind((host, 0))
        return [int(each.getsockname()[1]) for each in sockets]


def check_port(port: int, host: str, flag: str) -> None:
    """RequirementError naming who holds `port`; `flag` is the option that chooses another."""
    if not 0 < port <= MAXIMUM_PORT:
        raise InputError(
            f"{port} is no port", expected="1 … 65535, or 0 for any free one", fix=f"mend {flag}"
        )
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
            probe.listen(1)
        except OSError as error:
            raise _cannot_bind(error, port, host, flag) from error


def check_ports(ports: Mapping[str, int], host: str) -> None:
    """`check_port` of every port that is chosen (not 0), by its option; one error for all that are taken."""
    found = {flag: _problem(port, host, flag) for flag, port in ports.items() if port}
    problems = {flag: problem for flag, problem in found.items() if problem is not None}
    if len(problems) == 1:
        raise problems.popitem()[1]
    if problems:
        raise RequirementError(
            "; ".join(problem.message for problem in problems.values()),
            found="; ".join(dict.fromkeys(problem.found for problem in problems.values() if problem.found)),
            fix=f"let any free ones be chosen: {any_free(problems)}",
        )


def _problem(port: int, host: str, flag: str) -> RequirementError | None:
    try:
        check_port(port, host, flag)
    except RequirementError as error:
        return error
    return None


def any_free(flags: Iterable[str]) -> str:
    """What lets any free port be chosen for each of these options ("--http-port 0 --grpc-port 0")."""
    return " ".join(f"{flag} 0" for flag in flags)


def _cannot_bind(error: OSError, port: int, host: str, flag: str) -> Exception:
    if error.errno == errno.EADDRINUSE:
        return RequirementError(
            f"port {port} is taken",
            found=f"held by {holder(port) or 'a process that this user may not see'}",
            fix=f"stop it, or choose another with {flag} (0: any free port)",
        )
    if error.errno == errno.EACCES:
        return RequirementError(
            f"this user may not open port {port}", expected="1024 or above", fix=f"choose another with {flag}"
        )
    return InputError(
        f"cannot listen on {host}:{port}",
        found=str(error),
        expected="an address of this machine",
        fix="use --host 127.0.0.1, or 0.0.0.0 for every network of this machine",
    )


def holder(port: int) -> str | None:
    """The process that listens on `port` ("PID 12 (nginx -g …)"), or None if it cannot be seen."""
    inodes = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for process in Path("/proc").iterdir():
        if not process.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if any(str(handle.readlink()) in inodes for handle in (process / "fd").iterdir()):
                return f"PID {process.name} ({command_line(int(process.name))})"
    return None


def command_line(pid: int, limit: int = 80) -> str:
    """What the process was started with, shortened; empty if it is gone."""
    with contextlib.suppress(OSError):
        words = (
            Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        )
        return words if len(words) <= limit else words[: limit - 1] + "…"
    return ""


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes
