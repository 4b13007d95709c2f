"""Checks a repository against its manifests, its models, and the server that is to serve it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tritongen.errors import InputError, RepositoryError, TritongenError
from tritongen.repository import manifest as manifests
from tritongen.repository.config_text import parse
from tritongen.repository.contents import entry_of, listing
from tritongen.repository.existing import CONFIG, examine
from tritongen.repository.findings import BUILD, BUILD_HERE, FORCED_BUILD, REBUILD, Finding
from tritongen.repository.image_match import check_plan_image
from tritongen.repository.kept import is_shadow
from tritongen.repository.model_match import check_model_file
from tritongen.repository.parser_match import check_parser, uses_tensorrt
from tritongen.repository.plan_match import check_plan_here, check_plans
from tritongen.repository.provider_match import check_provider_here
from tritongen.repository.rules import backend_of, check_rules, server_options
from tritongen.repository.swap import staging_folder
from tritongen.repository.targets import EMBEDDED

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.repository.targets import Target
    from tritongen.runs.records import Machine

DEFAULT_FILENAMES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
_HAND_EDITED = f"put the change into the spec (serving: …) and run {FORCED_BUILD}"
_OTHERS_READ = 0o004


@dataclass(frozen=True)
class Place:
    """Where the repository is to be served."""

    target: Target
    machine: Machine | None = None
    """This machine, when it is the one that will serve."""
    ask_tensorrt: bool = False
    """Ask TensorRT's parser about every ONNX file; else only where TensorRT is to run parts of it."""
    plugins: tuple[Path, ...] = ()
    """Libraries with operators that the parser is given."""


def model_names(repository: Path) -> tuple[str, ...]:
    """The models of a repository; InputError if there is none."""
    manifests.check_repository(repository)
    try:
        folders = [path for path in repository.iterdir() if path.is_dir() and not is_shadow(path)]
    except OSError as error:
        raise InputError(
            f"the model repository {repository} cannot be read",
            found=str(error),
            fix="give yourself read permission, or name another folder",
        ) from error
    return tuple(sorted(path.name for path in folders if path.name != ".tritongen"))


def verify_repository(repository: Path, names: Sequence[str], place: Place) -> Iterator[Finding]:
    """Findings about the repository and the named models (default: all of them)."""
    present = model_names(repository)
    unknown = [name for name in names if name not in present]
    if unknown:
        raise InputError(
            f"{repository} has no model '{unknown[0]}'",
            found=", ".join(present) or "an empty folder",
            fix="name one of these, or build it",
        )
    yield from _readable_ones(None, _unfinished(repository))
    if not present:
        yield Finding(
            None,
            "empty",
            f"{repository} holds no model",
            "there is nothing to serve",
            "run `tritongen build`",
        )
    for name in names or present:
        yield from verify_model(repository / name, place)


def verify_model(folder: Path, place: Place) -> Iterator[Finding]:
    """Findings about one model's folder, each with a command that works."""
    command = _build_command(folder)
    for finding in _readable_ones(folder.name, _findings(folder, place)):
        yield replace(finding, fix=finding.fix.replace(BUILD, command))


def how_to_rebuild(folder: Path) -> str:
    """What builds the model again, whatever lies there now."""
    return REBUILD.replace(BUILD, _build_command(folder))


def _build_command(folder: Path) -> str:
    try:
        examine(folder, force=False)
    except (TritongenError, OSError):
        return FORCED_BUILD
    return BUILD


def _readable_ones(name: str | None, findings: Iterator[Finding]) -> Iterator[Finding]:
    """The findings, and one more where the disk does not let the checks go on."""
    try:
        yield from findings
    except OSError as error:
        yield Finding(
            name,
            "unreadable",
            str(error),
            "what lies there, and what comes after it, cannot be checked",
            "give yourself read permission, or leave it alone while it is verified",
        )


def _findings(folder: Path, place: Place) -> Iterator[Finding]:
    name = folder.name
    manifest = None
    try:
        manifest = manifests.read_manifest(folder)
    except RepositoryError as error:
        # A model of one's own (an ensemble, say) has its place beside ours; a damaged manifest has not.
        own = not (folder / manifests.FILENAME).exists()
        yield Finding(
            name,
            "manifest",
            f"{error.message}{f' ({error.found})' if error.found else ''}",
            "nothing tells what built it, so its files, versions and promises cannot be checked",
            f"leave it if it is yours; else {error.fix or REBUILD}" if own else error.fix or REBUILD,
            "warning" if own else "error",
        )
    if manifest is not None:
        yield from _digests(folder, manifest)
    config = None
    try:
        config = parse((folder / CONFIG).read_text(encoding="utf-8"), CONFIG)
    except (TritongenError, OSError, UnicodeDecodeError) as error:
        yield Finding(name, "config", _why_no_config(error), "Triton refuses to load the model", REBUILD)
    if config is not None:
        yield from _config(name, config)
        yield from _versions(folder, config, manifest, place)
    yield from _readable(folder)
    if manifest is not None:
        yield from _place(manifest, place)
    if manifest is not None and config is not None and manifest.backend == "tensorrt":
        yield from check_plans(folder, config, manifest)
        if place.target.name == EMBEDDED:
            yield from check_plan_here(folder, config, manifest)


def _unfinished(repository: Path) -> Iterator[Finding]:
    root = staging_folder(repository)
    workspaces = [path for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    for aside in (workspace / "old" for workspace in workspaces):
        target = repository / aside.parent.name.rpartition(".")[0]
        if aside.is_dir() and not target.exists():
            yield Finding(
                target.name,
                "interrupted",
                "writing it was interrupted between two renames",
                "the model is missing from the repository until the old state is put back",
                f"{_command('mv', aside, target)}, or run `tritongen build`",
            )
    for shadow in filter(is_shadow, repository.iterdir()):
        name = shadow.name.rpartition(".")[0]
        yield Finding(
            name,
            "interrupted",
            f"{shadow} was left by an interrupted reload",
            "a server that starts loads it as one more model, which takes memory",
            f"{_command('rm -r', shadow)}, or run `tritongen reload {name}` again",
            "warning",
        )
    if workspaces and root.parent == repository.resolve():
        yield Finding(
            None,
            "interrupted",
            f"{root} was left by an interrupted write",
            "Triton takes every folder in its repository for a model and refuses to start",
            f"{_command('rm -r', root)}, or run `tritongen build`",
        )


def _command(what: str, *paths: Path) -> str:
    """A command line that works as it stands, whatever the paths hold."""
    return f"{what} {shlex.join(map(str, paths))}"


def _digests(folder: Path, manifest: Manifest) -> Iterator[Finding]:
    name = folder.name
    for path, entry in manifest.files.items():
        try:
            found = entry_of(folder / path)
        except OSError as error:
            yield Finding(
                name,
                "digest",
                f"{path} cannot be read: {error.strerror or error}",
                "the manifest lists it as part of the model",
                REBUILD,
            )
            continue
        if found.digest != entry.digest:
            is_config = path == CONFIG
            yield Finding(
                name,
                "digest",
                f"{path} is not what was built: SHA-256 {found.digest[:12]}…, and {entry.digest[:12]}… in "
                "the manifest",
                f"accuracy and speed were measured with another {'configuration' if is_config else 'file'}",
                _HAND_EDITED if is_config else REBUILD,
            )
    extra = [path for path in listing(folder) if path not in {*manifest.files, manifests.FILENAME}]
    if extra:
        yield Finding(
            name,
            "foreign",
            f"files that tritongen did not write: {', '.join(extra[:5])}{' …' if len(extra) > 5 else ''}",  # noqa: PLR2004
            "the manifest says nothing about them",
            "remove them if they are not yours",
            "warning",
        )


def _why_no_config(error: TritongenError | OSError | UnicodeDecodeError) -> str:
    if isinstance(error, TritongenError):
        return f"{error.message}: {error.found}"
    reason = error.strerror if isinstance(error, OSError) else f"it is not UTF-8 ({error.reason})"
    return f"{CONFIG} cannot be read: {reason}"


def _config(name: str, config: Any) -> Iterator[Finding]:
    if config.name != name:
        yield Finding(
            name,
            "config",
            f"config.pbtxt names the model '{config.name}'",
            "Triton refuses a model whose name is not its folder's",
            f'write name: "{name}"',
        )
    for violation in check_rules(config):
        who = {"core": "Triton", "tritongen": "this"}.get(
            violation.origin, f"Triton's {violation.origin} backend"
        )
        why = "it does nothing, or not what it says" if who == "this" else f"{who} refuses to load the model"
        yield Finding(name, f"rule:{violation.rule}", violation.message, why, violation.fix)
    for option in server_options(config):
        yield Finding(
            name,
            "server-option",
            "the response cache is on",
            "it has no effect on a server that was started without one",
            f"start tritonserver with {option}",
            "warning",
        )


def _versions(folder: Path, config: Any, manifest: Manifest | None, place: Place) -> Iterator[Finding]:
    name = folder.name
    versions = sorted(int(p.name) for p in folder.iterdir() if p.is_dir() and p.name.isdecimal())
    if not versions:
        why = "Triton has nothing to load"
        yield Finding(name, "versions", "there is no version folder", why, REBUILD)
    elif manifest is not None and versions[-1] != manifest.version:
        yield Finding(
            name,
            "versions",
            f"version {versions[-1]} lies above the manifest's version {manifest.version}",
            "the highest version takes the traffic, and the manifest does not describe it",
            f"move {folder / str(versions[-1])} away, or {REBUILD}",
        )
    filename = config.default_model_filename or DEFAULT_FILENAMES.get(backend_of(config))
    for version in versions:
        path = folder / str(version) / filename if filename else None
        if path is not None and not path.is_file():
            yield Finding(
                name,
                "model-file",
                f"{version}/{filename} is missing",
                f"version {version} cannot be loaded",
                REBUILD,
            )
        elif path is not None and path.suffix == ".onnx":
            yield from check_model_file(name, path, config, place.target)
            if place.ask_tensorrt or uses_tensorrt(config):
                yield from check_parser(name, path, "warning", place.plugins)


def _readable(folder: Path) -> Iterator[Finding]:
    modes = {path: _mode(path) for path in (folder, *folder.rglob("*"))}
    broken = [f"{path} ({mode})" for path, mode in modes.items() if isinstance(mode, str)]
    closed = [path for path, mode in modes.items() if isinstance(mode, int) and not mode & _OTHERS_READ]
    if broken:
        yield Finding(
            folder.name,
            "unreadable",
            f"nothing can be read at {_first(broken)}",
            "no server, and nobody who copies the folder, finds a file there",
            "remove it, or put the file there that it stands for",
            "warning",
        )
    if closed:
        yield Finding(
            folder.name,
            "permissions",
            f"other users cannot read {_first(closed)}",
            "a container that does not run as you cannot load the model",
            _command("chmod -R a+rX", folder),
            "warning",
        )


def _mode(path: Path) -> int | str:
    """The permissions of a file or folder, or why there are none to be had."""
    try:
        return path.stat().st_mode
    except OSError as error:
        return f"{'a symbolic link: ' if path.is_symlink() else ''}{error.strerror or error}"


def _first(found: Sequence[object]) -> str:
    return f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''}"


def _place(manifest: Manifest, place: Place) -> Iterator[Finding]:
    name, target = manifest.name, place.target
    if manifest.backend == "tensorrt" and target.name != EMBEDDED:
        yield from check_plan_image(manifest, target)
    if target.name == EMBEDDED:
        yield from check_provider_here(name, manifest.engine)
    if place.machine is not None:
        missing = sorted(set(manifest.machine.cpu_features) - set(place.machine.cpu_features))
        if manifest.backend == "onnxruntime" and missing:
            yield Finding(
                name,
                "machine",
                f"this machine's CPU lacks {', '.join(missing)}",
                "it was tuned with them: it will run, but slower, and another candidate may win here",
                BUILD_HERE,
                "warning",
            )
    void = [p for p in manifest.proofs if p.config_digest != manifest.files[CONFIG].digest]
    if void:
        yield Finding(
            name,
            "proof",
            f"{', '.join(proof.slo for proof in void)} was proved with another config.pbtxt",
            "the promise is UNPROVEN for this one",
            f"run `tritongen loadtest {name}` again",
            "warning",
        )
