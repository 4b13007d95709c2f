"""One ONNX Runtime session: opening, feeding, timing, and its errors in plain words."""

from __future__ import annotations

import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from tritongen.engines.onnxruntime.providers import CPU, NAMES, load_libraries
from tritongen.errors import BuildError, DataError, ModelError, TritongenError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from tritongen.engines import Tensors

_CODE = re.compile(r"^\[ONNXRuntimeError\] : \d+ : [A-Z_]+ : ")
_PLACE = re.compile(r"/onnxruntime_src/\S+:\d+ .*?\) (?:const )?|\b\w+\.(?:h|cc):\d+ \w+ ")
_STATUS = re.compile(
    r"Non-zero status code returned while running (\w+) node\. Name:'([^']*)' Status Message: "
)


class OnnxRuntimeRunner:
    """An `engines.Runner` on an execution provider of ONNX Runtime; the session lives inside the context."""

    def __init__(
        self,
        path: Path,
        *,
        graph_optimization_level: str = "all",
        intra_op_threads: int = 0,
        spinning: bool = True,
        providers: Sequence[Any] = ("CPUExecutionProvider",),
    ) -> None:
        self._path = path
        self._level = graph_optimization_level
        self._threads = intra_op_threads
        self._spinning = spinning
        self._providers = list(providers)
        self._session: Any = None
        self._outputs: list[str] = []
        self._call: Callable[[], object] | None = None

    def __enter__(self) -> Self:
        import onnxruntime

        if self._first_provider() != NAMES[CPU]:
            load_libraries()
        try:
            # With its fallback, a failure on the GPU would go on, unseen, on the CPU: here or in a run.
            self._session = onnxruntime.InferenceSession(
                str(self._path), self._session_options(), providers=self._providers, enable_fallback=False
            )
        except Exception as error:
            # RuntimeError: what a provider raises that cannot start.
            if isinstance(error, RuntimeError) and self._first_provider() != NAMES[CPU]:
                raise self._not_started(explanation(error)) from error
            raise _unopened(self._path, explanation(error)) from error
        self._session.disable_fallback()  # before 1.23, the argument says nothing
        self._refuse_fallback()
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._refuse_bfloat16()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._call = None
        self._session = None

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """All outputs by name; DataError if the inputs do not fit, BuildError if the engine fails."""
        with explained(f"ONNX Runtime failed on {self._path.name}", BuildError):
            values = self._session.run(self._outputs, {name: _feed(name, a) for name, a in inputs.items()})
        return dict(zip(self._outputs, values, strict=True))

    def prepare(self, inputs: Tensors) -> None:
        """Bind `inputs` as ready OrtValues, the outputs to be allocated by the engine as in a server."""
        feeds = {name: _feed(name, array) for name, array in inputs.items()}
        has_strings = "tensor(string)" in {
            tensor.type for tensor in (*self._session.get_inputs(), *self._session.get_outputs())
        }
        # IOBinding has no strings; for them the timed call includes the copying of Python objects.
        self._call = self._plain_call(feeds) if has_strings else self._bound_call(feeds)

    def step(self) -> int:
        """Run the prepared inputs once; the latency in nanoseconds."""
        if self._call is None:
            raise BuildError("step() before prepare()")
        started = time.perf_counter_ns()
        try:
            self._call()
        except Exception as error:
            raise _mapped(error, f"ONNX Runtime failed on {self._path.name}", BuildError) from error
        return time.perf_counter_ns() - started

    def _plain_call(self, feeds: Tensors) -> Callable[[], object]:
        return functools.partial(self._session.run, self._outputs, feeds)

    def _bound_call(self, feeds: Tensors) -> Callable[[], object]:
        import onnxruntime

        binding = self._session.io_binding()
        with explained(f"ONNX Runtime cannot bind the inputs of {self._path.name}", BuildError):
            for name, array in feeds.items():
                binding.bind_ortvalue_input(name, onnxruntime.OrtValue.ortvalue_from_numpy(array))
            for name in self._outputs:
                binding.bind_output(name, "cpu")
        return functools.partial(self._session.run_with_iobinding, binding)

    def _session_options(self) -> Any:
        import onnxruntime

        levels = onnxruntime.GraphOptimizationLevel
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # failures arrive as exceptions; ONNX Runtime would print them too
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = {
            "all": levels.ORT_ENABLE_ALL,
            "extended": levels.ORT_ENABLE_EXTENDED,
            "basic": levels.ORT_ENABLE_BASIC,
            "disabled": levels.ORT_DISABLE_ALL,
        }[self._level]
        options.add_session_config_entry("session.intra_op.allow_spinning", "1" if self._spinning else "0")
        return options

    def _refuse_fallback(self) -> None:
        """BuildError where ONNX Runtime could not start the provider asked for, and went on without."""
        got = self._session.get_providers()
        if self._first_provider() not in got:
            raise self._not_started(f"a session on {', '.join(got)}")

    def _first_provider(self) -> str:
        first = self._providers[0]
        return str(first if isinstance(first, str) else first[0])

    def _not_started(self, found: str) -> BuildError:
        return BuildError(
            f"ONNX Runtime could not start {self._first_provider()}",
            found=found,
            expected="a GPU, and the CUDA, cuDNN (and TensorRT) libraries of this ONNX Runtime",
            fix="install them, or leave --execution-provider out",
        )

    def _refuse_bfloat16(self) -> None:
        for tensor in (*self._session.get_inputs(), *self._session.get_outputs()):
            if tensor.type == "tensor(bfloat16)":
                raise ModelError(
                    f"tensor '{tensor.name}' is bfloat16, which ONNX Runtime's Python interface cannot carry",
                    expected="float32 or float16 inputs and outputs",
                    fix="cast at the model's edges; inside it bfloat16 may stay",
                )


_REMEDIES = (
    ("o Op registered", "export it without that operator: libraries of custom operators are not loaded"),
    ("not a registered", "export it without that operator: libraries of custom operators are not loaded"),
    (
        "Could not find an implementation",
        "export it with a newer opset, or that operator with other types: float32 has most kernels",
    ),
    ("two nodes with same node name", "give each node a name of its own, or none"),
    ("bad_alloc", "give it more memory: what is free does not hold the model's weights"),
    ("Type Error", "export it again: the types that it declares are not those that its nodes take"),
)
"""Words of ONNX Runtime's that say why it does not open a model → what to do."""


def _unopened(path: Path, found: str) -> ModelError:
    remedies = (remedy for words, remedy in _REMEDIES if words in found)
    return ModelError(
        f"ONNX Runtime cannot open {path}",
        found=found,
        expected=f"a model that ONNX Runtime {version()} opens",
        fix=next(remedies, "export the model again; onnxruntime.InferenceSession shows the same"),
    )


def version() -> str:
    """The installed onnxruntime's version; ImportError where there is none."""
    import onnxruntime

    return str(onnxruntime.__version__)


@functools.cache
def readable_limits() -> tuple[int, int]:
    """The largest IR version and default-domain opset that the installed onnxruntime reads, by trial."""
    import onnx

    newest = onnx.defs.onnx_opset_version()
    ir_version = max((ir for ir in range(3, onnx.IR_VERSION + 1) if _opens(ir, 7)), default=0)
    return ir_version, max((opset for opset in range(7, newest + 1) if _opens(3, opset)), default=0)


def _opens(ir_version: int, opset: int) -> bool:
    import onnxruntime
    from onnx import TensorProto, helper

    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "probe", tensors[:1], tensors[1:])
    model = helper.make_model(graph, ir_version=ir_version, opset_imports=[helper.make_opsetid("", opset)])
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception:  # noqa: BLE001  every refusal means the same: not readable
        return False
    return True


@contextmanager
def explained(message: str, kind: type[TritongenError]) -> Iterator[None]:
    """Map what ONNX Runtime raises inside the block to `kind` (DataError where the inputs do not fit)."""
    try:
        yield
    except TritongenError:
        raise
    except Exception as error:
        raise _mapped(error, message, kind) from error


def _mapped(error: Exception, message: str, kind: type[TritongenError]) -> TritongenError:
    if kind is BuildError and (type(error).__name__ == "InvalidArgument" or isinstance(error, ValueError)):
        kind = DataError
    return kind(message, found=explanation(error))


def explanation(error: Exception) -> str:
    """ONNX Runtime's message in one line, without error codes and places in its source."""
    text = _CODE.sub("", " ".join(str(error).split()))
    text = _STATUS.sub(lambda m: f"operator {m[1]}{f' ({m[2]})' if m[2] else ''}: ", text)
    return _PLACE.sub("", text).strip()


def _feed(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """The array as ONNX Runtime takes it; bytes become text, which it would otherwise take as "b'…'"."""
    if array.dtype.kind not in "OS":
        return array
    try:
        texts = [item.decode() if isinstance(item, bytes) else str(item) for item in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        raise DataError(f"input '{name}' holds bytes that are not UTF-8 text", found=str(error)) from error
    return np.array(texts, dtype=object).reshape(array.shape)
