# docker build .                                     for an NVIDIA GPU
# docker build --build-arg FLASH_ATTENTION=yes .     the same with flash-attn, which is compiled for about an hour
# docker build --target cpu .                        for the processor: llama.cpp, without torch, much smaller
#
# The bases are named by their full tags. What Python installs is in requirements.lock, and for the cpu image in
# requirements-cpu.lock, with hashes.

ARG FLASH_ATTENTION=no

FROM python:3.12-slim-bookworm AS cpu-packages
WORKDIR /build
COPY requirements-cpu.lock ./
RUN python -m venv /opt/venv \
    && /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements-cpu.lock \
    && /opt/venv/bin/pip check

FROM python:3.12-slim-bookworm AS cpu
# libgomp1 is for llama.cpp.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /data
COPY --from=cpu-packages /opt/venv /opt/venv
WORKDIR /app
COPY --chmod=555 app.py ./
COPY --chmod=555 assets assets
COPY --chmod=555 granite_demo granite_demo
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/user \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    GRANITE_DEMO_HOST=0.0.0.0 \
    GRANITE_DEMO_PORT=7860 \
    GRANITE_DEMO_CACHE=/data/granite-demo
USER 1000
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s --timeout=10s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"GRANITE_DEMO_PORT\"]}/health', timeout=5)"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "app.py"]

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda-packages
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
WORKDIR /build
COPY requirements.lock ./
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements.lock \
    && /opt/venv/bin/pip check

FROM nvidia/cuda:13.0.1-devel-ubuntu24.04 AS flash-attention-wheel
# Compute capabilities to compile for, and how many files at once: each takes up to 9 GB of memory.
ARG FLASH_ATTN_CUDA_ARCHS="80;90"
ARG MAX_JOBS=2
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*
COPY --from=cuda-packages /opt/venv /opt/venv
WORKDIR /build
RUN printf '%s\n' \
        'wheel==0.46.3 --hash=sha256:4b399d56c9d9338230118d705d9737a2a468ccca63d5e813e2a4fc7815d8bc4d' > build.lock \
    && printf '%s\n' \
        'flash-attn==2.8.3.post2 --hash=sha256:d0f9f0b08a986cdeadbffcf5ec8b3a8f514366c68ad1853d3ab061bc83cc340b' \
        'einops==0.8.2 --hash=sha256:54058201ac7087911181bfec4af6091bb59380360f069276601256a76af08193' > flash.lock \
    && /opt/venv/bin/pip install --no-cache-dir --require-hashes -r build.lock \
    && FLASH_ATTENTION_FORCE_BUILD=TRUE /opt/venv/bin/pip wheel --no-cache-dir --no-deps --no-build-isolation \
        --require-hashes --wheel-dir wheels -r flash.lock

FROM cuda-packages AS packages-flash-no

FROM cuda-packages AS packages-flash-yes
COPY --from=flash-attention-wheel /build/wheels wheels
RUN /opt/venv/bin/pip install --no-cache-dir --no-deps wheels/*.whl && rm -r wheels

# hadolint ignore=DL3006
FROM packages-flash-${FLASH_ATTENTION} AS chosen-packages

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda
# torch.compile needs a C compiler and Python's headers when the model is loaded, and llama.cpp needs libgomp1. Uid 1000
# is Ubuntu's own user.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev libgomp1 python3 python3-dev tini \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /data
COPY --from=chosen-packages /opt/venv /opt/venv
WORKDIR /app
COPY --chmod=555 app.py ./
COPY --chmod=555 assets assets
COPY --chmod=555 granite_demo granite_demo
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/user \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    CUDA_CACHE_PATH=/data/cuda \
    TRITON_CACHE_DIR=/data/triton \
    TORCHINDUCTOR_CACHE_DIR=/data/inductor \
    GRANITE_DEMO_HOST=0.0.0.0 \
    GRANITE_DEMO_PORT=7860 \
    GRANITE_DEMO_CACHE=/data/granite-demo
USER 1000
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s --timeout=10s \
    CMD ["python", "-c", "import os, urllib.request as r; r.urlopen(f'http://127.0.0.1:{os.environ[\"GRANITE_DEMO_PORT\"]}/health', timeout=5)"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "app.py"]
