"""The Triton model repository: configuration, atomic writing, manifest, verification."""
