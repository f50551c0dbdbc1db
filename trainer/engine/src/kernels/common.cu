// Small helpers that all kernels share: bf16 numbers, vectors of eight activations, sums over warps and CTAs.
// The host compiles common.cu, layers.cu, update.cu and attention as one string, without any header.
//
// There are two modes. Normally activations, their gradients, logits and the weights that embed_rows reads
// are bf16. With `#define FP32 1` in front of the source all of them are fp32, and nothing is rounded to
// bf16.
#define DLM_COMMON 1

// A bf16 number is the upper half of a float. It is kept as its 16 bits.
typedef unsigned short bf16;

// All lanes of a warp take part in every shuffle.
#define ALL_LANES 0xffffffffu

__device__ __forceinline__ float bf16_to_float(bf16 x) {
    return __uint_as_float((unsigned int)x << 16);
}

// Rounds to nearest, ties to even.
__device__ __forceinline__ bf16 float_to_bf16(float x) {
    bf16 r;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(r) : "f"(x));
    return r;
}

// Two bf16 numbers in one register: the first in the lower half (it comes first in memory).
__device__ __forceinline__ float bf16_low(unsigned int pair) {
    return __uint_as_float(pair << 16);
}
__device__ __forceinline__ float bf16_high(unsigned int pair) {
    return __uint_as_float(pair & 0xffff0000u);
}
__device__ __forceinline__ unsigned int pack_bf16(float low, float high) {
    unsigned int r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

// Eight consecutive bf16 numbers (16 bytes, one memory access) as floats, and back.
__device__ __forceinline__ void unpack8(uint4 q, float (&x)[8]) {
    x[0] = bf16_low(q.x);
    x[1] = bf16_high(q.x);
    x[2] = bf16_low(q.y);
    x[3] = bf16_high(q.y);
    x[4] = bf16_low(q.z);
    x[5] = bf16_high(q.z);
    x[6] = bf16_low(q.w);
    x[7] = bf16_high(q.w);
}
__device__ __forceinline__ uint4 pack8(const float (&x)[8]) {
    return make_uint4(pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]),
                      pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
}

// Eight consecutive floats (two accesses of 16 bytes).
__device__ __forceinline__ void load8(const float* p, float (&x)[8]) {
    float4 a = ((const float4*)p)[0], b = ((const float4*)p)[1];
    x[0] = a.x;
    x[1] = a.y;
    x[2] = a.z;
    x[3] = a.w;
    x[4] = b.x;
    x[5] = b.y;
    x[6] = b.z;
    x[7] = b.w;
}
__device__ __forceinline__ void store8(float* p, const float (&x)[8]) {
    ((float4*)p)[0] = make_float4(x[0], x[1], x[2], x[3]);
    ((float4*)p)[1] = make_float4(x[4], x[5], x[6], x[7]);
}

// An activation, and eight consecutive ones: one memory access of 16 bytes in bf16, two in fp32. `unpack8`
// makes floats of them; `round8` and `to_act` make activations of floats, which rounds them in bf16 only.
#ifdef FP32
#define ACT_IS_FP32 true
typedef float act;
struct __align__(16) act8 {
    float4 low, high;
};

__device__ __forceinline__ float to_float(act x) {
    return x;
}
__device__ __forceinline__ act to_act(float x) {
    return x;
}
__device__ __forceinline__ void unpack8(act8 q, float (&x)[8]) {
    x[0] = q.low.x;
    x[1] = q.low.y;
    x[2] = q.low.z;
    x[3] = q.low.w;
    x[4] = q.high.x;
    x[5] = q.high.y;
    x[6] = q.high.z;
    x[7] = q.high.w;
}
__device__ __forceinline__ act8 round8(const float (&x)[8]) {
    return {make_float4(x[0], x[1], x[2], x[3]), make_float4(x[4], x[5], x[6], x[7])};
}
__device__ __forceinline__ act8 same8(float x) {
    return {make_float4(x, x, x, x), make_float4(x, x, x, x)};
}
__device__ __forceinline__ act8 zero8() {
    return same8(0.0f);
}
__device__ __forceinline__ act8 minus_infinity8() {
    return same8(__uint_as_float(0xff800000u));
}
#else
#define ACT_IS_FP32 false
typedef bf16 act;
typedef uint4 act8;

__device__ __forceinline__ float to_float(act x) {
    return bf16_to_float(x);
}
__device__ __forceinline__ act to_act(float x) {
    return float_to_bf16(x);
}
__device__ __forceinline__ act8 round8(const float (&x)[8]) {
    return pack8(x);
}
__device__ __forceinline__ act8 zero8() {
    return make_uint4(0, 0, 0, 0);
}
__device__ __forceinline__ act8 minus_infinity8() {
    return make_uint4(0xff80ff80u, 0xff80ff80u, 0xff80ff80u, 0xff80ff80u);
}
#endif

// Copies eight consecutive activations.
__device__ __forceinline__ void copy8(act* to, const act* from) {
    *(act8*)to = *(const act8*)from;
}

// 2^x by the special function unit (relative error about 2^-22).
__device__ __forceinline__ float exp2_fast(float x) {
    float r;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(x));
    return r;
}

// Sum and maximum over the 32 lanes of a warp; every lane gets the same bits.
__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}
__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, lanes));
    return x;
}

// Sum over WARPS warps of a CTA; every thread gets the same bits. `slots` is shared memory for WARPS floats
// that no other thread still reads: a caller that sums again uses other slots or a barrier in between.
template <int WARPS>
__device__ __forceinline__ float cta_sum(float x, float* slots) {
    x = warp_sum(x);
    if ((threadIdx.x & 31) == 0) slots[threadIdx.x >> 5] = x;
    __syncthreads();
    float sum = slots[0];
#pragma unroll
    for (int i = 1; i < WARPS; i++) sum += slots[i];
    return sum;
}

