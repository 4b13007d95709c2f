"""Kubernetes manifests for a repository, from the same facts as its compose files."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from tritongen.errors import RequirementError, SpecError
from tritongen.serving.container.checks import needed_shm_bytes
from tritongen.serving.container.gpu_checks import capabilities
from tritongen.serving.container.launch import needs_gpu
from tritongen.slo import parse_slo

if TYPE_CHECKING:
    import jinja2

    from tritongen.repository.manifest import Manifest

TEMPLATES = "templates/kubernetes"
_PACKAGE = Path(__file__).resolve().parents[2]
_FOLDERS = (_PACKAGE / TEMPLATES, _PACKAGE.parent / TEMPLATES)
MOUNT_PATH = "/models"
CLAIM_FOLDER = "model_repository"
"""Where the repository lies in the claim."""
CLAIM_COMPONENT = "models"
"""By this label the claim can be applied alone, to fill it before any pod mounts it."""
PORTS = (("http", 8000), ("grpc", 8001), ("metrics", 8002))
QUEUE_METRIC = "triton_queue_time_us"
DEFAULT_QUEUE_US = 10_000
"""Where no model has a latency objective."""
_SHARE_OF_OBJECTIVE = 4
"""A request may wait a quarter of the tightest latency objective before another pod is worth its cost."""
UID = 1000
_GRACE_S, _DRAIN_S, _EXIT_S, _STARTUP_S = 45, 5, 30, 600
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_QUANTITY = re.compile(r"[0-9]+(\.[0-9]+)?(Ki|Mi|Gi|Ti|k|M|G|T)?")
_BASE_MEMORY_BYTES = 1 << 30
"""Triton and its libraries, before any model."""
_MINIMUM_SHM_BYTES = 256 << 20

Backends = Literal["official", "own"]


@dataclass(frozen=True)
class Settings:
    """What the manifests cannot know."""

    image: str
    backends: Backends
    """`own`: tritongen's image, whose backends are Python processes."""
    backend_config: tuple[str, ...] = ()
    name: str = "triton"
    namespace: str | None = None
    replicas: int = 1
    max_replicas: int = 4
    queue_us: int | None = None
    """Mean queue time from which on pods are added; None: a quarter of the tightest latency objective."""
    gpus: int | None = None
    """Per pod; None: 1 where there are plans, else 0."""
    claim_size: str | None = None
    """None: one and a half times the repository."""
    storage_class: str | None = None
    oci_volume: str | None = None
    """An image that holds the repository, instead of a claim."""
    monitoring: bool = True
    """A ServiceMonitor, and an autoscaler where `max_replicas` is above `replicas`."""


def render(manifests: Sequence[Manifest], settings: Settings) -> str:
    """All manifests as one YAML text; SpecError for a name or a number that Kubernetes refuses."""
    _check(settings)
    on_gpus = [manifest.name for manifest in manifests if needs_gpu(manifest)]
    if on_gpus and settings.backends == "own":
        raise SpecError(
            "tritongen's CPU image cannot serve models for a GPU",
            found=", ".join(on_gpus),
            fix="leave --cpu-image out, or build for the CPU: tritongen build --engine onnxruntime",
        )
    facts = _facts(manifests, settings)
    parts = ["deployment", "service"]
    parts[:0] = [] if settings.oci_volume else ["claim"]
    if settings.monitoring:
        parts += ["monitor"]
        parts += ["autoscaler"] if facts["autoscaled"] else []
    environment = _environment()
    return "---\n".join(
        environment.get_template(f"{part}.yaml.j2").render(k8s=facts) + "\n" for part in parts
    )


def adapter_rules() -> str:
    """Values for the Prometheus adapter's chart that make the autoscaler's metric."""
    return _environment().get_template("adapter.yaml.j2").render(k8s={"queue_metric": QUEUE_METRIC}) + "\n"


def _facts(manifests: Sequence[Manifest], settings: Settings) -> dict[str, Any]:
    """What the templates write."""
    digest = _digest(manifests)
    selector = {"app.kubernetes.io/name": "triton", "app.kubernetes.io/instance": settings.name}
    labels = {**selector, "app.kubernetes.io/managed-by": "tritongen"}
    queue_us, reason = _queue(manifests, settings)
    most = settings.max_replicas if settings.monitoring else settings.replicas
    shm = max(_MINIMUM_SHM_BYTES, math.ceil(needed_shm_bytes(manifests) * 1.25))
    return {
        "name": settings.name,
        "namespace": settings.namespace,
        "labels": labels,
        "selector": selector,
        "image": settings.image,
        "arguments": _arguments(settings),
        "ports": PORTS,
        "mount_path": MOUNT_PATH,
        "models_digest": digest,
        "affinity": _affinity(manifests),
        "uid": UID,
        "shm": _mebibytes(shm),
        **_resources(manifests, settings, shm),
        "grace_seconds": _GRACE_S,
        "drain_seconds": _DRAIN_S,
        "startup_seconds": _STARTUP_S,
        # One per state of the models: what pods mount is never written again, and is there to go back to.
        "claim": f"{settings.name}-models-{digest}",
        "claim_labels": {**labels, "app.kubernetes.io/component": CLAIM_COMPONENT},
        "claim_folder": CLAIM_FOLDER,
        "claim_size": settings.claim_size or _mebibytes(math.ceil(1.5 * _repository_bytes(manifests))),
        "access_mode": "ReadWriteMany" if most > 1 else "ReadWriteOnce",
        "surges": most > 1 or settings.oci_volume is not None,
        "storage_class": settings.storage_class,
        "oci_volume": settings.oci_volume,
        "replicas": settings.replicas,
        "max_replicas": settings.max_replicas,
        "autoscaled": most > settings.replicas,
        "queue_metric": QUEUE_METRIC,
        "queue_us": queue_us,
        "queue_reason": reason,
    }


def _arguments(settings: Settings) -> list[str]:
    options = [f"--exit-timeout-secs={_EXIT_S}", *(f"--backend-config={c}" for c in settings.backend_config)]
    if settings.backends == "own":
        return ["serve", MOUNT_PATH, "--host", "0.0.0.0", "--log-file", "-", "--", *options]  # noqa: S104
    return ["tritonserver", f"--model-repository={MOUNT_PATH}", *options]


def _resources(manifests: Sequence[Manifest], settings: Settings, shm: int) -> dict[str, dict[str, str]]:
    """Requests and limits: the cores and the memory that the trials used; shared memory counts as memory."""
    cores = sum(m.instances * max(1, int(m.runtime.get("intra_op_threads", 1))) for m in manifests)
    held = sum(m.instances * (m.memory_bytes or 0) for m in manifests if not needs_gpu(m))
    memory = _mebibytes(_BASE_MEMORY_BYTES + math.ceil(1.5 * held) + shm)
    gpus = settings.gpus
    if gpus is None:
        gpus = 1 if any(map(needs_gpu, manifests)) else 0
    limits = {"memory": memory} | ({"nvidia.com/gpu": str(gpus)} if gpus else {})
    # No limit on the CPU: throttling would show as latency.
    return {"requests": {"cpu": str(max(1, cores)), "memory": memory}, "limits": limits}


def _queue(manifests: Sequence[Manifest], settings: Settings) -> tuple[int, str]:
    """Microseconds of mean queue time from which on pods are added, and where the number is from."""
    if settings.queue_us is not None:
        return settings.queue_us, "as asked for"
    latencies = [slo for m in manifests for slo in map(parse_slo, m.slo) if slo.unit == "ms"]
    if not latencies:
        return DEFAULT_QUEUE_US, "no model has a latency objective"
    tightest = min(latencies, key=lambda slo: slo.limit)
    return max(1, int(tightest.limit * 1000 / _SHARE_OF_OBJECTIVE)), f"a quarter of {tightest}"


def _affinity(manifests: Sequence[Manifest]) -> list[tuple[str, str]]:
    """(major, minor) of the compute capabilities on which every plan loads."""
    sets = [found for m in manifests if m.backend == "tensorrt" and (found := capabilities(m))]
    common = set.intersection(*sets) if sets else set()
    if sets and not common:
        raise SpecError(
            "no GPU loads every plan of this repository",
            found="; ".join(", ".join(sorted(each)) for each in sets),
            expected="a compute capability that all models have a plan for",
            fix="build them all on one GPU, or render one server per model: tritongen compose k8s … NAME",
        )
    return [(major, minor) for major, _, minor in (each.partition(".") for each in sorted(common))]


def _digest(manifests: Sequence[Manifest]) -> str:
    """Changes whenever a model does."""
    digests = sorted((m.name, path, entry.digest) for m in manifests for path, entry in m.files.items())
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]


def _repository_bytes(manifests: Sequence[Manifest]) -> int:
    return sum(entry.size_bytes for manifest in manifests for entry in manifest.files.values())


def _mebibytes(count: int) -> str:
    """A Kubernetes quantity, rounded up to 64 Mi."""
    return f"{64 * max(1, math.ceil(count / (64 << 20)))}Mi"


def _check(settings: Settings) -> None:
    for what, value in (("name", settings.name), ("namespace", settings.namespace)):
        if value is not None and not _LABEL.fullmatch(value):
            raise SpecError(
                f"'{value}' can be no {what} in Kubernetes",
                expected="lower case letters, digits and '-', at most 63, no '-' at either end",
                fix=f"choose another --{what}",
            )
    if settings.claim_size is not None and not _QUANTITY.fullmatch(settings.claim_size):
        raise SpecError(
            f"'{settings.claim_size}' is no size", expected="a Kubernetes quantity", fix="write 10Gi, say"
        )
    if not 1 <= settings.replicas <= settings.max_replicas:
        raise SpecError(
            "the numbers of replicas do not fit",
            found=f"{settings.replicas} … {settings.max_replicas}",
            expected="1 or more, and a maximum that is not below",
            fix="correct --replicas or --max-replicas",
        )


def _environment() -> jinja2.Environment:
    import jinja2

    if not any(folder.is_dir() for folder in _FOLDERS):
        raise RequirementError(
            "tritongen's Kubernetes templates are missing",
            expected=" or ".join(map(str, _FOLDERS)),
            fix="install tritongen again",
        )
    # Not HTML: every value goes through `tojson`, which is YAML as well.
    environment = jinja2.Environment(  # noqa: S701
        undefined=jinja2.StrictUndefined, loader=jinja2.FileSystemLoader(_FOLDERS)
    )
    environment.filters["tojson"] = json.dumps
    return environment
