// Tensor maps (TMA), checked by the rules of cuTensorMapEncodeTiled.
#include "driver.h"

// What executing a kernel takes lies in the map's 128 bytes; the real encoding is not public.
// exec/ptxrt.h has the same struct.
struct Map {
    uint32_t magic, type, rank, swizzle, interleave, oob;
    uint64_t base;
    uint32_t box[5];
    uint32_t dim[5];
    uint64_t stride[4];
};
_Static_assert(sizeof(struct Map) <= 128, "fits");
static const int elem_bytes[] = {1, 2, 4, 4, 8, 8, 2, 4, 8, 2, 4, 4, 4};
CUresult cuTensorMapEncodeTiled(CUtensorMap *out, CUtensorMapDataType type, cuuint32_t rank,
                                void *base, const cuuint64_t *dim, const cuuint64_t *stride,
                                const cuuint32_t *box, const cuuint32_t *estride,
                                CUtensorMapInterleave il, CUtensorMapSwizzle sw,
                                CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill oob) {
    (void)l2;
    pthread_mutex_lock(&mu);
    total.tensor_maps++;
    CUresult r = CUDA_SUCCESS;
    int eb = type < 13 ? elem_bytes[type] : 0;
    char text[400] = "";
    int at =
        snprintf(text, sizeof text, "tensor map: type %d rank %u swizzle %d dims", type, rank, sw);
    for (unsigned i = 0; i < rank && i < 5; i++)
        at += snprintf(text + at, sizeof text - at, " %lu", (unsigned long)dim[i]);
    at += snprintf(text + at, sizeof text - at, " box");
    for (unsigned i = 0; i < rank && i < 5; i++)
        at += snprintf(text + at, sizeof text - at, " %u", box[i]);
    at += snprintf(text + at, sizeof text - at, " strides");
    for (unsigned i = 0; i + 1 < rank && i < 4; i++)
        at += snprintf(text + at, sizeof text - at, " %lu", (unsigned long)stride[i]);
    if (!eb || rank < 1 || rank > 5) r = fail(CUDA_ERROR_INVALID_VALUE, "%s: type or rank", text);
    else if ((uintptr_t)base % 16)
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: base %p not aligned to 16", text, base);
    else if (!find((uintptr_t)base))
        r = fail(CUDA_ERROR_INVALID_VALUE, "%s: base %p not allocated", text, base);
    for (unsigned i = 0; !r && i < rank; i++) {
        if (!dim[i] || dim[i] > 1ull << 32)
            r = fail(CUDA_ERROR_INVALID_VALUE, "%s: dimension", text);
        else if (!box[i] || box[i] > 256) r = fail(CUDA_ERROR_INVALID_VALUE, "%s: box", text);
        else if (!estride[i] || estride[i] > 8)
            r = fail(CUDA_ERROR_INVALID_VALUE, "%s: element stride", text);
        else if (i && (stride[i - 1] % (il == CU_TENSOR_MAP_INTERLEAVE_32B ? 32 : 16) ||
                       stride[i - 1] >= 1ull << 40))
            r = fail(CUDA_ERROR_INVALID_VALUE, "%s: stride", text);
    }
    if (!r && il == CU_TENSOR_MAP_INTERLEAVE_NONE) {
        unsigned inner = box[0] * eb, most = sw == CU_TENSOR_MAP_SWIZZLE_32B    ? 32
                                             : sw == CU_TENSOR_MAP_SWIZZLE_64B  ? 64
                                             : sw == CU_TENSOR_MAP_SWIZZLE_NONE ? ~0u
                                                                                : 128;
        if (inner % 16)
            r = fail(CUDA_ERROR_INVALID_VALUE, "%s: inner box of %u B is no multiple of 16", text,
                     inner);
        else if (inner > most)
            r = fail(CUDA_ERROR_INVALID_VALUE, "%s: inner box of %u B exceeds the swizzle", text,
                     inner);
    }
    if (!r) {
        say("K\t%s", text);
        struct Map *m = (struct Map *)out;
        memset(out, 0, sizeof *out);
        m->magic = 0x4d41504e;
        m->type = type;
        m->rank = rank;
        m->swizzle = sw;
        m->interleave = il;
        m->oob = oob;
        m->base = (uintptr_t)base;
        for (unsigned i = 0; i < rank; i++) {
            m->box[i] = box[i];
            m->dim[i] = dim[i];
            if (i) m->stride[i - 1] = stride[i - 1];
        }
    }
    pthread_mutex_unlock(&mu);
    return r;
}
CUresult cuTensorMapEncodeIm2col(CUtensorMap *o, CUtensorMapDataType t, cuuint32_t r, void *b,
                                 const cuuint64_t *d, const cuuint64_t *s, const int *l,
                                 const int *u, cuuint32_t c, cuuint32_t p, const cuuint32_t *e,
                                 CUtensorMapInterleave i, CUtensorMapSwizzle w,
                                 CUtensorMapL2promotion l2, CUtensorMapFloatOOBfill f) {
    (void)o;
    (void)t;
    (void)r;
    (void)b;
    (void)d;
    (void)s;
    (void)l;
    (void)u;
    (void)c;
    (void)p;
    (void)e;
    (void)i;
    (void)w;
    (void)l2;
    (void)f;
    return fail(CUDA_ERROR_NOT_SUPPORTED, "im2col tensor map");
}
