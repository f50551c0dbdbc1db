// Kernels of the layers, all but attention and the matrix products.
//
// Sizes come as macros: HIDDEN (E), FFN (F), HEADS (H), KV_HEADS (K), HEAD_DIM (D), VOCAB (V), VOCAB_STRIDE,
// EPS. T is the number of tokens (rows). Every pointer is 256-byte aligned; E, F and D are multiples of 16.
// Vectors are eight consecutive activations (act8): bf16 numbers, the widest vector that a thread can load at
// once (16 bytes), or with FP32 floats (two loads).

// Threads of the kernels that need no sums across threads.
static constexpr int FLAT = 256;

// Kernels with sums over the E elements of a row. A row belongs to one warp if it is short, else to a CTA in
// which a thread has two vectors (or one). So a row is read once and stays in registers.
static constexpr int ROW_VECTORS = HIDDEN / 8;
static constexpr bool ROW_IS_WARP = HIDDEN <= 1024;
static constexpr int ROW_THREADS = ROW_IS_WARP ? 32 : 32 * ((HIDDEN + 511) / 512);
static constexpr int ROW_CTA = ROW_IS_WARP ? 256 : ROW_THREADS;
static constexpr int ROWS_PER_CTA = ROW_CTA / ROW_THREADS;
static constexpr int ROW_STEPS = (ROW_VECTORS + ROW_THREADS - 1) / ROW_THREADS;

// ---------------------------------------------------------------------------------------------------------
// 1. Copying rows
// ---------------------------------------------------------------------------------------------------------

// out[r] = table[ids[r]], one thread a vector.
__device__ __forceinline__ void copy_rows(const act* table, const int* ids, act* out, int rows) {
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int row = i / ROW_VECTORS, column = i % ROW_VECTORS;
    if (row >= (unsigned int)rows) return;
    const act8* from = (const act8*)(table + (size_t)ids[row] * HIDDEN);
    ((act8*)out)[i] = from[column];
}

// The embedding lookup. Block 256, grid ceil(T*E/8 / 256).
extern "C" __global__ void __launch_bounds__(FLAT)
embed_rows(const int* __restrict__ ids, const act* __restrict__ table, act* __restrict__ x, int T) {
    copy_rows(table, ids, x, T);
}

// The N rows of x at the places `at`. Block 256, grid ceil(N*E/8 / 256).
extern "C" __global__ void __launch_bounds__(FLAT)
gather_rows(const act* __restrict__ x, const int* __restrict__ at, act* __restrict__ out, int N) {
    copy_rows(x, at, out, N);
}

// sum = x + y, eight elements a thread. Block 256, grid ceil(ceil(n/8) / 256).
// sum may be the same buffer as x or y.
extern "C" __global__ void __launch_bounds__(FLAT)
add_rows_plain(const act* x, const act* y, act* sum, long long n) {
    long long i = ((long long)blockIdx.x * FLAT + threadIdx.x) * 8;
    if (i + 8 <= n) {
        float a[8], b[8];
        unpack8(*(const act8*)(x + i), a);
        unpack8(*(const act8*)(y + i), b);
#pragma unroll
        for (int e = 0; e < 8; e++) a[e] += b[e];
        *(act8*)(sum + i) = round8(a);
    } else {
        for (; i < n; i++) sum[i] = to_act(to_float(x[i]) + to_float(y[i]));
    }
}

// ---------------------------------------------------------------------------------------------------------
// 2. RMSNorm
// ---------------------------------------------------------------------------------------------------------

// Sum over the threads of a row. `slots` as in cta_sum; not used if a row belongs to one warp.
__device__ __forceinline__ float row_sum(float x, float* slots) {
    if constexpr (ROW_IS_WARP) return warp_sum(x);
    else return cta_sum<ROW_THREADS / 32>(x, slots);
}

// h = x * rstd * w with rstd = 1 / sqrt(mean(x^2) + EPS). With ADD the row is x + y as an activation (rounded
// in bf16), which is written to `sum` as well.
template <bool ADD>
__device__ __forceinline__ void normalize_row(
    const act* x, const act* y, act* sum, const float* w, act* h, float* rstd, int T
) {
    __shared__ float slots[32];
    int row = blockIdx.x * ROWS_PER_CTA + threadIdx.x / ROW_THREADS;
    int thread = threadIdx.x % ROW_THREADS;
    if (row >= T) return;  // whole warps only, and only where a row is a warp
    size_t start = (size_t)row * HIDDEN;
    act8 packed[ROW_STEPS];
#pragma unroll
    for (int s = 0; s < ROW_STEPS; s++) {
        int v = thread + s * ROW_THREADS;
        packed[s] = zero8();
        if (v < ROW_VECTORS) packed[s] = ((const act8*)(x + start))[v];
    }
    if constexpr (ADD) {
        act8 other[ROW_STEPS];
#pragma unroll
        for (int s = 0; s < ROW_STEPS; s++) {
            int v = thread + s * ROW_THREADS;
            other[s] = zero8();
            if (v < ROW_VECTORS) other[s] = ((const act8*)(y + start))[v];
        }
#pragma unroll
        for (int s = 0; s < ROW_STEPS; s++) {
            int v = thread + s * ROW_THREADS;
            float a[8], b[8];
            unpack8(packed[s], a);
            unpack8(other[s], b);
#pragma unroll
            for (int e = 0; e < 8; e++) a[e] += b[e];
            packed[s] = round8(a);
            if (v < ROW_VECTORS) ((act8*)(sum + start))[v] = packed[s];
        }
    }
    float squares = 0.0f;
#pragma unroll
    for (int s = 0; s < ROW_STEPS; s++) {
        float a[8];
        unpack8(packed[s], a);
#pragma unroll
        for (int e = 0; e < 8; e++) squares += a[e] * a[e];
    }
    float r = 1.0f / sqrtf(row_sum(squares, slots) * (1.0f / HIDDEN) + EPS);
    if (thread == 0) rstd[row] = r;
#pragma unroll
    for (int s = 0; s < ROW_STEPS; s++) {
        int v = thread + s * ROW_THREADS;
        if (v < ROW_VECTORS) {
            float a[8], weight[8];
            unpack8(packed[s], a);
            load8(w + v * 8, weight);
#pragma unroll
            for (int e = 0; e < 8; e++) a[e] = a[e] * r * weight[e];
            ((act8*)(h + start))[v] = round8(a);
        }
    }
}

// For E <= 1024: block 256, grid ceil(T/8) (one warp a row). Else: block 32*ceil(E/512), grid T.
extern "C" __global__ void __launch_bounds__(ROW_CTA)
rms_norm(const act* __restrict__ x, const float* __restrict__ w, act* __restrict__ h,
         float* __restrict__ rstd, int T) {
    normalize_row<false>(x, nullptr, nullptr, w, h, rstd, T);
}

// sum = x + y (may be the same buffer as x or y), h = RMSNorm of sum. Launched like rms_norm.
extern "C" __global__ void __launch_bounds__(ROW_CTA)
add_rms_norm(const act* x, const act* y, act* sum, const float* __restrict__ w, act* __restrict__ h,
             float* __restrict__ rstd, int T) {
    normalize_row<true>(x, y, sum, w, h, rstd, T);
}

// ---------------------------------------------------------------------------------------------------------
// 3. Gradient of RMSNorm
// ---------------------------------------------------------------------------------------------------------

// Threads of a row. They also hold a row of sums, so a warp is enough for shorter rows only.
static constexpr int BACK_THREADS = HIDDEN <= 768 ? 32 : 32 * ((HIDDEN + 511) / 512);
static constexpr int BACK_GROUPS = ROW_IS_WARP ? 256 / BACK_THREADS : 1;  // rows of a CTA at a time
static constexpr int BACK_STEPS = (ROW_VECTORS + BACK_THREADS - 1) / BACK_THREADS;

// Sum over the threads of a row, which meet at a barrier of their own. `slots` are BACK_THREADS / 32 floats
// of the group that nobody still reads.
__device__ __forceinline__ float back_sum(float x, int group, int thread, float* slots) {
    x = warp_sum(x);
    if constexpr (BACK_THREADS > 32) {
        if (thread % 32 == 0) slots[thread / 32] = x;
        asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(BACK_THREADS) : "memory");
        x = slots[0];
#pragma unroll
        for (int i = 1; i < BACK_THREADS / 32; i++) x += slots[i];
    }
    return x;
}

// With g = dh * w:  dx = dres + rstd * g - x * rstd^3 * mean(g * x),  dw = sum over rows of dh * x * rstd.
// dres may be null, and dx may be the same buffer as dres (or as dh).
// Block as for rms_norm (256 threads for E <= 1024, else 32*ceil(E/512)), grid P: any number of CTAs, each of
// which walks over rows with a fixed stride, sums its part of dw and writes it to row blockIdx.x of dw_part.
// A good P fills the card: 2 CTAs an SM for E <= 1024, else 512 / block (at least 1) an SM. (In fp32 a thread
// holds more, and the two CTAs follow each other.)
extern "C" __global__ void __launch_bounds__(ROW_CTA, ROW_CTA <= 256 && !ACT_IS_FP32 ? 2 : 1)
rms_norm_backward(const act* dh, const act* __restrict__ x, const float* __restrict__ w,
                  const float* __restrict__ rstd, const act* dres, act* dx, float* __restrict__ dw_part,
                  int T) {
    __shared__ float slots[2][BACK_GROUPS][BACK_THREADS / 32];
    int group = threadIdx.x / BACK_THREADS, thread = threadIdx.x % BACK_THREADS;
    float dw[BACK_STEPS][8];
#pragma unroll
    for (int s = 0; s < BACK_STEPS; s++) {
#pragma unroll
        for (int e = 0; e < 8; e++) dw[s][e] = 0.0f;
    }
    int turn = 0;
    for (int row = blockIdx.x * BACK_GROUPS + group; row < T; row += gridDim.x * BACK_GROUPS) {
        size_t start = (size_t)row * HIDDEN;
        float r = rstd[row];
        act8 upstream[BACK_STEPS], input[BACK_STEPS], residual[BACK_STEPS];
#pragma unroll
        for (int s = 0; s < BACK_STEPS; s++) {
            int v = thread + s * BACK_THREADS;
            upstream[s] = input[s] = residual[s] = zero8();
            if (v < ROW_VECTORS) {
                upstream[s] = ((const act8*)(dh + start))[v];
                input[s] = ((const act8*)(x + start))[v];
                if (dres) residual[s] = ((const act8*)(dres + start))[v];
            }
        }
        float dot = 0.0f;
#pragma unroll
        for (int s = 0; s < BACK_STEPS; s++) {
            int v = thread + s * BACK_THREADS;
            if (v < ROW_VECTORS) {
                float d[8], a[8], weight[8];
                unpack8(upstream[s], d);
                unpack8(input[s], a);
                load8(w + v * 8, weight);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    float dax = d[e] * a[e];
                    dot += dax * weight[e];
                    dw[s][e] += dax * r;
                }
            }
        }
        float mean = back_sum(dot, group, thread, slots[turn][group]) * (1.0f / HIDDEN);
        turn ^= 1;  // the other slots next time, so that one barrier a row is enough
        float pull = r * r * r * mean;
#pragma unroll
        for (int s = 0; s < BACK_STEPS; s++) {
            int v = thread + s * BACK_THREADS;
            if (v < ROW_VECTORS) {
                float d[8], a[8], weight[8], old[8];
                unpack8(upstream[s], d);
                unpack8(input[s], a);
                unpack8(residual[s], old);
                load8(w + v * 8, weight);
#pragma unroll
                for (int e = 0; e < 8; e++) d[e] = old[e] + (r * (d[e] * weight[e]) - pull * a[e]);
                ((act8*)(dx + start))[v] = round8(d);
            }
        }
    }
    float* out = dw_part + (size_t)blockIdx.x * HIDDEN;
    if constexpr (BACK_GROUPS > 1) {
        // The groups of the CTA have sums of the same columns: the upper half of the groups hands them to the
        // lower half, which adds its own.
        constexpr int HALF = BACK_GROUPS > 1 ? BACK_GROUPS / 2 : 1;
        __shared__ float sums[BACK_GROUPS > 1 ? HALF * HIDDEN : 1];
        float* mine = sums + group % HALF * HIDDEN;
        if (group >= HALF) {
#pragma unroll
            for (int s = 0; s < BACK_STEPS; s++) {
                int v = thread + s * BACK_THREADS;
                if (v < ROW_VECTORS) store8(mine + v * 8, dw[s]);
            }
        }
        __syncthreads();
        if (group < HALF) {
#pragma unroll
            for (int s = 0; s < BACK_STEPS; s++) {
                int v = thread + s * BACK_THREADS;
                if (v < ROW_VECTORS) {
                    float upper[8];
                    load8(mine + v * 8, upper);
#pragma unroll
                    for (int e = 0; e < 8; e++) dw[s][e] += upper[e];
                    store8(mine + v * 8, dw[s]);
                }
            }
        }
        __syncthreads();
        for (int c = threadIdx.x; c < HIDDEN; c += ROW_CTA) {
            float sum = sums[c];
#pragma unroll
            for (int i = 1; i < HALF; i++) sum += sums[i * HIDDEN + c];
            out[c] = sum;
        }
    } else {
#pragma unroll
        for (int s = 0; s < BACK_STEPS; s++) {
            int v = thread + s * BACK_THREADS;
            if (v < ROW_VECTORS) store8(out + v * 8, dw[s]);
        }
    }
}

// out[c] = sum over r of part[r * stride + c]: 32 columns a CTA, 32 warps that take every 32nd row each.
__device__ __forceinline__ void sum_rows(
    const float* part, float* out, int rows, int cols, int stride, int accumulate
) {
    __shared__ float sums[32][33];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int c = blockIdx.x * 32 + lane;
    float sum = 0.0f;
    if (c < cols) {
#pragma unroll 4
        for (int r = warp; r < rows; r += 32) sum += part[(size_t)r * stride + c];
    }
    sums[warp][lane] = sum;
    __syncthreads();
    // Warp i sums what the 32 warps found for column i.
    sum = warp_sum(sums[lane][warp]);
    c = blockIdx.x * 32 + warp;
    if (lane == 0 && c < cols) out[c] = accumulate ? out[c] + sum : sum;
}

// out[c] = (out[c] +) sum over the rows of part. Block 1024, grid ceil(cols/32).
extern "C" __global__ void __launch_bounds__(1024)
reduce_rows(const float* __restrict__ part, float* __restrict__ out, int rows, int cols, int accumulate) {
    sum_rows(part, out, rows, cols, cols, accumulate);
}

// The same for `cols` columns of a table whose rows are `stride` apart (part points to the first of the
// columns), for partial sums of several parameters side by side. Launched like reduce_rows.
extern "C" __global__ void __launch_bounds__(1024)
reduce_columns(const float* __restrict__ part, float* __restrict__ out, int rows, int cols, int stride,
               int accumulate) {
    sum_rows(part, out, rows, cols, stride, accumulate);
}

// ---------------------------------------------------------------------------------------------------------
// 4. Between the projections and attention: biases, RMSNorm of every q and k head, RoPE
// ---------------------------------------------------------------------------------------------------------

// RoPE turns pairs of elements i and i + D/2 of a head. A thread has eight such pairs: a vector in each half.
// HEAD_LANES neighbouring lanes have a head; their number is a power of two (for D = 96 two of eight idle).
static constexpr int HEAD_UNITS = HEAD_DIM / 16;
static constexpr int HEAD_LANES = HEAD_UNITS == 6 ? 8 : HEAD_UNITS;
static constexpr int QKV_HEADS = HEADS + 2 * KV_HEADS;
static constexpr int QKV_WIDTH = QKV_HEADS * HEAD_DIM;
static constexpr int QK_HEADS = HEADS + KV_HEADS;
static_assert(HEAD_DIM % 16 == 0 && (HEAD_LANES & (HEAD_LANES - 1)) == 0,
              "HEAD_DIM is 16, 32, 64, 96 or 128");

// Sum over the lanes of a head; every one of them gets the same bits.
__device__ __forceinline__ float head_sum(float x) {
#pragma unroll
    for (int lanes = HEAD_LANES / 2; lanes > 0; lanes >>= 1) x += __shfl_xor_sync(ALL_LANES, x, lanes);
    return x;
}

// Block 256, grid ceil(T*heads*HEAD_LANES / 256), where heads is H+2K with biases and H+K without (then v is
// not touched) and HEAD_LANES is D/16, but 8 for D = 96.
extern "C" __global__ void __launch_bounds__(FLAT)
qkv_forward(act* __restrict__ qkv, const float* __restrict__ bias_q, const float* __restrict__ bias_k,
            const float* __restrict__ bias_v, const float* __restrict__ norm_q,
            const float* __restrict__ norm_k, const int* __restrict__ positions,
            const float* __restrict__ rope, act* __restrict__ qk, float* __restrict__ rstd, int T) {
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int unit = i % HEAD_LANES, at = i / HEAD_LANES;
    unsigned int token, head;
    if (bias_q) {
        token = at / QKV_HEADS;
        head = at % QKV_HEADS;
    } else {
        token = at / QK_HEADS;
        head = at % QK_HEADS;
    }
    // Lanes without work stay for the shuffles.
    bool active = token < (unsigned int)T && unit < HEAD_UNITS;
    unsigned int first = unit * 8, second = HEAD_DIM / 2 + unit * 8;
    act* raw = qkv + (size_t)token * QKV_WIDTH + head * HEAD_DIM;
    float x1[8], x2[8];
#pragma unroll
    for (int e = 0; e < 8; e++) x1[e] = x2[e] = 0.0f;
    int position = 0;
    if (active) {
        act8 low = *(const act8*)(raw + first), high = *(const act8*)(raw + second);
        position = positions[token];
        unpack8(low, x1);
        unpack8(high, x2);
        if (bias_q) {
            const float* bias = head < HEADS      ? bias_q + head * HEAD_DIM
                                : head < QK_HEADS ? bias_k + (head - HEADS) * HEAD_DIM
                                                  : bias_v + (head - QK_HEADS) * HEAD_DIM;
            float b[8];
            load8(bias + first, b);
#pragma unroll
            for (int e = 0; e < 8; e++) x1[e] += b[e];
            load8(bias + second, b);
#pragma unroll
            for (int e = 0; e < 8; e++) x2[e] += b[e];
            low = round8(x1);
            high = round8(x2);
            // v is finished, and with a norm the raw values are kept for the gradient.
            if (norm_q || head >= QK_HEADS) {
                *(act8*)(raw + first) = low;
                *(act8*)(raw + second) = high;
            }
            unpack8(low, x1);
            unpack8(high, x2);
        }
    }
    if (norm_q) {
        float squares = 0.0f;
#pragma unroll
        for (int e = 0; e < 8; e++) squares += x1[e] * x1[e] + x2[e] * x2[e];
        float r = 1.0f / sqrtf(head_sum(squares) * (1.0f / HEAD_DIM) + EPS);
        if (active && head < QK_HEADS) {
            if (unit == 0) rstd[(size_t)token * QK_HEADS + head] = r;
            const float* weight = head < HEADS ? norm_q : norm_k;
            float w[8];
            load8(weight + first, w);
#pragma unroll
            for (int e = 0; e < 8; e++) x1[e] = x1[e] * r * w[e];
            load8(weight + second, w);
#pragma unroll
            for (int e = 0; e < 8; e++) x2[e] = x2[e] * r * w[e];
        }
    }
    if (!active || head >= QK_HEADS) return;
    const float* angles = rope + (size_t)position * HEAD_DIM;
    float cosine[8], sine[8];
    load8(angles + first, cosine);
    load8(angles + second, sine);
#pragma unroll
    for (int e = 0; e < 8; e++) {
        float a = x1[e], b = x2[e];
        x1[e] = a * cosine[e] - b * sine[e];
        x2[e] = b * cosine[e] + a * sine[e];
    }
    act* out = norm_q ? qk + ((size_t)token * QK_HEADS + head) * HEAD_DIM : raw;
    *(act8*)(out + first) = round8(x1);
    *(act8*)(out + second) = round8(x2);
}

// Gradients of the rotated (and normed) q heads or k heads to gradients of the raw values, and the CTA's sum
// of the gradient of the norm's weight. FIRST is the first of COUNT heads.
template <int FIRST, int COUNT>
__device__ __forceinline__ void heads_backward(
    act* dqkv, const act* qkv_raw, const float* rstd, const float* norm, const int* positions,
    const float* rope, float* dnorm, float* sums, int T
) {
    // The unit is the same in every turn, as 256 is a multiple of HEAD_LANES.
    unsigned int unit = threadIdx.x % HEAD_LANES;
    unsigned int first = unit * 8, second = HEAD_DIM / 2 + unit * 8;
    bool has_unit = unit < HEAD_UNITS;
    float dw1[8], dw2[8];
#pragma unroll
    for (int e = 0; e < 8; e++) dw1[e] = dw2[e] = 0.0f;
    unsigned int total = (unsigned int)T * COUNT * HEAD_LANES;
    // All lanes of a warp make the same turns, for the shuffles.
    for (unsigned int begin = blockIdx.x * FLAT; begin < total; begin += gridDim.x * FLAT) {
        unsigned int i = begin + threadIdx.x;
        unsigned int at = i / HEAD_LANES, token = at / COUNT, head = FIRST + at % COUNT;
        bool active = i < total && has_unit;
        size_t start = (size_t)token * QKV_WIDTH + head * HEAD_DIM;
        float d1[8], d2[8], a1[8], a2[8];
        float r = 0.0f;
#pragma unroll
        for (int e = 0; e < 8; e++) d1[e] = d2[e] = a1[e] = a2[e] = 0.0f;
        if (active) {
            act8 low = *(const act8*)(dqkv + start + first), high = *(const act8*)(dqkv + start + second);
            if (norm) {
                act8 x1 = *(const act8*)(qkv_raw + start + first);
                act8 x2 = *(const act8*)(qkv_raw + start + second);
                r = rstd[(size_t)token * QK_HEADS + head];
                unpack8(x1, a1);
                unpack8(x2, a2);
            }
            const float* angles = rope + (size_t)positions[token] * HEAD_DIM;
            float cosine[8], sine[8];
            load8(angles + first, cosine);
            load8(angles + second, sine);
            unpack8(low, d1);
            unpack8(high, d2);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                float a = d1[e], b = d2[e];
                d1[e] = a * cosine[e] + b * sine[e];
                d2[e] = b * cosine[e] - a * sine[e];
            }
        }
        if (norm) {
            float dot = 0.0f;
            if (active) {
                float w1[8], w2[8];
                load8(norm + first, w1);
                load8(norm + second, w2);
#pragma unroll
                for (int e = 0; e < 8; e++) {
                    a1[e] *= r;
                    a2[e] *= r;
                    dw1[e] += d1[e] * a1[e];
                    dw2[e] += d2[e] * a2[e];
                    d1[e] *= w1[e];
                    d2[e] *= w2[e];
                    dot += d1[e] * a1[e] + d2[e] * a2[e];
                }
            }
            float mean = head_sum(dot) * (1.0f / HEAD_DIM);
#pragma unroll
            for (int e = 0; e < 8; e++) {
                d1[e] = r * (d1[e] - a1[e] * mean);
                d2[e] = r * (d2[e] - a2[e] * mean);
            }
        }
        if (active) {
            *(act8*)(dqkv + start + first) = round8(d1);
            *(act8*)(dqkv + start + second) = round8(d2);
        }
    }
    if (!norm) return;
    // The lanes of a warp that have the same unit, then the warps.
#pragma unroll
    for (int e = 0; e < 8; e++) {
#pragma unroll
        for (int lanes = 16; lanes >= HEAD_LANES; lanes >>= 1) {
            dw1[e] += __shfl_xor_sync(ALL_LANES, dw1[e], lanes);
            dw2[e] += __shfl_xor_sync(ALL_LANES, dw2[e], lanes);
        }
    }
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    if (lane < HEAD_UNITS) {
        store8(sums + warp * HEAD_DIM + first, dw1);
        store8(sums + warp * HEAD_DIM + second, dw2);
    }
    __syncthreads();
    for (int c = threadIdx.x; c < HEAD_DIM; c += FLAT) {
        float sum = sums[c];
#pragma unroll
        for (int w = 1; w < FLAT / 32; w++) sum += sums[w * HEAD_DIM + c];
        dnorm[c] = sum;
    }
    __syncthreads();
}

// Block 256, grid P: any number of CTAs (a good one is 3 an SM), each of which walks over all heads with a
// fixed stride and writes its sums for norm_q, then norm_k to row blockIdx.x of dnorm_part. The gradient of v
// is not touched: it is the gradient of the raw v already.
extern "C" __global__ void __launch_bounds__(FLAT, ACT_IS_FP32 ? 2 : 3)
qkv_backward(act* __restrict__ dqkv, const act* __restrict__ qkv_raw, const float* __restrict__ rstd,
             const float* __restrict__ norm_q, const float* __restrict__ norm_k,
             const int* __restrict__ positions, const float* __restrict__ rope,
             float* __restrict__ dnorm_part, int T) {
    __shared__ float sums[FLAT / 32 * HEAD_DIM];
    float* dnorm = dnorm_part + (size_t)blockIdx.x * 2 * HEAD_DIM;
    heads_backward<0, HEADS>(dqkv, qkv_raw, rstd, norm_q, positions, rope, dnorm, sums, T);
    heads_backward<HEADS, KV_HEADS>(dqkv, qkv_raw, rstd, norm_k, positions, rope, dnorm + HEAD_DIM, sums, T);
}

// ---------------------------------------------------------------------------------------------------------
// 5. The gate of the feed-forward network
// ---------------------------------------------------------------------------------------------------------

static constexpr unsigned int FFN_VECTORS = FFN / 8;

__device__ __forceinline__ float sigmoid(float x) {
    if constexpr (ACT_IS_FP32) return 1.0f / (1.0f + expf(-x));
    else return __fdividef(1.0f, 1.0f + __expf(-x));
}

// a = silu(gate) * up, or relu(gate)^2 * up with RELU2. Block 256, grid ceil(T*F/8 / 256).
extern "C" __global__ void __launch_bounds__(FLAT)
swiglu(const act* __restrict__ gate_up, act* __restrict__ a, int T) {
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int row = i / FFN_VECTORS, column = i % FFN_VECTORS;
    if (row >= (unsigned int)T) return;
    const act8* from = (const act8*)gate_up + (size_t)row * (2 * FFN_VECTORS) + column;
    act8 packed_gate = from[0], packed_up = from[FFN_VECTORS];
    float gate[8], up[8];
    unpack8(packed_gate, gate);
    unpack8(packed_up, up);
#pragma unroll
    for (int e = 0; e < 8; e++) {
#ifdef RELU2
        float positive = fmaxf(gate[e], 0.0f);
        up[e] *= positive * positive;
#else
        up[e] *= gate[e] * sigmoid(gate[e]);
#endif
    }
    ((act8*)a)[i] = round8(up);
}

// The gradient; d_gate_up may be the same buffer as gate_up. Launched like swiglu.
extern "C" __global__ void __launch_bounds__(FLAT)
swiglu_backward(const act* gate_up, const act* __restrict__ da, act* d_gate_up, int T) {
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int row = i / FFN_VECTORS, column = i % FFN_VECTORS;
    if (row >= (unsigned int)T) return;
    size_t at = (size_t)row * (2 * FFN_VECTORS) + column;
    act8 packed_gate = ((const act8*)gate_up)[at], packed_up = ((const act8*)gate_up)[at + FFN_VECTORS];
    act8 packed_d = ((const act8*)da)[i];
    float gate[8], up[8], d[8];
    unpack8(packed_gate, gate);
    unpack8(packed_up, up);
    unpack8(packed_d, d);
#pragma unroll
    for (int e = 0; e < 8; e++) {
#ifdef RELU2
        float positive = fmaxf(gate[e], 0.0f);
        gate[e] = d[e] * up[e] * 2.0f * positive;
        up[e] = d[e] * positive * positive;
#else
        float s = sigmoid(gate[e]), silu = gate[e] * s;
        gate[e] = d[e] * up[e] * (s + silu * (1.0f - s));
        up[e] = d[e] * silu;
#endif
    }
    ((act8*)d_gate_up)[at] = round8(gate);
    ((act8*)d_gate_up)[at + FFN_VECTORS] = round8(up);
}

// ---------------------------------------------------------------------------------------------------------
// 6. Sums of columns, for the gradients of biases
// ---------------------------------------------------------------------------------------------------------

// part[p] = sum of the rows r of x with (r / 8) % P = p. C is a multiple of 8. Block 256, grid (ceil(C/256),
// P): a CTA has 256 columns, a warp reads 512 bytes of a row. A good P is 64.
extern "C" __global__ void __launch_bounds__(FLAT)
column_sums(const act* __restrict__ x, float* __restrict__ part, int T, int C) {
    __shared__ float sums[8][256];
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int c = blockIdx.x * 256 + lane * 8;
    float sum[8];
#pragma unroll
    for (int e = 0; e < 8; e++) sum[e] = 0.0f;
    if (c < C) {
#pragma unroll 4
        for (int row = blockIdx.y * 8 + warp; row < T; row += gridDim.y * 8) {
            float a[8];
            unpack8(*(const act8*)(x + (size_t)row * C + c), a);
#pragma unroll
            for (int e = 0; e < 8; e++) sum[e] += a[e];
        }
    }
    store8(&sums[warp][lane * 8], sum);
    __syncthreads();
    c = blockIdx.x * 256 + threadIdx.x;
    if (c < C) {
        float total = sums[0][threadIdx.x];
#pragma unroll
        for (int w = 1; w < 8; w++) total += sums[w][threadIdx.x];
        part[(size_t)blockIdx.y * C + c] = total;
    }
}

// ---------------------------------------------------------------------------------------------------------
// 7. Cross-entropy
// ---------------------------------------------------------------------------------------------------------

static constexpr int CE_CTA = 512;
#define LOG2_E 1.4426950408889634f
static constexpr int CE_FULL = VOCAB / 8;            // vectors without padding
static constexpr int CE_ALL = VOCAB_STRIDE / 8;      // vectors of a row
static constexpr int CE_BATCH = ACT_IS_FP32 ? 2 : 4;  // vectors that a thread loads before it uses the first

// exp(x) and, for many x with one `reference`, exp(x - reference), where `shift` is shift_of(reference). In
// bf16 mode a multiply-add and the special function unit do it. Their error grows with the reference (its
// product with log2(e) is rounded), so fp32 mode subtracts first.
__device__ __forceinline__ float ce_exp(float x) {
    if constexpr (ACT_IS_FP32) return expf(x);
    else return exp2_fast(x * LOG2_E);
}
__device__ __forceinline__ float shift_of(float reference) {
    if constexpr (ACT_IS_FP32) return reference;
    else return -reference * LOG2_E;
}
__device__ __forceinline__ float shifted_exp(float x, float shift) {
    if constexpr (ACT_IS_FP32) return expf(x - shift);
    else return exp2_fast(fmaf(x, LOG2_E, shift));
}

// One CTA a row. loss = log(sum(exp(logits))) - logits[target] over the V real columns; then, if asked,
// logits become scale * (softmax(logits) - onehot(target)), and the columns from V on become 0.
//
// Block 512, grid N. Dynamic shared memory is optional, any multiple of 16 bytes: that much of the row is
// kept there between the two passes instead of being read again (mostly from the L2 cache). with_gradient is
// 0 for the losses alone; else it is the number of bytes of dynamic shared memory, or 1 without any. Good for
// the gradient: min(2 * VOCAB_STRIDE, 113664), with FP32 min(4 * VOCAB_STRIDE, 113664), with which two CTAs
// fit on an SM; for the losses alone 0. Above 49152 bytes the host must raise the kernel's limit
// (CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES).
extern "C" __global__ void __launch_bounds__(CE_CTA, 2)
cross_entropy(act* __restrict__ logits, const int* __restrict__ targets, float* __restrict__ losses,
              float scale, int N, int with_gradient) {
    extern __shared__ act8 kept_logits[];
    __shared__ float maxima[CE_CTA / 32], sums[CE_CTA / 32];
    int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    if (blockIdx.x >= (unsigned int)N) return;
    act* row = logits + (size_t)blockIdx.x * VOCAB_STRIDE;
    act8* vectors = (act8*)row;
    int target = targets[blockIdx.x];
    int kept = min(with_gradient / (int)sizeof(act8), CE_FULL);  // vectors kept in shared memory

    // Pass 1: the largest logit so far and the sum of exp(logit - largest), both of this thread's columns.
    float largest = -1e30f, sum = 0.0f;
    for (int base = thread; base < CE_FULL; base += CE_CTA * CE_BATCH) {
        act8 q[CE_BATCH];
#pragma unroll
        for (int j = 0; j < CE_BATCH; j++) {
            int v = base + j * CE_CTA;
            q[j] = minus_infinity8();
            if (v < CE_FULL) q[j] = vectors[v];
        }
        float top = largest;
#pragma unroll
        for (int j = 0; j < CE_BATCH; j++) {
            int v = base + j * CE_CTA;
            if (v < kept) kept_logits[v] = q[j];
            float a[8];
            unpack8(q[j], a);
#pragma unroll
            for (int e = 0; e < 8; e++) top = fmaxf(top, a[e]);
        }
        sum *= ce_exp(largest - top);
        largest = top;
        float shift = shift_of(top);
#pragma unroll
        for (int j = 0; j < CE_BATCH; j++) {
            float a[8];
            unpack8(q[j], a);
            float part = 0.0f;
#pragma unroll
            for (int e = 0; e < 8; e++) part += shifted_exp(a[e], shift);
            sum += part;
        }
    }
    float target_logit = 0.0f;
    if (thread == 0) {
        for (int c = CE_FULL * 8; c < VOCAB; c++) {  // what is left of V, fewer than eight columns
            float a = to_float(row[c]), top = fmaxf(largest, a);
            sum = sum * ce_exp(largest - top) + ce_exp(a - top);
            largest = top;
        }
        target_logit = to_float(row[target]);
    }

    // The whole row's.
    float top = warp_max(largest);
    if (lane == 0) maxima[warp] = top;
    __syncthreads();
    top = maxima[0];
#pragma unroll
    for (int i = 1; i < CE_CTA / 32; i++) top = fmaxf(top, maxima[i]);
    float total = cta_sum<CE_CTA / 32>(sum * ce_exp(largest - top), sums);
    float lse = top + logf(total);
    if (thread == 0) {
        losses[blockIdx.x] = ACT_IS_FP32 ? (top - target_logit) + logf(total) : lse - target_logit;
    }
    if (!with_gradient) return;

    // Pass 2: a thread writes the vectors that it read in pass 1. A probability is exp(logit - lse), or, with
    // less rounding, exp(logit - top) / total.
    float shift = shift_of(ACT_IS_FP32 ? top : lse), factor = ACT_IS_FP32 ? scale / total : scale;
    for (int base = thread; base < CE_ALL; base += CE_CTA * CE_BATCH) {
        act8 q[CE_BATCH];
#pragma unroll
        for (int j = 0; j < CE_BATCH; j++) {
            int v = base + j * CE_CTA;
            q[j] = zero8();
            if (v < kept) q[j] = kept_logits[v];
            else if (v < CE_ALL) q[j] = vectors[v];
        }
#pragma unroll
        for (int j = 0; j < CE_BATCH; j++) {
            int v = base + j * CE_CTA;
            if (v >= CE_ALL) break;
            float a[8];
            unpack8(q[j], a);
#pragma unroll
            for (int e = 0; e < 8; e++) a[e] = shifted_exp(a[e], shift) * factor;
            if (v == target / 8) {
#pragma unroll
                for (int e = 0; e < 8; e++) a[e] -= e == target % 8 ? scale : 0.0f;
            }
            if (v >= CE_FULL) {
#pragma unroll
                for (int e = 0; e < 8; e++) a[e] = v * 8 + e < VOCAB ? a[e] : 0.0f;
            }
            vectors[v] = round8(a);
        }
    }
}

// ---------------------------------------------------------------------------------------------------------
// 8. and 9. Gradients of looked-up rows
// ---------------------------------------------------------------------------------------------------------

// out[t] = sum of d_picked[picks[i]] for i from start[t] to start[t+1] (0 without any).
// Block 256, grid ceil(T*E/8 / 256).
extern "C" __global__ void __launch_bounds__(FLAT)
scatter_rows(const act* __restrict__ d_picked, const int* __restrict__ start, const int* __restrict__ picks,
             act* __restrict__ out, int T) {
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int row = i / ROW_VECTORS, column = i % ROW_VECTORS;
    if (row >= (unsigned int)T) return;
    int from = start[row], to = start[row + 1];
    float sum[8];
#pragma unroll
    for (int e = 0; e < 8; e++) sum[e] = 0.0f;
    for (int p = from; p < to; p++) {
        float a[8];
        unpack8(((const act8*)(d_picked + (size_t)picks[p] * HIDDEN))[column], a);
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] += a[e];
    }
    ((act8*)out)[i] = round8(sum);
}

// partial[p] = sum of source[order[i]] for i from pieces[p] to pieces[p+1].
// Block 256, grid ceil(n_pieces*E/8 / 256).
extern "C" __global__ void __launch_bounds__(FLAT)
piece_sums(const act* __restrict__ source, const int* __restrict__ order, const int* __restrict__ pieces,
           float* __restrict__ partial, int n_pieces) {
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int piece = i / ROW_VECTORS, column = i % ROW_VECTORS;
    if (piece >= (unsigned int)n_pieces) return;
    int from = pieces[piece], to = pieces[piece + 1];
    float sum[8];
#pragma unroll
    for (int e = 0; e < 8; e++) sum[e] = 0.0f;
#pragma unroll 4
    for (int p = from; p < to; p++) {
        float a[8];
        unpack8(((const act8*)(source + (size_t)order[p] * HIDDEN))[column], a);
#pragma unroll
        for (int e = 0; e < 8; e++) sum[e] += a[e];
    }
    store8(partial + (size_t)i * 8, sum);
}

// table[rows[r]] += sum of partial[i] for i from firsts[r] to firsts[r+1]; `rows` has no row twice.
// Block 256, grid ceil(n_rows*E/4 / 256).
extern "C" __global__ void __launch_bounds__(FLAT)
add_pieces(const float* __restrict__ partial, const int* __restrict__ firsts, const int* __restrict__ rows,
           float* __restrict__ table, int n_rows) {
    constexpr unsigned int QUADS = HIDDEN / 4;
    unsigned int i = blockIdx.x * FLAT + threadIdx.x;
    unsigned int r = i / QUADS, column = i % QUADS;
    if (r >= (unsigned int)n_rows) return;
    int from = firsts[r], to = firsts[r + 1];
    float4* at = (float4*)(table + (size_t)rows[r] * HIDDEN) + column;
    float4 old = *at, sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 4
    for (int p = from; p < to; p++) {
        float4 a = ((const float4*)(partial + (size_t)p * HIDDEN))[column];
        sum.x += a.x;
        sum.y += a.y;
        sum.z += a.z;
        sum.w += a.w;
    }
    *at = make_float4(old.x + sum.x, old.y + sum.y, old.z + sum.z, old.w + sum.w);
}

