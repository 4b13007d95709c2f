"""The command line: argv → one call. The only place that prints, exits, or reads the environment."""

from __future__ import annotations

import difflib
import errno
import importlib
import io
import os
import re
import sys
from collections.abc import Sequence
from typing import Any

import click

from tritongen import __version__
from tritongen.cli.stopping import INTERRUPTED
from tritongen.errors import ExitCode, InputError, SpecError, TritongenError

# name → (module with a `command` object, the help line). Modules are imported only when their command runs,
# so that `tritongen --help` stays quick.
COMMANDS: dict[str, tuple[str, str]] = {
    "init": ("tritongen.cli.init", "Write a commented tritongen.yaml from what an ONNX model says."),
    "inspect": ("tritongen.cli.inspect", "Show a model's inputs, outputs, batch axis, opset and size."),
    "build": ("tritongen.cli.build", "Autotune models and write the Triton model repository."),
    "verify": ("tritongen.cli.verify", "Check a model repository against its manifest and a server."),
    "serve": ("tritongen.cli.serve", "Serve a repository with a real Triton on this machine."),
    "ps": ("tritongen.cli.ps", "List the servers that `serve` has running."),
    "stop": ("tritongen.cli.stop", "Stop a server that `serve --background` started."),
    "reload": ("tritongen.cli.reload", "Let a running server take over a new version, checked first."),
    "loadtest": ("tritongen.cli.loadtest", "Check requests/s and P99 against a running server."),
    "compose": ("tritongen.cli.compose", "Write the files with which Docker serves a repository."),
    "doctor": ("tritongen.cli.doctor", "Say what works on this machine and what is missing."),
    "schema": ("tritongen.cli.schema", "Print the JSON schema of the spec or of a record."),
}

_NOT_UTF8 = re.compile("[\ud800-\udfff]")
"""How Python shows bytes of a command line that are no text."""
_NO_PATH = frozenset({errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR})
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

EXAMPLES = """\b
Examples:
  tritongen inspect model.onnx
  tritongen build model.onnx --max-batch-size 16
  tritongen serve --background
  tritongen loadtest model --rate 200 --p99-ms 20
  tritongen stop
"""


class LazyGroup(click.Group):
    """A group whose commands (name → module and help line) are imported when they are called."""

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in self.lazy:
            return None
        module = importlib.import_module(self.lazy[cmd_name][0])
        command: click.Command = module.command
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            near = difflib.get_close_matches(args[0], self.lazy, n=1)
            raise SpecError(
                f"there is no command '{args[0]}'",
                expected=", ".join(self.lazy),
                fix=f"did you mean '{near[0]}'?" if near else f"see `{ctx.command_path} --help`",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in self.lazy.items()])


@click.group(
    cls=LazyGroup,
    lazy=COMMANDS,
    help='From an ONNX model and a promise ("500 inferences/s at P99 ≤ 20 ms") to a tuned, served and '
    f"load-tested Triton repository.\n\n{EXAMPLES}",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
@click.version_option(__version__, prog_name="tritongen")
def cli() -> None:
    """Root of the command tree."""


def main(argv: list[str] | None = None) -> None:
    """Run the command line and exit with a code of `tritongen.errors.ExitCode`."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # its C library would log beside our one error
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # None where it is closed
            stream.reconfigure(errors="backslashreplace")  # "≤" on a terminal that is not UTF-8
    sys.exit(run(argv))


def run(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code; every TritongenError is shown once, here."""
    try:
        _check_text(sys.argv[1:] if argv is None else argv)
        result: Any = cli.main(args=argv, standalone_mode=False, prog_name="tritongen")
    except click.exceptions.Abort:
        click.echo("stopped", err=True)
        return INTERRUPTED
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return ExitCode.USAGE
    except (click.ClickException, TritongenError, OSError, MemoryError) as error:
        explained = _explained(error)
        click.echo(f"error: {explained}", err=True)
        return explained.exit_code
    return int(result) if isinstance(result, int) else ExitCode.OK


def _check_text(argv: Sequence[str]) -> None:
    """InputError for a word that is not UTF-8: no record could hold such a path, as they are JSON."""
    broken = [ascii(word) for word in argv if _NOT_UTF8.search(word)]
    if broken:
        raise InputError(
            "the command line is not UTF-8",
            found=" ".join(broken),
            expected="paths and names in UTF-8",
            fix="rename the file, or link to it under another name",
        )


def _explained(error: click.ClickException | TritongenError | OSError | MemoryError) -> TritongenError:
    """What click or the system says, in the form of every other error; those of no file pass."""
    if isinstance(error, TritongenError):
        return error
    if isinstance(error, MemoryError):
        return TritongenError(
            "memory ran out", found=str(error) or None, fix="ask for less at once, or give it more memory"
        )
    if isinstance(error, OSError):
        if error.filename is None and error.errno in _NO_ROOM:
            return TritongenError(
                "what this command prints or keeps could not be written",
                found=error.strerror,
                fix="make room on the disk that it goes to, or send it elsewhere",
            )
        if error.filename is None and error.errno != errno.ENOENT:
            raise error
        kind = InputError if error.errno in _NO_PATH else TritongenError
        return kind(
            f"a file or folder cannot be used: {error.strerror}",
            found=str(error.filename or "the working directory, which is gone"),
            fix="name another one, or see to its permissions and to room on its disk",
        )
    message = error.format_message().strip().rstrip(".")
    context = error.ctx if isinstance(error, click.UsageError) else None
    fix = f"see `{context.command_path} --help`" if context else "see `tritongen --help`"
    near = error.possibilities if isinstance(error, click.NoSuchOption) else None
    if near:
        message = f"no such option: {error.option_name}"  # type: ignore[attr-defined]
        fix = f"did you mean {' or '.join(sorted(near))}? {fix}"
    return SpecError(message[:1].lower() + message[1:], fix=fix)
