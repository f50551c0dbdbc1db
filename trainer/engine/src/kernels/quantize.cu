// BitLinear: activations rounded to int8 per token, weights to -1, 0, 1 per matrix (BitNet b1.58). The values are kept
// as ordinary numbers, divided by their scale again, so that the matrix products need not know. With lambda below 1
// the result lies that far on the way from the number to its rounded form.

__device__ __forceinline__ float blend(float x, float rounded, float lambda) {
    return lambda >= 1.0f ? rounded : x + (rounded - x) * lambda;
}

// out = x rounded to multiples of absmax / 127 per row of `width` elements, a multiple of 8; out may be x.
// Block 256, grid T.
extern "C" __global__ void __launch_bounds__(256)
quantize_rows(const act* x, act* out, int width, float lambda) {
    __shared__ float maxima[8];
    const act8* from = (const act8*)(x + (size_t)blockIdx.x * width);
    act8* to = (act8*)(out + (size_t)blockIdx.x * width);
    int vectors = width / 8;
    float most = 0.0f;
    for (int i = threadIdx.x; i < vectors; i += 256) {
        float v[8];
        unpack8(from[i], v);
#pragma unroll
        for (int j = 0; j < 8; j++) most = fmaxf(most, fabsf(v[j]));
    }
    most = warp_max(most);
    if ((threadIdx.x & 31) == 0) maxima[threadIdx.x >> 5] = most;
    __syncthreads();
    most = maxima[0];
#pragma unroll
    for (int i = 1; i < 8; i++) most = fmaxf(most, maxima[i]);
    float scale = 1.0f / fmaxf(most, 1e-5f) * 127.0f;
    for (int i = threadIdx.x; i < vectors; i += 256) {
        float v[8];
        unpack8(from[i], v);
#pragma unroll
        for (int j = 0; j < 8; j++) {
            float rounded = fminf(fmaxf(rintf(v[j] * scale), -128.0f), 127.0f) / scale;
            v[j] = blend(v[j], rounded, lambda);
        }
        to[i] = round8(v);
    }
}

// part[p] = the sum of |w| over the elements of CTA p; finish_sum adds the parts. Block 256, grid any number.
extern "C" __global__ void __launch_bounds__(256)
sum_magnitudes(const float* __restrict__ w, long long n, float* __restrict__ part) {
    __shared__ float slots[8];
    float sum = 0.0f;
    long long stride = (long long)gridDim.x * 256;
    for (long long i = (long long)blockIdx.x * 256 + threadIdx.x; i < n; i += stride) sum += fabsf(w[i]);
    float total = cta_sum<8>(sum, slots);
    if (threadIdx.x == 0) part[blockIdx.x] = total;
}

// out = w rounded to -s, 0, s with s = mean |w|; sum[0] is the sum of |w|. Block 256, grid ceil(n / 256).
extern "C" __global__ void __launch_bounds__(256)
ternarize(const float* __restrict__ w, long long n, const float* __restrict__ sum, float lambda, act* __restrict__ out) {
    long long i = (long long)blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    float scale = 1.0f / fmaxf(sum[0] / (float)n, 1e-5f);
    float rounded = fminf(fmaxf(rintf(w[i] * scale), -1.0f), 1.0f) / scale;
    out[i] = to_act(blend(w[i], rounded, lambda));
}
