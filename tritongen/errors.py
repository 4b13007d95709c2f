"""The error tree, and the one table of exit codes.

    TritongenError               exit 1   anything that went wrong and is explained
    ├── InputError               exit 2   what was given cannot be used; nothing was written
    │   ├── SpecError                     the spec file or a flag
    │   ├── ModelError                    the ONNX file
    │   └── DataError                     calibration, validation or load-test data
    ├── RequirementError         exit 1   this machine lacks something (a library, a shared object, a port)
    ├── BuildError               exit 1   no candidate could be built or measured
    ├── RepositoryError          exit 1   the repository could not be written, or does not hold what it should
    └── ServerError              exit 5   the server or the model is not ready, or stopped answering

Third-party exceptions are mapped into this tree at the boundary where they arise.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Exit codes of every command."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    MISSED = 3
    UNDECIDED = 4
    NOT_READY = 5


EXIT_CODE_MEANINGS: dict[ExitCode, str] = {
    ExitCode.OK: "done; every objective that was asked for is met (PASS)",
    ExitCode.FAILURE: "anything else that went wrong, explained on stderr (ERROR)",
    ExitCode.USAGE: "the command line, spec, model or data cannot be used; nothing was written",
    ExitCode.MISSED: "an objective is missed (FAIL)",
    ExitCode.UNDECIDED: "the measurement cannot tell whether the objective is met (INVALID)",
    ExitCode.NOT_READY: "the server or the model is not ready, or stopped answering (ERROR)",
}


class TritongenError(Exception):
    """An explained failure: what is wrong, what was found, what was expected, how to mend it."""

    exit_code: ExitCode = ExitCode.FAILURE

    def __init__(
        self,
        message: str,
        *,
        found: str | None = None,
        expected: str | None = None,
        fix: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.found = found
        self.expected = expected
        self.fix = fix

    def __str__(self) -> str:
        # "found: nope" after "'nope' is not a metric" would say the same word again.
        found = None if self.found and f"'{self.found.strip(chr(39))}'" in self.message else self.found
        details = (("found", found), ("expected", self.expected), ("to fix", self.fix))
        return "\n".join([self.message, *(f"  {label + ':':<10}{text}" for label, text in details if text)])


class InputError(TritongenError):
    """What the user gave cannot be used."""

    exit_code = ExitCode.USAGE


class SpecError(InputError):
    """The spec file or a flag cannot be used."""


class ModelError(InputError):
    """The ONNX model cannot be used."""


class DataError(InputError):
    """Calibration, validation or load-test data cannot be used."""


class RequirementError(TritongenError):
    """This machine lacks something that the command needs."""


class BuildError(TritongenError):
    """No candidate could be built or measured."""


class RepositoryError(TritongenError):
    """The model repository could not be written, or does not hold what it should."""


class ServerError(TritongenError):
    """The server or the model is not ready, or stopped answering."""

    exit_code = ExitCode.NOT_READY
