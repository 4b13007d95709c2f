"""Triton's log → one error that names the cause."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Mapping
from pathlib import Path

from tritongen.errors import ServerError
from tritongen.plan_errors import PlanProblem, explain

_LOAD_FAILED = re.compile(r"failed to load '(?P<model>[^']+)' version \d+: (?P<cause>.*)")
_POLL_FAILED = re.compile(r"Poll failed for model directory '(?P<model>[^']+)': (?P<cause>.*)")
_NOT_FOUND = re.compile(r"failed to load '(?P<model>[^']+)', (?P<cause>.*)")
_SYNTAX = re.compile(r"Error parsing text-format inference\.ModelConfig: (\d+):(\d+): (.*)")
_UNREAD_CONFIG = re.compile(r"failed to open text file for read \S*config\.pbtxt: (.*)")
_LIBRARY = re.compile(r"error while loading shared libraries: .*")
_PORT_TAKEN = re.compile(r"address already in use|socket '[^']*' already in use", re.IGNORECASE)

# "Internal: TritonModelException: " says nothing to a user; a Python exception's own name does.
_STATUS = re.compile(r"^(Internal|Invalid argument|Unavailable|Not found|Unsupported|Unknown): ")
_SOURCE_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ [^(]*\(.*?\) ")
_NO_OPTION = re.compile(
    r"^(?:\S*/)?(tritonserver: (?:unrecognized option|invalid option|option '))", re.MULTILINE
)
"""Before a page of usage."""
_KILLED = 137
_A_LINE = "\n" + " " * 12  # under what follows "  found:    "
_BACKENDS = 'backend: "onnxruntime" (or "python")'


def port_taken(log: str) -> bool:
    """Whether the server ended because another process has one of its ports."""
    return _PORT_TAKEN.search(log) is not None


def cause_of_failure(log: str, exit_code: int, repository: Path, log_file: Path | None) -> ServerError:
    """The error that explains why the server ended before it was ready."""
    where = f"the whole log is in {log_file}" if log_file else "keep the whole log with --log-file PATH"
    if failures := model_failures(log):
        return _not_loaded(failures, repository, where)
    if port_taken(log):
        return ServerError(
            "Triton could not open its ports", found=last_error(log), fix="choose others, or 0 for free ones"
        )
    if exit_code == _KILLED:
        return ServerError(
            "Triton was killed while it started",
            found="SIGKILL, as the kernel sends it when memory runs out",
            fix=where,
        )
    return ServerError(
        f"Triton ended before it was ready (exit code {exit_code})", found=last_error(log), fix=where
    )


def _not_loaded(failures: Mapping[str, str], repository: Path, where: str) -> ServerError:
    """The error for models that did not load; known words of TensorRT for a plan in plain ones."""
    known = {name: problem for name, cause in failures.items() if (problem := _plan_problem(cause))}
    fixes = list(dict.fromkeys(problem.fix for problem in known.values()))
    if len(failures) == len(known) == 1:
        ((name, problem),) = known.items()
        return ServerError(
            f"Triton cannot serve model '{name}': {problem.message}",
            found=problem.found,
            expected=problem.expected,
            fix=f"{problem.fix}; {where}",
        )
    causes = {
        name: f"{known[name].message} ({known[name].found})" if name in known else cause
        for name, cause in failures.items()
    }
    names = ", ".join(f"'{name}'" for name in failures)
    if len(known) < len(failures):
        fixes.append("mend the model")
    return ServerError(
        f"Triton cannot serve {'model' if len(failures) == 1 else 'models'} {names} of {repository}",
        found=_A_LINE.join(causes.values() if len(causes) == 1 else map(": ".join, causes.items())),
        expected=_BACKENDS if any("backend" in cause for cause in failures.values()) else None,
        fix=f"{'; '.join(fixes)}, or serve the others with --model NAME; {where}",
    )


def _plan_problem(cause: str) -> PlanProblem | None:
    return explain(cause, "its plan") if "TensorRT" in cause or "plan" in cause else None


def model_failures(log: str) -> dict[str, str]:
    """Why each model did not load, in one line each."""
    failures: dict[str, str] = {}
    for pattern in (_LOAD_FAILED, _POLL_FAILED, _NOT_FOUND):
        for match in pattern.finditer(log):
            failures.setdefault(match["model"], _readable(match["cause"], log))
    return failures


def _readable(cause: str, log: str) -> str:
    # Triton writes its log lines as JSON strings; a Python traceback follows after "At:".
    cause = cause.removesuffix('"').replace('\\"', '"').replace("\\n", "\n").partition("\n\nAt:")[0]
    cause = _STATUS.sub("", cause).removeprefix("TritonModelException: ")
    cause = with_names(" ".join(_SOURCE_PLACE.sub("", cause).split()))
    if "failed to read text proto" in cause and (syntax := _SYNTAX.search(log)):
        return f"config.pbtxt line {syntax[1]}, column {syntax[2]}: {syntax[3]}"
    if config := _UNREAD_CONFIG.search(cause):
        missing = config[1] == os.strerror(errno.ENOENT)
        return "there is no config.pbtxt" if missing else f"config.pbtxt cannot be read: {config[1]}"
    if "Stub process" in cause and (library := _LIBRARY.search(log)):
        return f"{cause}: {library[0]}"
    return cause


def last_error(log: str) -> str:
    """The line of a log that says most about the server's end: the last error, or the last line."""
    if match := _NO_OPTION.search(log):
        return log[match.start(1) :].partition("\n")[0]
    lines = [line for line in log.splitlines() if line.strip() and not line.startswith(("|", "+", "I"))]
    telling = [line for line in lines if re.match(r"error:|E\d{4} |.*error while loading", line)]
    return with_names((telling or lines or ["an empty log"])[-1])


def with_names(text: str) -> str:
    """`text` with the names of system errors ("Permission denied") in place of their numbers."""
    return re.sub(r"system error number (\d+)", lambda number: os.strerror(int(number[1])), text)
