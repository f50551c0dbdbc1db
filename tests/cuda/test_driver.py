#!/usr/bin/env python3
"""Runs small kernels and a matrix product on the stand-in driver.

  tests/cuda/run --exec NAME python3 tests/cuda/test_driver.py

The first source is compiled twice with other macros, to PTX and to a cubin. The second copies to shared
memory with cp.async; without the wait for the copies its result must be wrong (NaN) on the stand-in.
Calls that a card refuses are refused.
"""

import ctypes
import math
import sys

SCALE = b"""
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
REVERSE = b"""
extern "C" __global__ void reverse(float* x, long long n) {
    __shared__ __align__(16) float buffer[64];
    unsigned to = (unsigned)__cvta_generic_to_shared(buffer) + threadIdx.x * 16;
    if (threadIdx.x < n / 4)
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(to), "l"(x + threadIdx.x * 4) : "memory");
    asm volatile("cp.async.commit_group;" ::: "memory");
#if WAIT
    asm volatile("cp.async.wait_group 0;" ::: "memory");
#endif
    __syncthreads();
    if (threadIdx.x < n) x[threadIdx.x] = buffer[n - 1 - threadIdx.x];
}
"""
cuda, nvrtc, cublas = (ctypes.CDLL(f"lib{n}") for n in ("cuda.so.1", "nvrtc.so", "cublas.so"))
P = ctypes.c_void_p
N = 64
BYTES = ctypes.c_size_t(N * 4)


def check(status, what):
    if status:
        sys.exit(f"{what}: error {status}")


def compiled(source, options, get):
    """PTX or CUBIN of a source."""
    program, size = P(), ctypes.c_size_t()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(program), source, b"a.cu", 0, None, None), "create")
    texts = (ctypes.c_char_p * len(options))(*(o.encode() for o in options))
    check(nvrtc.nvrtcCompileProgram(program, len(options), texts), "compile")
    check(getattr(nvrtc, f"nvrtcGet{get}Size")(program, ctypes.byref(size)), "size")
    image = ctypes.create_string_buffer(size.value)
    check(getattr(nvrtc, f"nvrtcGet{get}")(program, image), "image")
    check(nvrtc.nvrtcDestroyProgram(ctypes.byref(program)), "destroy")
    return image


def function(name, *source):
    module, f = P(), P()
    check(cuda.cuModuleLoadData(ctypes.byref(module), compiled(*source)), "module")
    check(cuda.cuModuleGetFunction(ctypes.byref(f), module, name), "function")
    return f


def launch(f, address, length, threads=N):
    values = ctypes.c_uint64(address), length
    arguments = (P * 2)(*(ctypes.addressof(v) for v in values))
    return cuda.cuLaunchKernel(f, 1, 1, 1, threads, 1, 1, 0, stream, arguments, None)


def upload(values):
    numbers = (ctypes.c_float * N)(*values)
    check(cuda.cuMemcpyHtoDAsync_v2(memory, numbers, BYTES, stream), "copy")


def download():
    numbers = (ctypes.c_float * N)()
    check(cuda.cuMemcpyDtoHAsync_v2(numbers, memory, BYTES, stream), "copy back")
    check(cuda.cuStreamSynchronize(stream), "synchronise")
    return list(numbers)


def expect(what, got, expected):
    if got != expected:
        sys.exit(f"{what}: expected {expected}, got {got}")


context, stream, memory = P(), P(), ctypes.c_uint64()
check(cuda.cuInit(0), "cuInit")
check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0), "context")
check(cuda.cuCtxSetCurrent(context), "context")
check(cuda.cuStreamCreate(ctypes.byref(stream), 1), "stream")
check(cuda.cuMemAlloc_v2(ctypes.byref(memory), BYTES), "memory")

# Twice the sums over 32 lanes: 64 and 128; then half the sums of those: 1024 and 2048.
upload([1.0] * 32 + [2.0] * 32)
double = function(b"scale", SCALE, ["-DFACTOR=2.f", "-arch=compute_90a"], "PTX")
check(launch(double, memory.value, ctypes.c_int(N)), "launch")
half = function(b"scale", SCALE, ["-DFACTOR=0.5f", "-arch=sm_90a"], "CUBIN")
check(launch(half, memory.value, ctypes.c_int(N)), "launch")
expect("two kernels", download(), [1024.0] * 32 + [2048.0] * 32)

# C = A transposed(B), 4 x 4 of the first 32 numbers, written over every second four of the last 32.
handle, one, zero = P(), ctypes.c_float(1), ctypes.c_float(0)
third = ctypes.c_uint64(memory.value + 128)
check(cublas.cublasCreate_v2(ctypes.byref(handle)), "cuBLAS")
check(cublas.cublasSetStream_v2(handle, stream), "cuBLAS stream")
a, c = (memory, 0, 8), (third, 0, 8)
scales = ctypes.byref(one), ctypes.byref(zero)
product = cublas.cublasGemmEx(handle, 0, 1, 4, 4, 4, scales[0], *a, *a, scales[1], *c, 68, -1)
check(product, "product")
past = (ctypes.c_uint64(memory.value + 4 * N - 16), 0, 8)
product = cublas.cublasGemmEx(handle, 0, 1, 4, 4, 4, scales[0], *a, *a, scales[1], *past, 68, -1)
expect("a product that goes past an allocation", product, 7)
check(cublas.cublasDestroy_v2(handle), "destroy")
expect("product", download(), [1024.0] * 32 + ([4.0 * 1024 * 1024] * 4 + [2048.0] * 4) * 4)

# cp.async, with the wait and without. A 64-bit number as argument is no address.
numbers = [float(i) for i in range(N)]
upload(numbers)
waits = function(b"reverse", REVERSE, ["-DWAIT=1", "-arch=compute_90a"], "PTX")
check(launch(waits, memory.value, ctypes.c_longlong(N)), "launch")
expect("cp.async", download(), numbers[::-1])
hasty = function(b"reverse", REVERSE, ["-DWAIT=0", "-arch=compute_90a"], "PTX")
check(launch(hasty, memory.value, ctypes.c_longlong(N)), "launch")
if not all(math.isnan(x) for x in download()):
    sys.exit("cp.async without a wait: the result is as if it had waited")

expect("a launch with a wrong address", launch(double, 0x10000, ctypes.c_int(N)), 700)
expect("a launch of 2048 threads", launch(double, memory.value, ctypes.c_int(N), 2048), 1)
print("stand-in driver: as expected")
