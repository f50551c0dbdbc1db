// libnvrtc.so in front of the real libnvrtc.so.13, for the stand-in driver.
//
// Keeps in NULLCUDA_DIR/sources every source (.cu), its PTX, its cubin if NVRTC made one, and the
// errors (.err), named by a hash of the source, the headers and the options (include paths aside),
// and answers the next time from there (NVRTCSHIM_CACHE=0 compiles again). nvrtc.log has one line
// for each program: process, hash, "cached" or result, CPU and wall milliseconds, bytes, options.
//
// NVRTCSHIM_REAL: path of the real library, if it is not found as libnvrtc.so.13.
// NVRTCSHIM_REFUSE=TEXT: sources with this text fail, so that tuning takes something else.
// NVRTCSHIM_SKIP=N: matmuls without tensor cores whose source is longer than N bytes fail; NVRTC
// takes minutes for some.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

typedef int Result;
enum { COMPILATION_FAILED = 6, INVALID_INPUT = 3 };
typedef const char *const *Strings;
typedef struct Prog {
    void *real;
    char *src;
    uint64_t hash;
    char *ptx, *cubin;
    size_t ptx_size, cubin_size;
    int answered; // without the real library
} Prog;

static void *lib;
static char dir[512];
static int use_cache = 1;
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;

static void *sym(const char *n) {
    pthread_mutex_lock(&mu);
    if (!lib) {
        const char *p = getenv("NVRTCSHIM_REAL");
        lib = dlopen(p ? p : "libnvrtc.so.13", RTLD_NOW);
        if (!lib) {
            fprintf(stderr, "nullcuda: %s\n", dlerror());
            abort();
        }
        const char *d = getenv("NULLCUDA_DIR");
        snprintf(dir, sizeof dir, "%s", d ? d : "/tmp/nullcuda");
        mkdir(dir, 0755);
        char b[600];
        snprintf(b, sizeof b, "%s/sources", dir);
        mkdir(b, 0755);
        snprintf(b, sizeof b, "%s/modules", dir);
        mkdir(b, 0755);
        if ((d = getenv("NVRTCSHIM_CACHE"))) use_cache = atoi(d);
    }
    pthread_mutex_unlock(&mu);
    void *s = dlsym(lib, n);
    if (!s) {
        fprintf(stderr, "nullcuda: libnvrtc has no %s\n", n);
        abort();
    }
    return s;
}
#define REAL(name, ...) ((Result (*)(__VA_ARGS__))sym(name))

static uint64_t fnv(uint64_t h, const char *p, size_t n) {
    for (size_t i = 0; i < n; i++) h = (h ^ (unsigned char)p[i]) * 1099511628211ull;
    return h;
}
static uint64_t fnv_text(uint64_t h, const char *p) { return fnv(h, p, strlen(p) + 1); }
#define FNV_START 1469598103934665603ull

static double ms(clockid_t c) {
    struct timespec a;
    clock_gettime(c, &a);
    return a.tv_sec * 1e3 + a.tv_nsec / 1e6;
}

// NULLCUDA_DIR/FOLDER/HASH.EXT
static void path_of(char *to, size_t room, const char *folder, uint64_t hash, const char *ext) {
    snprintf(to, room, "%s/%s/%016lx.%s", dir, folder, hash, ext);
}
// Written beside its place first, so that another process never sees half of it.
static void put(const char *path, const char *data, size_t n) {
    char tmp[760];
    snprintf(tmp, sizeof tmp, "%s.%d", path, getpid());
    FILE *f = fopen(tmp, "w");
    if (!f) return;
    int good = fwrite(data, 1, n, f) == n;
    if (fclose(f) == 0 && good) rename(tmp, path);
}
static char *take(const char *path, size_t *n) {
    FILE *f = fopen(path, "r");
    if (!f) return NULL;
    fseek(f, 0, SEEK_END);
    *n = ftell(f);
    rewind(f);
    char *b = calloc(1, *n + 1);
    if (fread(b, 1, *n, f) != *n) abort();
    fclose(f);
    return b;
}
__attribute__((format(printf, 1, 2))) static void note(const char *fmt, ...) {
    char path[700];
    snprintf(path, sizeof path, "%s/nvrtc.log", dir);
    FILE *f = fopen(path, "a");
    if (!f) return;
    __builtin_va_list ap;
    __builtin_va_start(ap, fmt);
    vfprintf(f, fmt, ap);
    __builtin_va_end(ap);
    fclose(f);
}

Result nvrtcVersion(int *a, int *b) { return REAL("nvrtcVersion", int *, int *)(a, b); }
const char *nvrtcGetErrorString(Result r) {
    return ((const char *(*)(Result))sym("nvrtcGetErrorString"))(r);
}
Result nvrtcCreateProgram(void **p, const char *src, const char *name, int n, Strings headers,
                          Strings names) {
    Prog *q = calloc(1, sizeof *q);
    q->src = strdup(src);
    q->hash = fnv_text(FNV_START, src);
    for (int i = 0; i < n; i++) q->hash = fnv_text(fnv_text(q->hash, names[i]), headers[i]);
    Result r = REAL("nvrtcCreateProgram", void **, const char *, const char *, int, Strings,
                    Strings)(&q->real, src, name, n, headers, names);
    *p = q;
    return r;
}
Result nvrtcDestroyProgram(void **p) {
    Prog *q = *p;
    Result r = REAL("nvrtcDestroyProgram", void **)(&q->real);
    free(q->src);
    free(q->ptx);
    free(q->cubin);
    free(q);
    *p = NULL;
    return r;
}

// Says to the stand-in driver which PTX a cubin was made from: a file named by the cubin's hash.
static void tell_origin(Prog *q, const char *ptx_path) {
    if (q->cubin_size < 64) return;
    const char *e = q->cubin; // an ELF file: up to the end of its section headers
    size_t n = *(uint64_t *)(e + 0x28) + (size_t)*(uint16_t *)(e + 0x3a) * *(uint16_t *)(e + 0x3c);
    char path[700];
    if (n > q->cubin_size) return;
    path_of(path, sizeof path, "modules", fnv(FNV_START, e, n), "of");
    put(path, ptx_path, strlen(ptx_path));
}

Result nvrtcCompileProgram(void *p, int n, Strings options) {
    Prog *q = p;
    char path[700];
    sym("nvrtcVersion"); // finds the folder
    // A GPU (sm_90a) makes a cubin as well, an architecture (compute_90a) only PTX.
    int cubin_wanted = 0;
    for (int i = 0; i < n; i++) {
        if (strstr(options[i], "sm_")) cubin_wanted = 1;
        if (strncmp(options[i], "-I", 2) && strncmp(options[i], "--include-path", 14))
            q->hash = fnv_text(q->hash, options[i]);
    }
    path_of(path, sizeof path, "sources", q->hash, "cu");
    if (access(path, R_OK)) put(path, q->src, strlen(q->src));
    const char *refuse = getenv("NVRTCSHIM_REFUSE"), *skip = getenv("NVRTCSHIM_SKIP");
    if ((refuse && strstr(q->src, refuse)) ||
        (skip && strlen(q->src) > strtoul(skip, 0, 10) && strstr(q->src, "matmul_entry") &&
         !strstr(q->src, "mma"))) {
        note("%d\t%016lx\tskipped\t%zu\n", getpid(), q->hash, strlen(q->src));
        q->answered = 1;
        return COMPILATION_FAILED;
    }
    char ptx_path[700], cubin_path[700];
    path_of(ptx_path, sizeof ptx_path, "sources", q->hash, "ptx");
    path_of(cubin_path, sizeof cubin_path, "sources", q->hash, "cubin");
    if (use_cache && (q->ptx = take(ptx_path, &q->ptx_size))) {
        q->ptx_size++; // with the 0 behind it
        if (cubin_wanted) q->cubin = take(cubin_path, &q->cubin_size);
        if (!cubin_wanted || q->cubin) {
            tell_origin(q, ptx_path);
            q->answered = 1;
            note("%d\t%016lx\tcached\n", getpid(), q->hash);
            return 0;
        }
        free(q->ptx);
        q->ptx = NULL;
    }
    double cpu = ms(CLOCK_THREAD_CPUTIME_ID), wall = ms(CLOCK_MONOTONIC);
    Result r = REAL("nvrtcCompileProgram", void *, int, Strings)(q->real, n, options);
    char joined[1600] = "";
    size_t at = 0;
    for (int i = 0; i < n && at < sizeof joined - 1; i++)
        at += snprintf(joined + at, sizeof joined - at, " %s", options[i]);
    note("%d\t%016lx\t%d\t%.1f\t%.1f\t%zu\t%s\n", getpid(), q->hash, r,
         ms(CLOCK_THREAD_CPUTIME_ID) - cpu, ms(CLOCK_MONOTONIC) - wall, strlen(q->src), joined);
    if (r) {
        size_t k = 0;
        REAL("nvrtcGetProgramLogSize", void *, size_t *)(q->real, &k);
        char *b = calloc(1, k + 1);
        REAL("nvrtcGetProgramLog", void *, char *)(q->real, b);
        path_of(path, sizeof path, "sources", q->hash, "err");
        put(path, b, strlen(b));
        free(b);
        return r;
    }
    REAL("nvrtcGetPTXSize", void *, size_t *)(q->real, &q->ptx_size);
    q->ptx = calloc(1, q->ptx_size + 1);
    REAL("nvrtcGetPTX", void *, char *)(q->real, q->ptx);
    put(ptx_path, q->ptx, strlen(q->ptx));
    size_t size = 0;
    if (cubin_wanted && !REAL("nvrtcGetCUBINSize", void *, size_t *)(q->real, &size) && size) {
        q->cubin_size = size;
        q->cubin = calloc(1, size);
        REAL("nvrtcGetCUBIN", void *, char *)(q->real, q->cubin);
        put(cubin_path, q->cubin, size);
        tell_origin(q, ptx_path);
    }
    return 0;
}
Result nvrtcGetPTXSize(void *p, size_t *s) {
    Prog *q = p;
    *s = q->ptx_size;
    return q->ptx ? 0 : INVALID_INPUT;
}
Result nvrtcGetPTX(void *p, char *s) {
    Prog *q = p;
    if (!q->ptx) return INVALID_INPUT;
    memcpy(s, q->ptx, q->ptx_size);
    return 0;
}
Result nvrtcGetCUBINSize(void *p, size_t *s) {
    Prog *q = p;
    *s = q->cubin_size;
    return q->ptx ? 0 : INVALID_INPUT;
}
Result nvrtcGetCUBIN(void *p, char *s) {
    Prog *q = p;
    if (!q->cubin) return INVALID_INPUT;
    memcpy(s, q->cubin, q->cubin_size);
    return 0;
}
Result nvrtcGetProgramLogSize(void *p, size_t *s) {
    Prog *q = p;
    *s = 1;
    if (q->answered) return 0;
    return REAL("nvrtcGetProgramLogSize", void *, size_t *)(q->real, s);
}
Result nvrtcGetProgramLog(void *p, char *s) {
    Prog *q = p;
    *s = 0;
    if (q->answered) return 0;
    return REAL("nvrtcGetProgramLog", void *, char *)(q->real, s);
}
