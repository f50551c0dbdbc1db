// Cross-entropy towards tokens and towards another distribution, the source's, with the gradient of their
// mixture.

static constexpr int MIX_VECTORS = (VOCAB + 7) / 8;  // vectors with a real column

// A column and its logit. Of equal logits the first column is the best.
struct Best {
    float logit;
    int column;
};
__device__ __forceinline__ Best better(Best a, Best b) {
    return b.logit > a.logit || (b.logit == a.logit && b.column < a.column) ? b : a;
}
__device__ __forceinline__ Best warp_best(Best best) {
#pragma unroll
    for (int lanes = 16; lanes > 0; lanes >>= 1) {
        Best other;
        other.logit = __shfl_xor_sync(ALL_LANES, best.logit, lanes);
        other.column = __shfl_xor_sync(ALL_LANES, best.column, lanes);
        best = better(best, other);
    }
    return best;
}

// The largest value over the warps of a CTA; every thread gets it.
__device__ __forceinline__ float cta_max(float x, float* slots) {
    x = warp_max(x);
    if ((threadIdx.x & 31) == 0) slots[threadIdx.x >> 5] = x;
    __syncthreads();
    float top = slots[0];
#pragma unroll
    for (int i = 1; i < CE_CTA / 32; i++) top = fmaxf(top, slots[i]);
    return top;
}

// One CTA a row. s = softmax(logits), q = softmax(teacher), over the V real columns. judged[row] becomes
// -log s[target], the sum of q (log q - log s), and 1 where both rows have the same largest logit (column
// `never` is left out; -1 leaves out none), else 0. Then, if asked, logits become
// scale * (s - (1 - share) onehot(target) - share q), and the columns from V on 0.
//
// Block 512, grid N.
extern "C" __global__ void __launch_bounds__(CE_CTA, 2)
mixed_losses(act* __restrict__ logits, const act* __restrict__ teacher, const int* __restrict__ targets,
             float* __restrict__ judged, int never, float share, float scale, int N, int with_gradient) {
    __shared__ float slots[5][CE_CTA / 32];
    __shared__ Best bests[2][CE_CTA / 32];
    int thread = threadIdx.x, lane = thread & 31, warp = thread >> 5;
    if (blockIdx.x >= (unsigned int)N) return;
    act* own_row = logits + (size_t)blockIdx.x * VOCAB_STRIDE;
    act8* own = (act8*)own_row;
    const act8* wanted = (const act8*)(teacher + (size_t)blockIdx.x * VOCAB_STRIDE);
    int target = targets[blockIdx.x];

    // Pass 1, each thread over its columns: the largest logits so far (s_top, q_top), the sums of
    // exp(logit - largest), and that of exp(teacher - q_top) * (teacher - logit).
    float s_top = -1e30f, q_top = -1e30f, s_sum = 0.0f, q_sum = 0.0f, difference = 0.0f;
    Best s_best = {-1e30f, VOCAB}, q_best = {-1e30f, VOCAB};
#pragma unroll 2
    for (int v = thread; v < MIX_VECTORS; v += CE_CTA) {
        float a[8], b[8];
        unpack8(own[v], a);
        unpack8(wanted[v], b);
        float s_new = s_top, q_new = q_top;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int column = v * 8 + e;
            if (VOCAB % 8 != 0 && column >= VOCAB) break;
            s_new = fmaxf(s_new, a[e]);
            q_new = fmaxf(q_new, b[e]);
            if (column != never) {
                if (a[e] > s_best.logit) s_best = {a[e], column};
                if (b[e] > q_best.logit) q_best = {b[e], column};
            }
        }
        float shrink = ce_exp(q_top - q_new);
        s_sum *= ce_exp(s_top - s_new);
        q_sum *= shrink;
        difference *= shrink;
        s_top = s_new;
        q_top = q_new;
#pragma unroll
        for (int e = 0; e < 8; e++) {
            if (VOCAB % 8 != 0 && v * 8 + e >= VOCAB) break;
            float q = ce_exp(b[e] - q_top);
            s_sum += ce_exp(a[e] - s_top);
            q_sum += q;
            difference += q * (b[e] - a[e]);
        }
    }
    float target_logit = to_float(own_row[target]);

    // The whole rows'.
    float s_all = cta_max(s_top, slots[0]), q_all = cta_max(q_top, slots[1]);
    float shrink = ce_exp(q_top - q_all);
    float s_total = cta_sum<CE_CTA / 32>(s_sum * ce_exp(s_top - s_all), slots[2]);
    float q_total = cta_sum<CE_CTA / 32>(q_sum * shrink, slots[3]);
    difference = cta_sum<CE_CTA / 32>(difference * shrink, slots[4]);
    s_best = warp_best(s_best);
    q_best = warp_best(q_best);
    if (lane == 0) {
        bests[0][warp] = s_best;
        bests[1][warp] = q_best;
    }
    __syncthreads();  // also: all have read the target's logit
    if (thread == 0) {
        for (int i = 1; i < CE_CTA / 32; i++) {
            s_best = better(s_best, bests[0][i]);
            q_best = better(q_best, bests[1][i]);
        }
        float s_log = logf(s_total), q_log = logf(q_total);
        float* out = judged + 3 * (size_t)blockIdx.x;
        out[0] = (s_all - target_logit) + s_log;
        out[1] = difference / q_total - (q_all - s_all) - q_log + s_log;
        out[2] = s_best.column == q_best.column ? 1.0f : 0.0f;
    }
    if (!with_gradient) return;

    // Pass 2.
    float s_factor = scale / s_total, q_factor = share * scale / q_total, one = (1.0f - share) * scale;
#pragma unroll 2
    for (int v = thread; v < CE_ALL; v += CE_CTA) {
        float a[8], b[8];
        unpack8(own[v], a);
        unpack8(wanted[v], b);
#pragma unroll
        for (int e = 0; e < 8; e++) {
            int column = v * 8 + e;
            a[e] = ce_exp(a[e] - s_all) * s_factor - ce_exp(b[e] - q_all) * q_factor;
            if (column == target) a[e] -= one;
            if (column >= VOCAB) a[e] = 0.0f;
        }
        own[v] = round8(a);
    }
}
