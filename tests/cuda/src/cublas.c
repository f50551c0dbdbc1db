// libcublas.so for the stand-in driver: matrix products on the CPU.
//
// What comes in: the calls of cuBLAS that a trainer makes (cublasGemmEx and its strided batched
// form, column-major matrices of bf16 or fp32, fp32 accumulation). Pointers to "device" memory are
// host pointers here, because the stand-in driver in nullcuda.c allocates host memory.
//
// In executing mode (NULLCUDA_EXEC=1) the product is computed before the call returns, in the order
// of the launches around it, because the stand-in driver runs kernels at launch. Each element of C
// is summed over k in one order in fp32, then rounded once. In recording mode nothing is computed.
//
// Every product is written as a line "G" to the stand-in driver's log, if that driver is loaded,
// and to the file that NULLCUDA_CUBLAS_LOG names, if it is set:
//   G  stream  m n k batch  transposes  types of A, B, C  [addresses of A B C and strides in the
//   second]
//
// Types of compute: 32F and 32F_PEDANTIC in fp32; 32F_FAST_TF32, or 32F with the handle's math mode
// TF32_TENSOR_OP_MATH, round fp32 inputs to tf32 first. -DNO_TF32 turns that rounding off.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

typedef int Status;
enum { SUCCESS = 0, NOT_INITIALIZED = 1, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { R_32F = 0, R_16BF = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32F_PEDANTIC = 69, COMPUTE_32F_FAST_TF32 = 77 };
enum { MATH_MODE_TF32 = 3, MATH_MODE_BITS = 15 };

typedef struct Handle {
    uint32_t magic;
    void *stream;
    int math_mode, pointer_mode;
    uint64_t calls;
} Handle;
#define MAGIC 0xb1a5b1a5u

static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;
static int begun, executing, verbose;
static FILE *own_log;
static uint64_t total_calls;
static double total_flops;
// Optional functions of the stand-in driver.
static void (*driver_product)(void *stream, const char *text);
static void (*driver_refused)(const char *text);
static int (*driver_in_allocation)(const void *at, size_t bytes);

static void begin(void) {
    if (begun) return;
    begun = 1;
    const char *v;
    if ((v = getenv("NULLCUDA_EXEC"))) executing = atoi(v);
    if ((v = getenv("NULLCUDA_VERBOSE"))) verbose = atoi(v);
    if ((v = getenv("NULLCUDA_CUBLAS_LOG")) && (own_log = fopen(v, "w")))
        setvbuf(own_log, NULL, _IOFBF, 1 << 16);
    void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (!driver) driver = dlopen("libcuda.so", RTLD_NOW | RTLD_NOLOAD);
    if (driver) {
        driver_product = (void (*)(void *, const char *))dlsym(driver, "nullcuda_product");
        driver_refused = (void (*)(const char *))dlsym(driver, "nullcuda_refused");
        driver_in_allocation =
            (int (*)(const void *, size_t))dlsym(driver, "nullcuda_in_allocation");
    }
}

__attribute__((destructor)) static void stop(void) {
    if (own_log) fclose(own_log);
    if (begun && verbose)
        fprintf(stderr, "nullcuda: matrix products %lu, %.3g flop%s\n", total_calls, total_flops,
                executing ? "" : " (recorded only)");
}

// ------------------------------------------------------------------------------ numbers
static inline float float_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}
static inline uint32_t bits_of_float(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}
static inline float from_bf16(uint16_t v) { return float_of_bits((uint32_t)v << 16); }
static inline uint16_t to_bf16(float f) { // to nearest, ties to even
    uint32_t u = bits_of_float(f);
    if ((u & 0x7fffffff) > 0x7f800000) return 0x7fff;
    return (uint16_t)((u + 0x7fff + ((u >> 16) & 1)) >> 16);
}
static inline float to_tf32(float f) { // to nearest, ties away from zero
    uint32_t u = bits_of_float(f);
    if ((u & 0x7f800000) == 0x7f800000) return f;
    return float_of_bits((u + 0x1000) & ~0x1fffu);
}
static inline float element(const void *p, int type, size_t at) {
    return type == R_16BF ? from_bf16(((const uint16_t *)p)[at]) : ((const float *)p)[at];
}

// ------------------------------------------------------------------------------ the product
// C is made in blocks of MC x NC, a block in tiles of MR x NR that stay in registers over all of k.
enum { MR = 32, NR = 6, MC = 256, NC = 252, LANES = 16, VECTORS = MR / LANES };
typedef float Vec __attribute__((vector_size(LANES * 4)));

// Panels of `width` rows of a matrix X (rows x k): panel p holds X(p * width + i, l) at l * width +
// i; rows that do not exist are zero. `along_rows` is the step in memory from one row to the next.
static void pack(float *to, int width, const void *x, int type, size_t along_rows, size_t along_k,
                 int rows, int k, int tf32) {
    for (int p = 0; p < rows; p += width, to += (size_t)width * k) {
        int have = rows - p < width ? rows - p : width;
        if (have < width) memset(to, 0, (size_t)width * k * 4);
        size_t from = (size_t)p * along_rows;
        if (along_rows == 1)
            for (int l = 0; l < k; l++)
                for (int i = 0; i < have; i++)
                    to[(size_t)l * width + i] = element(x, type, from + l * along_k + i);
        else
            for (int i = 0; i < have; i++)
                for (int l = 0; l < k; l++)
                    to[(size_t)l * width + i] =
                        element(x, type, from + i * along_rows + l * along_k);
        if (tf32)
            for (size_t i = 0; i < (size_t)width * k; i++) to[i] = to_tf32(to[i]);
    }
}

static void tile(const float *a, const float *b, int k, float *out) {
    Vec sum[NR][VECTORS];
    for (int j = 0; j < NR; j++)
        for (int v = 0; v < VECTORS; v++) sum[j][v] = (Vec){0};
    for (int l = 0; l < k; l++, a += MR, b += NR) {
        Vec av[VECTORS];
        for (int v = 0; v < VECTORS; v++) memcpy(&av[v], a + v * LANES, sizeof(Vec));
        for (int j = 0; j < NR; j++)
            for (int v = 0; v < VECTORS; v++) sum[j][v] += av[v] * b[j];
    }
    memcpy(out, sum, sizeof sum);
}

typedef struct Matrix {
    const void *at;
    int type, transposed, ld;
} Matrix;

static void product(int m, int n, int k, float alpha, Matrix a, Matrix b, float beta, void *c,
                    int ctype, int ldc, int tf32) {
    size_t a_rows = a.transposed ? a.ld : 1, a_k = a.transposed ? 1 : a.ld;
    size_t b_cols = b.transposed ? 1 : b.ld, b_k = b.transposed ? b.ld : 1;
    static __thread float *pa, *pb;
    static __thread size_t room;
    if (room < (size_t)k + 1) {
        free(pa);
        free(pb);
        room = (size_t)k + 1;
        pa = aligned_alloc(64, room * MC * 4);
        pb = aligned_alloc(64, (room * NC * 4 + 63) / 64 * 64);
        if (!pa || !pb) abort();
    }
    for (int i0 = 0; i0 < m; i0 += MC) {
        int mc = m - i0 < MC ? m - i0 : MC;
        size_t size = a.type == R_16BF ? 2 : 4;
        pack(pa, MR, (const char *)a.at + i0 * a_rows * size, a.type, a_rows, a_k, mc, k, tf32);
        for (int j0 = 0; j0 < n; j0 += NC) {
            int nc = n - j0 < NC ? n - j0 : NC;
            size = b.type == R_16BF ? 2 : 4;
            pack(pb, NR, (const char *)b.at + j0 * b_cols * size, b.type, b_cols, b_k, nc, k, tf32);
            for (int j = 0; j < nc; j += NR)
                for (int i = 0; i < mc; i += MR) {
                    float out[NR * MR] __attribute__((aligned(64)));
                    tile(pa + (size_t)i * k, pb + (size_t)j * k, k, out);
                    for (int jj = 0; jj < NR && j + jj < nc; jj++)
                        for (int ii = 0; ii < MR && i + ii < mc; ii++) {
                            size_t at = (size_t)(j0 + j + jj) * ldc + i0 + i + ii;
                            float v = alpha * out[jj * MR + ii];
                            // As in cuBLAS, C is not read if beta is 0.
                            if (beta != 0) v += beta * element(c, ctype, at);
                            if (ctype == R_16BF) ((uint16_t *)c)[at] = to_bf16(v);
                            else ((float *)c)[at] = v;
                        }
                }
        }
    }
}

static const char *type_name(int t) { return t == R_16BF ? "bf16" : t == R_32F ? "fp32" : "?"; }

static Status refuse(Status s, const char *what, const char *text) {
    fprintf(stderr, "nullcuda: cuBLAS refuses %s: %s\n", text, what);
    if (driver_refused) {
        char line[400];
        snprintf(line, sizeof line, "%s: %s", what, text);
        driver_refused(line);
    }
    return s;
}

// Bytes from the first to behind the last element of `batch` column-major matrices.
static size_t extent(int rows, int cols, int ld, int type, int batch, long long stride) {
    size_t elements = (size_t)ld * (cols - 1) + rows + (size_t)(batch - 1) * stride;
    return elements * (type == R_16BF ? 2 : 4);
}

static Status gemm(Handle *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                   int at, int lda, long long sa, const void *b, int bt, int ldb, long long sb,
                   const void *beta, void *c, int ct, int ldc, long long sc, int batch,
                   int compute) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    pthread_mutex_lock(&mu);
    begin();
    char text[320];
    snprintf(text, sizeof text, "%d\t%d\t%d\t%d\t%c%c\t%s,%s,%s", m, n, k, batch, ta ? 'T' : 'N',
             tb ? 'T' : 'N', type_name(at), type_name(bt), type_name(ct));
    Status r = SUCCESS;
    int a_rows = ta ? k : m, a_cols = ta ? m : k, b_rows = tb ? n : k, b_cols = tb ? k : n;
    int types = (at == R_16BF && bt == R_16BF && (ct == R_16BF || ct == R_32F)) ||
                (at == R_32F && bt == R_32F && ct == R_32F);
    if (ta < 0 || ta > 2 || tb < 0 || tb > 2) r = refuse(INVALID_VALUE, "transposition", text);
    else if (m < 0 || n < 0 || k < 0 || batch < 0) r = refuse(INVALID_VALUE, "a size", text);
    else if (lda < (a_rows > 1 ? a_rows : 1)) r = refuse(INVALID_VALUE, "lda is too small", text);
    else if (ldb < (b_rows > 1 ? b_rows : 1)) r = refuse(INVALID_VALUE, "ldb is too small", text);
    else if (ldc < (m > 1 ? m : 1)) r = refuse(INVALID_VALUE, "ldc is too small", text);
    else if (!alpha || !beta) r = refuse(INVALID_VALUE, "alpha or beta is null", text);
    else if (!types) r = refuse(NOT_SUPPORTED, "these types", text);
    else if (compute != COMPUTE_32F && compute != COMPUTE_32F_PEDANTIC &&
             compute != COMPUTE_32F_FAST_TF32)
        r = refuse(NOT_SUPPORTED, "the type of compute (only fp32 and tf32)", text);
    else if (batch > 1 && sc < (long long)ldc * (n - 1) + m)
        r = refuse(INVALID_VALUE, "matrices C of the batch overlap", text);
    int empty = !m || !n || !batch;
    if (!r && !empty && driver_in_allocation) {
        if (k && !driver_in_allocation(a, extent(a_rows, a_cols, lda, at, batch, sa)))
            r = refuse(INVALID_VALUE, "A goes past an allocation", text);
        else if (k && !driver_in_allocation(b, extent(b_rows, b_cols, ldb, bt, batch, sb)))
            r = refuse(INVALID_VALUE, "B goes past an allocation", text);
        else if (!driver_in_allocation(c, extent(m, n, ldc, ct, batch, sc)))
            r = refuse(INVALID_VALUE, "C goes past an allocation", text);
    }
    if (r || empty) {
        pthread_mutex_unlock(&mu);
        return r;
    }
    h->calls++;
    total_calls++;
    total_flops += 2.0 * m * n * k * batch;
    if (driver_product) driver_product(h->stream, text);
    if (own_log) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        fprintf(own_log, "%.3f\tG\t%s\t%p %p %p\t%lld %lld %lld\n",
                now.tv_sec * 1e3 + now.tv_nsec / 1e6, text, a, b, c, sa, sb, sc);
    }
    pthread_mutex_unlock(&mu);
    if (!executing) return SUCCESS;
    int tf32 = at == R_32F &&
               (compute == COMPUTE_32F_FAST_TF32 ||
                (compute == COMPUTE_32F && (h->math_mode & MATH_MODE_BITS) == MATH_MODE_TF32));
#ifdef NO_TF32
    tf32 = 0;
#endif
    for (long long i = 0; i < batch; i++) {
        size_t in = at == R_16BF ? 2 : 4, out = ct == R_16BF ? 2 : 4;
        Matrix left = {(const char *)a + i * sa * (long long)in, at, ta != 0, lda};
        Matrix right = {(const char *)b + i * sb * (long long)in, bt, tb != 0, ldb};
        product(m, n, k, *(const float *)alpha, left, right, *(const float *)beta,
                (char *)c + i * sc * (long long)out, ct, ldc, tf32);
    }
    return SUCCESS;
}

// ------------------------------------------------------------------------------ the library's face
Status cublasCreate_v2(Handle **out) {
    if (!out) return INVALID_VALUE;
    pthread_mutex_lock(&mu);
    begin();
    pthread_mutex_unlock(&mu);
    Handle *h = calloc(1, sizeof *h);
    h->magic = MAGIC;
    *out = h;
    return SUCCESS;
}
Status cublasDestroy_v2(Handle *h) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    h->magic = 0;
    free(h);
    return SUCCESS;
}
Status cublasSetStream_v2(Handle *h, void *stream) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    h->stream = stream;
    return SUCCESS;
}
Status cublasGetStream_v2(Handle *h, void **stream) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    *stream = h->stream;
    return SUCCESS;
}
// As the real library: the workspace must be aligned to 256 bytes.
Status cublasSetWorkspace_v2(Handle *h, void *at, size_t bytes) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    if ((uintptr_t)at % 256 || (bytes && !at)) return INVALID_VALUE;
    pthread_mutex_lock(&mu);
    begin();
    int good = !bytes || !driver_in_allocation || driver_in_allocation(at, bytes);
    pthread_mutex_unlock(&mu);
    return good ? SUCCESS : INVALID_VALUE;
}
Status cublasSetMathMode(Handle *h, int mode) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    h->math_mode = mode;
    return SUCCESS;
}
Status cublasGetMathMode(Handle *h, int *mode) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    *mode = h->math_mode;
    return SUCCESS;
}
// Host and device pointers are the same here, so either mode reads alpha and beta alike.
Status cublasSetPointerMode_v2(Handle *h, int mode) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    h->pointer_mode = mode;
    return SUCCESS;
}
Status cublasGetPointerMode_v2(Handle *h, int *mode) {
    if (!h || h->magic != MAGIC) return NOT_INITIALIZED;
    *mode = h->pointer_mode;
    return SUCCESS;
}
Status cublasSetAtomicsMode(Handle *h, int mode) {
    (void)mode;
    return h && h->magic == MAGIC ? SUCCESS : NOT_INITIALIZED;
}
Status cublasGetVersion_v2(Handle *h, int *version) {
    (void)h;
    *version = 130000;
    return SUCCESS;
}
const char *cublasGetStatusName(Status s) {
    switch (s) {
    case SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    default: return "CUBLAS_STATUS_INTERNAL_ERROR";
    }
}
const char *cublasGetStatusString(Status s) { return cublasGetStatusName(s); }

Status cublasGemmEx(Handle *h, int ta, int tb, int m, int n, int k, const void *alpha,
                    const void *a, int at, int lda, const void *b, int bt, int ldb,
                    const void *beta, void *c, int ct, int ldc, int compute, int algo) {
    (void)algo;
    return gemm(h, ta, tb, m, n, k, alpha, a, at, lda, 0, b, bt, ldb, 0, beta, c, ct, ldc, 0, 1,
                compute);
}
Status cublasGemmStridedBatchedEx(Handle *h, int ta, int tb, int m, int n, int k, const void *alpha,
                                  const void *a, int at, int lda, long long sa, const void *b,
                                  int bt, int ldb, long long sb, const void *beta, void *c, int ct,
                                  int ldc, long long sc, int batch, int compute, int algo) {
    (void)algo;
    return gemm(h, ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb, sb, beta, c, ct, ldc, sc,
                batch, compute);
}
Status cublasSgemm_v2(Handle *h, int ta, int tb, int m, int n, int k, const float *alpha,
                      const float *a, int lda, const float *b, int ldb, const float *beta, float *c,
                      int ldc) {
    return gemm(h, ta, tb, m, n, k, alpha, a, R_32F, lda, 0, b, R_32F, ldb, 0, beta, c, R_32F, ldc,
                0, 1, COMPUTE_32F);
}
