// Kernels around the parameters: casts, the gradient's norm, AdamW, random weights.
// Numbers are counted by 64-bit integers: all parameters together may be more than 2^31.

// ---------------------------------------------------------------------------------------------------------
// 10. Casting
// ---------------------------------------------------------------------------------------------------------

// Eight elements a thread; not used with FP32. Block 256, grid ceil(ceil(n/8) / 256).
extern "C" __global__ void __launch_bounds__(256)
cast_to_bf16(const float* __restrict__ in, bf16* __restrict__ out, long long n) {
    long long i = ((long long)blockIdx.x * 256 + threadIdx.x) * 8;
    if (i + 8 <= n) {
        float a[8];
        load8(in + i, a);
        *(uint4*)(out + i) = pack8(a);
    } else {
        for (; i < n; i++) out[i] = float_to_bf16(in[i]);
    }
}

// ---------------------------------------------------------------------------------------------------------
// 11. The sum of squares, for the norm of the gradient
// ---------------------------------------------------------------------------------------------------------

// part[p] = the sum of g^2 over the elements of CTA p. Block 256, grid P: any number (a good one is 8 an SM);
// the order of the sum depends on n and P only.
extern "C" __global__ void __launch_bounds__(256)
sum_squares(const float* __restrict__ g, long long n, float* __restrict__ part) {
    __shared__ float slots[8];
    float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    long long quads = n / 4, stride = (long long)gridDim.x * 256;
    long long first = (long long)blockIdx.x * 256 + threadIdx.x;
#pragma unroll 4
    for (long long i = first; i < quads; i += stride) {
        float4 a = ((const float4*)g)[i];
        sum.x += a.x * a.x;
        sum.y += a.y * a.y;
        sum.z += a.z * a.z;
        sum.w += a.w * a.w;
    }
    if (first < n - quads * 4) {  // at most three elements are left
        float a = g[quads * 4 + first];
        sum.x += a * a;
    }
    float total = cta_sum<8>((sum.x + sum.y) + (sum.z + sum.w), slots);
    if (threadIdx.x == 0) part[blockIdx.x] = total;
}

// out[0] = the sum of the n numbers of part. Block 256, grid 1.
extern "C" __global__ void __launch_bounds__(256)
finish_sum(const float* __restrict__ part, int n, float* __restrict__ out) {
    __shared__ double sums[256];
    double sum = 0.0;
    for (int i = threadIdx.x; i < n; i += 256) sum += (double)part[i];
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (int half = 128; half > 0; half >>= 1) {
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
        __syncthreads();
    }
    if (threadIdx.x == 0) out[0] = (float)sums[0];
}

// ---------------------------------------------------------------------------------------------------------
// 12. AdamW
// ---------------------------------------------------------------------------------------------------------

struct AdamwNumbers {
    float keep, lr, beta1, beta2, eps, clip, correction1, correction2;
};

// One element: the moments m and v, and the weight, which is returned.
__device__ __forceinline__ float adamw_element(float w, float& m, float& v, float g, const AdamwNumbers& s) {
    g *= s.clip;
    m = m * s.beta1 + g * (1.0f - s.beta1);
    v = v * s.beta2 + g * g * (1.0f - s.beta2);
    return w * s.keep - m / s.correction1 / (sqrtf(v / s.correction2) + s.eps) * s.lr;
}

// Four elements a thread. Also writes the weights as bf16, but not with FP32 (then w16 may be null).
// Block 256, grid ceil(ceil(n/4) / 256).
extern "C" __global__ void __launch_bounds__(256)
adamw(float* __restrict__ w, float* __restrict__ m, float* __restrict__ v, const float* __restrict__ g,
      bf16* __restrict__ w16, long long n, float keep, float lr, float beta1, float beta2, float eps,
      float clip, float correction1, float correction2) {
    AdamwNumbers s = {keep, lr, beta1, beta2, eps, clip, correction1, correction2};
    long long i = ((long long)blockIdx.x * 256 + threadIdx.x) * 4;
    if (i + 4 <= n) {
        float4 W = *(const float4*)(w + i), M = *(const float4*)(m + i), V = *(const float4*)(v + i);
        float4 G = *(const float4*)(g + i);
        W.x = adamw_element(W.x, M.x, V.x, G.x, s);
        W.y = adamw_element(W.y, M.y, V.y, G.y, s);
        W.z = adamw_element(W.z, M.z, V.z, G.z, s);
        W.w = adamw_element(W.w, M.w, V.w, G.w, s);
        *(float4*)(w + i) = W;
        *(float4*)(m + i) = M;
        *(float4*)(v + i) = V;
        if constexpr (!ACT_IS_FP32)
            *(uint2*)(w16 + i) = make_uint2(pack_bf16(W.x, W.y), pack_bf16(W.z, W.w));
    } else {
        for (; i < n; i++) {
            float first = m[i], second = v[i], weight = adamw_element(w[i], first, second, g[i], s);
            w[i] = weight;
            m[i] = first;
            v[i] = second;
            if constexpr (!ACT_IS_FP32) w16[i] = float_to_bf16(weight);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// 13. Adding the gradients of another GPU
// ---------------------------------------------------------------------------------------------------------

// to[i] += from[i]. Four elements a thread; both addresses are multiples of 16. Block 256, grid
// ceil(ceil(n/4) / 256).
extern "C" __global__ void __launch_bounds__(256)
add_to(float* __restrict__ to, const float* __restrict__ from, long long n) {
    long long i = ((long long)blockIdx.x * 256 + threadIdx.x) * 4;
    if (i + 4 <= n) {
        float4 a = *(const float4*)(to + i), b = *(const float4*)(from + i);
        *(float4*)(to + i) = make_float4(a.x + b.x, a.y + b.y, a.z + b.z, a.w + b.w);
    } else {
        for (; i < n; i++) to[i] += from[i];
    }
}

// ---------------------------------------------------------------------------------------------------------
// 14. Random weights, for benchmarks
// ---------------------------------------------------------------------------------------------------------

// SplitMix64's mixing function.
__device__ __forceinline__ unsigned long long mix64(unsigned long long x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// w[i] is normal with mean 0 and deviation std; it depends on seed, stream and i only. Four elements a
// thread, two at a time (Box-Muller). Block 256, grid ceil(ceil(n/4) / 256).
extern "C" __global__ void __launch_bounds__(256)
fill_normal(float* __restrict__ w, long long n, float std, unsigned long long seed,
            unsigned long long stream) {
    const unsigned long long step = 0x9e3779b97f4a7c15ull;
    long long i = ((long long)blockIdx.x * 256 + threadIdx.x) * 4;
    unsigned long long key = mix64(seed + step) ^ mix64(mix64(stream + 2 * step));
    for (int pair = 0; pair < 2; pair++, i += 2) {
        unsigned long long bits = mix64(key + (unsigned long long)i * step);
        float u = ((float)(bits >> 40) + 1.0f) * (1.0f / 16777216.0f);               // (0, 1]
        float angle = (float)(bits & 0xffffffull) * (6.2831853071795865f / 16777216.0f);  // [0, 2 pi)
        float radius = std * sqrtf(-2.0f * logf(u));
        if (i < n) w[i] = radius * __cosf(angle);
        if (i + 1 < n) w[i + 1] = radius * __sinf(angle);
    }
}

