"""`tritongen compose init`: the Compose files, and triton.env for the models of the repository."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from tritongen.serving.registry import DEFAULT_REPOSITORY

EXAMPLES = """\b
Examples:
  tritongen compose init            # NVIDIA's container, with a GPU
  tritongen compose init --cpu      # a small image of our own, without one
  tritongen compose init deploy --repository deploy/model_repository
"""


@click.command(
    "init",
    help="Write docker-compose.yml, a hardened overlay, Dockerfiles, a Grafana dashboard and triton.env into "
    "DIR (by default the current folder). triton.env names the image that fits the models of the repository; "
    "`tritongen build` keeps it current. Files that tritongen did not write are left alone.\n\n" + EXAMPLES,
)
@click.argument("folder", metavar="[DIR]", type=click.Path(path_type=Path, file_okay=False), default=".")
@click.option("--cpu", is_flag=True, help="For machines without a GPU: docker-compose.cpu.yml.")
@click.option(
    "--repository",
    "-r",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help=f"Whose models triton.env is for.  [default: DIR/triton.env's, or DIR/{DEFAULT_REPOSITORY}]",
)
@click.option(
    "--force", is_flag=True, help="Replace files that tritongen did not write, or that were edited."
)
def command(*, folder: Path, cpu: bool, repository: Path | None, force: bool) -> int:
    """Write the files; nothing is written if one of them is somebody else's."""
    from tritongen.errors import InputError
    from tritongen.repository.verify import model_names
    from tritongen.serving.container.compose import init, manifests_of, repository_of, up_command
    from tritongen.serving.container.host import has_no_gpu
    from tritongen.serving.container.launch import needs_gpu

    if repository is not None and not repository.is_dir():
        raise InputError(
            f"there is no repository {repository}",
            found="no such folder",
            fix=f"build it first: tritongen build MODEL.onnx --repository {shlex.quote(str(repository))}",
        )
    repository = repository or repository_of(folder)
    written = init(folder, repository, "cpu" if cpu else "gpu", force=force)
    for each in written:
        click.echo(f"  {each.what:<10}{each.path}")
    where = "" if folder == Path() else f"cd {shlex.quote(str(folder))} && "
    if cpu:
        click.echo("The image is made from the wheels in docker/wheelhouse: see the README.md there.")
        if on_gpus := [manifest.name for manifest in manifests_of(repository) if needs_gpu(manifest)]:
            click.echo(f"warning: it serves no models for a GPU: {', '.join(on_gpus)}", err=True)
    elif has_no_gpu():
        click.echo(
            "warning: these files ask for a GPU, and this machine has none; without one: "
            "tritongen compose init --cpu",
            err=True,
        )
    if not repository.is_dir() or not model_names(repository):
        at = "" if repository == DEFAULT_REPOSITORY else f" --repository {shlex.quote(str(repository))}"
        click.echo(f"Nothing is in {repository} to serve yet; first: tritongen build MODEL.onnx{at}")
    click.echo(f"Next: {where}{up_command(cpu=cpu)}")
    return 0
