"""Serves ONNX models inside Triton's Python stub, from the config that the C++ onnxruntime backend takes.

Self-contained: the standard library, numpy, onnxruntime and Triton's own module are all it imports.
One instance is one process with one session. A dynamic batch arrives as one list of requests; those with
equal shapes share one inference call. Triton's core applies `reshape` and checks `dims` on both sides.
"""

from __future__ import annotations

# First, because tritongen's copy of it adds the packages that the stub does not find by itself.
import triton_python_backend_utils as triton  # isort: skip

import contextlib
import ctypes
import gc
import io
import json
from pathlib import Path

import numpy as np
import onnxruntime

# Config type → (ONNX Runtime's name for it, NumPy dtype). The stub's as_numpy() has no TYPE_BF16.
TYPES = {
    "TYPE_BOOL": ("tensor(bool)", np.bool_),
    "TYPE_UINT8": ("tensor(uint8)", np.uint8),
    "TYPE_UINT16": ("tensor(uint16)", np.uint16),
    "TYPE_UINT32": ("tensor(uint32)", np.uint32),
    "TYPE_UINT64": ("tensor(uint64)", np.uint64),
    "TYPE_INT8": ("tensor(int8)", np.int8),
    "TYPE_INT16": ("tensor(int16)", np.int16),
    "TYPE_INT32": ("tensor(int32)", np.int32),
    "TYPE_INT64": ("tensor(int64)", np.int64),
    "TYPE_FP16": ("tensor(float16)", np.float16),
    "TYPE_FP32": ("tensor(float)", np.float32),
    "TYPE_FP64": ("tensor(double)", np.float64),
    "TYPE_STRING": ("tensor(string)", np.object_),
}

# `optimization { graph { level } }` as the C++ backend reads it; 0 and absent mean everything.
GRAPH_LEVELS = {
    -1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    1: onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
    2: onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
}
TRUE = ("1", "true", "True", "TRUE")
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's mallopt."""


class ContractError(Exception):
    """What came, or what the model gave, is not what the config promises."""


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.batches = int(config.get("max_batch_size", 0)) > 0
        self.session = open_session(config, args)
        self.inputs = config["input"]
        self.outputs = {tensor["name"]: tensor for tensor in config["output"]}
        check_tensors(self.inputs, self.session.get_inputs(), "input", self.batches)
        check_tensors(config["output"], self.session.get_outputs(), "output", self.batches)
        missing = {node.name for node in self.session.get_inputs()} - {t["name"] for t in self.inputs}
        if missing:
            fail(f"config.pbtxt leaves out the model's input {listed(missing)}")
        ranks = {node.name: len(node.shape) for node in self.session.get_inputs()}
        # Triton's tensors have an axis at least: without batching, dims: [1] stands for a rank-0 input.
        self.scalars = {t["name"] for t in self.inputs if ranks[t["name"]] == 0 and len(t["dims"]) == 1}
        keep_freed_memory()

    def execute(self, requests):
        """One response per request, in order; a request that cannot be served fails alone."""
        responses = [None] * len(requests)
        groups = {}
        for index, request in enumerate(requests):
            try:
                feeds = self.feeds(request)
            except ContractError as error:
                responses[index] = failure(error)
                continue
            # Without batching every request is a call of its own.
            key = signature(feeds) if self.batches else index
            groups.setdefault(key, []).append((index, feeds, self.wanted(request)))
        for members in groups.values():
            for (index, _, _), response in zip(members, self.respond(members), strict=True):
                responses[index] = response
        return responses

    def finalize(self):
        """Free the session's memory before the process ends."""
        self.session = None
        gc.collect()

    def feeds(self, request):
        """The request's inputs as the model takes them."""
        feeds = {}
        for tensor in self.inputs:
            name = tensor["name"]
            given = triton.get_input_tensor_by_name(request, name)
            if given is not None:
                feeds[name] = self.to_model(name, tensor["data_type"], given.as_numpy())
            elif not tensor.get("optional"):
                raise ContractError(f"input '{name}' is missing")
        return feeds

    def to_model(self, name, data_type, value):
        if data_type == "TYPE_STRING":
            value = decode(name, value)
        elif value.dtype != TYPES[data_type][1]:
            raise ContractError(f"input '{name}' is {value.dtype}; config.pbtxt says {data_type}")
        return value.reshape(()) if name in self.scalars and value.size == 1 else value

    def wanted(self, request):
        """The outputs that the request asks for, in the config's order."""
        asked = request.requested_output_names()
        return [name for name in self.outputs if name in asked] if asked else list(self.outputs)

    def respond(self, members):
        """The responses of requests with equal shapes, from one inference call."""
        try:
            return self.infer(members)
        except ContractError as error:
            return [failure(error) for _ in members]
        except Exception as error:  # noqa: BLE001  (whatever the runtime raises is the answer)
            if len(members) == 1:
                return [failure(error)]
            # One request's values (an index out of range) must not fail its neighbours.
            return [self.respond([member])[0] for member in members]

    def infer(self, members):
        names = [name for name in self.outputs if any(name in wanted for _, _, wanted in members)]
        if len(members) == 1:
            feeds = members[0][1]
        else:
            feeds = {name: np.concatenate([feeds[name] for _, feeds, _ in members]) for name in members[0][1]}
        results = dict(zip(names, self.session.run(names, feeds), strict=True))
        sizes = [batch_size(feeds) for _, feeds, _ in members] if self.batches else None
        parts = {name: self.split(name, value, sizes) for name, value in results.items()}
        return [
            triton.InferenceResponse([triton.Tensor(name, parts[name][i]) for name in wanted])
            for i, (_, _, wanted) in enumerate(members)
        ]

    def split(self, name, value, sizes):
        """One array per request, cut along axis 0."""
        if not isinstance(value, np.ndarray):
            raise ContractError(f"output '{name}' is no tensor but {type(value).__name__}")
        if value.dtype == np.object_:
            value = encode(value)
        if sizes is None:
            return [value.reshape(1) if value.ndim == 0 else value]
        if value.ndim == 0 or value.shape[0] != sum(sizes):
            raise ContractError(
                f"output '{name}' has shape {list(value.shape)} for a batch of {sum(sizes)}: axis 0 does not "
                "batch, so config.pbtxt must say max_batch_size: 0 with full dims"
            )
        if len(sizes) == 1:
            return [value]
        return np.split(value, np.cumsum(sizes)[:-1])


def keep_freed_memory():
    """Let the C library keep blocks beyond 32 MB, too: a fifth less time for batches of such inputs.

    Triton's stub copies every input into an array of its own before we see it, and frees it afterwards. By
    default that memory goes back to the system, which makes and zeroes its pages anew for the next batch.
    Called after loading, so that what the session was made from is not kept.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def open_session(config, args):
    """The session of the version's file, with the options that the C++ backend reads from the config."""
    path = Path(args["model_repository"], args["model_version"])
    path /= config.get("default_model_filename") or "model.onnx"
    if path.is_dir():
        path /= "model.onnx"
    if not path.is_file():
        fail(f"there is no {path.name} in version {args['model_version']}")
    options, wanted = session_options(config), providers(config, args)
    first = wanted[0] if isinstance(wanted[0], str) else wanted[0][0]
    on_gpu = first != "CPUExecutionProvider"
    if on_gpu:
        load_libraries()
    try:
        # With its fallback, a failure on the GPU would go on, unseen, on the CPU: here, or in any run.
        session = onnxruntime.InferenceSession(str(path), options, providers=wanted, enable_fallback=False)
    except Exception as error:  # noqa: BLE001
        lacking = missing_library(first) if on_gpu else None
        reason = lacking or one_line(error)
        fail(f"ONNX Runtime {onnxruntime.__version__} cannot load {path.name}: {reason}")
    session.disable_fallback()  # before 1.23, the argument says nothing
    if first not in session.get_providers():
        reason = missing_library(first) or "is there a GPU?"
        fail(f"ONNX Runtime {onnxruntime.__version__} could not start {first}: {reason}")
    return session


def load_libraries():
    """Load the CUDA libraries of NVIDIA's wheels, which lie where the dynamic linker does not look."""
    if hasattr(onnxruntime, "preload_dlls"):  # since 1.21
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
            onnxruntime.preload_dlls()


def missing_library(provider):
    """The dynamic linker's words about what a provider's library lacks; None where it lacks nothing."""
    folder = Path(onnxruntime.__file__).parent / "capi"
    name = provider.removesuffix("ExecutionProvider").lower()
    try:
        # ONNX Runtime has tried just now, and has left what the other one looks up at its start.
        ctypes.CDLL(str(folder / "libonnxruntime_providers_shared.so"), ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(folder / f"libonnxruntime_providers_{name}.so"))
    except OSError as error:
        return one_line(error)
    return None


def session_options(config):
    options = onnxruntime.SessionOptions()
    parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
    level = int(config.get("optimization", {}).get("graph", {}).get("level", 0))
    if level in GRAPH_LEVELS:
        options.graph_optimization_level = GRAPH_LEVELS[level]
    mode = integer(parameters, "execution_mode")
    if mode not in (0, 1):
        fail(f"parameter execution_mode is {mode}; it may be 0 (sequential) or 1 (parallel)")
    if mode == 1:
        options.execution_mode = onnxruntime.ExecutionMode.ORT_PARALLEL
    options.intra_op_num_threads = max(integer(parameters, "intra_op_thread_count"), 0)
    options.inter_op_num_threads = max(integer(parameters, "inter_op_thread_count"), 0)
    if "enable_mem_arena" in parameters:
        options.enable_cpu_mem_arena = parameters["enable_mem_arena"] in TRUE
    if "enable_mem_pattern" in parameters:
        options.enable_mem_pattern = parameters["enable_mem_pattern"] in TRUE
    initializers = "session.use_device_allocator_for_initializers"
    if initializers in parameters:
        options.add_session_config_entry(initializers, parameters[initializers])
    return options


def integer(parameters, name):
    try:
        return int(parameters.get(name, "0"))
    except ValueError:
        return fail(f"parameter {name} is '{parameters[name]}', not a whole number")


def providers(config, args):
    """As the C++ backend: CUDA for KIND_GPU, before it TensorRT where the config names it as accelerator."""
    if args["model_instance_kind"] != "GPU":
        return ["CPUExecutionProvider"]
    device = args["model_instance_device_id"]
    cuda = {"device_id": device}
    chain = [("CUDAExecutionProvider", cuda), "CPUExecutionProvider"]
    accelerators = config.get("optimization", {}).get("execution_accelerators", {})
    for one in accelerators.get("gpu_execution_accelerator", []):
        if one["name"] == "cuda":  # its parameters are the provider's own options
            cuda.update(one.get("parameters", {}))
        if one["name"] == "tensorrt":
            chain.insert(
                0, ("TensorrtExecutionProvider", tensorrt_options(one.get("parameters", {}), device))
            )
    for name, _ in chain[:-1]:
        if name not in onnxruntime.get_available_providers():
            fail(f"the config asks for {name}, which this ONNX Runtime lacks (pip install onnxruntime-gpu)")
    return chain


def tensorrt_options(parameters, device):
    """The accelerator's parameters under ONNX Runtime's names for them."""
    options = {"device_id": device}
    if "max_workspace_size_bytes" in parameters:
        options["trt_max_workspace_size"] = parameters["max_workspace_size_bytes"]
    options["trt_fp16_enable"] = parameters.get("precision_mode", "FP32") == "FP16"
    return options


def check_tensors(configured, nodes, role, batches):
    """Fail unless the model has what the config promises: names, types, ranks."""
    nodes = {node.name: node for node in nodes}
    for tensor in configured:
        name, data_type = tensor["name"], tensor["data_type"]
        if name not in nodes:
            fail(f"config.pbtxt names {role} '{name}'; the model has {listed(nodes)}")
        if data_type not in TYPES:
            fail(f"{role} '{name}' is {data_type}, which this server cannot carry; cast it in the model")
        if nodes[name].type != TYPES[data_type][0]:
            fail(f"config.pbtxt says {data_type} for {role} '{name}'; the model has {nodes[name].type}")
        check_rank(tensor, nodes[name], role, batches)


def check_rank(tensor, node, role, batches):
    dims = tensor.get("reshape", {}).get("shape", []) if "reshape" in tensor else tensor["dims"]
    rank = len(dims) + batches
    actual = len(node.shape)
    # ONNX Runtime says [] for rank 0 and for a rank that the graph does not tell.
    if actual and rank != actual:
        fail(
            f"config.pbtxt gives {role} '{tensor['name']}' {rank} axes; the model has {actual}: {node.shape}"
        )


def signature(feeds):
    """What must be equal for requests to share a call."""
    return tuple((name, value.shape[1:]) for name, value in feeds.items())


def batch_size(feeds):
    return next(iter(feeds.values())).shape[0]


def decode(name, value):
    """Bytes → str, which is what ONNX Runtime takes."""
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in value.ravel()]
    except UnicodeDecodeError as error:
        raise ContractError(f"input '{name}' holds bytes that are not UTF-8 text: {error}") from None
    return objects(texts, value.shape)


def encode(value):
    return objects([text.encode() if isinstance(text, str) else text for text in value.ravel()], value.shape)


def objects(items, shape):
    array = np.empty(len(items), dtype=np.object_)
    array[:] = items
    return array.reshape(shape)


def failure(error):
    return triton.InferenceResponse(error=triton.TritonError(one_line(error)))


def one_line(error):
    return " ".join(str(error).split())


def listed(names):
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def fail(message):
    raise triton.TritonModelException(message)
