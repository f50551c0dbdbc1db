// Block-diffusion attention in fp32: forward and backward, without tensor cores. It takes the place of
// attention.cu when activations are fp32 (FP32), and is the plain form that the fast kernels are compared
// with.
//
// Every query belongs to exactly one work item. An item is a run of up to 32 queries that see the same keys:
// a "prefix" (clean tokens before the block) and the item's "own" run (the block itself). The two runs make
// one list of keys: list index j stands for token p0 + j while j < p_len and for token o0 + (j - p_len) after
// that. In a causal item query i sees only a beginning of that list, so each query has a limit: it sees list
// indices j < limit(i).
//
// items: int32[8] each: q0, q_len (1..32), p0, p_len (may be 0), o0, o_len, causal, unused.
// lse[h, t] is the log-sum-exp to base 2 of the scaled scores: log2(sum over keys of exp(score / sqrt(D))).
// The probability of a key is then exp2(score * log2(e) / sqrt(D) - lse).
//
// All three kernels are made alike. A warp has ROWS result rows of one head (queries; keys in dkv). It walks
// over the other side, 32 rows at a time, which the CTA copies to shared memory. Scores: each lane has one of
// the 32 rows and its products with the warp's rows. Results: each lane has some of the D columns, and takes
// the 32 weights of a row from the lanes that made them. No atomics; all sums have one fixed order.
//
// Macros: HEADS, KV_HEADS, HEAD_DIM (16, 32, 64, 96 or 128). Strides are counted in elements and are
// multiples of 8. out and d_out have rows of HEADS * HEAD_DIM. Shared memory is static. All launches have
// blocks of 128, and grids that depend on ROWS_PER_CTA: 16 for HEAD_DIM <= 64, else 8. common.cu comes first.

namespace attention_kernels {

constexpr int D = HEAD_DIM;
constexpr int GROUP = HEADS / KV_HEADS;  // query heads that share a key/value head
constexpr int ITEM_ROWS = 32;            // queries of an item, at most
constexpr int KEY_TILE = 64;             // keys of a key tile, at most
constexpr int WARPS = 4, THREADS = 32 * WARPS;
constexpr int ROWS = D <= 64 ? 4 : 2;  // result rows of a warp
constexpr int ROWS_PER_CTA = WARPS * ROWS;
constexpr int CTAS = 4;  // CTAs that an SM should have room for: up to 128 registers a thread
constexpr int ITEM_CTAS = ITEM_ROWS / ROWS_PER_CTA, TILE_CTAS = KEY_TILE / ROWS_PER_CTA;
// Elements of a row in shared memory: with four more than D, lanes that read 16 bytes of one row each do so
// without bank conflicts.
constexpr int STRIDE = D + 4;
constexpr int COLUMNS = (D + 31) / 32;  // columns of a result row that a lane has: lane, lane + 32, ...
constexpr float LOG2E = 1.4426950408889634f;
constexpr float INV_SQRT_D = D == 16 ? 0.25f : D == 32 ? 0.17677669529663687f : D == 64 ? 0.125f
                           : D == 96 ? 0.10206207261596575f : 0.08838834764831845f;
constexpr float SCALE_LOG2 = INV_SQRT_D * LOG2E;

static_assert(HEADS % KV_HEADS == 0, "HEADS must be a multiple of KV_HEADS");
static_assert(D == 16 || D == 32 || D == 64 || D == 96 || D == 128, "unsupported HEAD_DIM");

typedef float Row[STRIDE];

struct Item {
    int q0, q_len, p0, p_len, o0, o_len, causal;
};

__device__ __forceinline__ Item load_item(const int* items, int index) {
    const int4* from = (const int4*)items + 2 * (size_t)index;
    int4 a = from[0], b = from[1];
    return {a.x, a.y, a.z, a.w, b.x, b.y, b.z};
}

// How many list indices query i of the item sees. In a causal item the last query sees the whole list, and
// each query one more than the query before it.
__device__ __forceinline__ int key_limit(const Item& item, int i) {
    int all = item.p_len + item.o_len;
    return item.causal ? min(all, all + i + 1 - item.q_len) : all;
}

// The place of a token in the item's list of keys, or -1.
__device__ __forceinline__ int list_index(const Item& item, int token) {
    if (token >= item.p0 && token < item.p0 + item.p_len) return token - item.p0;
    if (token >= item.o0 && token < item.o0 + item.o_len) return token - item.o0 + item.p_len;
    return -1;
}

// Tokens that follow each other, but for one jump: row j is token `first + j` for j < jump, else `second +
// j`.
struct Run {
    int first, jump, second;
};

__device__ __forceinline__ Run tokens_from(int first) {
    return {first, 1 << 30, 0};
}
// The item's list of keys from list index j on.
__device__ __forceinline__ Run keys_from(const Item& item, int j) {
    return {item.p0 + j, item.p_len - j, item.o0 - item.p_len + j};
}

// The CTA copies N rows of D floats to shared memory; those from `valid` on become zeros.
template <int N>
__device__ __forceinline__ void copy_rows(Row* to, const float* from, int stride, Run run, int valid) {
    for (int i = threadIdx.x; i < N * (D / 4); i += THREADS) {
        int row = i / (D / 4), column = i % (D / 4) * 4;
        float4 x = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        if (row < valid) {
            int token = (row < run.jump ? run.first : run.second) + row;
            x = *(const float4*)(from + (size_t)token * stride + column);
        }
        *(float4*)(to[row] + column) = x;
    }
}

// products[r] = the product of the warp's row r with this lane's row.
__device__ __forceinline__ void multiply(float (&products)[ROWS], const Row* rows, const float* lane_row) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) products[r] = 0.0f;
#pragma unroll 8
    for (int d = 0; d < D; d += 4) {
        float4 a = *(const float4*)(lane_row + d);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float4 b = *(const float4*)(rows[r] + d);
            products[r] = fmaf(a.x, b.x, products[r]);
            products[r] = fmaf(a.y, b.y, products[r]);
            products[r] = fmaf(a.z, b.z, products[r]);
            products[r] = fmaf(a.w, b.w, products[r]);
        }
    }
}

// The column of a row that is this lane's number c; for D = 16 half of the lanes repeat what the others do.
__device__ __forceinline__ int column_of(int lane, int c) {
    return D < 32 ? lane % D : lane + 32 * c;
}

__device__ __forceinline__ void clear(float (&sums)[ROWS][COLUMNS]) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) sums[r][c] = 0.0f;
    }
}

// sums[r] += sum over the 32 rows of weight * row; lane i has the weights of row i.
__device__ __forceinline__ void add_weighted(
    float (&sums)[ROWS][COLUMNS], const float (&weights)[ROWS], const Row* rows, int lane
) {
#pragma unroll 8
    for (int i = 0; i < 32; i++) {
        float x[COLUMNS];
#pragma unroll
        for (int c = 0; c < COLUMNS; c++) x[c] = rows[i][column_of(lane, c)];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float weight = __shfl_sync(ALL_LANES, weights[r], i);
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) sums[r][c] = fmaf(weight, x[c], sums[r][c]);
        }
    }
}

// Writes one row, multiplied by `factor`.
__device__ __forceinline__ void store_row(float* to, const float (&sums)[COLUMNS], float factor, int lane) {
#pragma unroll
    for (int c = 0; c < COLUMNS; c++) {
        if (lane + 32 * c < D) to[lane + 32 * c] = sums[c] * factor;
    }
}

// attention_forward: out[t, h*D + d] and lse[h, t]. A CTA has ROWS_PER_CTA queries of an item and one head.
// Block 128, grid n_items * HEADS * (32 / ROWS_PER_CTA), no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
attention_forward(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                  float* __restrict__ out, float* __restrict__ lse, const int* __restrict__ items,
                  int q_stride, int k_stride, int v_stride, int T) {
    __shared__ __align__(16) float queries[ROWS_PER_CTA][STRIDE], keys[32][STRIDE], values[32][STRIDE];
    int lane = threadIdx.x & 31, first = (threadIdx.x >> 5) * ROWS;  // the warp's first query in the CTA
    int cta_first = blockIdx.x % ITEM_CTAS * ROWS_PER_CTA;           // the CTA's first query in the item
    int head = blockIdx.x / ITEM_CTAS % HEADS, kv_head = head / GROUP;
    Item item = load_item(items, blockIdx.x / (ITEM_CTAS * HEADS));
    int count = min(ROWS_PER_CTA, item.q_len - cta_first);  // queries of this CTA
    if (count <= 0) return;
    int t0 = item.q0 + cta_first;
    copy_rows<ROWS_PER_CTA>(queries, q + head * D, q_stride, tokens_from(t0), count);

    // The online softmax: probabilities relative to the largest score so far, which `top` is. `sum` is the
    // sum of the keys that this lane had.
    float top[ROWS], sum[ROWS], result[ROWS][COLUMNS];
    int limit[ROWS];
    clear(result);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        top[r] = -1e30f;
        sum[r] = 0.0f;
        limit[r] = first + r < count ? key_limit(item, cta_first + first + r) : 0;
    }
    int all = key_limit(item, cta_first + count - 1);  // list indices that any query of the CTA sees
    for (int j = 0; j < all; j += 32) {
        __syncthreads();
        copy_rows<32>(keys, k + kv_head * D, k_stride, keys_from(item, j), all - j);
        copy_rows<32>(values, v + kv_head * D, v_stride, keys_from(item, j), all - j);
        __syncthreads();
        float weights[ROWS];
        multiply(weights, queries + first, keys[lane]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            bool seen = j + lane < limit[r];
            float score = weights[r] * SCALE_LOG2;
            float new_top = fmaxf(top[r], warp_max(seen ? score : -1e30f));
            float shrink = exp2f(top[r] - new_top);
            top[r] = new_top;
            weights[r] = seen ? exp2f(score - new_top) : 0.0f;
            sum[r] = sum[r] * shrink + weights[r];
#pragma unroll
            for (int c = 0; c < COLUMNS; c++) result[r][c] *= shrink;
        }
        add_weighted(result, weights, values, lane);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        float total = warp_sum(sum[r]);
        if (first + r >= count) continue;
        size_t t = t0 + first + r;
        store_row(out + t * (HEADS * D) + head * D, result[r], total > 0.0f ? 1.0f / total : 0.0f, lane);
        if (lane == 0) lse[(size_t)head * T + t] = top[r] + log2f(total);
    }
}

// attention_backward_dq: dq, and delta[h, t] = sum over d of d_out * out, which attention_backward_dkv needs.
// With p the probabilities: ds = p * (d_out v^T - delta), dq = ds k / sqrt(D). Launched like
// attention_forward.
extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
attention_backward_dq(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                      const float* __restrict__ out, const float* __restrict__ d_out,
                      const float* __restrict__ lse, float* __restrict__ delta, float* __restrict__ dq,
                      const int* __restrict__ items, int q_stride, int k_stride, int v_stride, int dq_stride,
                      int T) {
    __shared__ __align__(16) float queries[ROWS_PER_CTA][STRIDE], upstream[ROWS_PER_CTA][STRIDE];
    __shared__ __align__(16) float keys[32][STRIDE], values[32][STRIDE];
    int lane = threadIdx.x & 31, first = (threadIdx.x >> 5) * ROWS;
    int cta_first = blockIdx.x % ITEM_CTAS * ROWS_PER_CTA;
    int head = blockIdx.x / ITEM_CTAS % HEADS, kv_head = head / GROUP;
    Item item = load_item(items, blockIdx.x / (ITEM_CTAS * HEADS));
    int count = min(ROWS_PER_CTA, item.q_len - cta_first);
    if (count <= 0) return;
    int t0 = item.q0 + cta_first;
    copy_rows<ROWS_PER_CTA>(queries, q + head * D, q_stride, tokens_from(t0), count);
    copy_rows<ROWS_PER_CTA>(upstream, d_out + head * D, HEADS * D, tokens_from(t0), count);
    __syncthreads();

    float row_lse[ROWS], row_delta[ROWS], result[ROWS][COLUMNS];
    int limit[ROWS];
    clear(result);
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        row_lse[r] = row_delta[r] = 0.0f;
        limit[r] = 0;
        if (first + r >= count) continue;
        size_t t = t0 + first + r;
        limit[r] = key_limit(item, cta_first + first + r);
        row_lse[r] = lse[(size_t)head * T + t];
        const float* row = out + t * (HEADS * D) + head * D;
        float dot = 0.0f;
        for (int d = lane; d < D; d += 32) dot += upstream[first + r][d] * row[d];
        row_delta[r] = warp_sum(dot);
        if (lane == 0) delta[(size_t)head * T + t] = row_delta[r];
    }
    int all = key_limit(item, cta_first + count - 1);
    for (int j = 0; j < all; j += 32) {
        __syncthreads();
        copy_rows<32>(keys, k + kv_head * D, k_stride, keys_from(item, j), all - j);
        copy_rows<32>(values, v + kv_head * D, v_stride, keys_from(item, j), all - j);
        __syncthreads();
        float weights[ROWS], d_weights[ROWS];
        multiply(weights, queries + first, keys[lane]);
        multiply(d_weights, upstream + first, values[lane]);
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            float p = j + lane < limit[r] ? exp2f(weights[r] * SCALE_LOG2 - row_lse[r]) : 0.0f;
            weights[r] = p * (d_weights[r] - row_delta[r]);
        }
        add_weighted(result, weights, keys, lane);
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= count) continue;
        size_t t = t0 + first + r;
        store_row(dq + t * dq_stride + head * D, result[r], INV_SQRT_D, lane);
    }
}

// attention_backward_dkv: dk = ds^T q / sqrt(D) and dv = p^T d_out, from lse (attention_forward) and delta
// (attention_backward_dq).
// key_tiles: int32[4] each: k0, k_len (1..64), first, count. item_list[first ... first + count) are the items
// that see any of the tile's keys; a tile that no item sees gets zeros.
// A CTA has ROWS_PER_CTA keys of a tile and one key/value head; it walks over the items in the order of the
// list, and for each over the query heads of the group.
// Block 128, grid n_key_tiles * KV_HEADS * (64 / ROWS_PER_CTA), no dynamic shared memory.
extern "C" __global__ void __launch_bounds__(THREADS, CTAS)
attention_backward_dkv(const float* __restrict__ q, const float* __restrict__ k, const float* __restrict__ v,
                       const float* __restrict__ d_out, const float* __restrict__ lse,
                       const float* __restrict__ delta, float* __restrict__ dk, float* __restrict__ dv,
                       const int* __restrict__ items, const int* __restrict__ key_tiles,
                       const int* __restrict__ item_list, int q_stride, int k_stride, int v_stride,
                       int dk_stride, int dv_stride, int T) {
    __shared__ __align__(16) float keys[ROWS_PER_CTA][STRIDE], values[ROWS_PER_CTA][STRIDE];
    __shared__ __align__(16) float queries[32][STRIDE], upstream[32][STRIDE];
    int lane = threadIdx.x & 31, first = (threadIdx.x >> 5) * ROWS;
    int cta_first = blockIdx.x % TILE_CTAS * ROWS_PER_CTA;
    int kv_head = blockIdx.x / TILE_CTAS % KV_HEADS;
    int4 tile = ((const int4*)key_tiles)[blockIdx.x / (TILE_CTAS * KV_HEADS)];
    int count = min(ROWS_PER_CTA, tile.y - cta_first);
    if (count <= 0) return;
    int t0 = tile.x + cta_first;
    copy_rows<ROWS_PER_CTA>(keys, k + kv_head * D, k_stride, tokens_from(t0), count);
    copy_rows<ROWS_PER_CTA>(values, v + kv_head * D, v_stride, tokens_from(t0), count);

    float dk_sums[ROWS][COLUMNS], dv_sums[ROWS][COLUMNS];
    clear(dk_sums);
    clear(dv_sums);
    for (int entry = tile.z; entry < tile.z + tile.w; entry++) {
        Item item = load_item(items, item_list[entry]);
        // The item sees keys of the tile, but maybe none of this CTA's.
        if ((t0 + count <= item.p0 || t0 >= item.p0 + item.p_len) &&
            (t0 + count <= item.o0 || t0 >= item.o0 + item.o_len)) continue;
        int index[ROWS];  // of the warp's keys in the item's list
#pragma unroll
        for (int r = 0; r < ROWS; r++) index[r] = first + r < count ? list_index(item, t0 + first + r) : -1;
        int limit = lane < item.q_len ? key_limit(item, lane) : 0;  // this lane's query
        for (int head = kv_head * GROUP; head < (kv_head + 1) * GROUP; head++) {
            __syncthreads();
            copy_rows<32>(queries, q + head * D, q_stride, tokens_from(item.q0), item.q_len);
            copy_rows<32>(upstream, d_out + head * D, HEADS * D, tokens_from(item.q0), item.q_len);
            __syncthreads();
            float lane_lse = 0.0f, lane_delta = 0.0f;
            if (lane < item.q_len) {
                lane_lse = lse[(size_t)head * T + item.q0 + lane];
                lane_delta = delta[(size_t)head * T + item.q0 + lane];
            }
            float weights[ROWS], d_weights[ROWS];
            multiply(weights, keys + first, queries[lane]);
            multiply(d_weights, values + first, upstream[lane]);
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                bool seen = index[r] >= 0 && index[r] < limit;
                weights[r] = seen ? exp2f(weights[r] * SCALE_LOG2 - lane_lse) : 0.0f;
                d_weights[r] = weights[r] * (d_weights[r] - lane_delta);
            }
            add_weighted(dv_sums, weights, upstream, lane);
            add_weighted(dk_sums, d_weights, queries, lane);
        }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        if (first + r >= count) continue;
        size_t t = t0 + first + r;
        store_row(dk + t * dk_stride + kv_head * D, dk_sums[r], INV_SQRT_D, lane);
        store_row(dv + t * dv_stride + kv_head * D, dv_sums[r], 1.0f, lane);
    }
}

}  // namespace attention_kernels
