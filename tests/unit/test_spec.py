"""The spec: what loads, what is refused with which words, and what flags change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tritongen.errors import SpecError
from tritongen.spec import (
    Precision,
    Spec,
    check_model_name,
    json_schema,
    load_spec,
    override,
    spec_for_models,
    suggest_model_name,
)
from tritongen.spec.reference import markdown

DOCS = Path(__file__).parents[2] / "docs"


def load(text: str, folder: Path) -> Spec:
    path = folder / "tritongen.yaml"
    path.write_text(text, encoding="utf-8")
    return load_spec(path)


def refused(text: str, folder: Path) -> str:
    with pytest.raises(SpecError) as caught:
        load(text, folder)
    return str(caught.value)


def test_a_whole_spec(tmp_path: Path) -> None:
    text = """
    repository: out
    models:
      detector:
        path: detector.onnx
        precision: [fp32, int8]
        max_batch_size: 16
        objective: latency@4
        slo: ["p99<=20ms"]
        shapes: {images: 3x224..320..640x640, length: 128}
        ranges: {ids: 0..9}
        data: {calibration: cal.npz, validation: "mydata:held_out"}
        accuracy: {limit: 0.5, reference: fp32.onnx}
        serving: {queue_delay_us: 200, parameters: {threads: 2}}
    """
    spec = load(text, tmp_path)
    entry = spec.models["detector"]
    assert entry.precision == (Precision.FP32, Precision.INT8)
    assert entry.path == tmp_path / "detector.onnx"
    assert entry.folder == tmp_path
    assert entry.accuracy.reference == tmp_path / "fp32.onnx"
    assert entry.data.calibration == str(tmp_path / "cal.npz")
    assert entry.data.validation == "mydata:held_out"
    assert spec.repository == tmp_path / "out"
    assert spec.run_dir == Path(".tritongen")
    assert entry.shapes["length"] == "128"
    assert entry.serving.parameters == {"threads": "2"}


def test_absolute_paths_stay(tmp_path: Path) -> None:
    assert load("models: {a: {path: /models/a.onnx}}", tmp_path).models["a"].path == Path("/models/a.onnx")


def test_merge_keys_and_aliases_work(tmp_path: Path) -> None:
    text = """
    models:
      one: &common {path: one.onnx, max_batch_size: 4}
      two: {<<: *common, path: two.onnx}
    """
    spec = load(text, tmp_path)
    assert spec.models["two"].max_batch_size == 4
    assert spec.models["two"].path == tmp_path / "two.onnx"


MODEL = "models:\n  a:\n    path: a.onnx\n"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", ["is empty", "tritongen init"]),
        ("# only a comment\n", ["is empty"]),
        ("- a\n- b\n", [":1: a spec is a mapping", "a list"]),
        ("just text\n", ["a spec is a mapping", "the text 'just text'"]),
        ("repository: x\n", ["the key 'models' is missing"]),
        ("models: {}\n", [":1: models must hold at least one entry"]),
        ("models: []\n", [":1: models must be a mapping"]),
        (
            MODEL + "    precison: [fp32]\n",
            [":4: unknown key 'models.a.precison'", "did you mean 'precision'?"],
        ),
        (
            MODEL + "    xyzzy: 1\n",
            [":4: unknown key 'models.a.xyzzy'", "accuracy, build_budget_minutes, data", "remove it"],
        ),
        (MODEL + "    queue_delay_us: 1\n", ["it belongs under models.NAME.serving"]),
        (MODEL + "    raw: x\n", ["it belongs under models.NAME.serving"]),
        (MODEL + "    queue_delay: 1\n", ["did you mean 'queue_delay_us', under models.NAME.serving?"]),
        (MODEL + "    run_dir: x\n", ["it belongs at the top level"]),
        (MODEL + "    serving: {instances: 5000000000}\n", ["instances must be at most 2147483647"]),
        (MODEL + "    build_budget_minutes: 0\n", ["must be more than 0"]),
        (MODEL + "    tensorrt: {tiling: fast}\n", ["did you mean 'FAST'?"]),
        (MODEL + "engine: auto\n", [":4: unknown key 'engine'", "it belongs under models.NAME"]),
        (MODEL + "    folder: x\n", [":4: unknown key 'models.a.folder'"]),
        (MODEL + "    engine: onnxruntim\n", [":4: models.a.engine must be one of", "'onnxruntime'?"]),
        (
            MODEL + "    precision: [fp32, int4]\n",
            ["models.a.precision[1]", "fp32, fp16, bf16, int8, fp8", "'int8'?"],
        ),
        (MODEL + "    slo: p99<=20ms\n", [":4: models.a.slo must be a list"]),
        (MODEL + "    slo: [p99<20ms]\n", [":4: models.a.slo[0]", "write 'p99<=20ms'"]),
        (MODEL + "    max_batch_size: many\n", ["models.a.max_batch_size must be a whole number", "'many'"]),
        (MODEL + "    max_batch_size: yes\n", ["models.a.max_batch_size must be a whole number", "True"]),
        (MODEL + "    build_budget_minutes: on\n", ["build_budget_minutes must be a number", "True"]),
        (MODEL + "    max_batch_size: -1\n", ["must be at least 0"]),
        (MODEL + "    data: cal.npz\n", ["models.a.data must be a section with keys of its own"]),
        (MODEL + "    accuracy: {limit: .nan}\n", ["models.a.accuracy.limit must be"]),
        (MODEL + "    objective: fast\n", ["models.a.objective", "`latency@BATCH`"]),
        (MODEL + "    shapes: [1]\n", ["models.a.shapes must be a mapping"]),
        (MODEL + "    path: b.onnx\n", [":4: the key 'models.a.path' is given twice", "first on line 3"]),
        (MODEL + "    no: 1\n", [":4: a key under 'models.a' is not text", "'no':"]),
        (MODEL + "    target: 2001-99-99\n", ["not valid YAML"]),
        ("models:\n  ../x:\n    path: a\n", [":2:", "the model name '../x' cannot be used", "'x'"]),
        ("models: &m\n  a: *m\n", [":1:", "contains itself", "models.a"]),
        ("models: {a: {path: *nowhere}}\n", ["undefined alias"]),
        ("models:\n\ta: b\n", [":2: a tab stands where YAML wants spaces"]),
        ("models: {a: [}\n", [":1: this is not valid YAML"]),
        ("models: {a: {path: !!python/name:os.system }}\n", ["not valid YAML"]),
        ("a: 1\n---\nb: 2\n", [":2: the file holds more than one document"]),
        ("models: \x07\n", ["not valid YAML"]),
        ("models:\n  a: {pth: x}\n", [":2: unknown key 'models.a.pth'", "also", "models.a.path is missing"]),
        ("models: " + "[" * 500, ["nested too deeply"]),
    ],
)
def test_each_mistake_gets_one_clear_error(text: str, words: list[str], tmp_path: Path) -> None:
    message = refused(text, tmp_path)
    assert all(word in message for word in words), message


def test_alias_bombs_do_not_explode(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "aliases repeat too much" in refused("\n".join(lines), tmp_path)


def test_files_that_cannot_be_specs(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="there is no file"):
        load_spec(tmp_path / "nothing.yaml")
    with pytest.raises(SpecError, match="is a folder"):
        load_spec(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(bytes(range(256)))
    with pytest.raises(SpecError, match="is not a text file"):
        load_spec(tmp_path / "binary.yaml")
    (tmp_path / "large.yaml").write_bytes(b"#" * 5_000_000)
    with pytest.raises(SpecError, match="too large for a spec"):
        load_spec(tmp_path / "large.yaml")


@settings(deadline=None)
@given(st.text(max_size=60))
def test_any_text_loads_or_is_refused(text: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s.yaml"
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        with pytest.raises(SpecError):
            load_spec(path)


# Names


@pytest.mark.parametrize("name", ["a", "PP-OCRv6_det.small", "0", "_x", "a" * 100])
def test_good_names(name: str) -> None:
    assert check_model_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "-rf", ".hidden", "a b", 'a"b', "é", "a\n", "a\x00", "a" * 101]
)
def test_bad_names(name: str) -> None:
    with pytest.raises(SpecError, match="cannot be used"):
        check_model_name(name)


@settings(deadline=None)
@given(st.text(max_size=200))
def test_suggested_names_are_good(text: str) -> None:
    check_model_name(suggest_model_name(text))


# Bare models and flags


def test_bare_models_are_named_by_their_files() -> None:
    spec = spec_for_models((Path("a/Det v2.onnx"), Path("rec.onnx")))
    assert {name: entry.path for name, entry in spec.models.items()} == {
        "Det_v2": Path("a/Det v2.onnx"),
        "rec": Path("rec.onnx"),
    }


def test_names_that_clash_and_no_models() -> None:
    with pytest.raises(SpecError, match="both be named 'm'") as caught:
        spec_for_models((Path("a/m.onnx"), Path("b/m.onnx")))
    assert "a/m.onnx and b/m.onnx" in str(caught.value)
    with pytest.raises(SpecError, match="no model is given"):
        spec_for_models(())


def test_flags_win_over_the_spec(tmp_path: Path) -> None:
    text = MODEL + "    max_batch_size: 4\n    shapes: {x: '3', y: '4'}\n    slo: [p99<=9ms]\n"
    spec = override(
        load(text, tmp_path), max_batch_size=16, shapes={"x": "5"}, precision=("int8",), accuracy_limit=0.5,
        calibration_data="c.npz", repository=Path("r"), seed=None, slo=(),
    )  # fmt: skip
    entry = spec.models["a"]
    assert (entry.max_batch_size, entry.shapes, entry.slo) == (16, {"x": "5", "y": "4"}, ("p99<=9ms",))
    assert (entry.precision, entry.accuracy.limit) == ((Precision.INT8,), 0.5)
    assert (entry.data.calibration, spec.repository, entry.seed) == ("c.npz", Path("r"), 0)
    assert entry.path == tmp_path / "a.onnx"
    assert entry.folder == tmp_path


def test_flags_reach_every_model() -> None:
    spec = spec_for_models((Path("a.onnx"), Path("b.onnx")))
    assert {entry.engine for entry in override(spec, engine="onnxruntime").models.values()} == {"onnxruntime"}


def test_name_is_for_one_model() -> None:
    one = spec_for_models((Path("a.onnx"),))
    assert list(override(one, name="new").models) == ["new"]
    with pytest.raises(SpecError, match="--name can only name one model"):
        override(spec_for_models((Path("a.onnx"), Path("b.onnx"))), name="new")
    with pytest.raises(SpecError, match=r"--name: the model name .* cannot be used"):
        override(one, name="../x")


@pytest.mark.parametrize(
    ("flag", "value", "words"),
    [
        ("engine", "foo", "--engine must be one of"),
        ("precision", ("fp4",), "--precision must be one of"),
        ("objective", "fast", "--objective has none of the forms"),
        ("slo", ("p99<=20",), "--slo: the objective 'p99<=20' has no unit"),
        ("accuracy_limit", -1.0, "--accuracy-limit must be at least 0"),
        ("max_batch_size", -1, "--max-batch-size must be at least 0"),
        ("accuracy_metric", "top", "--metric has none of the forms"),
        ("tensorrt", {"refit": "maybe"}, "--tensorrt refit must be true or false"),
        ("tensorrt", {"best_of": "0"}, "--tensorrt best_of must be at least 1"),
        ("tensorrt", {"optimization_level": "9"}, "--tensorrt optimization_level must be at most 5"),
        ("tensorrt", {"best_off": "1"}, "--tensorrt: unknown key 'best_off'"),
    ],
)
def test_wrong_flags_are_named(flag: str, value: Any, words: str) -> None:
    with pytest.raises(SpecError) as caught:
        override(spec_for_models((Path("a.onnx"),)), **{flag: value})
    assert words in str(caught.value)


def test_the_effective_spec_survives_json(tmp_path: Path) -> None:
    spec = load(MODEL + "    slo: ['throughput>=5/s']\n", tmp_path)
    assert Spec.model_validate_json(spec.model_dump_json()) == spec


# What is shipped for editors and readers


def test_the_shipped_schema_is_current() -> None:
    shipped = (DOCS / "schema" / "tritongen.schema.json").read_text(encoding="utf-8")
    assert json.loads(shipped) == json_schema(), (
        "run: tritongen schema spec > docs/schema/tritongen.schema.json"
    )


def test_the_shipped_reference_is_current() -> None:
    shipped = (DOCS / "spec.md").read_text(encoding="utf-8")
    assert shipped == markdown(json_schema()), "run: tritongen schema spec --markdown > docs/spec.md"


def test_every_key_is_in_the_reference() -> None:
    schema = json_schema()
    sections = [schema, *(entry for entry in schema["$defs"].values() if "properties" in entry)]
    text = markdown(schema)
    assert not [key for section in sections for key in section["properties"] if f"| `{key}` |" not in text]


def test_every_key_is_explained() -> None:
    schema = json_schema()
    sections = [schema, *(entry for entry in schema["$defs"].values() if "properties" in entry)]
    silent = [
        key for section in sections for key, entry in section["properties"].items()
        if "description" not in entry and "$ref" not in entry
    ]  # fmt: skip
    assert silent == []
    assert "folder" not in schema["$defs"]["ModelSpec"]["properties"]
