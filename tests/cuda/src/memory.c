// Allocations and copies. An allocation has a guard page behind it, and copies are checked against
// it.
#include "driver.h"

// Live allocations, sorted by address.
static Alloc *allocs;
static size_t n_allocs, cap_allocs;

// The number of the first allocation that starts after p.
static size_t lower(uintptr_t p) {
    size_t lo = 0, hi = n_allocs;
    while (lo < hi) {
        size_t m = (lo + hi) / 2;
        if (allocs[m].at <= p) lo = m + 1;
        else hi = m;
    }
    return lo;
}
Alloc *find(uintptr_t p) {
    size_t i = lower(p);
    if (!i) return NULL;
    Alloc *a = &allocs[i - 1];
    return p < a->at + a->size ? a : NULL;
}

// NULLCUDA_POISON=1: new memory holds NaN in fp32 and bf16, as a card's memory may hold anything.
static int poison(void) {
    static int on = -1;
    if (on < 0) on = getenv("NULLCUDA_POISON") ? atoi(getenv("NULLCUDA_POISON")) : 0;
    return on;
}

static CUresult alloc(CUdeviceptr *out, size_t n, const char *kind) {
    int card = current_card();
    pthread_mutex_lock(&mu);
    CUresult r = CUDA_SUCCESS;
    if (!n) r = fail(CUDA_ERROR_INVALID_VALUE, "allocation of 0 bytes");
    else if (mem_used[card] + n + mem_reserved > mem_total)
        r = fail(CUDA_ERROR_OUT_OF_MEMORY, "out of memory: %zu B asked for, %zu B in use of %zu", n,
                 mem_used[card], mem_total - mem_reserved);
    else {
        size_t room = ((n + 4095) & ~4095ull) + 4096;
        char *p = mmap(NULL, room, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (p == MAP_FAILED)
            r = fail(CUDA_ERROR_OUT_OF_MEMORY, "mmap of %zu B: %s", n, strerror(errno));
        else {
            mprotect(p + room - 4096, 4096, PROT_NONE);
            if (poison()) memset(p, 0xff, n);
            size_t i = lower((uintptr_t)p);
            if (n_allocs == cap_allocs)
                allocs = realloc(allocs, (cap_allocs = cap_allocs ? cap_allocs * 2 : 1024) *
                                             sizeof *allocs);
            memmove(allocs + i + 1, allocs + i, (n_allocs - i) * sizeof *allocs);
            allocs[i] = (Alloc){(uintptr_t)p, n, card};
            n_allocs++;
            mem_used[card] += n;
            if (mem_used[card] > mem_peak) mem_peak = mem_used[card];
            total.allocs++;
            *out = (CUdeviceptr)p;
            say("A\t%s\t%zu\t%zu", kind, n, mem_used[card]);
        }
    }
    pthread_mutex_unlock(&mu);
    return r;
}
static CUresult dealloc(CUdeviceptr p, const char *kind) {
    pthread_mutex_lock(&mu);
    CUresult r = CUDA_SUCCESS;
    Alloc *a = find(p);
    if (!a || a->at != p) {
        r = fail(CUDA_ERROR_INVALID_VALUE, "free of %llx, which is no allocation", p);
    } else {
        size_t n = a->size;
        int card = a->card;
        munmap((void *)p, ((n + 4095) & ~4095ull) + 4096);
        memmove(a, a + 1, (n_allocs - (a - allocs) - 1) * sizeof *a);
        n_allocs--;
        mem_used[card] -= n;
        total.frees++;
        say("F\t%s\t%zu\t%zu", kind, n, mem_used[card]);
    }
    pthread_mutex_unlock(&mu);
    return r;
}
CUresult cuMemAlloc_v2(CUdeviceptr *p, size_t n) { return alloc(p, n, "sync"); }
CUresult cuMemAllocAsync(CUdeviceptr *p, size_t n, CUstream s) {
    (void)s;
    return alloc(p, n, "async");
}
CUresult cuMemFree_v2(CUdeviceptr p) { return dealloc(p, "sync"); }
CUresult cuMemFreeAsync(CUdeviceptr p, CUstream s) {
    (void)s;
    return dealloc(p, "async");
}
CUresult cuMemAllocHost_v2(void **p, size_t n) {
    *p = mmap(NULL, n ? n : 1, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
              -1, 0);
    pthread_mutex_lock(&mu);
    say("P\talloc\t%zu", n); // pinned
    pthread_mutex_unlock(&mu);
    return *p == MAP_FAILED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
CUresult cuMemFreeHost(void *p) {
    (void)p;
    return CUDA_SUCCESS;
}
CUresult cuMemHostAlloc(void **p, size_t n, unsigned f) {
    (void)f;
    return cuMemAllocHost_v2(p, n);
}

static CUresult check_range(CUdeviceptr p, size_t n, const char *what) {
    Alloc *a = find(p);
    if (a && a->card != current_card())
        return fail(CUDA_ERROR_INVALID_VALUE, "%s at %llx, which is card %d's, on card %d", what, p,
                    a->card, current_card());
    if (!a || p + n > a->at + a->size) {
        return fail(CUDA_ERROR_INVALID_VALUE, "%s of %zu B at %llx goes past an allocation", what,
                    n, p);
    }
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr d, const void *h, size_t n, CUstream s) {
    pthread_mutex_lock(&mu);
    CUresult r = check_range(d, n, "h2d");
    if (!r) {
        total.h2d++;
        total.h2d_bytes += n;
        say("H\t%zu\t%lu", n, stream_of(s)->id);
        stream_of(s)->clock_ns += 4000 + n / 50.0;
    }
    pthread_mutex_unlock(&mu);
    if (!r && !(copy_max && n > copy_max)) memcpy((void *)d, h, n);
    return r;
}
CUresult cuMemcpyHtoD_v2(CUdeviceptr d, const void *h, size_t n) {
    return cuMemcpyHtoDAsync_v2(d, h, n, 0);
}
CUresult cuMemcpyDtoHAsync_v2(void *h, CUdeviceptr d, size_t n, CUstream s) {
    pthread_mutex_lock(&mu);
    CUresult r = check_range(d, n, "d2h");
    if (!r) {
        total.d2h++;
        total.d2h_bytes += n;
        say("D\t%zu\t%lu", n, stream_of(s)->id);
        stream_of(s)->clock_ns += 4000 + n / 50.0;
    }
    pthread_mutex_unlock(&mu);
    if (!r && !(copy_max && n > copy_max)) memcpy(h, (void *)d, n);
    return r;
}
CUresult cuMemcpyDtoH_v2(void *h, CUdeviceptr d, size_t n) {
    return cuMemcpyDtoHAsync_v2(h, d, n, 0);
}
CUresult cuMemcpyDtoDAsync_v2(CUdeviceptr d, CUdeviceptr f, size_t n, CUstream s) {
    pthread_mutex_lock(&mu);
    CUresult r = check_range(d, n, "d2d to");
    if (!r) r = check_range(f, n, "d2d from");
    if (!r) {
        total.d2d++;
        total.d2d_bytes += n;
        say("X\t%zu\t%lu", n, stream_of(s)->id);
        stream_of(s)->clock_ns += 2000 + n / 1500.0;
    }
    pthread_mutex_unlock(&mu);
    if (!r && !(copy_max && n > copy_max)) memmove((void *)d, (void *)f, n);
    return r;
}
CUresult cuMemcpyDtoD_v2(CUdeviceptr d, CUdeviceptr f, size_t n) {
    return cuMemcpyDtoDAsync_v2(d, f, n, 0);
}
CUresult cuMemcpy2DAsync_v2(const CUDA_MEMCPY2D *c, CUstream s) {
    char *src = c->srcMemoryType == CU_MEMORYTYPE_HOST ? (char *)c->srcHost : (char *)c->srcDevice;
    char *dst = c->dstMemoryType == CU_MEMORYTYPE_HOST ? (char *)c->dstHost : (char *)c->dstDevice;
    size_t n = c->WidthInBytes * c->Height;
    pthread_mutex_lock(&mu);
    const char *k = c->srcMemoryType == CU_MEMORYTYPE_HOST   ? "H"
                    : c->dstMemoryType == CU_MEMORYTYPE_HOST ? "D"
                                                             : "X";
    say("%s\t%zu\t%lu\t2d %zu x %zu pitch %zu %zu", k, n, stream_of(s)->id, c->WidthInBytes,
        c->Height, c->srcPitch, c->dstPitch);
    if (*k == 'H') {
        total.h2d++;
        total.h2d_bytes += n;
    } else if (*k == 'D') {
        total.d2h++;
        total.d2h_bytes += n;
    } else {
        total.d2d++;
        total.d2d_bytes += n;
    }
    stream_of(s)->clock_ns += 5000 + n / 40.0;
    pthread_mutex_unlock(&mu);
    if (copy_max && n > copy_max) return CUDA_SUCCESS;
    src += c->srcY * c->srcPitch + c->srcXInBytes;
    dst += c->dstY * c->dstPitch + c->dstXInBytes;
    for (size_t y = 0; y < c->Height; y++)
        memcpy(dst + y * c->dstPitch, src + y * c->srcPitch, c->WidthInBytes);
    return CUDA_SUCCESS;
}

static CUresult fill(CUdeviceptr d, unsigned v, int width, size_t n, CUstream s) {
    pthread_mutex_lock(&mu);
    CUresult r = check_range(d, n * width, "memset");
    if (!r) {
        say("Z\t%zu\t%lu", n * width, stream_of(s)->id);
        stream_of(s)->clock_ns += 2000 + n * width / 2000.0;
    }
    pthread_mutex_unlock(&mu);
    if (r || (copy_max && n * width > copy_max)) return r;
    // Where nothing runs, large regions that become zero are given back to the system instead,
    // which hands out zeros when they are read.
    if (!executing && n * width >= 1 << 20) {
        uintptr_t from = (d + 4095) & ~4095ull, to = (d + n * width) & ~4095ull;
        if (v) return r;
        madvise((void *)from, to - from, MADV_DONTNEED);
        memset((void *)d, 0, from - d);
        memset((void *)to, 0, d + n * width - to);
        return r;
    }
    if (width == 1) memset((void *)d, (int)v, n);
    else if (width == 2)
        for (size_t i = 0; i < n; i++) ((uint16_t *)d)[i] = (uint16_t)v;
    else
        for (size_t i = 0; i < n; i++) ((uint32_t *)d)[i] = v;
    return r;
}
CUresult cuMemsetD8Async(CUdeviceptr d, unsigned char v, size_t n, CUstream s) {
    return fill(d, v, 1, n, s);
}
CUresult cuMemsetD16Async(CUdeviceptr d, unsigned short v, size_t n, CUstream s) {
    return fill(d, v, 2, n, s);
}
CUresult cuMemsetD32Async(CUdeviceptr d, unsigned v, size_t n, CUstream s) {
    return fill(d, v, 4, n, s);
}
CUresult cuMemsetD8_v2(CUdeviceptr d, unsigned char v, size_t n) { return fill(d, v, 1, n, 0); }
CUresult cuMemsetD16_v2(CUdeviceptr d, unsigned short v, size_t n) { return fill(d, v, 2, n, 0); }
CUresult cuMemsetD32_v2(CUdeviceptr d, unsigned v, size_t n) { return fill(d, v, 4, n, 0); }

// Pinning memory that the program allocated, and the settings of memory pools, change nothing here.
CUresult cuMemHostRegister_v2(void *p, size_t n, unsigned f) {
    (void)p;
    (void)n;
    (void)f;
    return CUDA_SUCCESS;
}
CUresult cuMemHostUnregister(void *p) {
    (void)p;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetDefaultMemPool(CUmemoryPool *p, CUdevice d) {
    (void)d;
    *p = (CUmemoryPool)0x2000;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetMemPool(CUmemoryPool *p, CUdevice d) { return cuDeviceGetDefaultMemPool(p, d); }
CUresult cuMemPoolSetAttribute(CUmemoryPool p, CUmemPool_attribute a, void *v) {
    (void)p;
    (void)a;
    (void)v;
    return CUDA_SUCCESS;
}
CUresult cuMemPoolTrimTo(CUmemoryPool p, size_t n) {
    (void)p;
    (void)n;
    return CUDA_SUCCESS;
}
