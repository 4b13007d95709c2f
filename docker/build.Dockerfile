# `tritongen build` beside the very TensorRT that will load its engines: NVIDIA's image of the same release.
# Written from NVIDIA's documentation; it was not run (see docs/docker.md of tritongen).
ARG TENSORRT_IMAGE=nvcr.io/nvidia/tensorrt:26.08-py3
FROM ${TENSORRT_IMAGE}
COPY wheelhouse /wheelhouse
# tritongen's own wheel from the folder, the rest from there or from the package index, for this image's Python.
# Not the extra "tensorrt": TensorRT and its Python package belong to the image, and must stay as they are.
RUN python3 -m venv --system-site-packages /opt/tritongen \
 && /opt/tritongen/bin/python -m pip install --no-cache-dir --quiet --find-links /wheelhouse \
      /wheelhouse/tritongen-*.whl 'cuda-bindings>=12.9,<14' 'nvidia-ml-py>=12' \
 && /opt/tritongen/bin/python -c 'import tensorrt, tritongen; print("TensorRT", tensorrt.__version__)'
ENV PATH=/opt/tritongen/bin:$PATH \
    HOME=/tmp
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["tritongen", "build"]
CMD ["--help"]
