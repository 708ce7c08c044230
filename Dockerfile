# Two images: docker build --target cpu . for the processor, docker build . for an NVIDIA GPU.
# TORCH_INDEX may name a package index with other builds of torch, such as the small ones without CUDA.

FROM python:3.12-slim-bookworm AS cpu-packages
ARG TORCH_INDEX=""
RUN python -m venv /opt/venv
COPY requirements.txt /tmp/
RUN /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r /tmp/requirements.txt

FROM python:3.12-slim-bookworm AS cpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends tini \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /data
COPY --from=cpu-packages /opt/venv /opt/venv
WORKDIR /app
COPY app.py ./
COPY assets assets
COPY granite_demo granite_demo
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/user \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    GRANITE_DEMO_HOST=0.0.0.0 \
    GRANITE_DEMO_CACHE=/data
USER 1000
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "app.py"]

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda-packages
ARG TORCH_INDEX=""
RUN apt-get update \
    && apt-get install -y --no-install-recommends python3-venv \
    && rm -rf /var/lib/apt/lists/* \
    && python3 -m venv /opt/venv
COPY requirements.txt /tmp/
RUN /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} -r /tmp/requirements.txt

FROM nvidia/cuda:13.0.1-runtime-ubuntu24.04 AS cuda
# torch.compile needs a C compiler and Python's headers when the model is loaded. Uid 1000 is Ubuntu's own user.
RUN apt-get update \
    && apt-get install -y --no-install-recommends gcc libc6-dev python3 python3-dev tini \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --create-home --uid 1000 user \
    && install -d -o user -g user /data
COPY --from=cuda-packages /opt/venv /opt/venv
WORKDIR /app
COPY app.py ./
COPY assets assets
COPY granite_demo granite_demo
ENV PATH=/opt/venv/bin:$PATH \
    HOME=/home/user \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    GRADIO_TEMP_DIR=/tmp/gradio \
    GRADIO_ANALYTICS_ENABLED=False \
    HF_HOME=/data/huggingface \
    HF_HUB_DISABLE_TELEMETRY=1 \
    TRITON_CACHE_DIR=/data/triton \
    TORCHINDUCTOR_CACHE_DIR=/data/inductor \
    GRANITE_DEMO_HOST=0.0.0.0 \
    GRANITE_DEMO_CACHE=/data
USER 1000
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:7860/health', timeout=5)"]
ENTRYPOINT ["tini", "--"]
CMD ["python", "app.py"]
