#!/usr/bin/env bash
# The programs as an archive with checksums, for machines without a Rust toolchain.
#
#   scripts/release.sh [OUT]
#
# OUT        receives dlm-VERSION-ARCH-linux.tar.gz and SHA256SUMS (default: target/dist)
# PROGRAMS   folder with dlm-prep, dlm-train and wf; default: they are built here (cargo build --release --locked)
# FEATURES   cargo features of that build, such as dlm-train/cuda
# LEVEL      of compression, 1 to 9 (default 9)
#
# The programs are linked to glibc (libc, libm, libgcc_s) and to nothing else: NVIDIA's driver, NVRTC and cuBLAS are loaded
# when they are used. They are not static: a static program cannot load those. The archive names the oldest glibc that they
# run with; build on an old system for old machines. The same programs give the same archive, byte for byte.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:-$root/target/dist}
names="dlm-prep dlm-train wf"

programs=${PROGRAMS:-}
if [ -z "$programs" ]; then
    (cd "$root" && cargo build --release --locked --bins ${FEATURES:+--features "$FEATURES"})
    programs=${CARGO_TARGET_DIR:-$root/target}/release
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
version=$("$programs/dlm-train" --version | awk '{print $2}')
name=dlm-$version-$(uname -m)-linux
mkdir -p "$work/$name" "$out"
glibc=
for program in $names; do
    file=$work/$name/$program
    cp "$programs/$program" "$file"
    chmod 755 "$file"
    if command -v strip >/dev/null; then strip "$file"; fi
    others=$(ldd "$file" | awk '{print $1}' | grep -vE '^(linux-vdso|libc|libm|libgcc_s|libdl|libpthread|librt|/lib.*/ld-linux)' || true)
    if [ -n "$others" ]; then
        echo "$program needs libraries that a machine may not have: $others" >&2
        exit 1
    fi
    glibc=$(printf '%s\n%s\n' "$glibc" "$(grep -aoE 'GLIBC_2\.[0-9]+' "$file" | sort -uV | tail -n 1)" | sort -V | tail -n 1)
done
cp "$root/LICENSE-APACHE" "$root/LICENSE-MIT" "$work/$name/"
cat >"$work/$name/README" <<EOF
dlm-prep prepares data, dlm-train trains, exports, decodes and serves, wf does it on rented machines.
They run on Linux ($(uname -m)) with glibc ${glibc#GLIBC_} or newer. On an NVIDIA GPU dlm-train also needs the driver, NVRTC and cuBLAS
(pip install nvidia-cuda-nvrtc nvidia-cublas, or a CUDA toolkit, on LD_LIBRARY_PATH).
wf needs SkyPilot: pip install "skypilot[nebius,gcp]", or another cloud's name.
EOF
tar --sort=name --mtime=@0 --owner=0 --group=0 --numeric-owner -C "$work" -cf - "$name" | gzip -n -"${LEVEL:-9}" >"$out/$name.tar.gz"
(cd "$out" && sha256sum "$name.tar.gz" >SHA256SUMS)
echo "$out/$name.tar.gz ($(du -k "$out/$name.tar.gz" | cut -f1) KiB), for glibc ${glibc#GLIBC_} or newer; sha256 in $out/SHA256SUMS"
