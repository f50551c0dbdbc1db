#!/usr/bin/env bash
# The steps of the Dockerfile, each of which also runs in a plain shell.
#
#   scripts/image.sh programs ARCHIVE PREFIX     unpacks an archive of scripts/release.sh to PREFIX/bin, after its checksum
#   scripts/image.sh libraries PREFIX            W&B's client, NVRTC and cuBLAS as Python packages in PREFIX/python
#   scripts/image.sh check PREFIX                that the programs start
#
# NVRTC      version of CUDA whose NVRTC is taken (default 13.0: drivers 580 and newer; what it makes runs on drivers of its
#            version and newer ones)
# LDCONF     file that names the libraries' folders to the loader (default /etc/ld.so.conf.d/dlm.conf)
set -euo pipefail

programs() {
    local archive=$1 prefix=$2
    (cd "$(dirname "$archive")" && grep -F " $(basename "$archive")" SHA256SUMS | sha256sum --check --quiet --strict)
    mkdir -p "$prefix/bin"
    tar -xzf "$archive" -C "$prefix/bin" --strip-components=1 --wildcards '*/dlm-prep' '*/dlm-train' '*/wf'
}

libraries() {
    local prefix=$1 version=${NVRTC:-13.0} conf=${LDCONF:-/etc/ld.so.conf.d/dlm.conf} packages
    case $version in
        12.*) packages="nvidia-cuda-nvrtc-cu12==$version.* nvidia-cublas-cu12==$version.*" ;;
        *) packages="nvidia-cuda-nvrtc==$version.* nvidia-cublas==$version.*" ;;
    esac
    python3 -m venv "$prefix/python"
    set -f
    # shellcheck disable=SC2086 # two words
    "$prefix/python/bin/pip" install --quiet --disable-pip-version-check --no-cache-dir wandb $packages
    set +f
    ls -d "$prefix"/python/lib/python3*/site-packages/nvidia/*/lib >"$conf"
    ldconfig
}

check() {
    local program
    for program in dlm-prep dlm-train wf; do "$1/bin/$program" --version; done
}

case ${1:-} in
    programs | libraries | check) "$@" ;;
    *)
        sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
        exit 2
        ;;
esac
