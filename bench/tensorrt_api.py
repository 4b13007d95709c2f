"""Which of TensorRT's names tritongen's code uses, held against NVIDIA's own Python bindings, without a GPU.

    python bench/tensorrt_api.py --look > look.json  # with 8.6.0, whose wheel holds its libraries
    python bench/tensorrt_api.py --work DIR --also 8.6.0=look.json --out bench/results/tensorrt_api.json

The bindings of each version are a small wheel on the Python index, and need TensorRT's libraries neither to
show their names nor to make the objects that are Python classes of ours. Libraries of nothing stand in
(needs gcc and nm), so nothing can be built, parsed or run: this proves that names and flags are there, and
no more.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VERSIONS = ("10.0.1", "10.8.0.43", "10.16.1.11", "11.0.0.114", "11.4.0.106")
LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")

ALWAYS = """
BuilderFlag.TF32 BuilderFlag.SPARSE_WEIGHTS BuilderFlag.REFIT BuilderFlag.VERSION_COMPATIBLE
IBuilderConfig.builder_optimization_level IBuilderConfig.avg_timing_iterations
IBuilderConfig.max_aux_streams IBuilderConfig.set_flag IBuilderConfig.clear_flag
IBuilderConfig.set_tactic_sources IBuilderConfig.set_memory_pool_limit
IBuilderConfig.add_optimization_profile IBuilderConfig.profiling_verbosity
IBuilderConfig.hardware_compatibility_level IBuilderConfig.create_timing_cache
IBuilderConfig.set_timing_cache IBuilderConfig.get_timing_cache ITimingCache.combine ITimingCache.serialize
Builder.create_network Builder.create_builder_config Builder.create_optimization_profile
Builder.build_serialized_network INetworkDefinition.num_layers INetworkDefinition.get_layer
INetworkDefinition.num_inputs INetworkDefinition.get_input ITensor.is_shape_tensor ITensor.name
ILayer.get_output ILayer.num_outputs IOptimizationProfile.set_shape OnnxParser.parse_from_file
OnnxParser.num_errors OnnxParser.get_error ParserError.node ParserError.desc Runtime.deserialize_cuda_engine
Runtime.engine_host_code_allowed ICudaEngine.num_io_tensors ICudaEngine.get_tensor_name
ICudaEngine.get_tensor_dtype ICudaEngine.get_tensor_shape ICudaEngine.get_tensor_mode
ICudaEngine.num_optimization_profiles ICudaEngine.get_tensor_profile_shape
ICudaEngine.create_execution_context ICudaEngine.create_engine_inspector ICudaEngine.num_layers
IExecutionContext.set_optimization_profile_async IExecutionContext.set_input_shape
IExecutionContext.get_tensor_shape IExecutionContext.set_tensor_address IExecutionContext.execute_async_v3
IExecutionContext.profiler EngineInspector.get_engine_information EngineInspector.execution_context
IProfiler ILogger.Severity.INTERNAL_ERROR ILogger.Severity.ERROR ILogger.Severity.VERBOSE
init_libnvinfer_plugins HardwareCompatibilityLevel.AMPERE_PLUS
MemoryPoolType.WORKSPACE ProfilingVerbosity.DETAILED LayerInformationFormat.JSON TensorIOMode.INPUT
TensorIOMode.OUTPUT
TacticSource.EDGE_MASK_CONVOLUTIONS TacticSource.JIT_CONVOLUTIONS DataType.FLOAT DataType.HALF DataType.INT8
DataType.INT32 DataType.UINT8 DataType.BOOL
"""
SINCE = {
    "BuilderFlag.FP16": (8, 11), "BuilderFlag.INT8": (8, 11), "ITensor.dynamic_range": (8, 11),
    "NetworkDefinitionCreationFlag.EXPLICIT_BATCH": (8, 11), "IInt8EntropyCalibrator2": (8, 11),
    "IBuilderConfig.int8_calibrator": (8, 11), "IBuilderConfig.set_calibration_profile": (8, 11),
    "ICudaEngine.device_memory_size": (8, 11), "BuilderFlag.BF16": (10, 11),
    "NetworkDefinitionCreationFlag.STRONGLY_TYPED": (10, 99), "IProgressMonitor": (10, 99),
    "IBuilderConfig.progress_monitor": (10, 99), "ParserError.node_name": (10, 99),
    "TacticSource.CUBLAS": (8, 11), "TacticSource.CUBLAS_LT": (8, 11), "TacticSource.CUDNN": (8, 11),
    "DataType.FP8": (8, 99), "DataType.INT64": (10, 99), "DataType.BF16": (10, 99),
    "ParserError.node_operator": (10, 99),
    "ICudaEngine.device_memory_size_v2": (10.08, 99), "IBuilderConfig.tiling_optimization_level": (10.08, 99),
    "TilingOptimizationLevel.FULL": (10.08, 99), "IBuilderConfig.build_route": (11.01, 99),
    "IBuilderConfig.all_build_routes": (11.01, 99),
}  # fmt: skip
"""Name → the first version that has it, and the first that has it no more (8.6 as 8, 10.8 as 10.08)."""


def offered(version: str) -> set[str]:
    """The names of ours that a version has."""
    major, minor = map(int, version.split(".")[:2])
    here = major + (minor / 100 if major > 8 else 0)
    return {*ALWAYS.split(), *(name for name, (first, last) in SINCE.items() if first <= here < last)}


def missing(trt: object) -> list[str]:
    """What is not as the code expects it."""
    wanted = offered(str(trt.__version__))  # type: ignore[attr-defined]
    return [
        f"{name} is {'there' if has(trt, name) else 'missing'}"
        for name in (*ALWAYS.split(), *SINCE)
        if has(trt, name) != (name in wanted)
    ]


def has(trt: object, name: str) -> bool:
    part: object = trt
    for word in name.split("."):
        part = getattr(part, word, None)
    return part is not None


def look() -> dict[str, object]:
    """What the `tensorrt` of this process offers, and whether our subclasses of its classes can be made."""
    from tritongen.engines.tensorrt import api, building, calibrator, progress
    from tritongen.runs.events import discard

    trt = api.load()
    log, features = building.Log(), api.features(trt)
    building.make_logger(trt, log).log(trt.ILogger.Severity.ERROR, "words")
    problems = missing(trt) + ([] if log.errors() == "words" else ["a severity has another name"])
    if features.progress_monitor:
        watching = progress.monitor(trt, progress.Phases(discard))
        if watching.step_complete("phase", 0) is not True:
            problems.append("a progress monitor that stops builds")
    if features.implicit_int8:
        calibrator.entropy_calibrator(trt, iter(()), 1, Path("nowhere"))
    return {"features": vars(features), "problems": problems}


def prepare(version: str, work: Path) -> Path:
    """A folder with the bindings of that version and libraries of nothing."""
    folder = work / version
    if (folder / "tensorrt").exists():
        return folder
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "-d", str(folder), f"tensorrt-cu12-bindings=={version}"], check=True)
    (wheel,) = folder.glob("*.whl")
    shutil.unpack_archive(wheel, folder, "zip")
    bindings = folder / "tensorrt_bindings"
    listed = ["nm", "-D", "--undefined-only", str(bindings / "tensorrt.so")]
    symbols = subprocess.run(listed, check=True, text=True, stdout=subprocess.PIPE).stdout.split()
    own = [name for name in symbols if name.endswith("_INTERNAL") or "PluginRegistry" in name]
    own += [name for name in ("initLibNvInferPlugins", "getNvOnnxParserVersion") if name in symbols]
    for library in LIBRARIES:
        name = f"{library}.so.{version.partition('.')[0]}"
        source = bindings / f"{library}.c"
        functions = own if library == "libnvinfer" else []
        source.write_text("".join(f"void *{one}(void) {{ return 0; }}\n" for one in functions) + "\n")
        flags = ["-w", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(bindings / name)]
        subprocess.run(["gcc", *flags, str(source)], check=True)
    (folder / "tensorrt").symlink_to("tensorrt_bindings")
    return folder


def ask(folder: Path) -> dict[str, object]:
    """`look` in a process that finds the bindings in `folder`."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]),
        "LD_LIBRARY_PATH": str(folder / "tensorrt_bindings"),
    }
    command = [sys.executable, __file__, "--look"]
    said = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE, env=environment).stdout
    found: dict[str, object] = json.loads(said)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", maxsplit=1)[0])
    parser.add_argument("--work", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--versions", default=",".join(VERSIONS))
    parser.add_argument(
        "--look", action="store_true", help="look at the tensorrt of this process (8.6's, say)"
    )
    parser.add_argument("--also", metavar="VERSION=FILE", help="what --look said of another version")
    args = parser.parse_args()
    if args.look:
        print(json.dumps(look()))
        return 0
    if args.work is None:
        parser.error("--work: where may the wheels lie?")
    results = {version: ask(prepare(version, args.work.resolve())) for version in args.versions.split(",")}
    if args.also:
        version, _, file = args.also.partition("=")
        results = {version: json.loads(Path(file).read_text(encoding="utf-8")), **results}
    for version, found in results.items():
        print(version, "; ".join(map(str, found["problems"])) or "as expected", flush=True)  # type: ignore[call-overload]
    if args.out:
        record = {"command": " ".join(["python", *sys.argv]), "results": results}
        args.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return 1 if any(found["problems"] for found in results.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
