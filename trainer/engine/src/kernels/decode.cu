// Kernels of decoding: writing keys and values into the cache, and the most probable token of a row of logits.

// Copies the keys and values of new tokens, columns of rows `k_stride` and `v_stride` elements apart, to their rows of
// the cache: keys[slots[t]] and values[slots[t]] get KV_HEADS * HEAD_DIM elements each.
// Block 256, grid ceil(T * KV_HEADS * HEAD_DIM / 8 / 256).
extern "C" __global__ void __launch_bounds__(256)
store_rows(const act* __restrict__ k, const act* __restrict__ v, int k_stride, int v_stride,
           const int* __restrict__ slots, act* __restrict__ keys, act* __restrict__ values, int T) {
    constexpr int VECTORS = KV_HEADS * HEAD_DIM / 8;
    size_t i = (size_t)blockIdx.x * 256 + threadIdx.x;
    size_t row = i / VECTORS, column = i % VECTORS * 8;
    if (row >= (size_t)T) return;
    size_t to = (size_t)slots[row] * (KV_HEADS * HEAD_DIM) + column;
    *(act8*)(keys + to) = *(const act8*)(k + row * k_stride + column);
    *(act8*)(values + to) = *(const act8*)(v + row * v_stride + column);
}

// The most probable of the V tokens of each row of fp32 logits, the first of equal ones, and its probability under
// softmax; token `never` is left out (-1: none is). A row with a NaN or an infinite logit gets a NaN.
// Block 512, grid N.
extern "C" __global__ void __launch_bounds__(512)
best_token(const float* __restrict__ logits, int never, int* __restrict__ tokens, float* __restrict__ probabilities) {
    __shared__ float most_of[512], sum_of[512];
    __shared__ int token_of[512];
    const float* row = logits + (size_t)blockIdx.x * VOCAB_STRIDE;
    int thread = threadIdx.x, token = 0x7fffffff;
    float most = __uint_as_float(0xff800000u), sum = 0.0f;
    for (int i = thread; i < VOCAB; i += 512) {
        if (i == never) continue;
        float x = row[i];
        if (x > most) {
            sum = sum * __expf(most - x) + 1.0f;
            most = x;
            token = i;
        } else {
            sum += __expf(x - most);
        }
    }
    most_of[thread] = most;
    sum_of[thread] = sum;
    token_of[thread] = token;
    for (int half = 256; half > 0; half >>= 1) {
        __syncthreads();
        if (thread >= half) continue;
        float a = most_of[thread], b = most_of[thread + half], top = fmaxf(a, b);
        // a thread that saw nothing has the sum 0 and must not turn it into NaN
        float left = sum_of[thread] == 0.0f ? 0.0f : sum_of[thread] * __expf(a - top);
        float right = sum_of[thread + half] == 0.0f ? 0.0f : sum_of[thread + half] * __expf(b - top);
        sum_of[thread] = left + right;
        if (b > a || (b == a && token_of[thread + half] < token_of[thread])) token_of[thread] = token_of[thread + half];
        most_of[thread] = top;
    }
    if (thread == 0) {
        tokens[blockIdx.x] = token_of[0];
        probabilities[blockIdx.x] = 1.0f / sum_of[0];
    }
}
