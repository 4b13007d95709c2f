"""`tritongen inspect`, `init` and `schema`, and the shared flags, as a user meets them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import click
import onnx
import pytest
import yaml

from tests import models
from tests.models import save
from tritongen.cli import options, run
from tritongen.errors import ModelError
from tritongen.spec import Precision, Spec, load_spec

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def detector(tmp_path: Path) -> Path:
    return save(models.convolutional(size="any"), tmp_path / "detector.onnx")


@pytest.fixture
def encoder(tmp_path: Path) -> Path:
    return save(models.tokens(), tmp_path / "encoder.onnx")


def fails(capsys: Captured, *argv: str) -> str:
    """What stderr says when the command refuses its input."""
    assert run(list(argv)) == 2
    return capsys.readouterr().err


def test_inspect_shows_what_was_established(detector: Path, capsys: Captured) -> None:
    assert run(["inspect", str(detector), "--shape", "images=3x8x8"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for words in ("images float32 [batch, 3, height, width] 3x8x8", "confirmed: a batch of 3 was run",
                  "ai.onnx 17; IR version 8", "neither Q/DQ nor FP16", "Conv × 2"):  # fmt: skip
        assert words in shown


def test_inspect_without_sizes_proposes_the_flag(detector: Path, capsys: Captured) -> None:
    assert run(["inspect", str(detector)]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "declared" in shown
    assert "add --shape 'images=3x640x640' (a guess, since nothing in the model tells" in shown


def test_inspect_for_programs(encoder: Path, capsys: Captured) -> None:
    assert run(["inspect", str(encoder), "--shape", "ids=4", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["batch"]["status"] == "confirmed"
    assert found["inputs"][0]["value_range"] == [0, 49]
    assert found["inputs"][0]["value_range_source"] == "graph"
    assert found["inputs"][0]["trial_shape"]["opt"] == [4]
    assert found["opsets"] == {"ai.onnx": 17}


def test_inspect_says_when_batching_is_refuted_or_not_run(tmp_path: Path, capsys: Captured) -> None:
    path = save(models.mixes_batch(), tmp_path / "m.onnx")
    assert run(["inspect", str(path), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"]["status"] == "refuted"
    assert run(["inspect", str(path), "--json", "--no-run"]) == 0
    assert json.loads(capsys.readouterr().out)["batch"]["note"] == "not run (--no-run)"
    path = save(models.unknown_operator(), tmp_path / "u.onnx")
    assert run(["inspect", str(path), "--json"]) == 0
    assert "Frobnicate" in json.loads(capsys.readouterr().out)["batch"]["note"]


def test_inspect_shows_a_model_that_memory_does_not_hold(tmp_path: Path, capsys: Captured) -> None:
    save(models.relu(width=2**50), tmp_path / "m.onnx")
    assert run(["inspect", "m.onnx"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "not run, as memory ran out" in shown
    assert "Relu × 1" in shown


def test_inspect_refuses_bad_files(tmp_path: Path, detector: Path, encoder: Path, capsys: Captured) -> None:
    (tmp_path / "text.onnx").write_text("hello\n", encoding="utf-8")
    assert "text file that begins with 'hello'" in fails(capsys, "inspect", "text.onnx")
    (tmp_path / "cut.onnx").write_bytes(detector.read_bytes()[:500])
    assert "cut.onnx is not an ONNX model" in fails(capsys, "inspect", "cut.onnx")
    assert "there is no file no.onnx" in fails(capsys, "inspect", "no.onnx")
    external = save(models.linear(), tmp_path / "e.onnx", external=True)
    external.with_name("e.onnx.data").unlink()
    assert "missing: e.onnx.data" in fails(capsys, "inspect", "e.onnx")


def test_inspect_refuses_bad_flags(detector: Path, encoder: Path, capsys: Captured) -> None:
    assert "did you mean 'images'?" in fails(capsys, "inspect", str(detector), "--shape", "image=3x8x8")
    assert "axis 1 is fixed at 3" in fails(capsys, "inspect", str(detector), "--shape", "images=1x8x8")
    assert "does not say which input" in fails(capsys, "inspect", str(detector), "--shape", "3x8x8")
    assert "not a range" in fails(capsys, "inspect", str(encoder), "--shape", "ids=4", "--range", "ids=4")


# init


def test_init_writes_a_spec_that_loads_back(detector: Path, encoder: Path, capsys: Captured) -> None:
    assert run(["init", "detector.onnx", "encoder.onnx"]) == 0
    told = capsys.readouterr().out
    assert "wrote tritongen.yaml; it only guesses for images, ids (behind '#')" in told
    spec = load_spec(Path("tritongen.yaml"))
    assert {name: entry.path for name, entry in spec.models.items()} == {
        "detector": Path("detector.onnx"),
        "encoder": Path("encoder.onnx"),
    }
    assert not spec.models["detector"].shapes  # a guess must not overrule data, nor be measured unseen
    text = Path("tritongen.yaml").read_text(encoding="utf-8")
    assert "    # shapes:\n" in text
    assert "    #   images: 3x640x640\n" in text
    assert '    #   ids: "128"\n' in text
    Path("tritongen.yaml").write_text(
        re.sub("^    # (shapes:|  images:|  ids:)", r"    \1", text, flags=re.MULTILINE), encoding="utf-8"
    )
    spec = load_spec(Path("tritongen.yaml"))
    assert spec.models["detector"].shapes == {"images": "3x640x640"}
    assert spec.models["encoder"].shapes == {"ids": "128"}
    assert "# input  images: float32[batch, 3, height, width]" in text
    assert "# ids: 0..49, as the graph tells" in text
    assert "# a guess, since nothing in the model tells: usual for detectors" in text
    assert "yaml-language-server" not in text


def test_init_leaves_axes_of_the_same_name_to_the_shape_that_was_given(tmp_path: Path) -> None:
    """Sizes for `mask` in the file would keep `build` from taking those of `ids`."""
    nodes = [onnx.helper.make_node("Add", ["ids", "mask"], ["sum"]),
             onnx.helper.make_node("Identity", ["past"], ["same"])]  # fmt: skip
    inputs = [models.value("ids", ["batch", "seq"]), models.value("mask", ["batch", "seq"]),
              models.value("past", ["batch", "seq", "width"])]  # fmt: skip
    outputs = [models.value("sum", ["batch", "seq"]), models.value("same", ["batch", "seq", "width"])]
    save(models.model(nodes, inputs, outputs), tmp_path / "pair.onnx")
    assert run(["init", "pair.onnx", "--shape", "ids=8..32..64"]) == 0
    assert load_spec(Path("tritongen.yaml")).models["pair"].shapes == {"ids": "8..32..64"}
    text = Path("tritongen.yaml").read_text(encoding="utf-8")
    assert "mask:" not in text.partition("shapes:")[2]
    assert "    #   past: 8..32..64x64\n" in text


def test_the_keys_behind_comments_are_right(detector: Path) -> None:
    """Whoever uncomments the examples gets a spec that loads."""
    assert run(["init", "detector.onnx"]) == 0
    keys = ("max_batch_size", "precision", "objective", "slo", "data", "  calibration", "  validation")
    lines = Path("tritongen.yaml").read_text(encoding="utf-8").splitlines()
    lines = [
        line.replace("# ", "", 1) if any(line.startswith(f"    # {key}:") for key in keys) else line
        for line in lines
    ]
    Path("all.yaml").write_text("\n".join(lines), encoding="utf-8")
    entry = load_spec(Path("all.yaml")).models["detector"]
    assert (entry.max_batch_size, entry.objective, entry.slo) == (8, "throughput", ("p99<=20ms",))
    assert entry.data.calibration == "calibration.npz"


def test_init_takes_flags_and_another_folder(detector: Path) -> None:
    Path("specs").mkdir()
    assert run(["init", "detector.onnx", "-o", "specs/d.yaml", "--name", "det", "--schema",
                "--shape", "images=3x32..64x32"]) == 0  # fmt: skip
    entry = load_spec(Path("specs/d.yaml")).models["det"]
    assert entry.path.resolve() == detector.resolve()
    assert entry.shapes == {"images": "3x32..64x32"}
    first = Path("specs/d.yaml").read_text(encoding="utf-8").splitlines()[0]
    assert first == "# yaml-language-server: $schema=tritongen.schema.json"
    assert (
        json.loads(Path("specs/tritongen.schema.json").read_text(encoding="utf-8"))["title"]
        == "tritongen.yaml"
    )


def test_init_overwrites_only_when_told(detector: Path, capsys: Captured) -> None:
    Path("tritongen.yaml").write_text("mine", encoding="utf-8")
    said = fails(capsys, "init", "detector.onnx")
    assert "--force" in said
    assert "to add to it, write another file with -o tritongen-more.yaml" in said
    assert Path("tritongen.yaml").read_text(encoding="utf-8") == "mine"
    assert run(["init", "detector.onnx", "--force"]) == 0
    assert load_spec(Path("tritongen.yaml"))
    Path("sub").mkdir()
    Path("sub/my spec.yaml").write_text("mine", encoding="utf-8")
    said = fails(capsys, "init", "detector.onnx", "-o", "sub/my spec.yaml")
    assert "-o 'sub/my spec-more.yaml'" in said  # paths that are right below another folder are wrong here


def test_init_prints(detector: Path, capsys: Captured) -> None:
    assert run(["init", "detector.onnx", "-o", "-"]) == 0
    assert Spec.model_validate(yaml.safe_load(capsys.readouterr().out)).models["detector"]
    assert not Path("tritongen.yaml").exists()


def test_init_refuses_without_writing(detector: Path, capsys: Captured) -> None:
    assert "did you mean 'images'?" in fails(capsys, "init", "detector.onnx", "--shape", "image=3x8x8")
    assert "cannot be used" in fails(capsys, "init", "detector.onnx", "--name", "../x")
    assert "there is no file" in fails(capsys, "init", "no.onnx")
    assert not Path("tritongen.yaml").exists()
    Path("file").touch()
    assert "cannot be written" in fails(capsys, "init", "detector.onnx", "-o", "file/tritongen.yaml")
    assert "no folder nodir" in fails(capsys, "init", "detector.onnx", "-o", "nodir/a.yaml")
    assert not Path("nodir").exists()


def test_init_writes_through_links_and_into_pipes(detector: Path) -> None:
    Path("real.yaml").touch()
    Path("link.yaml").symlink_to("real.yaml")
    assert run(["init", "detector.onnx", "-o", "link.yaml", "--force"]) == 0
    assert Path("link.yaml").is_symlink()
    assert load_spec(Path("real.yaml"))
    os.mkfifo("pipe")
    reader = os.open("pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert run(["init", "detector.onnx", "-o", "pipe", "--force"]) == 0
    assert os.read(reader, 1 << 16).decode() == Path("real.yaml").read_text().replace("link.yaml", "pipe")
    os.close(reader)
    assert Path("pipe").is_fifo()


def test_init_refuses_a_range_that_is_empty_or_none(encoder: Path, capsys: Captured) -> None:
    assert "the range '9..2' is empty" in fails(capsys, "init", "encoder.onnx", "--range", "ids=9..2")
    assert "not a range" in fails(capsys, "init", "encoder.onnx", "--range", "ids=low")
    assert "not a shape" in fails(capsys, "init", "encoder.onnx", "--shape", "ids=low")
    assert not Path("tritongen.yaml").exists()


def test_names_that_yaml_would_misread_are_quoted(tmp_path: Path) -> None:
    save(models.tokens(), tmp_path / "0123.onnx")
    proto = models.convolutional(size="any")
    proto.graph.input[0].name = proto.graph.node[0].input[0] = "no: #1"
    save(proto, tmp_path / "yes.onnx")
    assert run(["init", "0123.onnx", "yes.onnx", "--shape", "no: #1=3x8x8"]) == 0
    spec = load_spec(Path("tritongen.yaml"))
    assert list(spec.models) == ["0123", "yes"]
    assert list(spec.models["yes"].shapes) == ["no: #1"]


def test_a_file_name_that_yaml_would_fold_is_escaped(tmp_path: Path, capsys: Captured) -> None:
    odd = "a\u2028 \x7f'\U0001f600.onnx"
    save(models.linear(), tmp_path / odd)
    assert run(["init", odd, "-o", "my spec.yaml"]) == 0
    assert load_spec(Path("my spec.yaml")).models["a"].path == Path(odd)
    assert "tritongen build 'my spec.yaml'" in capsys.readouterr().out


# schema


def test_schema(capsys: Captured) -> None:
    assert run(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["required"] == ["models"]
    assert run(["schema", "--list"]) == 0
    names = capsys.readouterr().out.split()
    assert {"spec", "trial", "selection"} <= set(names)
    for name in names:
        assert run(["schema", name]) == 0
        assert json.loads(capsys.readouterr().out)["properties"]
    assert run(["schema", "--markdown"]) == 0
    assert capsys.readouterr().out.startswith("# The spec")
    assert "there is no schema 'specs'" in fails(capsys, "schema", "specs")


# The shared flags


def parsed(*argv: str) -> Spec:
    """The spec that a command with the shared flags would work with."""

    @click.command
    @options.models
    @options.spec_flags
    def probe(models: tuple[Path, ...], **flags: object) -> Spec:
        return options.read_spec(models, **flags)

    spec = probe.main(list(argv), standalone_mode=False)
    assert isinstance(spec, Spec)
    return spec


def test_flags_become_a_spec() -> None:
    spec = parsed(
        "det.onnx", "--name", "d", "-r", "repo", "--shape", "x=3x4", "--shape", "y=5", "--range", "z=0..9",
        "--precision", "fp32,int8", "--max-batch-size", "4", "--slo", "p50<=1ms", "--p99-ms", "20",
        "--calibration-data", "c.npz", "--accuracy-limit", "0.5", "--keep-candidates", "--seed", "3",
    )  # fmt: skip
    entry = spec.models["d"]
    assert entry.path == Path("det.onnx")
    assert spec.repository == Path("repo")
    assert (entry.shapes, entry.ranges) == ({"x": "3x4", "y": "5"}, {"z": "0..9"})
    assert entry.precision == (Precision.FP32, Precision.INT8)
    assert entry.slo == ("p50<=1ms", "p99<=20ms")
    assert (entry.data.calibration, entry.accuracy.limit, entry.keep_candidates, entry.seed) == (
        "c.npz", 0.5, True, 3,
    )  # fmt: skip


def test_the_default_spec_is_found_and_flags_win() -> None:
    Path("a.onnx").touch()
    Path("tritongen.yaml").write_text(
        "models: {a: {path: a.onnx, seed: 1, keep_candidates: true}}", encoding="utf-8"
    )
    assert parsed().models["a"].seed == 1
    entry = parsed("tritongen.yaml", "--seed", "0", "--no-keep-candidates").models["a"]
    assert (entry.seed, entry.keep_candidates) == (0, False)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], "there is nothing to work on"),
        (["a.yaml", "b.onnx"], "a spec stands alone"),
        (["a.onnx", "b.onnx", "--name", "x"], "--name can only name one model"),
        (["a.onnx", "--slo", "p99<=20"], "has no unit"),
        (["a.onnx", "--shape", "3x4"], "--shape '3x4' does not say which input"),
        (["a.onnx", "--engine", "tensort"], "did you mean 'tensorrt'?"),
    ],
)
def test_wrong_arguments(argv: list[str], words: str) -> None:
    from tritongen.errors import SpecError

    with pytest.raises(SpecError) as caught:
        parsed(*argv)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("models: &m\n  a: *m\n", "contains itself"),
        ("models:\n  a: {path: a.onnx, precison: [fp32]}\n", "did you mean 'precision'?"),
        ("models:\n  ../x: {path: a.onnx}\n", "the model name '../x' cannot be used"),
        ("models:\n\ta: 1\n", "a tab stands where YAML wants spaces"),
        ("", "tritongen.yaml is empty"),
    ],
)
def test_build_refuses_a_bad_spec_before_it_writes(text: str, words: str, capsys: Captured) -> None:
    Path("tritongen.yaml").write_text(text, encoding="utf-8")
    assert words in fails(capsys, "build")
    assert [path.name for path in Path().iterdir()] == ["tritongen.yaml"]


def test_a_model_that_is_not_there_is_named_with_its_place_in_the_spec(tmp_path: Path) -> None:
    (tmp_path / "s.yaml").write_text("models:\n  one:\n    path: no.onnx\n", encoding="utf-8")
    with pytest.raises(ModelError, match=r"s\.yaml:3: models\.one\.path: there is no file"):
        options.read_spec((tmp_path / "s.yaml",))
