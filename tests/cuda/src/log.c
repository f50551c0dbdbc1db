// The stand-in driver's log, settings and totals.
//
// The driver: libcuda.so.1 (CUDA driver API) with one "H100" (sm_90a), no card needed. Modules are
// accepted as PTX text, as NVRTC gives it, and run through the real ptxas if NULLCUDA_PTXAS names
// it, so that registers, spills and static shared memory are known. Launches are checked against
// the card's limits and recorded. "Device" memory is host memory that the kernel zeroes lazily:
// copies work, and memory that nobody touches costs nothing. Kernels run only with NULLCUDA_EXEC=1,
// at launch, one after another. The variables are listed in tests/cuda/README.md.
#include "driver.h"
#include <stdarg.h>

pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
char dir[512];
const char *ptxas;
int verbose, executing;
size_t copy_max;
uint64_t seed;
size_t mem_total = 85028765696ull, mem_reserved = 620ull << 20, mem_used[MAX_CARDS], mem_peak;
Totals total;
static FILE *log_file;
static struct timespec start_time;

void say(const char *fmt, ...) {
    if (!log_file) return;
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    double ms = (t.tv_sec - start_time.tv_sec) * 1e3 + (t.tv_nsec - start_time.tv_nsec) / 1e6;
    va_list ap;
    va_start(ap, fmt);
    fprintf(log_file, "%.3f\t", ms);
    vfprintf(log_file, fmt, ap);
    fputc('\n', log_file);
    va_end(ap);
}

void flush_log(void) {
    if (log_file) fflush(log_file);
}

CUresult fail(CUresult r, const char *fmt, ...) {
    char buf[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(buf, sizeof buf, fmt, ap);
    va_end(ap);
    total.errors++;
    say("!\t%d\t%s", r, buf);
    flush_log();
    if (verbose) fprintf(stderr, "nullcuda: %s (error %d)\n", buf, r);
    return r;
}

__attribute__((constructor)) static void start(void) {
    clock_gettime(CLOCK_MONOTONIC, &start_time);
    const char *d = getenv("NULLCUDA_DIR");
    snprintf(dir, sizeof dir, "%s", d ? d : "/tmp/nullcuda");
    const char *v;
    if ((v = getenv("NULLCUDA_VERBOSE"))) verbose = atoi(v);
    if ((v = getenv("NULLCUDA_EXEC"))) executing = atoi(v);
    if ((v = getenv("NULLCUDA_MEM"))) mem_total = strtoull(v, 0, 10);
    if ((v = getenv("NULLCUDA_COPY_MAX"))) copy_max = strtoull(v, 0, 10);
    if ((v = getenv("NULLCUDA_SEED"))) seed = strtoull(v, 0, 10);
    ptxas = getenv("NULLCUDA_PTXAS");
}

static int begun;
void begin(void) {
    if (begun) return;
    begun = 1;
    char path[700];
    mkdir(dir, 0755);
    const char *l = getenv("NULLCUDA_LOG");
    snprintf(path, sizeof path, "%s/modules", dir);
    mkdir(path, 0755);
    if (l) snprintf(path, sizeof path, "%s", l);
    else snprintf(path, sizeof path, "%s/%d.log", dir, getpid());
    log_file = fopen(path, "w");
    if (log_file) setvbuf(log_file, NULL, _IOFBF, 1 << 20);
    else if (verbose) fprintf(stderr, "nullcuda: no log: %s: %s\n", path, strerror(errno));
}

__attribute__((destructor)) static void stop(void) {
    if (!begun) return;
    say("=\tlaunches %lu products %lu modules %lu h2d %lu (%zu B) d2h %lu (%zu B) d2d %lu (%zu B) "
        "syncs %lu allocs %lu frees %lu events %lu tensor_maps %lu peak %zu B errors %lu",
        total.launches, total.products, total.modules, total.h2d, total.h2d_bytes, total.d2h,
        total.d2h_bytes, total.d2d, total.d2d_bytes, total.syncs, total.allocs, total.frees,
        total.events, total.tensor_maps, mem_peak, total.errors);
    flush_log();
    if (verbose)
        fprintf(
            stderr,
            "nullcuda: launches %lu, products %lu, modules %lu, h2d %lu (%zu B), d2h %lu (%zu B), "
            "syncs %lu, peak %.1f MiB, errors %lu\n",
            total.launches, total.products, total.modules, total.h2d, total.h2d_bytes, total.d2h,
            total.d2h_bytes, total.syncs, mem_peak / 1048576.0, total.errors);
}

uint64_t fnv(const char *p, size_t n) {
    uint64_t h = 1469598103934665603ull;
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211ull;
    return h;
}

// For the stand-in cuBLAS: a matrix product as a line of this log, in order with the launches.
void nullcuda_product(void *stream, const char *text) {
    pthread_mutex_lock(&mu);
    total.products++;
    stream_of(stream)->clock_ns += 20000;
    say("G\t%lu\t%s", stream_of(stream)->id, text);
    pthread_mutex_unlock(&mu);
}
// For the stand-in cuBLAS: a refusal.
void nullcuda_refused(const char *text) {
    pthread_mutex_lock(&mu);
    fail(CUDA_ERROR_INVALID_VALUE, "cuBLAS: %s", text);
    pthread_mutex_unlock(&mu);
}
// For the stand-in cuBLAS: whether `bytes` bytes from an address lie within one allocation.
int nullcuda_in_allocation(const void *at, size_t bytes) {
    pthread_mutex_lock(&mu);
    Alloc *a = find((uintptr_t)at);
    int within = a && (uintptr_t)at + bytes <= a->at + a->size;
    pthread_mutex_unlock(&mu);
    return within;
}
