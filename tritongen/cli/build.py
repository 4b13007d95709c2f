"""`tritongen build`: autotune models and write the Triton model repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tritongen.cli import options
from tritongen.cli.sections import SectionedCommand
from tritongen.cli.stopping import INTERRUPTED, until_stopped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from tritongen.autotune.build import Publish, Published
    from tritongen.autotune.winner import SelectedModel
    from tritongen.runs.build import Build
    from tritongen.runs.events import EventSink
    from tritongen.runs.store import RunDirectory
    from tritongen.spec import ModelSpec, Spec


_SECTIONS = {
    "Model": ("--name", "--shape", "--range", "--max-batch-size", "--target"),
    "What to try": ("--engine", "--execution-provider", "--precision", "--tensorrt", "--plugin"),
    "What is best": ("--objective", "--slo", "--p99-ms"),
    "Accuracy": (
        "--calibration-data", "--validation-data", "--labels", "--metric", "--accuracy-limit", "--reference",
    ),
    "How long it takes": ("--effort", "--build-budget", "--fresh", "--seed"),
    "What is written": (
        "--repository", "--run-dir", "--keep", "--keep-candidates", "--force", "--json",
    ),
}  # fmt: skip


@click.command(
    cls=SectionedCommand,
    sections=_SECTIONS,
    help="""Autotune models and write the Triton model repository.

    Without arguments it builds ./tritongen.yaml. Every candidate is tried in a process of its own: accuracy
    first, then its latency curve. Ctrl-C stops it; the same command goes on where it stopped.

    \b
    Examples:
      tritongen build
      tritongen build model.onnx --calibration-data calib.npz --validation-data test.npz
      tritongen build detector.onnx --shape 'images=3x640x640' --objective latency
      tritongen build model.onnx --slo 'p99<=20ms' --json > build.json
    """,
)
@options.models
@options.spec_flags
@click.option("--fresh", is_flag=True, help="Measure everything again, even what has not changed.")
@click.option(
    "--effort",
    type=click.Choice(["quick", "normal", "thorough"]),
    default="normal",
    show_default=True,
    help="How long each point is measured; TensorRT: quick builds faster, thorough tries each tuning axis.",
)
@click.option("--force", is_flag=True, help="Replace a model folder that tritongen did not write.")
@options.as_json
def command(
    models: tuple[Path, ...], fresh: bool, effort: str, force: bool, as_json: bool, **flags: Any
) -> int:
    from tritongen.autotune.build import build_models
    from tritongen.report.console import console as make_console
    from tritongen.report.terminal import progress
    from tritongen.repository.preflight import check_destination

    spec = options.read_spec(models, **flags)
    check_destination(spec, force=force)
    console = make_console(stderr=as_json)

    def work() -> int:
        with progress(console) as events:
            try:
                publish = _publisher(spec, force=force)
                build = build_models(spec, _adapt, publish, events, fresh=fresh, effort=effort)
            except KeyboardInterrupt:
                build = None
        if build is None:
            click.echo("stopped; finished trials are kept: run the same command again to resume", err=True)
            return INTERRUPTED
        _show(build, spec, console, as_json=as_json)
        if any(model.status != "failed" for model in build.models):
            _refresh_triton_env(spec.repository, as_json=as_json)
        return max((model.exit_code for model in build.models if model.status == "failed"), default=0)

    return until_stopped(work)


def _refresh_triton_env(repository: Path, *, as_json: bool) -> None:
    """Where `tritongen compose init` wrote a triton.env beside the repository, it follows the models."""
    from tritongen.serving.container.compose import refresh_environment

    if told := refresh_environment(repository):
        click.echo(told, err=as_json)


def _show(build: Build, spec: Spec, console: Any, *, as_json: bool) -> None:
    from tritongen.cli.servers import compose_command, is_served
    from tritongen.report.build import print_build

    if as_json:
        click.echo(build.model_dump_json(by_alias=True, indent=2))
    else:
        print_build(
            console,
            build,
            repository=str(spec.repository),
            served=is_served(spec.repository),
            compose=compose_command(spec.repository),
        )
    for model in build.models:
        if model.status == "failed":
            click.echo(f"error: model '{model.name}': {model.error}", err=True)


def _adapt(model: ModelSpec, run: RunDirectory) -> tuple[Path, tuple[str, ...]]:
    from tritongen.repository.adaptation import adapt_for_target

    adapted = adapt_for_target(model, run)
    return adapted.path, adapted.notes


def _publisher(spec: Spec, *, force: bool) -> Publish:
    """Writes selected models into the spec's repository."""

    def publish(model: SelectedModel, events: EventSink) -> Published:
        from tritongen.autotune.build import Published
        from tritongen.repository.writer import BuiltCandidate, ModelToWrite, write_model
        from tritongen.runs.fingerprint import library_versions

        if model.winner.artifact is None:
            raise TypeError("a winner without an artifact")
        kept = model.selection.runners_up if model.spec.keep_candidates else ()
        sample, reference = _arrays(model)
        written = write_model(
            spec.repository,
            ModelToWrite(
                name=model.name,
                spec=model.spec,
                graph=model.graph,
                inputs=model.inputs,
                selection=model.selection,
                winner=BuiltCandidate(model.winner, model.run.trial(model.selection.winner)),
                traits=model.engine.serving_traits(model.winner.artifact, model.selection.runtime),
                runners_up=[BuiltCandidate(model.trials[one], model.run.trial(one)) for one in kept],
                sample=sample,
                reference=reference,
                versions=library_versions(),
                notes=(*model.adaptation, *model.selection.notes),
            ),
            force=force,
            events=events,
        )
        notes = (written.replaced,) if written.replaced else ()
        return Published(written.folder, written.version, notes)

    return publish


def _arrays(model: SelectedModel) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """(one item per input, the inputs and outputs to compare a served model with) from the winner's trial."""
    import numpy as np

    from tritongen.autotune.trial import REFERENCE

    with np.load(model.run.trial(model.selection.winner) / REFERENCE) as stored:
        reference = {name: stored[name] for name in stored.files}
    inputs = {name.partition("/")[2]: a for name, a in reference.items() if name.startswith("input/")}
    return {name: a[0] if model.graph.batched else a for name, a in inputs.items()}, reference
