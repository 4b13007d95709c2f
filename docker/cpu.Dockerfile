# tritongen with its embedded Triton, for machines without a GPU: Debian slim, Python and a folder of wheels.
#
#   make wheelhouse                                     # fills docker/wheelhouse (without a clone: see its README)
#   docker build -t tritongen-cpu -f docker/cpu.Dockerfile docker
#
# Only the Debian packages come from the network, and not even they if the base brings Python already:
#   --build-arg BASE=python:3.11-slim-bookworm
# Written for the classic builder too: no BuildKit mounts, no here-documents.

# The wheels are made for the base's Python: 3.11 is Debian 12's.
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS python
# Triton's Python backend is linked against libpython and starts its processes through bash.
RUN if ! python3 -c 'import ctypes, sys; ctypes.CDLL("libpython%d.%d.so.1.0" % sys.version_info[:2])' 2>/dev/null; \
    then apt-get update -qq \
      && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends python3 libpython3.11 \
      && rm -rf /var/lib/apt/lists/* /var/cache/apt/*.bin; \
    fi

FROM python AS installed
# The classic builder keeps this stage as an unnamed image; the label lets it be found and removed:
#   docker image prune --filter label=org.tritongen.stage
LABEL org.tritongen.stage=installed
COPY wheelhouse /wheelhouse
RUN ls /wheelhouse/tritongen-*.whl >/dev/null 2>&1 || { \
      echo "docker/wheelhouse is empty: run 'make wheelhouse', or see docker/wheelhouse/README.md" >&2; exit 1; }
# Every wheel by name and without a resolver: what is in the folder is what is in the image. Left out of it:
# the CUDA bindings and the empty perf_analyzer that tritonclient[all] asks for, and pip once it has done this.
RUN rm -f /wheelhouse/cuda_*.whl /wheelhouse/perf_analyzer-*.whl \
 && mv /wheelhouse/pip-*.whl /tmp/pip.whl \
 && python3 -m venv --without-pip /opt/tritongen \
 && python3 /tmp/pip.whl/pip --python /opt/tritongen/bin/python install \
      --quiet --no-index --no-deps --no-compile --disable-pip-version-check /wheelhouse/*.whl
# Test data and the stubs of other Pythons; 40 MB. Compiled here, since the file system is read-only later on.
RUN cd /opt/tritongen/lib/python3*/site-packages \
 && rm -rf onnx/backend/test onnx/test numpy/tests numpy/*/tests numpy/f2py numpy/*/include onnxruntime/datasets \
 && version=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])') \
 && find pytriton/tritonserver/python_backend_stubs -mindepth 1 -maxdepth 1 ! -name "$version" -exec rm -r {} + \
 && python3 -m compileall -q -j 0 . >/dev/null \
 && /opt/tritongen/bin/tritongen --version >/dev/null

FROM python
LABEL org.opencontainers.image.title="tritongen with an embedded Triton (CPU)" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=installed /opt/tritongen /opt/tritongen
# Numeric, so that Kubernetes can see that it is not root. HOME is the one place that is always writable.
ENV PATH=/opt/tritongen/bin:$PATH \
    HOME=/tmp \
    PYTHONUNBUFFERED=1
USER 1000:1000
WORKDIR /work
EXPOSE 8000 8001 8002
# bash speaks HTTP well enough, and the image has no curl.
HEALTHCHECK --interval=5s --timeout=3s --start-period=300s --retries=3 CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /v2/health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && head -n 1 <&3 | grep -q ' 200 '"]
# In the foreground: SIGTERM lets requests in flight end, and the container ends when Triton does.
STOPSIGNAL SIGTERM
ENTRYPOINT ["tritongen"]
CMD ["serve", "/models", "--host", "0.0.0.0", "--log-file", "-"]
