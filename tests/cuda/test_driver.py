#!/usr/bin/env python3
"""Runs a small kernel and a matrix product on the stand-in driver: tests/cuda/run --exec NAME python3 test_driver.py.

The source is compiled twice with another macro, as the trainer gives sizes, first to PTX and then to
a cubin. On a real card the same calls give the same results.
"""

import ctypes
import os
import sys

SOURCE = b"""
extern "C" __global__ void scale(float* x, int n) {
    __shared__ float sum[32];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = i < n ? x[i] * FACTOR : 0.f;
    for (int d = 16; d; d /= 2) v += __shfl_xor_sync(0xffffffff, v, d);
    if (threadIdx.x % 32 == 0) sum[threadIdx.x / 32] = v;
    __syncthreads();
    if (i < n) x[i] = sum[threadIdx.x / 32];
}
"""
cuda, nvrtc, cublas = (ctypes.CDLL(f"lib{n}") for n in ("cuda.so.1", "nvrtc.so", "cublas.so"))
P = ctypes.c_void_p


def check(status, what):
    if status:
        sys.exit(f"{what}: error {status}")


def compiled(options, get):
    program, size = P(), ctypes.c_size_t()
    check(
        nvrtc.nvrtcCreateProgram(ctypes.byref(program), SOURCE, b"scale.cu", 0, None, None),
        "create",
    )
    options = [o.encode() for o in options]
    check(
        nvrtc.nvrtcCompileProgram(
            program, len(options), (ctypes.c_char_p * len(options))(*options)
        ),
        "compile",
    )
    check(getattr(nvrtc, f"nvrtcGet{get}Size")(program, ctypes.byref(size)), "size")
    image = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc, f"nvrtcGet{get}")(program, image), "image")
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)), "destroy")
    return image


context, stream, memory = P(), P(), ctypes.c_uint64()
check(cuda.cuInit(0), "cuInit")
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), "context")
check(cuda.cuCtxSetCurrent(context), "context")
check(cuda.cuStreamCreate(ctypes.byref(stream), 1), "stream")
n = 64
check(cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(n * 4)), "memory")
numbers = (ctypes.c_float * n)(*([1.0] * 32 + [2.0] * 32))
check(cuda.cuMemcpyHtoDAsync_v2(memory, numbers, ctypes.c_size_t(n * 4), stream), "copy")
for options, get in (
    (["-DFACTOR=2.f", "-arch=compute_90a"], "PTX"),
    (["-DFACTOR=0.5f", "-arch=sm_90a"], "CUBIN"),
):
    module, function = P(), P()
    check(cuda.cuModuleLoadData(ctypes.byref(module), compiled(options, get)), "module")
    check(cuda.cuModuleGetFunction(ctypes.byref(function), module, b"scale"), "function")
    length = ctypes.c_int(n)
    arguments = (P * 2)(ctypes.addressof(memory), ctypes.addressof(length))
    check(cuda.cuLaunchKernel(function, 1, 1, 1, n, 1, 1, 0, stream, arguments, None), "launch")
# A card would stop the whole context at a wrong address, so only the stand-in is asked.
if "NULLCUDA_DIR" in os.environ:
    wrong = ctypes.c_uint64(0x10000)
    arguments = (P * 2)(ctypes.addressof(wrong), ctypes.addressof(length))
    status = cuda.cuLaunchKernel(function, 1, 1, 1, n, 1, 1, 0, stream, arguments, None)
    if status != 700:
        sys.exit(f"a launch with a wrong address: expected error 700, got {status}")
    if cuda.cuLaunchKernel(function, 1, 1, 1, 2048, 1, 1, 0, stream, arguments, None) == 0:
        sys.exit("2048 threads in a block were not refused")
# Sums over 32 lanes: 64 and 128, then 64 * 32 / 2 = 1024 and 2048. Then a product of those.
handle, one, zero = P(), ctypes.c_float(1), ctypes.c_float(0)
check(cublas.cublasCreate_v2(ctypes.byref(handle)), "cuBLAS")
check(cublas.cublasSetStream_v2(handle, stream), "cuBLAS stream")
check(cublas.cublasGemmEx(handle, 0, 1, 4, 4, 4, ctypes.byref(one), memory, 0, 8, memory, 0, 8, ctypes.byref(zero),
                          ctypes.c_uint64(memory.value + 128), 0, 8, 68, -1), "product")  # fmt: skip
check(cuda.cuMemcpyDtoHAsync_v2(numbers, memory, ctypes.c_size_t(n * 4), stream), "copy back")
check(cuda.cuStreamSynchronize(stream), "synchronise")
check(cublas.cublasDestroy_v2(handle), "destroy")
expected = ([1024.0] * 32) + ([4.0 * 1024 * 1024] * 4 + [2048.0] * 4) * 4
if list(numbers) != expected:
    sys.exit(f"expected {expected}, got {list(numbers)}")
print(
    "stand-in driver: kernels compiled with other macros, as PTX and cubin, and a product: as expected"
)
