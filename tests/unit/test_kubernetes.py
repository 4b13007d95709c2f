"""`compose k8s`: Kubernetes takes what is rendered (its own schemas), and the parts fit together.

The schemas are those that kubernetes-validate ships. ServiceMonitor is a custom resource, which they lack:
what it selects is held against the Service, its own fields against the operator's reference by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner

from tests.unit.test_images import plan
from tritongen.cli import cli
from tritongen.errors import RepositoryError, SpecError
from tritongen.repository.manifest import Manifest, read_manifest
from tritongen.serving.container.kubernetes import QUEUE_METRIC, Settings, adapter_rules, render

OFFICIAL = Settings("nvcr.io/nvidia/tritonserver:26.08-py3", "official")
OWN = Settings("registry.example/tritongen-cpu:1", "own")
VERSIONS = ("1.31", "1.35")
CUSTOM = ("ServiceMonitor",)


def parts(text: str) -> dict[str, Any]:
    return {part["kind"]: part for part in yaml.safe_load_all(text)}


def pod(text: str) -> dict[str, Any]:
    found: dict[str, Any] = parts(text)["Deployment"]["spec"]["template"]["spec"]
    return found


def container(text: str) -> dict[str, Any]:
    (found,) = pod(text)["containers"]
    return dict(found)


def changed(settings: Settings, **changes: Any) -> Settings:
    return Settings(**{**settings.__dict__, **changes})


CASES: dict[str, Settings] = {
    "official": OFFICIAL,
    "own": OWN,
    "namespace and class": changed(OFFICIAL, namespace="serving", storage_class="fast", claim_size="1.5Gi"),
    "volume from an image": changed(OFFICIAL, oci_volume="registry.example/models:7"),
    "no monitoring": changed(OFFICIAL, monitoring=False),
    "fixed replicas": changed(OFFICIAL, replicas=3, max_replicas=3),
    "flags": changed(OFFICIAL, backend_config=("tensorrt,version-compatible=true",), gpus=2),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_kubernetes_takes_it(manifest: Manifest, settings: Settings, version: str) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    for kind, part in parts(render([manifest], settings)).items():
        if kind not in CUSTOM:
            validator.validate(part, version, strict=True)


@pytest.mark.parametrize(
    ("changes", "mode", "surge"),
    [
        ({}, "ReadWriteMany", 1),
        ({"max_replicas": 1}, "ReadWriteOnce", 0),
        ({"monitoring": False}, "ReadWriteOnce", 0),  # no autoscaler: one pod it is
        ({"monitoring": False, "replicas": 2}, "ReadWriteMany", 1),
        ({"max_replicas": 1, "oci_volume": "registry.example/models:7"}, None, 1),
    ],
)
def test_a_rollout_can_have_its_volume(
    manifest: Manifest, changes: dict[str, Any], mode: str | None, surge: int
) -> None:
    rendered = parts(render([manifest], changed(OFFICIAL, **changes)))
    claim = rendered.get("PersistentVolumeClaim")
    assert (claim["spec"]["accessModes"] if claim else [None]) == [mode]
    update = rendered["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert update == {"maxSurge": surge, "maxUnavailable": 1 - surge}


def test_the_schemas_would_notice(manifest: Manifest) -> None:
    validator = pytest.importorskip("kubernetes_validate")
    deployment = parts(render([manifest], OFFICIAL))["Deployment"]
    deployment["spec"]["template"]["spec"]["containers"][0]["livenessprobe"] = {}
    with pytest.raises(validator.ValidationError):
        validator.validate(deployment, VERSIONS[0], strict=True)


def test_plans_get_a_gpu_and_the_nodes_that_load_them(manifest: Manifest) -> None:
    text = render([plan(manifest, "11.2.1", compute_capability="9.0")], OFFICIAL)
    assert container(text)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    affinity = pod(text)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
    (term,) = affinity["nodeSelectorTerms"]
    assert {each["key"]: each["values"] for each in term["matchExpressions"]} == {
        "nvidia.com/gpu.compute.major": ["9"],
        "nvidia.com/gpu.compute.minor": ["0"],
    }
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(parts(text)["Deployment"], VERSIONS[0], strict=True)


def test_without_plans_any_node_will_do(manifest: Manifest) -> None:
    text = render([manifest], OFFICIAL)
    assert "affinity" not in pod(text)
    assert "nvidia.com/gpu" not in container(text)["resources"]["limits"]


def test_onnx_models_for_a_gpu_get_one(manifest: Manifest) -> None:
    on_cuda = manifest.model_copy(update={"engine": "onnxruntime-cuda"})
    text = render([on_cuda], OFFICIAL)
    assert container(text)["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert "affinity" not in pod(text), "they run on any"


def test_plans_that_no_gpu_loads_together(manifest: Manifest) -> None:
    plans = [plan(manifest, "11.2.1", compute_capability=each) for each in ("9.0", "8.9")]
    with pytest.raises(SpecError, match="no GPU loads every plan"):
        render(plans, OFFICIAL)


def test_the_service_the_monitor_and_the_autoscaler_mean_the_deployment(manifest: Manifest) -> None:
    found = parts(render([manifest], changed(OFFICIAL, name="mine", namespace="ns")))
    deployment, service = found["Deployment"], found["Service"]
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    assert deployment["spec"]["selector"]["matchLabels"].items() <= labels.items()
    inside = {port["name"]: port["containerPort"] for port in container_ports(deployment)}
    assert {port["targetPort"]: port["port"] for port in service["spec"]["ports"]} == inside
    target = found["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"], "they are the autoscaler's"
    monitor = found["ServiceMonitor"]
    assert monitor["apiVersion"] == "monitoring.coreos.com/v1"
    assert set(monitor["spec"]) == {"selector", "endpoints"}
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    (endpoint,) = monitor["spec"]["endpoints"]
    assert set(endpoint) == {"port", "path", "interval"}
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert {part["metadata"]["namespace"] for part in found.values()} == {"ns"}


def container_ports(deployment: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = deployment["spec"]["template"]["spec"]["containers"][0]["ports"]
    return found


def test_nothing_runs_as_root_or_writes_where_it_need_not(manifest: Manifest) -> None:
    for settings in (OFFICIAL, OWN):
        text = render([manifest], settings)
        assert pod(text)["securityContext"]["runAsNonRoot"] is True
        context = container(text)["securityContext"]
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert context["readOnlyRootFilesystem"] is True
        assert pod(text)["automountServiceAccountToken"] is False


def test_the_pod_outlives_what_it_has_to_answer(manifest: Manifest) -> None:
    text = render([manifest], OFFICIAL)
    (timeout,) = (int(a.partition("=")[2]) for a in container(text)["args"] if "exit-timeout" in a)
    drain = int(container(text)["lifecycle"]["preStop"]["exec"]["command"][1])
    assert drain + timeout < pod(text)["terminationGracePeriodSeconds"]


def test_each_image_is_started_its_own_way(manifest: Manifest) -> None:
    assert container(render([manifest], OFFICIAL))["args"][0] == "tritonserver"
    assert container(render([manifest], OWN))["args"][:2] == ["serve", "/models"]
    flagged = changed(OFFICIAL, backend_config=("tensorrt,version-compatible=true",))
    assert (
        "--backend-config=tensorrt,version-compatible=true" in container(render([manifest], flagged))["args"]
    )
    with pytest.raises(SpecError, match="cannot serve models for a GPU"):
        render([plan(manifest, "11.2.1")], OWN)


def rebuilt(manifest: Manifest) -> Manifest:
    """The same model with another configuration."""
    files = {**manifest.files}
    files["config.pbtxt"] = files["config.pbtxt"].model_copy(update={"digest": "0" * 64})
    return manifest.model_copy(update={"files": files})


def test_a_changed_model_is_a_new_rollout(manifest: Manifest) -> None:
    assert render([manifest], OFFICIAL) == render([manifest], OFFICIAL)
    image = changed(OFFICIAL, oci_volume="registry.example/models:7")
    for settings in (OFFICIAL, image):
        before, after = (parts(render([each], settings)) for each in (manifest, rebuilt(manifest)))
        assert before["Deployment"]["spec"]["template"] != after["Deployment"]["spec"]["template"]


def claim_of(text: str) -> str:
    """The claim that the pods mount, which is the one in the same file."""
    (name,) = (
        volume["persistentVolumeClaim"]["claimName"]
        for volume in pod(text)["volumes"]
        if "persistentVolumeClaim" in volume
    )
    assert parts(text)["PersistentVolumeClaim"]["metadata"]["name"] == name
    return str(name)


def test_each_state_of_the_models_has_a_claim_of_its_own(manifest: Manifest) -> None:
    """So none is filled over another, and the one before is there to go back to, as it was."""
    one, two = (claim_of(render([each], OFFICIAL)) for each in (manifest, rebuilt(manifest)))
    assert one != two
    again = claim_of(render([manifest], changed(OFFICIAL, image="other:1", replicas=2)))
    assert again == one, "the same models lie there already"
    assert one.startswith("triton-models-")
    assert claim_of(render([manifest], changed(OFFICIAL, name="a" * 63))), "a claim's name may be long"


def test_the_steps_of_the_docs_fit_the_manifests(manifest: Manifest) -> None:
    page = (Path(__file__).parents[2] / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    steps = "".join(re.findall(r"^```\n(.*?)^```", page, re.DOTALL | re.MULTILINE))
    text = render([manifest], OFFICIAL)
    (key, value), *_ = re.findall(r"apply -f triton.yaml -l (\S+)=(\S+)", steps)
    labelled = [kind for kind, part in parts(text).items() if part["metadata"]["labels"].get(key) == value]
    assert labelled == ["PersistentVolumeClaim"]
    (prefix,) = re.findall(r"^claim=(\S+)…", steps, re.MULTILINE)
    assert claim_of(text).startswith(prefix)
    (folder,) = {each["subPath"] for each in container(text)["volumeMounts"] if "subPath" in each}
    assert f"kubectl cp {folder} fill:/claim/\n" in steps
    (overrides,) = re.findall(r"--overrides='(.*?)'\n", steps, re.DOTALL)
    (volume,) = json.loads(overrides.replace("'$claim'", "CLAIM"))["spec"]["volumes"]
    assert volume["persistentVolumeClaim"] == {"claimName": "CLAIM"}
    assert f"undo deployment/{parts(text)['Deployment']['metadata']['name']}" in page


@pytest.mark.parametrize(
    ("slo", "queue_us", "value"),
    [((), None, "10000"), (("p99<=20ms", "throughput>=5/s"), None, "5000"), (("p99<=20ms",), 700, "700")],
)
def test_the_autoscaler_waits_for_a_quarter_of_the_objective(
    manifest: Manifest, slo: tuple[str, ...], queue_us: int | None, value: str
) -> None:
    text = render([manifest.model_copy(update={"slo": slo})], changed(OFFICIAL, queue_us=queue_us))
    (metric,) = parts(text)["HorizontalPodAutoscaler"]["spec"]["metrics"]
    assert metric["pods"]["target"]["averageValue"] == value
    assert metric["pods"]["metric"]["name"] == QUEUE_METRIC


def test_the_adapters_rule_makes_that_metric() -> None:
    (rule,) = yaml.safe_load(adapter_rules())["rules"]["custom"]
    assert rule["name"]["as"] == QUEUE_METRIC
    assert rule["resources"]["overrides"].keys() == {"namespace", "pod"}
    assert "nv_inference_request_success" in rule["metricsQuery"]


def test_values_cannot_break_the_yaml(manifest: Manifest) -> None:
    nasty = 'x: {y"}\n  z: 1 # #{{ 7 }}'
    assert container(render([manifest], changed(OFFICIAL, image=nasty)))["image"] == nasty


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Triton"}, {"name": "a" * 64}, {"namespace": "-x"}, {"claim_size": "much"}, {"replicas": 0},
        {"replicas": 5},
    ],
)  # fmt: skip
def test_what_kubernetes_refuses_is_refused_here(manifest: Manifest, changes: dict[str, Any]) -> None:
    with pytest.raises(SpecError) as caught:
        render([manifest], changed(OFFICIAL, **changes))
    assert caught.value.fix


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(cli, ["compose", "k8s", *arguments], standalone_mode=False)

    def test_the_image_follows_from_the_models(self, folder: Path) -> None:
        result = self.run(str(folder.parent))
        assert result.return_value == 0
        assert container(result.output)["image"] == OFFICIAL.image

    def test_a_bare_tag_becomes_a_reference(self, folder: Path) -> None:
        result = self.run(str(folder.parent), "--image", "25.09")
        assert container(result.output)["image"] == "nvcr.io/nvidia/tritonserver:25.09-py3"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (("--image", "99.01"), "not in tritongen's table"),
            (("--image", ""), "no name of an image"),
            (("--oci-volume", ""), "no name of an image"),
            (("--oci-volume", "x:1", "--storage", "5Gi"), "takes the place of the claim"),
        ],
    )
    def test_what_cannot_be_meant(self, folder: Path, arguments: tuple[str, ...], said: str) -> None:
        assert said in str(self.run(str(folder.parent), *arguments).exception)

    def test_into_a_file(self, folder: Path, tmp_path: Path) -> None:
        output = tmp_path / "triton.yaml"
        result = self.run(str(folder.parent), "--cpu-image", "x:1", "--queue-ms", "2.5", "-o", str(output))
        assert "fill its claim" in result.output
        assert "kubectl apply -f" in result.output
        assert container(output.read_text(encoding="utf-8"))["image"] == "x:1"
        rules = self.run("--adapter-rules", "-o", str(output))
        assert "kubectl apply" not in rules.output, "they are Helm's values"

    def test_an_image_that_cannot_load_a_model_is_refused(self, folder: Path) -> None:
        manifest = read_manifest(folder).model_copy(update={"ir_version": 10})
        (folder / "manifest.json").write_text(manifest.model_dump_json(by_alias=True), encoding="utf-8")
        result = self.run(str(folder.parent), "--image", "24.04")
        assert isinstance(result.exception, RepositoryError)
        assert "IR version 10" in str(result.exception.found)

    def test_a_model_that_is_not_there(self, folder: Path) -> None:
        assert "no model 'nope'" in str(self.run(str(folder.parent), "nope").exception)

    def test_the_rules_need_no_repository(self) -> None:
        result = self.run("--adapter-rules")
        assert "prometheus-adapter" in result.output
