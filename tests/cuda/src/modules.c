// Modules: PTX is parsed for its kernels' parameters and limits, assembled by ptxas if that is
// there, and translated to C and loaded in executing mode.
#include "driver.h"
#include <dlfcn.h>
#include <sys/wait.h>

static uint64_t next_func = 1;

static int count(const char *p, const char *what) {
    int n = 0;
    for (size_t l = strlen(what); (p = strstr(p, what)); p += l) n++;
    return n;
}
static int run(const char *cmd) {
    int r = system(cmd);
    return WIFEXITED(r) ? WEXITSTATUS(r) : 255;
}

// registers and so on as ptxas says them; kept in <hash>.ptxas
static void assemble(Module *m) {
    char base[700], cmd[2200], line[4096];
    snprintf(base, sizeof base, "%s/modules/%016lx", dir, m->hash);
    char info[720];
    snprintf(info, sizeof info, "%s.ptxas", base);
    if (access(info, R_OK) && ptxas) {
        struct timespec a, b;
        clock_gettime(CLOCK_MONOTONIC, &a);
        // Named by the process first: others may assemble the same module at the same time.
        int n = getpid();
        snprintf(cmd, sizeof cmd,
                 "%s -v -arch=sm_90a -lineinfo %s.ptx -o %s.%d > %s.%d 2>&1; echo exit $? >> %s.%d",
                 ptxas, base, base, n, info, n, info, n);
        run(cmd);
        clock_gettime(CLOCK_MONOTONIC, &b);
        snprintf(cmd, sizeof cmd,
                 "echo ms %.1f >> %s.%d; mv %s.%d %s; [ ! -f %s.%d ] || mv %s.%d %s.cubin",
                 (b.tv_sec - a.tv_sec) * 1e3 + (b.tv_nsec - a.tv_nsec) / 1e6, info, n, info, n,
                 info, base, n, base, n, base);
        run(cmd);
    }
    FILE *f = fopen(info, "r");
    if (!f) return;
    Func *fn = m->funcs;
    while (fgets(line, sizeof line, f)) {
        char *q;
        int x, y, z;
        if ((q = strstr(line, "Compiling entry function '"))) {
            q += 26;
            for (fn = m->funcs; fn; fn = fn->next)
                if (!strncmp(q, fn->name, strlen(fn->name)) && q[strlen(fn->name)] == '\'') break;
        } else if (fn && (q = strstr(line, "bytes stack frame"))) {
            if (sscanf(line, " %d bytes stack frame, %d bytes spill stores, %d bytes spill loads",
                       &x, &y, &z) == 3)
                fn->lmem = x, fn->spill_st = y, fn->spill_ld = z;
        } else if (fn && (q = strstr(line, "Used "))) {
            fn->regs = atoi(q + 5);
        }
    }
    fclose(f);
}

// An argument is a pointer if the kernel converts it, as loaded, to a global address:
//   ld.param.u64 %rd1, [name_param_0];  ...  cvta.to.global.u64 %rd2, %rd1;
static void mark_pointers(Func *f, const char *body) {
    const char *end = strstr(body, "\n}");
    if (!end) return;
    for (const char *q = body; (q = strstr(q, "ld.param.")) && q < end; q++) {
        char reg[32], name[512], use[64];
        const char *comma;
        if (sscanf(q, "ld.param.%*[usb]64 %31[^,], [%511[^]+]]", reg, name) != 2) continue;
        if (!(comma = strstr(name, "_param_")) || strncmp(name, f->name, comma - name)) continue;
        int i = atoi(comma + 7);
        if (i < 0 || i >= f->nparams) continue;
        snprintf(use, sizeof use, ", %s;", reg);
        for (const char *c = q; (c = strstr(c, "cvta.to.global.u64")) && c < end; c++) {
            const char *at = strchr(c, ',');
            if (at && !strncmp(at, use, strlen(use))) f->params[i].is_ptr = 1;
        }
    }
}

// Bytes of the module's shared variables that the body of a kernel names.
static int shared_of(const char *ptx, const char *body) {
    const char *end = strstr(body, "\n}");
    int total = 0;
    for (const char *q = ptx; (q = strstr(q, ".shared .align ")); q++) {
        char name[512];
        int bytes;
        if (sscanf(q, ".shared .align %*d .b8 %511[^[][%d]", name, &bytes) != 2) continue;
        size_t n = strlen(name);
        for (const char *use = body; (use = strstr(use, name)) && (!end || use < end); use += n) {
            // not a part of a longer name
            char after = use[n];
            if (after == '_' || after == '$' || (after >= '0' && after <= '9') ||
                (after >= 'a' && after <= 'z') || (after >= 'A' && after <= 'Z'))
                continue;
            total += bytes;
            break;
        }
    }
    return total;
}

static void parse(Module *m) {
    const char *p = m->ptx;
    int static_smem = 0;
    // module-level shared memory
    for (const char *q = p; (q = strstr(q, ".shared .align ")); q++) {
        const char *nl = strchr(q, '\n');
        const char *lb = memchr(q, '[', nl ? (size_t)(nl - q) : strlen(q));
        if (lb && lb[1] != ']') {
            int bytes = atoi(lb + 1);
            if (strstr(q, ".b8 ") == NULL) bytes *= 1;
            static_smem += bytes;
        }
    }
    while ((p = strstr(p, ".entry "))) {
        p += 7;
        Func *f = calloc(1, sizeof *f);
        size_t n = strcspn(p, "( \n");
        f->name = strndup(p, n);
        f->module = m;
        f->id = next_func++;
        f->static_smem = static_smem;
        const char *end = strstr(p, "\n{");
        if (!end) end = p + strlen(p);
        f->used_smem = shared_of(m->ptx, end);
        f->max_dyn = 49152 - f->used_smem;
        for (const char *q = p; q && q < end;) {
            q = strstr(q, ".param ");
            if (!q || q >= end) break;
            const char *nl = strpbrk(q, ",\n)");
            // ".param .align 64 .b8 name[128]" or ".param .u64 name"
            Param *pa = &f->params[f->nparams++];
            pa->is_ptr = 0; // 64-bit numbers look alike here: see mark_pointers
            const char *lb = memchr(q, '[', nl - q);
            int unit = 1;
            if (strncmp(q + 7, ".align", 6) == 0) {
                pa->align = atoi(q + 14);
                unit = 1;
            } else {
                const char *d = q + 7;
                unit = (strncmp(d, ".u64", 4) == 0 || strncmp(d, ".b64", 4) == 0 ||
                        strncmp(d, ".s64", 4) == 0 || strncmp(d, ".f64", 4) == 0)
                           ? 8
                       : (strncmp(d, ".u32", 4) == 0 || strncmp(d, ".b32", 4) == 0 ||
                          strncmp(d, ".s32", 4) == 0 || strncmp(d, ".f32", 4) == 0)
                           ? 4
                       : (strncmp(d, ".u16", 4) == 0 || strncmp(d, ".b16", 4) == 0) ? 2
                                                                                    : 1;
                pa->align = unit;
            }
            pa->size = lb ? atoi(lb + 1) * unit : unit;
            q = nl;
        }
        mark_pointers(f, end);
        const char *q;
        if ((q = strstr(p, ".maxntid ")) && q < end) {
            int x = 1, y = 1, z = 1;
            sscanf(q + 9, "%d, %d, %d", &x, &y, &z);
            f->maxntid = x * y * z;
        }
        if ((q = strstr(p, ".reqntid ")) && q < end) {
            f->has_req = 1;
            f->reqntid[0] = f->reqntid[1] = f->reqntid[2] = 1;
            sscanf(q + 9, "%d, %d, %d", &f->reqntid[0], &f->reqntid[1], &f->reqntid[2]);
        }
        if ((q = strstr(p, ".reqnctapercluster ")) && q < end) {
            f->cluster[0] = f->cluster[1] = f->cluster[2] = 1;
            sscanf(q + 19, "%d, %d, %d", &f->cluster[0], &f->cluster[1], &f->cluster[2]);
        }
        f->uses_wgmma = count(m->ptx, "wgmma.mma");
        f->uses_wmma = count(m->ptx, "wmma.mma");
        f->uses_mma = count(m->ptx, "\tmma.sync") + count(m->ptx, " mma.sync");
        f->uses_tma = count(m->ptx, "cp.async.bulk.tensor");
        f->uses_cpasync = count(m->ptx, "cp.async.c");
        f->uses_ldmatrix = count(m->ptx, "ldmatrix.");
        f->uses_f64 = count(m->ptx, ".f64");
        f->uses_atom = count(m->ptx, "atom.") + count(m->ptx, "red.");
        f->uses_shfl = count(m->ptx, "shfl.");
        f->next = m->funcs;
        m->funcs = f;
    }
}

void load_exec(Module *m) {
    char base[700], so[720], cmd[2400];
    const char *tool = getenv("NULLCUDA_PTX2C");
    snprintf(base, sizeof base, "%s/modules/%016lx", dir, m->hash);
    snprintf(so, sizeof so, "%s.so", base);
    if (access(so, R_OK) && tool) {
        snprintf(cmd, sizeof cmd, "%s %s.ptx %s.%d.exec.c %s.so > %s.exec.log 2>&1", tool, base,
                 base, getpid(), base, base);
        if (run(cmd)) {
            fail(CUDA_ERROR_UNKNOWN, "ptx2c failed for %s.ptx, see %s.exec.log", base, base);
            return;
        }
    }
    m->so = dlopen(so, RTLD_NOW | RTLD_LOCAL);
    if (!m->so) {
        fail(CUDA_ERROR_UNKNOWN, "%s", dlerror());
        return;
    }
    for (Func *f = m->funcs; f; f = f->next) {
        char sym[4200];
        snprintf(sym, sizeof sym, "nullcuda_run_%s", f->name);
        f->exec = (void (*)(void *const *, const unsigned *, const unsigned *, unsigned,
                            char *))dlsym(m->so, sym);
    }
}

CUresult cuModuleLoadData(CUmodule *out, const void *image) {
    pthread_mutex_lock(&mu);
    const char *ptx = image;
    if (memcmp(ptx, "\177ELF", 4) == 0) {
        // a cubin: a file named by its hash says which PTX it was made from
        char key[800];
        size_t elf = *(uint64_t *)(ptx + 0x28) +
                     (size_t)*(uint16_t *)(ptx + 0x3a) * *(uint16_t *)(ptx + 0x3c);
        snprintf(key, sizeof key, "%s/modules/%016lx.of", dir, fnv(ptx, elf));
        FILE *f = fopen(key, "r");
        char *text = NULL;
        if (f) {
            char at[800] = "";
            if (fgets(at, sizeof at, f)) {
                at[strcspn(at, "\n")] = 0;
                FILE *g = fopen(at, "r");
                if (g) {
                    fseek(g, 0, SEEK_END);
                    long n = ftell(g);
                    rewind(g);
                    text = calloc(1, n + 1);
                    if (fread(text, 1, n, g) != (size_t)n) abort();
                    fclose(g);
                }
            }
            fclose(f);
        }
        if (!text) {
            pthread_mutex_unlock(&mu);
            return fail(CUDA_ERROR_INVALID_IMAGE, "a cubin whose PTX is not known here");
        }
        ptx = text;
    }
    Module *m = calloc(1, sizeof *m);
    m->len = strlen(ptx);
    m->ptx = strdup(ptx);
    m->hash = fnv(ptx, m->len);
    char path[800];
    snprintf(path, sizeof path, "%s/modules/%016lx.ptx", dir, m->hash);
    if (access(path, R_OK)) {
        char own[820];
        snprintf(own, sizeof own, "%s.%d", path, getpid());
        FILE *f = fopen(own, "w");
        if (f) {
            fwrite(ptx, 1, m->len, f);
            fclose(f);
            rename(own, path);
        }
    }
    parse(m);
    assemble(m);
    total.modules++;
    for (Func *f = m->funcs; f; f = f->next) {
        say("M\t%lu\t%016lx\t%s\tregs %d spill %d/%d stack %d static %d maxntid %d req %d cluster "
            "%d params %d mma %d wmma %d wgmma %d tma %d cpasync %d ldmatrix %d f64 %d atom %d "
            "shfl %d",
            f->id, m->hash, f->name, f->regs, f->spill_st, f->spill_ld, f->lmem, f->used_smem,
            f->maxntid, f->has_req ? f->reqntid[0] * f->reqntid[1] * f->reqntid[2] : 0,
            f->cluster[0] * f->cluster[1] * f->cluster[2], f->nparams, f->uses_mma, f->uses_wmma,
            f->uses_wgmma, f->uses_tma, f->uses_cpasync, f->uses_ldmatrix, f->uses_f64,
            f->uses_atom, f->uses_shfl);
    }
    *out = (CUmodule)m;
    pthread_mutex_unlock(&mu);
    return CUDA_SUCCESS;
}
CUresult cuModuleUnload(CUmodule m) {
    (void)m;
    return CUDA_SUCCESS;
}
CUresult cuModuleGetFunction(CUfunction *out, CUmodule mod, const char *name) {
    for (Func *f = ((Module *)mod)->funcs; f; f = f->next)
        if (!strcmp(f->name, name)) {
            *out = (CUfunction)f;
            return CUDA_SUCCESS;
        }
    return fail(CUDA_ERROR_NOT_FOUND, "no function %s in the module", name);
}
CUresult cuFuncSetAttribute(CUfunction fn, CUfunction_attribute a, int v) {
    Func *f = (Func *)fn;
    if (a == CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES) {
        if (v < 0 || v + f->used_smem > 232448) {
            return fail(CUDA_ERROR_INVALID_VALUE,
                        "%s: %d B of dynamic + %d B of static shared memory, limit 232448", f->name,
                        v, f->used_smem);
        }
        f->max_dyn = v > 49152 - f->used_smem ? v : 49152 - f->used_smem;
    }
    return CUDA_SUCCESS;
}
CUresult cuFuncGetAttribute(int *v, CUfunction_attribute a, CUfunction fn) {
    Func *f = (Func *)fn;
    switch ((int)a) {
    case CU_FUNC_ATTRIBUTE_NUM_REGS: *v = f->regs; break;
    case CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK: *v = f->maxntid ? f->maxntid : 1024; break;
    case CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES: *v = f->used_smem; break;
    default: *v = 0;
    }
    return CUDA_SUCCESS;
}
CUresult cuModuleLoadDataEx(CUmodule *out, const void *image, unsigned n, CUjit_option *o,
                            void **v) {
    (void)n;
    (void)o;
    (void)v;
    return cuModuleLoadData(out, image);
}
CUresult cuFuncSetCacheConfig(CUfunction f, CUfunc_cache c) {
    (void)f;
    (void)c;
    return CUDA_SUCCESS;
}
// Blocks of a kernel that one multiprocessor holds, by threads, registers and shared memory.
CUresult cuOccupancyMaxActiveBlocksPerMultiprocessor(int *out, CUfunction fn, int threads,
                                                     size_t shared_bytes) {
    Func *f = (Func *)fn;
    int warps = (threads + 31) / 32, n = 2048 / (warps * 32),
        shared = (int)shared_bytes + f->used_smem + 1024;
    int regs = (f->regs ? (f->regs + 7) / 8 * 8 : 32) * warps * 32;
    if (n > 32) n = 32;
    if (n > 65536 / regs) n = 65536 / regs;
    if (n > 233472 / shared) n = 233472 / shared;
    *out = n;
    return CUDA_SUCCESS;
}
