# An image with cotmi and the tested versions of constraints.txt.
#
#   docker build -t cotmi .                             for the CPU
#   docker build -t cotmi --build-arg TORCH=cu130 .     for an NVIDIA GPU; any name that `uv --torch-backend` knows
#   docker run --rm -v "$PWD:/work" cotmi run demo      add --gpus all for the GPU
#
# The target `dev` is the dev container: the checkout is mounted, and everything for tests and docs is there.
ARG PYTHON=3.11
FROM python:${PYTHON}-slim AS base
ARG TORCH=cpu
ENV UV_TORCH_BACKEND=${TORCH} UV_LINK_MODE=copy UV_SYSTEM_PYTHON=1 UV_NO_CACHE=1
RUN python -m pip install --no-cache-dir uv==0.13.9

FROM base AS dev
# What Debian has of these will do: they serve tests and editors.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends chromium git make && rm -rf /var/lib/apt/lists/*
WORKDIR /sources
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cotmi/__init__.py cotmi/
RUN uv pip install -r pyproject.toml --extra dev -c constraints.txt

FROM base AS run
WORKDIR /sources
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY cotmi cotmi
COPY nbs/dashboard.ipynb nbs/
COPY nbs/experiments nbs/experiments
RUN uv pip install '.[dashboards,notebooks,llm,trackers]' -c constraints.txt && useradd --uid 1000 --create-home cotmi
USER 1000
WORKDIR /work
ENTRYPOINT ["cotmi"]
CMD ["--help"]
