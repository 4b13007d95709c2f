"""The ONNX Runtime engine on real tiny models."""

from __future__ import annotations

import platform
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import set_external_data

from tritongen.engines import Engine, Runner, load_engine
from tritongen.engines.onnxruntime import OnnxRuntimeEngine
from tritongen.engines.onnxruntime.recipes import has_exact_products
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner, readable_limits
from tritongen.errors import BuildError, DataError, ModelError
from tritongen.graph import BatchAxis, BatchStatus, Graph
from tritongen.precision.recipe import Int8Recipe
from tritongen.runs.events import Event, discard
from tritongen.runs.records import Artifact, Candidate, Options
from tritongen.spec import Precision

ENGINE = OnnxRuntimeEngine()


def save(
    path: Path,
    nodes: list[onnx.NodeProto],
    inputs: list[onnx.ValueInfoProto],
    outputs: list[onnx.ValueInfoProto],
    initializers: list[onnx.TensorProto] | None = None,
    **how: object,
) -> Path:
    graph = helper.make_graph(nodes, "g", inputs, outputs, initializers or [])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])
    onnx.save_model(model, path, **how)
    return path


def info(name: str, shape: list[int | str], kind: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, kind, shape)


@pytest.fixture
def linear(tmp_path: Path) -> Path:
    """y = x·w with a float32 matrix of 3 × 2, weights in an external file in a sub-folder."""
    (tmp_path / "weights").mkdir()
    return save(
        tmp_path / "linear.onnx",
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [info("x", ["n", 3])],
        [info("y", ["n", 2])],
        [numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")],
        save_as_external_data=True,
        location="weights/w.bin",
        size_threshold=0,
    )


def candidate(**options: str) -> Candidate:
    return Candidate(id="c", engine="onnxruntime", precision=Precision.FP32, options=dict(options))


def build(model: Path, folder: Path, **options: str) -> Artifact:
    return ENGINE.build(model, candidate(**options), folder, discard)


def graph_with(**operators: int) -> Graph:
    absent = BatchAxis(BatchStatus.ABSENT, "no reason")
    return Graph(
        path=Path("m.onnx"), digest="0", inputs=(), outputs=(), ir_version=10, opsets={"": 17},
        operators=operators, parameters=0, size_bytes=0, external_data=(), quantized=False, half=False,
        batch=absent,
    )  # fmt: skip


def test_satisfies_the_protocols_and_is_found_by_name() -> None:
    engine: Engine = load_engine("onnxruntime")
    runner: Runner = OnnxRuntimeRunner(Path("x.onnx"))
    assert engine.unavailable_reason() is None
    assert runner is not None
    assert set(engine.versions()) == {"onnxruntime"}


def test_build_copies_external_data_and_the_artifact_runs_after_the_source_is_gone(
    linear: Path, tmp_path: Path
) -> None:
    events: list[Event] = []
    folder = tmp_path / "trial"
    artifact = ENGINE.build(linear, candidate(), folder, events.append)
    linear.unlink()
    (tmp_path / "weights" / "w.bin").unlink()
    assert artifact.extra_files == ("weights/w.bin",)
    assert artifact.size_bytes == sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
    with ENGINE.open(folder, artifact, {"intra_op_threads": 1}) as runner:
        x = np.ones((4, 3), np.float32)
        result = runner.infer({"x": x})["y"]
        runner.prepare({"x": x})
        assert all(runner.step() > 0 for _ in range(3))
    np.testing.assert_array_equal(result, np.tile([[6.0, 9.0]], (4, 1)))
    assert [event.status for event in events] == ["progress"]


def test_build_in_place_keeps_the_file(linear: Path) -> None:
    model = linear.rename(linear.with_name("model.onnx"))
    before = model.read_bytes()
    assert build(model, model.parent).file == "model.onnx"
    assert model.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "found"), [(b"# a text file, not a model\n" * 9, ""), (b"", "")], ids=["text", "empty"]
)
def test_what_is_no_model_is_a_model_error(tmp_path: Path, content: bytes, found: str) -> None:
    model = tmp_path / "m.onnx"
    model.write_bytes(content)
    with pytest.raises(ModelError):
        build(model, tmp_path / "trial")


def test_unknown_operator_is_explained_in_one_line(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx", [helper.make_node("Foo", ["x"], ["y"])], [info("x", [1])], [info("y", [1])]
    )
    with pytest.raises(ModelError) as caught:
        build(model, tmp_path / "trial")
    assert caught.value.found is not None
    assert "No Op registered for Foo" in caught.value.found
    assert "\n" not in caught.value.found
    assert "onnxruntime_src" not in caught.value.found
    assert "custom operators" in str(caught.value.fix)


def test_what_the_checker_passes_and_onnx_runtime_does_not_is_explained(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["a"], "n"), helper.make_node("Relu", ["a"], ["y"], "n")]
    model = save(tmp_path / "m.onnx", nodes, [info("x", [1])], [info("y", [1])])
    with pytest.raises(ModelError, match="cannot open") as caught:
        build(model, tmp_path / "trial")
    assert "a model that ONNX Runtime" in str(caught.value.expected)
    assert "a name of its own" in str(caught.value.fix)


_LITTLE_MEMORY = """
import resource, sys
from pathlib import Path
import onnxruntime
from tritongen.engines.onnxruntime.session import OnnxRuntimeRunner
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 28),) * 2)
OnnxRuntimeRunner(Path(sys.argv[1]), intra_op_threads=1).__enter__()
"""


def test_weights_that_memory_does_not_hold_are_no_fault_of_the_model(tmp_path: Path) -> None:
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1 << 28])
    weights.data_location = TensorProto.EXTERNAL
    weights.external_data.add(key="location", value="w.bin")
    with (tmp_path / "w.bin").open("wb") as sparse:
        sparse.truncate(4 << 28)
    nodes = [helper.make_node("Add", ["x", "w"], ["y"])]
    model = save(tmp_path / "m.onnx", nodes, [info("x", [1])], [info("y", [1 << 28])], [weights])
    told = subprocess.run(
        [sys.executable, "-c", _LITTLE_MEMORY, str(model)], capture_output=True, text=True, check=False
    )
    assert "ONNX Runtime cannot open" in told.stderr
    assert "give it more memory" in told.stderr


def test_missing_external_data_names_the_file(linear: Path, tmp_path: Path) -> None:
    (tmp_path / "weights" / "w.bin").unlink()
    with pytest.raises(ModelError, match="weights/w\\.bin"):
        build(linear, tmp_path / "trial")


def test_external_data_outside_the_folder_is_refused(linear: Path, tmp_path: Path) -> None:
    proto = onnx.load(linear, load_external_data=False)
    for entry in proto.graph.initializer[0].external_data:
        if entry.key == "location":
            entry.value = "../w.bin"
    linear.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside its own folder"):
        build(linear, tmp_path / "trial")


def test_weights_in_a_file_named_as_the_model_will_be_are_refused(linear: Path, tmp_path: Path) -> None:
    onnx.save_model(
        onnx.load(linear), linear, save_as_external_data=True, location="model.onnx", size_threshold=0
    )
    with pytest.raises(ModelError, match=r"in a file named model\.onnx"):
        build(linear, tmp_path / "trial")


def test_weights_in_the_body_of_a_function_are_copied_too(tmp_path: Path) -> None:
    matrix = numpy_helper.from_array(np.arange(6, dtype=np.float32).reshape(3, 2), "w")
    (tmp_path / "w.bin").write_bytes(matrix.raw_data)
    set_external_data(matrix, "w.bin")
    matrix.ClearField("raw_data")
    body = [
        helper.make_node("Constant", [], ["w"], value=matrix),
        helper.make_node("MatMul", ["a", "w"], ["b"]),
    ]
    function = helper.make_function("own", "Linear", ["a"], ["b"], body, [helper.make_opsetid("", 17)])
    graph = helper.make_graph(
        [helper.make_node("Linear", ["x"], ["y"], domain="own")],
        "g",
        [info("x", ["n", 3])],
        [info("y", ["n", 2])],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    model = helper.make_model(graph, ir_version=10, opset_imports=opsets, functions=[function])
    onnx.save_model(model, tmp_path / "m.onnx")
    artifact = build(tmp_path / "m.onnx", tmp_path / "trial")
    assert artifact.extra_files == ("w.bin",)


@pytest.mark.parametrize(
    "inputs",
    [
        {"x": np.ones((1, 4), np.float32)},
        {"x": np.ones((1, 3))},
        {"z": np.ones((1, 3), np.float32)},
        {},
    ],
    ids=["shape", "dtype", "name", "missing"],
)
def test_inputs_that_do_not_fit_are_data_errors(linear: Path, inputs: dict[str, NDArray[np.generic]]) -> None:
    with OnnxRuntimeRunner(linear) as runner, pytest.raises(DataError):
        runner.infer(inputs)


def test_a_failing_operator_is_named(tmp_path: Path) -> None:
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("MatMul", ["a", "b"], ["y"], name="product")],
        [info("a", ["i", "j"]), info("b", ["k", "l"])],
        [info("y", ["i", "l"])],
    )
    inputs = {"a": np.ones((2, 3), np.float32), "b": np.ones((4, 2), np.float32)}
    with OnnxRuntimeRunner(model) as runner:
        with pytest.raises(BuildError, match=r"operator MatMul \(product\): MatMul dimension mismatch"):
            runner.infer(inputs)
        runner.prepare(inputs)
        with pytest.raises(BuildError, match="operator MatMul"):
            runner.step()


def test_strings_as_text_and_as_bytes(tmp_path: Path) -> None:
    kind = TensorProto.STRING
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", ["n"], kind)],
        [info("y", ["n"], kind)],
    )
    with OnnxRuntimeRunner(model) as runner:
        for texts in (np.array(["a", "bé"]), np.array([b"a", "bé".encode()], object)):
            assert runner.infer({"x": texts})["y"].tolist() == ["a", "bé"]
            runner.prepare({"x": texts})
            assert runner.step() > 0
        with pytest.raises(DataError, match="'x' holds bytes that are not UTF-8"):
            runner.infer({"x": np.array([b"\xff"], object)})


def test_several_types_and_ranks_in_one_model(tmp_path: Path) -> None:
    kinds = {
        "f16": TensorProto.FLOAT16,
        "b": TensorProto.BOOL,
        "u8": TensorProto.UINT8,
        "i64": TensorProto.INT64,
    }
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", [name], [f"{name}_out"]) for name in kinds],
        [info(name, [], kind) for name, kind in kinds.items()],
        [info(f"{name}_out", [], kind) for name, kind in kinds.items()],
    )
    inputs = {
        "f16": np.array(1.5, np.float16), "b": np.ones((), np.bool_), "u8": np.array(7, np.uint8),
        "i64": np.array(-3, np.int64),
    }  # fmt: skip
    with OnnxRuntimeRunner(model) as runner:
        outputs = runner.infer(inputs)
        runner.prepare(inputs)
        runner.step()
    assert {name: outputs[f"{name}_out"] for name in kinds} == inputs


def test_bfloat16_edges_are_refused_with_the_way_out(tmp_path: Path) -> None:
    kind = TensorProto.BFLOAT16
    model = save(
        tmp_path / "m.onnx",
        [helper.make_node("Identity", ["x"], ["y"])],
        [info("x", ["n"], kind)],
        [info("y", ["n"], kind)],
    )
    with pytest.raises(ModelError, match="bfloat16"), OnnxRuntimeRunner(model):
        pass


def test_step_before_prepare_is_an_error(linear: Path) -> None:
    with OnnxRuntimeRunner(linear) as runner, pytest.raises(BuildError, match="before prepare"):
        runner.step()


def test_graph_levels_reach_config_by_the_meaning_of_tritons_backend(linear: Path, tmp_path: Path) -> None:
    wanted = {"all": "", "extended": "graph { level: 1 }", "basic": "graph { level: -1 }",
              "disabled": "graph { level: 2 }"}  # fmt: skip
    for level, text in wanted.items():
        artifact = build(linear, tmp_path / level, graph_optimization_level=level)
        traits = ENGINE.serving_traits(artifact, {"intra_op_threads": 2})
        assert traits.optimization == text
        assert traits.parameters["intra_op_thread_count"] == "2"
        assert (traits.backend, traits.instance_kind) == ("onnxruntime", "KIND_CPU")
    with pytest.raises(BuildError, match="graph optimization level"):
        build(linear, tmp_path / "x", graph_optimization_level="most")


@pytest.mark.parametrize("cores", [1, 2, 4, 8, 24, 128])
def test_runtimes_never_ask_for_more_threads_than_cores(cores: int) -> None:
    pairs = ENGINE.runtimes(graph_with(), cores)
    seen = [(int(runtime["intra_op_threads"]), instances) for runtime, instances in pairs]
    assert all(threads * instances <= cores for threads, instances in seen)
    assert len(seen) == len(set(seen))
    assert {(cores, 1), (1, cores), (1, 1)} <= set(seen)
    shared: list[Options] = [
        runtime for runtime, n in pairs if n > 1 and int(runtime["intra_op_threads"]) > 1
    ]
    assert all(runtime["spinning"] is False for runtime in shared)


def test_build_options_try_the_layout_only_where_it_matters() -> None:
    levels = [o["graph_optimization_level"] for o in ENGINE.build_options(Precision.FP32, graph_with(Conv=3))]
    assert levels == ["all", "extended"]
    assert len(ENGINE.build_options(Precision.FP32, graph_with(MatMul=3))) == 1
    assert len(ENGINE.build_options(Precision.INT8, graph_with(Conv=3))) == 1


def test_readable_limits_are_found_by_trying() -> None:
    ir_version, opset = readable_limits()
    assert ir_version >= 9
    assert opset >= 20


def test_int8_recipes_have_names_of_their_own_and_suit_the_processor() -> None:
    recipes = ENGINE.recipes(Precision.INT8)
    names = [recipe.name for recipe in recipes]
    assert len(names) == len(set(names))
    assert all(isinstance(r, Int8Recipe) and r.reduce_range is not has_exact_products() for r in recipes)
    assert ENGINE.recipes(Precision.FP32) == ()


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of x86 processors")
@pytest.mark.parametrize(
    ("flags", "exact"),
    [("avx2 fma", False), ("avx2 avx512_vnni", True), ("avx2 avx_vnni", True), ("", False)],
)
def test_saturating_products_are_told_from_exact_ones(flags: str, exact: bool, tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    assert has_exact_products(cpuinfo) is exact
    assert not has_exact_products(tmp_path / "absent")
