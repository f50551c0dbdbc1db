// The one device, its limits, its context.
#include "driver.h"

enum { DRIVER_VERSION = 13000, CAPABILITY_MAJOR = 9, CAPABILITY_MINOR = 0 };

CUresult cuInit(unsigned f) {
    (void)f;
    pthread_mutex_lock(&mu);
    begin();
    pthread_mutex_unlock(&mu);
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *v) {
    *v = DRIVER_VERSION;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *n) {
    *n = 1;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *d, int i) {
    if (i) return CUDA_ERROR_INVALID_DEVICE;
    *d = 0;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *n, int len, CUdevice d) {
    (void)d;
    snprintf(n, len, "NVIDIA H100 80GB HBM3");
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetPCIBusId(char *n, int len, CUdevice d) {
    (void)d;
    snprintf(n, len, "0000:18:00.0");
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetUuid_v2(CUuuid *u, CUdevice d) {
    (void)d;
    memset(u, 7, sizeof *u);
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *b, CUdevice d) {
    (void)d;
    *b = mem_total;
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *f, size_t *t) {
    *f = mem_total > mem_reserved + mem_used ? mem_total - mem_reserved - mem_used : 0;
    *t = mem_total;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *p, CUdevice_attribute a, CUdevice d) {
    (void)d;
    switch ((int)a) {
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *p = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_X: *p = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Y: *p = 1024; break;
    case CU_DEVICE_ATTRIBUTE_MAX_BLOCK_DIM_Z: *p = 64; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_X: *p = 2147483647; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Y: *p = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_GRID_DIM_Z: *p = 65535; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK: *p = 49152; break;
    case CU_DEVICE_ATTRIBUTE_TOTAL_CONSTANT_MEMORY: *p = 65536; break;
    case CU_DEVICE_ATTRIBUTE_WARP_SIZE: *p = 32; break;
    case CU_DEVICE_ATTRIBUTE_MAX_PITCH: *p = 2147483647; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK: *p = 65536; break;
    case CU_DEVICE_ATTRIBUTE_CLOCK_RATE: *p = 1980000; break;
    case CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT: *p = 132; break;
    case CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR: *p = 2048; break;
    case CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE: *p = 52428800; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR: *p = 233472; break;
    case CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR: *p = 65536; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *p = CAPABILITY_MAJOR; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *p = CAPABILITY_MINOR; break;
    case CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN: *p = 232448; break;
    case CU_DEVICE_ATTRIBUTE_RESERVED_SHARED_MEMORY_PER_BLOCK: *p = 1024; break;
    case CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING:
    case CU_DEVICE_ATTRIBUTE_COOPERATIVE_LAUNCH:
    case CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED:
    case CU_DEVICE_ATTRIBUTE_CONCURRENT_KERNELS: *p = 1; break;
    default: *p = 0; say("attr\t%d (answered 0)", a);
    }
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *c, CUdevice d) {
    (void)d;
    *c = (CUcontext)0x1000;
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
    (void)d;
    return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext c) {
    (void)c;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *c) {
    *c = (CUcontext)0x1000;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetStreamPriorityRange(int *l, int *g) {
    if (l) *l = 0;
    if (g) *g = -5;
    return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize(void) {
    total.syncs++;
    say("S\tctx");
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult e, const char **s) {
    static __thread char b[32];
    *s = e == 0     ? "CUDA_SUCCESS"
         : e == 1   ? "CUDA_ERROR_INVALID_VALUE"
         : e == 2   ? "CUDA_ERROR_OUT_OF_MEMORY"
         : e == 701 ? "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES"
                    : (snprintf(b, 32, "CUDA_ERROR_%d", e), b);
    return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult e, const char **s) { return cuGetErrorName(e, s); }
CUresult cuCtxGetDevice(CUdevice *d) {
    *d = 0;
    return CUDA_SUCCESS;
}
CUresult cuCtxPushCurrent_v2(CUcontext c) {
    (void)c;
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext *c) {
    if (c) *c = (CUcontext)0x1000;
    return CUDA_SUCCESS;
}
CUresult cuCtxSetFlags(unsigned f) {
    (void)f;
    return CUDA_SUCCESS;
}
CUresult cuProfilerStart(void) { return CUDA_SUCCESS; }
CUresult cuProfilerStop(void) { return CUDA_SUCCESS; }

// NVRTC looks for this in libcuda.so.1 by itself.
CUresult cuGetExportTable(const void **t, const CUuuid *id) {
    (void)id;
    *t = NULL;
    return CUDA_ERROR_NOT_FOUND;
}
