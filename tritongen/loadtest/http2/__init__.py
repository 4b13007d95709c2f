"""HTTP/2 framed by hand for one thing only: ready-made gRPC calls, many at once, on a few connections."""
