"""`tritongen compose k8s`: Deployment, Service, volume, autoscaler and monitoring for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tritongen.serving.registry import DEFAULT_REPOSITORY

if TYPE_CHECKING:
    from tritongen.repository.manifest import Manifest
    from tritongen.serving.container.kubernetes import Settings

EXAMPLES = """\b
Examples:
  tritongen compose k8s > triton.yaml    # docs/kubernetes.md: fill its claim, then kubectl apply
  tritongen compose k8s --namespace serving --replicas 2 --max-replicas 8
  tritongen compose k8s --cpu-image registry.example/tritongen-cpu:1 -o triton.yaml
  tritongen compose k8s --oci-volume registry.example/models:7
  tritongen compose k8s --adapter-rules > adapter.yaml
"""


@click.command(
    "k8s",
    help="Print the Kubernetes manifests for a repository: Deployment with probes, Service, a claim (or a "
    "volume from an image), a ServiceMonitor, and an autoscaler on Triton's queue time. Image, flags, GPU "
    "nodes and sizes follow from the models.\n\n" + EXAMPLES,
)
@click.argument("repository", required=False, type=click.Path(path_type=Path))
@click.argument("names", nargs=-1, metavar="[NAME…]")
@click.option("--image", metavar="IMAGE", help="An official image.  [default: what fits the models]")
@click.option(
    "--cpu-image", metavar="IMAGE", help="tritongen's own image (docker/cpu.Dockerfile), pushed by you."
)
@click.option("--name", default="triton", show_default=True, help="Of Deployment and Service.")
@click.option("--namespace", help="Written into every manifest.  [default: kubectl's]")
@click.option("--replicas", default=1, show_default=True, help="Pods at least.")
@click.option("--max-replicas", default=4, show_default=True, help="Pods at most; equal: no autoscaler.")
@click.option(
    "--queue-ms",
    type=click.FloatRange(min=0, min_open=True),
    help="Mean queue time from which on pods are added.  [default: a quarter of the latency objective]",
)
@click.option("--gpus", type=click.IntRange(min=0), help="Per pod.  [default: 1 for plans, else 0]")
@click.option(
    "--storage", metavar="SIZE", help="Of the claim.  [default: one and a half times the repository]"
)
@click.option("--storage-class", metavar="NAME", help="Of the claim.  [default: the cluster's]")
@click.option(
    "--oci-volume", metavar="IMAGE", help="Mount the repository from this image instead of a claim."
)
@click.option("--no-monitoring", is_flag=True, help="No ServiceMonitor and no autoscaler.")
@click.option("--adapter-rules", is_flag=True, help="Print the Prometheus adapter's rule for the autoscaler.")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write to a file.")
def command(
    repository: Path | None,
    names: tuple[str, ...],
    *,
    output: Path | None,
    adapter_rules: bool,
    **options: Any,
) -> int:
    """Print the manifests, or write them to a file."""
    from tritongen.files import check_writable, write_output
    from tritongen.serving.container import kubernetes

    if output is not None:
        check_writable(output)
    if adapter_rules:
        text = kubernetes.adapter_rules()
    else:
        manifests = _manifests(repository or DEFAULT_REPOSITORY, names)
        text = kubernetes.render(manifests, _settings(manifests, options))
    if output is None:
        click.echo(text, nl=False)
    else:
        write_output(output, text)
        fill = "" if options["oci_volume"] else "fill its claim (docs/kubernetes.md), then: "
        click.echo(f"wrote {output}" if adapter_rules else f"{output}: {fill}kubectl apply -f {output}")
    return 0


def _manifests(repository: Path, names: tuple[str, ...]) -> list[Manifest]:
    from tritongen.errors import InputError
    from tritongen.repository.manifest import read_manifest
    from tritongen.repository.verify import model_names

    present = model_names(repository)
    unknown = [name for name in names if name not in present]
    if unknown or not present:
        raise InputError(
            f"{repository} has no model{f' {unknown[0]!r}' if unknown else ''}",
            found=", ".join(present) or "an empty folder",
            fix="name one of these, or build it: tritongen build MODEL.onnx",
        )
    return [read_manifest(repository / name) for name in names or present]


def _settings(manifests: list[Manifest], options: dict[str, Any]) -> Settings:
    from tritongen.repository.targets import check_reference, find_target, is_tag
    from tritongen.serving.container.images import choose_image, flags_for
    from tritongen.serving.container.kubernetes import Settings

    image, cpu_image, volume = options["image"], options["cpu_image"], options["oci_volume"]
    if image is not None and cpu_image is not None:
        raise click.UsageError("--image and --cpu-image exclude each other")
    if volume is not None and (options["storage"] or options["storage_class"]):
        raise click.UsageError("--oci-volume takes the place of the claim of --storage and --storage-class")
    for name in (image, cpu_image, volume):
        if name is not None:
            check_reference(name)
    if cpu_image:
        flags: tuple[str, ...] = ()
    elif image:
        image = find_target(image).name if is_tag(image) else image
        flags = flags_for(manifests, image)
    else:
        choice = choose_image(manifests)
        image, flags = choice.image, choice.backend_config
    queue_ms = options["queue_ms"]
    return Settings(
        image=cpu_image or image,
        backends="own" if cpu_image else "official",
        backend_config=flags,
        name=options["name"],
        namespace=options["namespace"],
        replicas=options["replicas"],
        max_replicas=options["max_replicas"],
        queue_us=None if queue_ms is None else max(1, round(queue_ms * 1000)),
        gpus=options["gpus"],
        claim_size=options["storage"],
        storage_class=options["storage_class"],
        oci_volume=volume,
        monitoring=not options["no_monitoring"],
    )
