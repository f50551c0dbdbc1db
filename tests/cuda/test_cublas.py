#!/usr/bin/env python3
"""Compares the stand-in libcublas.so with numpy: test_cublas.py [LIBRARY].

All transpositions, types, leading dimensions larger than needed, alpha and beta, batches, sizes that
no tile divides. fp32 products agree with fp64 ones to rounding; bf16 results are correctly rounded.
"""

import ctypes
import itertools
import os
import sys

import numpy as np

os.environ["NULLCUDA_EXEC"] = "1"
lib = ctypes.CDLL(sys.argv[1] if len(sys.argv) > 1 else "libcublas.so")
FP32, BF16 = 0, 14
COMPUTE_32F, COMPUTE_TF32 = 68, 77
random = np.random.default_rng(1)


def to_bf16(x):
    """fp32 to bf16 as uint16, to nearest, ties to even."""
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + ((u >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32)


def matrix(rows, cols, ld, kind, batch, gap):
    """A batch of column-major matrices with NaN wherever no element is: storage, values, stride."""
    stride = ld * cols + gap
    values = random.standard_normal((batch, rows, cols)).astype(np.float32)
    store = np.full(batch * stride, np.nan, np.float32)
    if kind == BF16:
        values = from_bf16(to_bf16(values))
    for i in range(batch):
        view = store[i * stride : i * stride + ld * cols].reshape(cols, ld)
        view[:, :rows] = values[i].T
    return (to_bf16_keeping_nan(store) if kind == BF16 else store), values, stride


def to_bf16_keeping_nan(x):
    return np.where(np.isnan(x), np.uint16(0x7FFF), to_bf16(np.nan_to_num(x)))


def pointer(x):
    return ctypes.c_void_p(x.ctypes.data)


handle = ctypes.c_void_p()
assert lib.cublasCreate_v2(ctypes.byref(handle)) == 0
assert lib.cublasSetStream_v2(handle, None) == 0
call = lib.cublasGemmStridedBatchedEx
sizes = [(1, 1, 1), (7, 5, 3), (32, 6, 16), (33, 13, 50), (130, 96, 65), (300, 260, 129)]
kinds = [(BF16, BF16), (BF16, FP32), (FP32, FP32)]
worst, count = 0.0, 0
for (m, n, k), ta, tb, (inputs, output), beta, batch in itertools.product(
    sizes, (0, 1), (0, 1), kinds, (0.0, 0.5), (1, 3)
):
    alpha = 1.0 if beta == 0 else 1.25
    ar, ac = (k, m) if ta else (m, k)
    br, bc = (n, k) if tb else (k, n)
    lda, ldb, ldc = ar + 3, br + 1, m + 2
    a, av, sa = matrix(ar, ac, lda, inputs, batch, 5)
    b, bv, sb = matrix(br, bc, ldb, inputs, batch, 0)
    c, cv, sc = matrix(m, n, ldc, output, batch, 4)
    before = c.copy()
    if beta == 0:  # C must not be read
        c[:] = np.nan if output == FP32 else 0x7FFF
    status = call(
        handle, ta, tb, m, n, k, ctypes.byref(ctypes.c_float(alpha)),
        pointer(a), inputs, lda, ctypes.c_longlong(sa), pointer(b), inputs, ldb, ctypes.c_longlong(sb),
        ctypes.byref(ctypes.c_float(beta)), pointer(c), output, ldc, ctypes.c_longlong(sc),
        batch, COMPUTE_32F, -1,
    )  # fmt: skip
    assert status == 0, status
    mask = np.ones(c.shape, bool)
    for i in range(batch):
        x = av[i].T if ta else av[i]
        y = bv[i].T if tb else bv[i]
        want = alpha * (x.astype(np.float64) @ y.astype(np.float64)) + beta * cv[i].astype(
            np.float64
        )
        at = slice(i * sc, i * sc + ldc * n)
        raw = c[at].reshape(n, ldc)[:, :m].T
        got = from_bf16(raw).astype(np.float64) if output == BF16 else raw.astype(np.float64)
        scale = np.abs(x).astype(np.float64) @ np.abs(y).astype(np.float64) + np.abs(cv[i]) + 1
        error = np.abs(got - want)
        if output == BF16:
            error = np.maximum(error - np.abs(want) * 2.0**-8 * 1.001, 0)
        worst = max(worst, (error / scale).max())
        assert (error / scale).max() < 1e-5, (m, n, k, ta, tb, inputs, output, beta, batch)
        mask[at].reshape(n, ldc)[:, :m] = False
    untouched = c[mask]
    assert np.all(np.isnan(untouched)) if output == FP32 else np.all(untouched == 0x7FFF), (
        "wrote outside of C"
    )
    if beta:
        assert before.shape == c.shape
    count += 1

# Ties to even in bf16: 1 + 2^-8 lies half way between two bf16 numbers.
one = np.array([1.0], np.float32)
for x, want in ((1 + 2.0**-8, 0x3F80), (1 + 3 * 2.0**-8, 0x3F82), (1 + 2.0**-8 + 2.0**-20, 0x3F81)):
    # as a sum of two products of bf16 numbers
    parts = [1.0, x - 1.0] if x - 1.0 != 2.0**-8 + 2.0**-20 else [1.0, 2.0**-8, 2.0**-20]
    a = to_bf16(np.array(parts, np.float32))
    b = to_bf16(np.ones(len(parts), np.float32))
    c = np.zeros(1, np.uint16)
    assert lib.cublasGemmEx(handle, 0, 0, 1, 1, len(parts), ctypes.byref(ctypes.c_float(1)), pointer(a), BF16, 1,
                            pointer(b), BF16, len(parts), ctypes.byref(ctypes.c_float(0)), pointer(c), BF16, 1, COMPUTE_32F, -1) == 0  # fmt: skip
    assert c[0] == want, (x, hex(c[0]))

# Refusals: a leading dimension that is too small, types that do not go together.
alpha = ctypes.byref(ctypes.c_float(1))
c = np.zeros(16, np.float32)
devnull = os.open(os.devnull, os.O_WRONLY)
saved = os.dup(2)
os.dup2(devnull, 2)
assert (
    lib.cublasGemmEx(
        handle,
        0,
        0,
        4,
        4,
        4,
        alpha,
        pointer(c),
        FP32,
        3,
        pointer(c),
        FP32,
        4,
        alpha,
        pointer(c),
        FP32,
        4,
        68,
        -1,
    )
    == 7
)
assert (
    lib.cublasGemmEx(
        handle,
        0,
        0,
        2,
        2,
        2,
        alpha,
        pointer(c),
        BF16,
        2,
        pointer(c),
        FP32,
        2,
        alpha,
        pointer(c),
        FP32,
        2,
        68,
        -1,
    )
    == 15
)
os.dup2(saved, 2)
assert lib.cublasDestroy_v2(handle) == 0
print(
    f"cuBLAS stand-in: {count} products agree with numpy, largest error {worst:.1e} of the sum of magnitudes"
)
