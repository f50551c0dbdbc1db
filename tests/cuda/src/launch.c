// Launches: checked against limits, recorded and, in executing mode, run.
#include "driver.h"

// a made-up but deterministic duration: kernels with tensor cores are faster, and no two take the
// same time
static double duration(Func *f, uint64_t blocks, void **params) {
    static const char *prefer;
    if (!prefer && !(prefer = getenv("NULLCUDA_PREFER"))) prefer = "tma";
    double factor = f->uses_mma || f->uses_wmma ? (f->uses_tma   ? 1.0
                                                   : f->uses_mma ? 1.2
                                                                 : 1.3)
                                                : 6.0;
    if (!strcmp(prefer, "mma")) factor = f->uses_tma ? 3 : f->uses_mma ? 1 : f->uses_wmma ? 2 : 6;
    if (!strcmp(prefer, "wmma")) factor = f->uses_tma ? 3 : f->uses_wmma ? 1 : f->uses_mma ? 2 : 6;
    if (!strcmp(prefer, "none")) factor = f->uses_mma || f->uses_wmma ? 3 : 1;
    uint64_t h = (f->module->hash ^ seed) * 0x9E3779B97F4A7C15ull;
    // probes of the peak repeat until they have run long enough; a slow peak also lets tuning end
    // early (NULLCUDA_PROBE_MS)
    static double probe_ms = -1;
    if (probe_ms < 0)
        probe_ms = getenv("NULLCUDA_PROBE_MS") ? atof(getenv("NULLCUDA_PROBE_MS")) : 40;
    if (strstr(f->name, "compute") && strstr(f->name, "throughput")) {
        // its scalar is how often it loops: longer loops take longer
        uint32_t n = 1;
        memcpy(&n, params[f->nparams - 1], 4);
        double ns = 2000 + n * probe_ms * 25000.0;
        probe_pending +=
            ns > 3e8 ? 3e8
                     : ns; // the probe looks at the host's clock: waiting for it takes as long
        return ns;
    }
    if (strstr(f->name, "throughput")) return probe_ms * 1e5;
    return 3000 + 20000 * factor * (1.0 + 0.3 * ((h >> 40) / 16777216.0)) + 0.0 * blocks;
}

CUresult cuLaunchKernel(CUfunction fn, unsigned gx, unsigned gy, unsigned gz, unsigned bx,
                        unsigned by, unsigned bz, unsigned smem, CUstream st, void **params,
                        void **extra) {
    Func *f = (Func *)fn;
    (void)extra;
    pthread_mutex_lock(&mu);
    CUresult r = CUDA_SUCCESS;
    uint64_t threads = (uint64_t)bx * by * bz;
    if (!gx || !gy || !gz || !bx || !by || !bz)
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: empty launch", f->name);
    else if (gx > 2147483647u || gy > 65535 || gz > 65535)
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: grid %u %u %u", f->name, gx, gy, gz);
    else if (threads > 1024 || bx > 1024 || by > 1024 || bz > 64)
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: block %u %u %u", f->name, bx, by, bz);
    else if (f->maxntid && threads > (uint64_t)f->maxntid)
        r = fail(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "%s: %lu threads, compiled for at most %d",
                 f->name, threads, f->maxntid);
    else if (f->has_req && (bx != (unsigned)f->reqntid[0] || by != (unsigned)f->reqntid[1] ||
                            bz != (unsigned)f->reqntid[2]))
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: block %u %u %u, compiled for %d %d %d", f->name, bx,
                 by, bz, f->reqntid[0], f->reqntid[1], f->reqntid[2]);
    else if ((int)smem > f->max_dyn)
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: %u B of dynamic shared memory, allowed %d", f->name,
                 smem, f->max_dyn);
    else if (f->regs && ((f->regs + 7) / 8 * 8) * ((threads + 31) / 32 * 32) > 65536)
        r = fail(CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES, "%s: %d registers x %lu threads", f->name,
                 f->regs, threads);
    else if (f->cluster[0] && (gx % f->cluster[0] || gy % f->cluster[1] || gz % f->cluster[2]))
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: grid %u %u %u is no multiple of the cluster",
                 f->name, gx, gy, gz);
    if (!r)
        for (int i = 0; i < f->nparams; i++)
            if (f->params[i].is_ptr) {
                uint64_t p = *(uint64_t *)params[i];
                Alloc *a = p ? find(p) : NULL;
                if (p && (!a || a->card != current_card())) {
                    r = fail(CUDA_ERROR_ILLEGAL_ADDRESS,
                             "%s: argument %d points to %lx, which is not allocated on card %d",
                             f->name, i, p, current_card());
                    break;
                }
            }
    if (!r) {
        total.launches++;
        f->launches++;
        stream_of(st)->clock_ns += duration(f, (uint64_t)gx * gy * gz, params);
        say("L\t%lu\t%u,%u,%u\t%u,%u,%u\t%u\t%lu", f->id, gx, gy, gz, bx, by, bz, smem,
            stream_of(st)->id);
        if (executing && !strstr(f->name, "throughput") && !strstr(f->name, "launch_overhead") &&
            !strstr(f->name, "prime_buffer")) {
            if (!f->module->tried) {
                f->module->tried = 1;
                load_exec(f->module);
            }
            if (f->exec) {
                static char *stacks;
                if (!stacks)
                    stacks = mmap(NULL, 1024ull * 96 * 1024, PROT_READ | PROT_WRITE,
                                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
                unsigned g[3] = {gx, gy, gz}, b[3] = {bx, by, bz};
                struct timespec a, e;
                clock_gettime(CLOCK_MONOTONIC, &a);
                f->exec(params, g, b, smem + f->static_smem + (f->static_smem ? 1024 : 0), stacks);
                clock_gettime(CLOCK_MONOTONIC, &e);
                say("Q\t%lu\t%.3f", f->id,
                    (e.tv_sec - a.tv_sec) * 1e3 + (e.tv_nsec - a.tv_nsec) / 1e6);
            } else r = fail(CUDA_ERROR_UNKNOWN, "%s: not executed (no translation)", f->name);
        }
    }
    pthread_mutex_unlock(&mu);
    return r;
}

CUresult cuLaunchKernelEx(const CUlaunchConfig *c, CUfunction f, void **params, void **extra) {
    return cuLaunchKernel(f, c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY,
                          c->blockDimZ, c->sharedMemBytes, c->hStream, params, extra);
}
