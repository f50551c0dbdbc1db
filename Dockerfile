# The programs, with what they load on a GPU machine: NVRTC, cuBLAS, W&B's client. The driver comes from the host.
#   docker build -t ghcr.io/YOU/dlm:1 .      then      wf dlm --image ghcr.io/YOU/dlm:1 …
# Every step is one of scripts/release.sh and scripts/image.sh, which run in a plain shell, too.
FROM rust:1.95-slim-bookworm AS build
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends build-essential cmake git pkg-config && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY . .
RUN scripts/release.sh /dist

FROM python:3.12-slim-bookworm
ARG NVRTC=13.0
COPY scripts/image.sh /tmp/image.sh
COPY --from=build /dist /tmp/dist
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
RUN NVRTC="$NVRTC" /tmp/image.sh libraries /opt/dlm \
    && /tmp/image.sh programs /tmp/dist/dlm-*.tar.gz /opt/dlm \
    && /tmp/image.sh check /opt/dlm \
    && rm -r /tmp/dist /tmp/image.sh
ENV PATH=/opt/dlm/bin:$PATH \
    DLM_PYTHON=/opt/dlm/python/bin/python3 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /work
CMD ["dlm-train", "--help"]
