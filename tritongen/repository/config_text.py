"""`config.pbtxt` as text: rendered from a Jinja template, and parsed as Triton's own schema."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritongen.errors import RepositoryError, SpecError

if TYPE_CHECKING:
    import jinja2

    from tritongen.repository.model_config import ModelConfig

_PACKAGE = Path(__file__).resolve().parents[1]
TEMPLATE_FOLDERS = (_PACKAGE / "templates", _PACKAGE.parent / "templates")
"""Where the wheel and where a checkout keep the templates."""

_ESCAPES = {ord("\\"): "\\\\", ord('"'): '\\"', ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}


def quote(text: object) -> str:
    """`text` as a double-quoted protobuf string literal of printable ASCII; SpecError if it is not Unicode.

    Everything else is an octal escape of its UTF-8 bytes, so no text can end the literal.
    """
    try:
        data = str(text).encode("utf-8")
    except UnicodeEncodeError as error:
        raise SpecError(
            "a text for config.pbtxt is not valid Unicode",
            found=ascii(text),
            expected="text that can be written as UTF-8",
        ) from error
    return f'"{"".join(_ESCAPES.get(byte) or _literal(byte) for byte in data)}"'


def _literal(byte: int) -> str:
    return chr(byte) if 0x20 <= byte <= 0x7E else f"\\{byte:03o}"  # noqa: PLR2004 printable ASCII


def render(config: ModelConfig, template: Path | None = None) -> str:
    """The text of `config.pbtxt`; SpecError, with the line, for a template that does not work."""
    import jinja2

    path = template or default_template()
    environment = _environment(path.parent)
    try:
        text = environment.get_template(path.name).render(config=config)
    except jinja2.TemplateNotFound as error:
        raise SpecError(
            "the config template does not exist",
            found=str(path.parent / (error.name or path.name)),
            fix="correct serving.template, or leave it out to use tritongen's own",
        ) from error
    except jinja2.TemplateSyntaxError as error:
        raise _template_error(path, error.lineno, error) from error
    except (jinja2.TemplateError, AttributeError, TypeError, ValueError, ArithmeticError) as error:
        raise _template_error(path, _template_line(error, path), error) from error
    return text.strip() + "\n"


@functools.cache
def _environment(folder: Path) -> jinja2.Environment:
    """One per folder of templates, as compiling ours takes longer than all else in writing a small model."""
    import jinja2

    # Not HTML: values go through the `quote` filter instead.
    environment = jinja2.Environment(  # noqa: S701
        undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(folder)
    )
    environment.filters["quote"] = quote
    return environment


def default_template() -> Path:
    """tritongen's own template, in the wheel or in a checkout; RepositoryError if neither has it."""
    for folder in TEMPLATE_FOLDERS:
        path = folder / "config.pbtxt.j2"
        if path.is_file():
            return path
    raise RepositoryError(
        "tritongen's config template is missing",
        expected=" or ".join(str(folder / "config.pbtxt.j2") for folder in TEMPLATE_FOLDERS),
        fix="install tritongen again",
    )


def parse(text: str, source: str = "config.pbtxt") -> Any:
    """The text as a `ModelConfig` message of Triton's protocol; RepositoryError with line and column."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        return text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise RepositoryError(
            f"{source} is not a Triton model configuration",
            found=str(error),
            expected="protobuf text of inference.ModelConfig",
            fix="correct it",
        ) from error


def parse_rendered(text: str, config: ModelConfig, template: Path | None = None) -> Any:
    """What `render` gave, as a message; SpecError naming serving.raw or the template, and the line in it."""
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2

    try:
        parsed = text_format.Parse(text, model_config_pb2.ModelConfig())
    except text_format.ParseError as error:
        raise _unparseable(text, config, template, error) from error
    if parsed.name != config.name:
        raise SpecError(
            "the configuration names another model than its folder, which Triton refuses",
            found=parsed.name or "no name",
            expected=config.name,
            fix="write `name: {{ config.name | quote }}` in the template",
        )
    return parsed


def difference(written: Any, loaded: Mapping[str, Any]) -> str | None:
    """The first field of a parsed config.pbtxt that a server's own configuration (JSON) has otherwise.

    None if they agree: servers add defaults, and names of instance groups.
    """
    from google.protobuf import json_format
    from tritonclient.grpc import model_config_pb2

    served = json_format.ParseDict(loaded, model_config_pb2.ModelConfig(), ignore_unknown_fields=True)
    own = model_config_pb2.ModelConfig.FromString(written.SerializeToString())
    for group in (*own.instance_group, *served.instance_group):
        group.name = ""
    fields = {field.name for field, _ in written.ListFields()} | _NEVER_ADDED
    return next((name for name in sorted(fields) if not _stands(name, own, served)), None)


_NEVER_ADDED = {"dynamic_batching", "model_warmup", "parameters", "response_cache"}
"""What a server that completes nothing has only where it is written."""


def _stands(name: str, written: Any, served: Any) -> bool:
    before, after = getattr(written, name), getattr(served, name)
    if name not in ("dynamic_batching", "optimization"):  # in these it fills in what is left out
        return bool(before == after)
    same = all(getattr(after, field.name) == value for field, value in before.ListFields())
    return same and (name == "optimization" or written.HasField(name) == served.HasField(name))


def _unparseable(text: str, config: ModelConfig, template: Path | None, error: Any) -> SpecError:
    lines, line = text.splitlines(), error.GetLine() or 1
    shown = lines[min(line, len(lines)) - 1].strip()
    # "12:3 : Message type … has no field …": the place is one in a text that nobody sees.
    said = re.sub(r"^\d+:\d+ : ", "", str(error))
    raw = config.raw.splitlines()
    above = len(lines) - len(raw)
    if raw and template is None and (line > above or _parses("\n".join(lines[:above]))):
        key = f"models.{config.name}.serving.raw"
        return SpecError(
            f"{key}, line {max(1, line - above)}: not a Triton model configuration",
            found=f"{said} ({shown})",
            expected="protobuf text of inference.ModelConfig, which is appended to config.pbtxt",
            fix="correct serving.raw in the spec",
        )
    return SpecError(
        f"the config template {template or default_template()} does not give a Triton model configuration",
        found=f"{said} ({shown})",
        expected="protobuf text of inference.ModelConfig",
        fix="correct serving.template" + (" or serving.raw" if raw else ""),
    )


def _parses(text: str) -> bool:
    try:
        parse(text)
    except RepositoryError:
        return False
    return True


def _template_line(error: BaseException, path: Path) -> int | None:
    """The last line of the template that the error passed through."""
    line, trace = None, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == str(path):
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _template_error(path: Path, line: int | None, error: Exception) -> SpecError:
    return SpecError(
        f"the config template {path}{'' if line is None else f', line {line},'} does not work",
        found=str(error),
        expected="a Jinja template that uses only `config` (a ModelConfig) and the filter `quote`",
        fix="start from a copy of tritongen's templates/config.pbtxt.j2",
    )
