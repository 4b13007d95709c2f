"""Serves TensorRT plans inside Triton's Python stub, from the config that the C++ tensorrt backend takes.

Self-contained: the standard library, numpy, tensorrt, cuda-bindings and Triton's own module are all it
imports. One instance is one process with one stream, one execution context per profile, pinned buffers, and
a CUDA graph for each `graph_spec`. Requests with equal shapes are laid side by side in pinned memory and run
as one call; a batch between two graphs is padded to the larger one, as `graph_lower_bound` allows.
"""

from __future__ import annotations

# First, because tritongen's copy of it adds the packages that the stub does not find by itself.
import triton_python_backend_utils as triton  # isort: skip

import ctypes
import gc
import json
import math
import os
import sys
from collections import deque
from pathlib import Path

import numpy as np
import tensorrt
from cuda.bindings import runtime as cuda

NUMPY = {
    "TYPE_BOOL": np.dtype(np.bool_),
    "TYPE_UINT8": np.dtype(np.uint8),
    "TYPE_INT8": np.dtype(np.int8),
    "TYPE_INT32": np.dtype(np.int32),
    "TYPE_INT64": np.dtype(np.int64),
    "TYPE_FP16": np.dtype(np.float16),
    "TYPE_FP32": np.dtype(np.float32),
}
TENSORRT = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "INT8": "TYPE_INT8",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "HALF": "TYPE_FP16",
    "FLOAT": "TYPE_FP32",
}
UPLOAD = cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
DOWNLOAD = cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Of glibc's mallopt."""


class ContractError(RuntimeError):
    """What came, or what the plan gave, is not what the config promises."""


class Logger(tensorrt.ILogger):
    """Keeps TensorRT's last errors for the answer."""

    def __init__(self):
        tensorrt.ILogger.__init__(self)
        self.errors = deque(maxlen=4)

    def log(self, severity, text):
        if severity in (tensorrt.ILogger.Severity.ERROR, tensorrt.ILogger.Severity.INTERNAL_ERROR):
            self.errors.append(text)

    def last(self):
        """What was said since this was asked before."""
        said = "; ".join(dict.fromkeys(self.errors))
        self.errors.clear()
        return one_line(said) or "no reason given"


class Buffer:
    """Device memory and its pinned mirror."""

    def __init__(self, nbytes):
        self.nbytes = max(nbytes, 1)
        self.device = int(check(cuda.cudaMalloc(self.nbytes)))
        try:
            self.host = int(check(cuda.cudaMallocHost(self.nbytes)))
        except RuntimeError:
            cuda.cudaFree(self.device)
            raise
        raw = (ctypes.c_uint8 * self.nbytes).from_address(self.host)
        self.bytes = np.ctypeslib.as_array(raw)
        self.bytes[:] = 0

    def view(self, shape, dtype):
        return self.bytes[: math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)

    def free(self):
        self.bytes = None
        cuda.cudaFree(self.device)
        cuda.cudaFreeHost(self.host)


class TritonPythonModel:
    """One instance of one model."""

    def initialize(self, args):
        config = json.loads(args["model_config"])
        if args["model_instance_kind"] != "GPU":
            fail("TensorRT runs on GPUs: config.pbtxt must say instance_group { kind: KIND_GPU }")
        self.device = int(args["model_instance_device_id"])
        self.max_batch = int(config.get("max_batch_size", 0))
        try:
            self.load(config, args)
        except RuntimeError as error:
            fail(f"the plan cannot be prepared on GPU {self.device}: {one_line(error)}")
        keep_freed_memory()

    def load(self, config, args):
        """Engine, contexts, buffers and CUDA graphs."""
        check(cuda.cudaSetDevice(self.device))
        self.logger = Logger()
        self.engine = self.open_engine(config, args)
        self.stream = int(check(cuda.cudaStreamCreateWithFlags(cuda.cudaStreamNonBlocking)))
        self.inputs = self.checked(config["input"], tensorrt.TensorIOMode.INPUT)
        self.outputs = self.checked(config["output"], tensorrt.TensorIOMode.OUTPUT)
        self.names = list(self.inputs) + list(self.outputs)
        self.scalars = [name for name in self.inputs if not len(self.engine.get_tensor_shape(name))]
        self.contexts = {index: self.make_context(index) for index in wanted_profiles(config, args)}
        self.extents_of = {index: self.extents(index) for index in self.contexts}
        self.check_largest_batch()
        self.buffers = {}
        self.graphs, self.lowers = {}, {}
        self.reserve_largest()
        usual = {name: opt for name, (_, opt, _) in next(iter(self.extents_of.values())).items()}
        for low, shapes in graph_specs(config, self.inputs, usual):
            # As in the C++ backend: a graph that no profile takes is left out, and the batch runs without.
            if any(self.takes(index, shapes) for index in self.contexts):
                self.capture(low, shapes)

    def execute(self, requests):
        """One response per request, in order; a request that cannot be served fails alone."""
        check(cuda.cudaSetDevice(self.device))
        responses = [None] * len(requests)
        groups = {}
        for index, request in enumerate(requests):
            try:
                feeds = self.feeds(request)
            except ContractError as error:
                responses[index] = failure(error)
                continue
            key = tuple(array.shape[1:] for array in feeds.values()) if self.max_batch else index
            groups.setdefault(key, []).append((index, request, feeds))
        # Responses point into pinned memory, which the next call overwrites: only the last may do without
        # a copy.
        for position, members in enumerate(groups.values()):
            is_last = position == len(groups) - 1
            try:
                found = self.infer(members, copy=not is_last)
            except RuntimeError as error:
                self.end_if_lost(error)
                found = [failure(error) for _ in members]
            for (index, _, _), response in zip(members, found, strict=True):
                responses[index] = response
        return responses

    def end_if_lost(self, error):
        """End the process if CUDA refuses all further work in it, as after an illegal memory access.

        An instance that goes on only fails, and faster than the others serve: it would draw most requests.
        """
        if int(cuda.cudaStreamSynchronize(self.stream)[0]) != 0:
            what = f"the instance on GPU {self.device} ends, as its CUDA context is lost"
            sys.stderr.write(f"{what}: {one_line(error)}\n")
            sys.stderr.flush()
            os._exit(1)

    def finalize(self):
        """Free GPU memory before the process ends: what uses something goes before it."""
        cuda.cudaSetDevice(self.device)
        cuda.cudaStreamSynchronize(self.stream)
        for graph, _ in self.graphs.values():
            cuda.cudaGraphExecDestroy(graph)
        self.graphs.clear()
        self.contexts.clear()
        for buffer in self.buffers.values():
            buffer.free()
        self.buffers.clear()
        self.engine = None
        gc.collect()
        self.runtime = None
        cuda.cudaStreamDestroy(self.stream)
        # The logger stays: TensorRT keeps the first one of a process for messages of its own.

    def open_engine(self, config, args):
        path = Path(args["model_repository"], args["model_version"], self.plan_name(config))
        if not path.is_file():
            fail(f"there is no {path.name} in version {args['model_version']}")
        parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        load_plugins(path.parent, parameters.get("plugins", ""), self.logger)
        self.runtime = tensorrt.Runtime(self.logger)
        if parameters.get("version_compatible") == "true":
            self.runtime.engine_host_code_allowed = True
        engine = self.runtime.deserialize_cuda_engine(path.read_bytes())
        if engine is None:
            fail(f"TensorRT {tensorrt.__version__} cannot load {path.name}: {self.logger.last()}")
        return engine

    def plan_name(self, config):
        """The plan for this GPU's compute capability, or the one for all others."""
        by_capability = config.get("cc_model_filenames") or {}
        if by_capability:
            properties = check(cuda.cudaGetDeviceProperties(self.device))
            name = by_capability.get(f"{properties.major}.{properties.minor}")
            if name:
                return name
        return config.get("default_model_filename") or "model.plan"

    def checked(self, tensors, mode):
        """Name → NumPy dtype of the configured tensors; fails unless the plan has them so."""
        own = [self.engine.get_tensor_name(index) for index in range(self.engine.num_io_tensors)]
        own = [name for name in own if self.engine.get_tensor_mode(name) == mode]
        if {tensor["name"] for tensor in tensors} != set(own):
            fail(f"config.pbtxt names {listed(t['name'] for t in tensors)}; the plan has {listed(own)}")
        found = {}
        for tensor in tensors:
            name = tensor["name"]
            own = self.engine.get_tensor_dtype(name).name
            type_ = TENSORRT.get(own, own)
            if type_ != tensor["data_type"]:
                fail(f"config.pbtxt says {tensor['data_type']} for '{name}'; the plan has {type_}")
            rank, actual = len(tensor["dims"]) + bool(self.max_batch), self.engine.get_tensor_shape(name)
            if rank != len(actual) and "reshape" not in tensor:
                fail(f"config.pbtxt gives '{name}' {rank} axes; the plan has {list(actual)}")
            found[name] = NUMPY[type_]
        return found

    def make_context(self, profile):
        context = self.engine.create_execution_context()
        if context is None:
            fail(f"no execution context: {self.logger.last()}")
        if profile and not context.set_optimization_profile_async(profile, self.stream):
            fail(f"the plan has no profile {profile}: {self.logger.last()}")
        self.synchronize()
        return context

    def check_largest_batch(self):
        """Fail, as the C++ backend does, where no profile takes a batch of max_batch_size."""
        if not self.max_batch:
            return
        batches = [min(high[0] for *_, high in extents.values()) for extents in self.extents_of.values()]
        if max(batches) < self.max_batch:
            profiles = ", ".join(map(str, self.contexts))
            fail(
                f"config.pbtxt says max_batch_size: {self.max_batch}; the plan's profiles that it names "
                f"({profiles}) take batches of up to {max(batches)}"
            )

    def extents(self, profile):
        """Input → (smallest, tuned-for, largest) shape of a profile."""
        found = {}
        for name in self.inputs:
            shape = tuple(self.engine.get_tensor_shape(name))
            if -1 in shape:
                found[name] = tuple(map(tuple, self.engine.get_tensor_profile_shape(name, profile)))
            else:
                found[name] = shape, shape, shape
        return found

    def reserve_largest(self):
        """Buffers for the largest shapes of all profiles, so that addresses never change."""
        for profile, context in self.contexts.items():
            for name, (*_, high) in self.extents_of[profile].items():
                self.shape_input(context, name, high)
            for name in self.names:
                shape = tuple(context.get_tensor_shape(name))
                if min(shape, default=0) < 0:
                    fail(f"the size of '{name}' depends on the data, which is not supported")
                self.reserve(name, math.prod(shape) * self.dtype(name).itemsize)
        for context in self.contexts.values():
            for name in self.names:
                context.set_tensor_address(name, self.buffers[name].device)

    def reserve(self, name, nbytes):
        held = self.buffers.get(name)
        if held is None or held.nbytes < nbytes:
            if held is not None:
                self.buffers.pop(name).free()
            self.buffers[name] = Buffer(nbytes)

    def dtype(self, name):
        return self.inputs[name] if name in self.inputs else self.outputs[name]

    def feeds(self, request):
        """Input → array in Triton's shared memory, in the order of the plan's inputs."""
        given = {tensor.name(): tensor for tensor in request.inputs()}
        feeds = {}
        for name, dtype in self.inputs.items():
            if name not in given:
                raise ContractError(f"input '{name}' is missing")
            feeds[name] = value = given[name].as_numpy()
            if value.dtype != dtype:
                raise ContractError(f"input '{name}' is {value.dtype}; the plan takes {dtype}")
        for name in self.scalars:
            feeds[name] = feeds[name].reshape(()) if feeds[name].size == 1 else feeds[name]
        return feeds

    def infer(self, members, copy):
        sizes = [next(iter(feeds.values())).shape[0] if self.max_batch else 0 for _, _, feeds in members]
        shapes = {
            name: (sum(sizes), *array.shape[1:]) if self.max_batch else array.shape
            for name, array in members[0][2].items()
        }
        lent = self.find_graph(shapes)
        context = self.set_shapes(shapes) if lent is None else None
        self.fill(members, shapes)
        if lent is None:
            produced = self.launch(context, shapes)
        else:
            executable, produced = lent
            check(cuda.cudaGraphLaunch(executable, self.stream))
        self.synchronize()
        return self.answers(members, sizes, produced, copy)

    def find_graph(self, shapes):
        """(graph, its output shapes) for these shapes or the next larger batch; None if there is none."""
        exact = tuple(shapes.values())
        if exact in self.graphs:
            return self.graphs[exact]
        if self.max_batch:
            batch = exact[0][0]
            fitting = [
                (key[0][0], key)
                for key, low in self.lowers.items()
                if low <= batch <= key[0][0] and all(k[1:] == s[1:] for k, s in zip(key, exact, strict=True))
            ]
            if fitting:
                return self.graphs[min(fitting)[1]]
        return None

    def set_shapes(self, shapes):
        """The context of the profile that is tuned nearest to these shapes, as the C++ backend counts it."""
        fitting = [profile for profile in self.contexts if self.takes(profile, shapes)]
        if not fitting:
            asked = ", ".join(f"'{name}' {list(shape)}" for name, shape in shapes.items())
            raise ContractError(f"no optimization profile takes {asked}; they take {self.taken()}")
        context = self.contexts[min(fitting, key=lambda profile: self.distance(profile, shapes))]
        for name, shape in shapes.items():
            self.shape_input(context, name, shape)
        return context

    def takes(self, profile, shapes):
        extents = self.extents_of[profile]
        return all(within(shape, extents[name][0], extents[name][2]) for name, shape in shapes.items())

    def distance(self, profile, shapes):
        """How far these shapes are from those that the profile is tuned for."""
        extents = self.extents_of[profile]
        return sum(
            abs(size - usual)
            for name, shape in shapes.items()
            for size, usual in zip(shape, extents[name][1], strict=True)
        )

    def shape_input(self, context, name, shape):
        if not context.set_input_shape(name, shape):
            raise ContractError(f"input '{name}' cannot have the shape {list(shape)}: {self.logger.last()}")

    def taken(self):
        """What the profiles of this instance take, in words."""
        return " or ".join(
            ", ".join(f"'{name}' {list(low)} to {list(high)}" for name, (low, _, high) in extents.items())
            for extents in self.extents_of.values()
        )

    def fill(self, members, shapes):
        for name, dtype in self.inputs.items():
            view = self.buffers[name].view(shapes[name], dtype)
            arrays = [feeds[name] for _, _, feeds in members]
            if len(arrays) == 1:
                view[...] = arrays[0]
            else:
                np.concatenate(arrays, out=view)

    def launch(self, context, shapes):
        """Enqueue copies and inference for shapes that the context has; the outputs' shapes."""
        for name, dtype in self.inputs.items():
            buffer = self.buffers[name]
            nbytes = math.prod(shapes[name]) * dtype.itemsize
            check(cuda.cudaMemcpyAsync(buffer.device, buffer.host, nbytes, UPLOAD, self.stream))
        if not context.execute_async_v3(self.stream):
            raise RuntimeError(f"TensorRT failed: {self.logger.last()}")
        produced = {}
        for name, dtype in self.outputs.items():
            produced[name] = shape = tuple(context.get_tensor_shape(name))
            buffer = self.buffers[name]
            nbytes = math.prod(shape) * dtype.itemsize
            check(cuda.cudaMemcpyAsync(buffer.host, buffer.device, nbytes, DOWNLOAD, self.stream))
        return produced

    def capture(self, low, shapes):
        """A CUDA graph of copies and inference for `shapes`, used from batch `low` on."""
        context = self.set_shapes(shapes)
        self.launch(context, shapes)
        self.synchronize()
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        check(cuda.cudaStreamBeginCapture(self.stream, mode))
        try:
            produced = self.launch(context, shapes)
        finally:
            # Also after a failure: a stream that is left capturing takes nothing else.
            ended = cuda.cudaStreamEndCapture(self.stream)
        graph = check(ended)
        try:
            executable = check(cuda.cudaGraphInstantiate(graph, 0))
        finally:
            cuda.cudaGraphDestroy(graph)
        key = tuple(shapes.values())
        self.graphs[key] = (executable, produced)
        self.lowers[key] = low

    def answers(self, members, sizes, produced, copy):
        total, end = sum(sizes), 0
        views = {}
        for name, dtype in self.outputs.items():
            view = self.buffers[name].view(produced[name], dtype)
            if self.max_batch and (view.ndim == 0 or view.shape[0] < total):
                raise ContractError(f"output '{name}' has shape {list(view.shape)} for a batch of {total}")
            view = view if view.ndim else view.reshape(1)
            views[name] = view.copy() if copy else view
        responses = []
        for (_, request, _), size in zip(members, sizes, strict=True):
            asked = request.requested_output_names()
            names = [name for name in self.outputs if not asked or name in asked]
            end += size
            part = slice(end - size, end) if self.max_batch else slice(None)
            responses.append(
                triton.InferenceResponse([triton.Tensor(name, views[name][part]) for name in names])
            )
        return responses

    def synchronize(self):
        check(cuda.cudaStreamSynchronize(self.stream))


def keep_freed_memory():
    """Let the C library keep large blocks: bench/tensorrt_backend.py says what that is worth.

    Triton's stub copies every input into an array of its own before we see it, and frees it afterwards. By
    default that memory goes back to the system, which makes and zeroes its pages anew for the next batch.
    Called after loading, so that the plan's bytes are not kept.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def load_plugins(folder, names, logger):
    """Register TensorRT's own plugins and those of the libraries beside the plan."""
    try:
        for name in filter(None, names.split(";")):
            ctypes.CDLL(str(folder / name), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        fail(f"a plugin of the plan cannot be loaded: {one_line(error)}")
    if hasattr(tensorrt, "init_libnvinfer_plugins"):
        tensorrt.init_libnvinfer_plugins(logger, "")


def wanted_profiles(config, args):
    """The profiles that this instance's group lists; without a list the first one."""
    name = args["model_instance_name"]
    for group in config.get("instance_group", []):
        if group.get("profile") and (not group.get("name") or name.startswith(group["name"] + "_")):
            return [int(index) for index in group["profile"]]
    return [0]


def graph_specs(config, inputs, usual):
    """(lower bound of the batch, shapes) of each CUDA graph that the config asks for, by input order.

    `usual`: input → the shape that the plan is tuned for.
    """
    settings = config.get("optimization", {}).get("cuda", {})
    if not settings.get("graphs"):
        return []
    batches = int(config.get("max_batch_size", 0)) > 0
    specs = []
    for spec in settings.get("graph_spec", []):
        batch = int(spec.get("batch_size", 0))
        low = int(spec.get("graph_lower_bound", {}).get("batch_size", batch))
        dims = {name: [int(size) for size in entry.get("dim", [])] for name, entry in spec["input"].items()}
        specs.append((low, {name: (batch, *dims[name]) if batches else tuple(dims[name]) for name in inputs}))
    if not specs:  # as the C++ backend: at the usual shapes, for batch 1 and the preferred sizes, or the max
        largest = int(config.get("max_batch_size", 0))
        preferred = config.get("dynamic_batching", {}).get("preferred_batch_size", [])
        for batch in sorted({1, *(preferred or [largest])}) if batches else [0]:
            shapes = {name: (batch, *usual[name][1:]) if batches else usual[name] for name in inputs}
            specs.append((batch, shapes))
    return specs


def within(shape, low, high):
    return len(shape) == len(low) and all(a <= s <= b for a, s, b in zip(low, shape, high, strict=True))


def check(result):
    """What a CUDA call gave; RuntimeError naming what went wrong."""
    status, *values = result
    if int(status) != 0:
        name = cuda.cudaGetErrorName(status)[1]
        raise RuntimeError(f"CUDA: {name.decode() if isinstance(name, bytes) else name}")
    return values[0] if values else None


def failure(error):
    return triton.InferenceResponse(error=triton.TritonError(one_line(error)))


def one_line(error):
    return " ".join(str(error).split())


def listed(names):
    return ", ".join(f"'{name}'" for name in sorted(names)) or "none"


def fail(message):
    raise triton.TritonModelException(message)
