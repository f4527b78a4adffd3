# syntax=docker/dockerfile:1
# CUDA (the packages of PyPI bring it):  docker build -t deitctl .
# CPU:  docker build -t deitctl:cpu --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cpu .
# How to run it: docs/docker.md

# A tag or, to have the same bytes for ever, tag@sha256:digest
ARG PYTHON=3.12.11-slim-bookworm

FROM python:${PYTHON} AS build
# Another index of torch, torchvision and torchcodec; empty: PyPI
ARG TORCH_INDEX=""
# Of pyproject.toml, with commas
ARG EXTRAS="onnx,parquet"
RUN python -m venv /opt/deitctl
ENV PATH=/opt/deitctl/bin:$PATH
WORKDIR /src
# torch alone first: a layer of gigabytes that stays when only the source changes
COPY pyproject.toml ./
RUN python -c "import tomllib; print(*(r for r in tomllib.load(open('pyproject.toml', 'rb'))['project']['dependencies'] if r.startswith('torch')), sep='\n')" > torch.txt
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} --requirement torch.txt
COPY README.md LICENSE NOTICE ./
COPY deitctl deitctl
# pyproject.toml says which versions
# hadolint ignore=DL3013
RUN --mount=type=cache,target=/root/.cache/pip pip install ".[$EXTRAS]"

FROM python:${PYTHON}
COPY --from=build /opt/deitctl /opt/deitctl
# Any user may be given with --user: there is no home, and these folders are everybody's
RUN mkdir -m 1777 /cache /work
ENV PATH=/opt/deitctl/bin:$PATH \
    DEITCTL_CACHE=/cache \
    HF_HOME=/cache/huggingface \
    PYTHONUNBUFFERED=1
WORKDIR /work
USER 1000:1000
# `docker stop` sends it to deitctl, which saves the training
STOPSIGNAL SIGTERM
ENTRYPOINT ["deitctl"]
CMD ["--help"]
