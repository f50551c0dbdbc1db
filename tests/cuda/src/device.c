// The cards, their limits, their contexts. A context is a number that tells its card.
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
int cards(void) {
    static int n;
    if (!n) {
        n = getenv("NULLCUDA_DEVICES") ? atoi(getenv("NULLCUDA_DEVICES")) : 1;
        n = n < 1 ? 1 : n > MAX_CARDS ? MAX_CARDS : n;
    }
    return n;
}
static const uintptr_t CONTEXT = 0x1000;
static CUcontext context_of(int card) { return (CUcontext)(CONTEXT + (uintptr_t)card * 16); }
// The card of a context; -1 for what is no context.
static int card_of(CUcontext c) {
    uintptr_t at = (uintptr_t)c;
    if (at < CONTEXT || (at - CONTEXT) % 16 || (at - CONTEXT) / 16 >= (uintptr_t)cards()) return -1;
    return (int)((at - CONTEXT) / 16);
}
static __thread int current;
int current_card(void) { return current; }

CUresult cuDeviceGetCount(int *n) {
    *n = cards();
    return CUDA_SUCCESS;
}
CUresult cuDeviceGet(CUdevice *d, int i) {
    if (i < 0 || i >= cards()) return CUDA_ERROR_INVALID_DEVICE;
    *d = i;
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
    size_t used = mem_reserved + mem_used[current];
    *f = mem_total > used ? mem_total - used : 0;
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
    if (d < 0 || d >= cards()) return CUDA_ERROR_INVALID_DEVICE;
    *c = context_of(d);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice d) {
    (void)d;
    return CUDA_SUCCESS;
}
CUresult cuCtxSetCurrent(CUcontext c) {
    if (c && card_of(c) < 0) return CUDA_ERROR_INVALID_CONTEXT;
    current = c ? card_of(c) : 0;
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *c) {
    *c = context_of(current);
    return CUDA_SUCCESS;
}
// Which card may read and write which other card's memory.
static char reaches[MAX_CARDS][MAX_CARDS];
CUresult cuDeviceCanAccessPeer(int *can, CUdevice d, CUdevice other) {
    if (d < 0 || d >= cards() || other < 0 || other >= cards()) return CUDA_ERROR_INVALID_DEVICE;
    *can = d != other;
    return CUDA_SUCCESS;
}
CUresult cuCtxEnablePeerAccess(CUcontext c, unsigned f) {
    int other = card_of(c);
    (void)f;
    if (other < 0) return CUDA_ERROR_INVALID_CONTEXT;
    if (other == current) return CUDA_ERROR_INVALID_DEVICE;
    if (reaches[current][other]) return CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED;
    reaches[current][other] = 1;
    return CUDA_SUCCESS;
}
// Between cards: from memory of one to memory of the other, as the contexts say.
CUresult cuMemcpyPeerAsync(CUdeviceptr to, CUcontext tc, CUdeviceptr from, CUcontext fc, size_t n,
                           CUstream s) {
    CUresult r = CUDA_SUCCESS;
    pthread_mutex_lock(&mu);
    Alloc *t = find(to), *f = find(from);
    if (!t || to + n > t->at + t->size || t->card != card_of(tc))
        r = fail(CUDA_ERROR_INVALID_VALUE, "copy between cards: %zu B to %llx", n, to);
    else if (!f || from + n > f->at + f->size || f->card != card_of(fc))
        r = fail(CUDA_ERROR_INVALID_VALUE, "copy between cards: %zu B from %llx", n, from);
    else {
        total.d2d++;
        total.d2d_bytes += n;
        say("X\t%zu\t%lu", n, stream_of(s)->id);
        stream_of(s)->clock_ns += 4000 + n / 300.0;
    }
    pthread_mutex_unlock(&mu);
    if (!r && !(copy_max && n > copy_max)) memmove((void *)to, (void *)from, n);
    return r;
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
    *d = current;
    return CUDA_SUCCESS;
}
// Used with the context that is current already.
CUresult cuCtxPushCurrent_v2(CUcontext c) { return cuCtxSetCurrent(c); }
CUresult cuCtxPopCurrent_v2(CUcontext *c) {
    if (c) *c = context_of(current);
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
