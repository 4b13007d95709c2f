"""Pure ONNX → ONNX rewrites, and the range algorithms behind them."""
