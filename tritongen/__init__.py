"""tritongen: from an ONNX model and a promise to a tuned, served and load-tested Triton repository."""

__version__ = "0.1.0"
