# docker build -t graftwork .
# docker run -p 8000:8000 -v graftwork:/data -e GRAFTWORK_ADMIN_KEY=... graftwork
#
# For NVIDIA GPUs: docker build --build-arg GRAFTWORK_TORCH=cuda …, and docker run --gpus all …
# GRAFTWORK_TORCH_INDEX: one more package index, to find that build of torch in (see scripts/setup).
FROM python:3.11-slim

ARG GRAFTWORK_TORCH=cpu
ARG GRAFTWORK_TORCH_INDEX=
ENV PIP_NO_CACHE_DIR=1 PYTHONUNBUFFERED=1 HF_HOME=/data/huggingface

# The CPU kernels are compiled at the first start, for the machine that it starts on (Triton wants a compiler for its
# own): below /data, so once. Without one the server says so and answers with torch's kernels.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /opt/graftwork
COPY pyproject.toml README.md LICENSE ./
COPY requirements requirements
COPY scripts/setup scripts/setup
COPY src src
COPY adapters adapters
COPY clients clients
COPY server server
COPY training training
RUN GRAFTWORK_TORCH="$GRAFTWORK_TORCH" GRAFTWORK_TORCH_INDEX="$GRAFTWORK_TORCH_INDEX" scripts/setup serve \
    && python -m compileall -q adapters clients server training
ENV PATH=/opt/graftwork/.venv/bin:$PATH

# The server writes below /data only: the base, the registry, the adapters.
RUN useradd --system --uid 10001 --create-home graftwork && install -d -o graftwork /data
USER graftwork
VOLUME /data

EXPOSE 8000
STOPSIGNAL SIGTERM
# Live is not ready: the first start fetches the base, and /ready says when that is done.
HEALTHCHECK --interval=30s --timeout=5s --start-period=300s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["graftwork"]
CMD ["serve", "--host", "0.0.0.0", "--home", "/data"]
