// Block-diffusion flash attention: forward and backward.
//
// Every query belongs to exactly one work item. An item is a run of up to 32 queries that see the same keys:
// a "prefix" (clean tokens before the block) and the item's "own" run (the block itself). The two runs are
// walked as one list of keys: list index j stands for token p0 + j while j < p_len and for token o0 + (j -
// p_len) after that. In a causal item query i sees only a beginning of that list, so each query has a limit:
// it sees list indices j < limit(i).
//
// items: int32[8] each: q0, q_len (1..32), p0, p_len (may be 0), o0, o_len, causal, unused.
// lse[h, t] is the log-sum-exp to base 2 of the scaled scores: log2(sum over keys of exp(score / sqrt(D))).
// The probability of a key is then exp2(score * log2(e) / sqrt(D) - lse).
//
// All products run on tensor cores (mma.sync m16n8k16, bf16 inputs, fp32 sums). No atomics; all sums have one
// fixed order.
//
// Compile-time macros: HEADS, KV_HEADS, HEAD_DIM (16, 32, 64, 96 or 128); with defaults below:
// ATTENTION_FORWARD_TILES, ATTENTION_DQ_TILES, ATTENTION_DKV_TILES (1 or 2) and ATTENTION_DKV_TEAMS, on which
// block sizes depend. Strides are counted in elements and are multiples of 8. out and d_out have rows of
// HEADS * HEAD_DIM.

#ifndef DLM_COMMON
typedef unsigned short bf16;
#endif

namespace attention_kernels {

constexpr int D = HEAD_DIM;
constexpr int GROUP = HEADS / KV_HEADS; // query heads that share a key/value head
constexpr int MAX_HEADS = D <= 64 ? 4 : 2;
constexpr int SPLITS = (GROUP + MAX_HEADS - 1) / MAX_HEADS; // CTAs that share the heads of one group
constexpr int CTA_HEADS = (GROUP + SPLITS - 1) / SPLITS;    // query heads of one CTA
// A warp's result has 16 or 32 rows (1 or 2 tiles of 16). Two tiles halve the reads of shared memory, but
// take more registers.
#ifndef ATTENTION_FORWARD_TILES
#define ATTENTION_FORWARD_TILES (HEAD_DIM <= 64 && CTA_HEADS > 1 ? 2 : 1)
#endif
#ifndef ATTENTION_DQ_TILES
#define ATTENTION_DQ_TILES (HEAD_DIM <= 64 && CTA_HEADS % 2 == 0 ? 2 : 1)
#endif
#ifndef ATTENTION_DKV_TILES
#define ATTENTION_DKV_TILES (HEAD_DIM <= 64 ? 2 : 1)
#endif
constexpr int FORWARD_TILES = ATTENTION_FORWARD_TILES, DQ_TILES = ATTENTION_DQ_TILES,
              DKV_TILES = ATTENTION_DKV_TILES;
constexpr int FORWARD_WARPS = 2 / FORWARD_TILES * CTA_HEADS, FORWARD_THREADS = 32 * FORWARD_WARPS;
constexpr int DQ_WARPS = 2 / DQ_TILES * CTA_HEADS, DQ_THREADS = 32 * DQ_WARPS;
constexpr int KEY_TILE = 64;   // keys in shared memory at a time
constexpr int QUERY_TILE = 32; // queries of one item, at most
// Elements of a row in shared memory: 16 bytes more than D, so that ldmatrix has no bank conflicts.
constexpr int ROW = D + 8;
constexpr int CHUNKS = D / 8;  // 16-byte pieces of a row
constexpr int KSTEPS = D / 16; // steps of 16 along the head dimension
constexpr int NTILES = D / 8;  // result tiles of 8 columns along the head dimension
constexpr float LOG2E = 1.4426950408889634f;
constexpr float INV_SQRT_D = D == 16 ? 0.25f : D == 32 ? 0.17677669529663687f : D == 64 ? 0.125f
                           : D == 96 ? 0.10206207261596575f : 0.08838834764831845f;
constexpr float SCALE_LOG2 = INV_SQRT_D * LOG2E;
#define ATTENTION_NEG_INF __uint_as_float(0xff800000u)

static_assert(HEADS % KV_HEADS == 0, "HEADS must be a multiple of KV_HEADS");
static_assert(D == 16 || D == 32 || D == 64 || D == 96 || D == 128, "unsupported HEAD_DIM");

struct Item {
    int q0, q_len, p0, p_len, o0, o_len, causal;
};

__device__ __forceinline__ Item load_item(const int* items, int index) {
    const int4* p = reinterpret_cast<const int4*>(items) + 2 * (size_t)index;
    int4 a = p[0], b = p[1];
    Item it = {a.x, a.y, a.z, a.w, b.x, b.y, b.z};
    return it;
}

// Two floats to two bf16 in one register; `low` is the element with the lower address.
__device__ __forceinline__ unsigned pack(float low, float high) {
    unsigned r;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(r) : "f"(high), "f"(low));
    return r;
}

__device__ __forceinline__ float low_half(unsigned x) { return __uint_as_float(x << 16); }
__device__ __forceinline__ float high_half(unsigned x) { return __uint_as_float(x & 0xffff0000u); }

__device__ __forceinline__ float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float log2_fast(float x) {
    float y;
    asm("lg2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ unsigned shared_address(const void* p) {
    return (unsigned)__cvta_generic_to_shared(p);
}

// 16 bytes from global to shared memory without passing through registers; zeros instead when `valid` is
// false.
__device__ __forceinline__ void copy16(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy4(unsigned to, const void* from, bool valid) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(from), "r"(valid ? 4 : 0)
                 : "memory");
}

__device__ __forceinline__ void copies_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
__device__ __forceinline__ void copies_wait_all() { asm volatile("cp.async.wait_group 0;" ::: "memory"); }

__device__ __forceinline__ void ldmatrix(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_transposed(unsigned (&r)[4], unsigned address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address)
                 : "memory");
}

// c (16 x 8) += a (16 x 16) b (16 x 8)
__device__ __forceinline__ void mma(float (&c)[4], const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, "
        "{%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbouring 16 x 8 results as one 16 x 16 left operand of the next product.
__device__ __forceinline__ void as_left_operand(unsigned (&a)[4], const float (&left)[4],
                                                const float (&right)[4]) {
    a[0] = pack(left[0], left[1]);
    a[1] = pack(left[2], left[3]);
    a[2] = pack(right[0], right[1]);
    a[3] = pack(right[2], right[3]);
}

// Where this lane's row starts for ldmatrix, in bytes from the tile's first element.
// "a" order: a 16 x 16 left operand with its rows in memory, or (transposed) a right operand whose rows are
// the summed index. "b" order: a right operand (16 columns) whose columns are rows in memory.
__device__ __forceinline__ unsigned lane_offset_a(int lane) {
    return (unsigned)(((lane & 7) + (lane >> 3 & 1) * 8) * ROW + (lane >> 4) * 8) * 2;
}
__device__ __forceinline__ unsigned lane_offset_b(int lane) {
    return (unsigned)(((lane & 7) + (lane >> 4) * 8) * ROW + (lane >> 3 & 1) * 8) * 2;
}

// Sum over the four lanes that hold the columns of one row.
__device__ __forceinline__ float quad_sum(float x) {
    x += __shfl_xor_sync(0xffffffffu, x, 1);
    return x + __shfl_xor_sync(0xffffffffu, x, 2);
}
__device__ __forceinline__ float quad_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
    return fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
}

// How THREADS threads copy rows of D elements in 16-byte pieces: each thread keeps its column and walks down
// the rows.
template <int THREADS> struct Walk {
    static constexpr int STEP = THREADS / CHUNKS; // rows copied at a time
    int row, column;
    bool active; // when THREADS is no multiple of CHUNKS, some threads have nothing to do
    __device__ __forceinline__ Walk(int thread) {
        row = thread / CHUNKS;
        column = thread % CHUNKS * 8;
        active = THREADS % CHUNKS == 0 || thread < STEP * CHUNKS;
    }
    __device__ __forceinline__ unsigned place() const { return (unsigned)(row * ROW + column) * 2; }
};

// The address of a row: one wide multiply-add. The stride is in bytes.
__device__ __forceinline__ const char* row_address(const bf16* first, int row, int stride) {
    return reinterpret_cast<const char*>(first) + (long long)row * (long long)stride;
}

// Starts the copies of up to 64 keys and values (list indices first_key ...) to shared memory; zeros behind
// the list's end.
template <int THREADS>
__device__ __forceinline__ void copy_keys_values(unsigned key_tile, const bf16* k, const bf16* v,
                                                 int k_stride, int v_stride, const Item& it, int total,
                                                 int first_key) {
    Walk<THREADS> w(threadIdx.x);
    if (!w.active) return;
    k += w.column;
    v += w.column;
    unsigned to = key_tile + w.place();
    int j = first_key + w.row, own = it.o0 - it.p_len;
#pragma unroll
    for (int i = 0; i < KEY_TILE; i += w.STEP) {
        if (i + w.STEP > KEY_TILE && w.row + i >= KEY_TILE) break;
        int token = j + i + (j + i < it.p_len ? it.p0 : own);
        bool valid = j + i < total;
        copy16(to + i * ROW * 2, row_address(k, token, k_stride * 2), valid);
        copy16(to + (KEY_TILE + i) * ROW * 2, row_address(v, token, v_stride * 2), valid);
    }
}

// Starts the copy of this warp's rows (16 * MT) to its own place in shared memory; zeros behind the last row.
template <int MT>
__device__ __forceinline__ void copy_warp_rows(unsigned tile, const bf16* from, int stride, int rows,
                                               int lane) {
    Walk<32> w(lane);
    if (!w.active) return;
#pragma unroll
    for (int i = 0; i < 16 * MT; i += w.STEP)
        copy16(tile + w.place() + i * ROW * 2, row_address(from + w.column, w.row + i, stride * 2),
               w.row + i < rows);
}

// Writes a warp's result (16 * MT rows, as mma leaves it in registers) to global memory as bf16, each row
// times its factor, through the warp's own place in shared memory, so that whole 16-byte pieces are written.
template <int MT>
__device__ __forceinline__ void store_warp_rows(bf16* place, const float (&c)[MT][NTILES][4],
                                                const float (&factor)[MT][2], bf16* to, int stride, int rows,
                                                int lane) {
    int r = lane >> 2, column = (lane & 3) * 2;
#pragma unroll
    for (int t = 0; t < MT; t++) {
#pragma unroll
        for (int n = 0; n < NTILES; n++) {
            bf16* at = place + (t * 16 + r) * ROW + n * 8 + column;
            *reinterpret_cast<unsigned*>(at) = pack(c[t][n][0] * factor[t][0], c[t][n][1] * factor[t][0]);
            *reinterpret_cast<unsigned*>(at + 8 * ROW) =
                pack(c[t][n][2] * factor[t][1], c[t][n][3] * factor[t][1]);
        }
    }
    __syncwarp();
    Walk<32> w(lane);
    if (w.active) {
#pragma unroll
        for (int i = 0; i < 16 * MT; i += w.STEP)
            if (w.row + i < rows)
                *reinterpret_cast<uint4*>(
                    const_cast<char*>(row_address(to + w.column, w.row + i, stride * 2))) =
                    *reinterpret_cast<const uint4*>(place + (w.row + i) * ROW + w.column);
    }
    __syncwarp();
}

template <int MT> __device__ __forceinline__ void clear(float (&c)[MT][NTILES][4]) {
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int n = 0; n < NTILES; n++) c[t][n][0] = c[t][n][1] = c[t][n][2] = c[t][n][3] = 0.f;
}

// How many list indices the queries of a warp see: the first one, and at most. In a causal item each query
// sees one more than the query before it.
__device__ __forceinline__ void key_limits(const Item& it, int total, int first_query, int& limit_first,
                                           int& limit_last) {
    limit_last = total;
    limit_first = it.causal ? min(total, it.p_len + first_query + 1 + it.o_len - it.q_len) : total;
}
// A warp without causal order has limit_first == limit_last.
__device__ __forceinline__ int row_limit(int limit_first, int limit_last, int row) {
    return min(limit_first + row, limit_last);
}

// ----------------------------------------------------------------------------------------------------------
// forward

// The online softmax keeps exp2(score - m) with a reference m for each query. m follows the query's largest
// score only once that is SLACK above it (exp2(SLACK) does no harm in fp32 or bf16), so that the sums rarely
// need a new scale.
constexpr float SLACK = 8.f;
constexpr int FORWARD_KEYS = FORWARD_TILES == 2 ? 32 : 64; // keys that a warp takes at a time

// One step of the online softmax: KEYS keys of the tile in shared memory for the first TILES * 16 queries of
// this warp.
template <int KEYS, int TILES, int MT>
__device__ __forceinline__ void forward_tile(const unsigned (&q)[MT][KSTEPS][4], float (&o)[MT][NTILES][4],
                                             float (&m)[MT][2], float (&l)[MT][2], unsigned keys,
                                             unsigned values, int first_key, int limit_first, int limit_last,
                                             int lane) {
    float s[TILES][KEYS / 8][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) s[t][n][0] = s[t][n][1] = s[t][n][2] = s[t][n][3] = 0.f;
#pragma unroll
    for (int d = 0; d < KSTEPS; d++) {
#pragma unroll
        for (int n = 0; n < KEYS / 16; n++) {
            unsigned b[4];
            ldmatrix(b, keys + (unsigned)(n * 16 * ROW + d * 16) * 2);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma(s[t][2 * n], q[t][d], b[0], b[1]);
                mma(s[t][2 * n + 1], q[t][d], b[2], b[3]);
            }
        }
    }
    if (first_key + KEYS > limit_first) { // some query does not see all of these keys
        int column = first_key + (lane & 3) * 2;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int limit = row_limit(limit_first, limit_last, t * 16 + (e >> 1) * 8 + (lane >> 2));
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
                    if (column + n * 8 + (e & 1) >= limit) s[t][n][e] = ATTENTION_NEG_INF;
            }
    }
    float best[TILES][2];
    bool grows = false;
#pragma unroll
    for (int t = 0; t < TILES; t++) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = s[t][0][2 * r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(s[t][n][2 * r], s[t][n][2 * r + 1]));
            best[t][r] = quad_max(top) * SCALE_LOG2;
            grows = grows || best[t][r] > m[t][r] + SLACK;
        }
    }
    if (__any_sync(0xffffffffu, grows)) {
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                if (best[t][r] > m[t][r]) {
                    float shrink = exp2_fast(m[t][r] - best[t][r]); // 0 the first time
                    m[t][r] = best[t][r];
                    l[t][r] *= shrink;
#pragma unroll
                    for (int n = 0; n < NTILES; n++) {
                        o[t][n][2 * r] *= shrink;
                        o[t][n][2 * r + 1] *= shrink;
                    }
                }
            }
    }
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float base = m[t][r] == ATTENTION_NEG_INF ? 0.f : m[t][r]; // a query that has seen no key yet
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 2 * r; e < 2 * r + 2; e++) {
                    s[t][n][e] = exp2_fast(s[t][n][e] * SCALE_LOG2 - base);
                    l[t][r] += s[t][n][e];
                }
        }
#pragma unroll
    for (int n = 0; n < KEYS / 16; n++) {
        unsigned p[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) as_left_operand(p[t], s[t][2 * n], s[t][2 * n + 1]);
#pragma unroll
        for (int d = 0; d < KSTEPS; d++) {
            unsigned b[4];
            ldmatrix_transposed(b, values + (unsigned)(n * 16 * ROW + d * 16) * 2);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma(o[t][2 * d], p[t], b[0], b[1]);
                mma(o[t][2 * d + 1], p[t], b[2], b[3]);
            }
        }
    }
}

// attention_forward: out[t, h*D + d] and lse[h, t].
// Launch geometry, with GROUP = HEADS / KV_HEADS, SPLITS = ceil(GROUP / (D <= 64 ? 4 : 2)) and
// CTA_HEADS = ceil(GROUP / SPLITS):
//   grid: number of items * KV_HEADS * SPLITS
//   block: 64 / ATTENTION_FORWARD_TILES * CTA_HEADS
//   dynamic shared memory: 256 * (D + 8) * 2 bytes
// One CTA takes an item and the query heads of one key/value head (or a part of them); a warp has 16 or 32
// queries of one head. All CTAs of an item follow each other, items in the order given: long items first
// leave a short tail. Tiles of 64 keys and values are copied to shared memory one tile ahead and
// used by all warps.
// Shared memory: two stages of (keys, values); the queries pass through the second one before the loop.
constexpr int FORWARD_CTAS =
    D < 64 ? 1 : 12 / FORWARD_WARPS; // CTAs an SM should hold: 12 warps of up to 168 registers

extern "C" __global__ void __launch_bounds__(FORWARD_THREADS, FORWARD_CTAS)
    attention_forward(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                      bf16* __restrict__ out, float* __restrict__ lse, const int* __restrict__ items,
                      int q_stride, int k_stride, int v_stride, int T) {
    constexpr int MT = FORWARD_TILES;
    extern __shared__ __align__(128) bf16 attention_shared[];
    constexpr unsigned TILE_BYTES = KEY_TILE * ROW * 2, STAGE_BYTES = 2 * TILE_BYTES;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int part_of_item = blockIdx.x % (KV_HEADS * SPLITS);
    int kv_head = part_of_item / SPLITS, group_head = part_of_item % SPLITS * CTA_HEADS + warp / (2 / MT);
    int head = kv_head * GROUP + group_head;
    Item it = load_item(items, blockIdx.x / (KV_HEADS * SPLITS));
    int total = it.p_len + it.o_len, row0 = warp % (2 / MT) * 16 * MT;
    int rows = group_head < GROUP ? min(16 * MT, it.q_len - row0)
                                  : 0; // queries of this warp; none: it only helps to copy
    unsigned shared = shared_address(attention_shared);
    k += kv_head * D;
    v += kv_head * D;

    copy_keys_values<FORWARD_THREADS>(shared, k, v, k_stride, v_stride, it, total, 0);
    unsigned warp_place = (unsigned)(2 * KEY_TILE + warp * 16 * MT) * ROW; // elements
    if (rows > 0)
        copy_warp_rows<MT>(shared + warp_place * 2, q + (size_t)(it.q0 + row0) * q_stride + head * D,
                           q_stride, rows, lane);
    copies_commit();
    copies_wait_all();
    __syncthreads();
    unsigned offset_a = lane_offset_a(lane), offset_b = lane_offset_b(lane);
    unsigned qf[MT][KSTEPS][4]; // the queries as left operands
    if (rows > 0) {
#pragma unroll
        for (int t = 0; t < MT; t++)
#pragma unroll
            for (int d = 0; d < KSTEPS; d++)
                ldmatrix(qf[t][d],
                         shared + warp_place * 2 + offset_a + (unsigned)(t * 16 * ROW + d * 16) * 2);
    }

    float o[MT][NTILES][4], m[MT][2], l[MT][2]; // unnormalised result, reference and sum of each query
    clear(o);
    int limit_first, limit_last;
    key_limits(it, total, row0, limit_first, limit_last);
#pragma unroll
    for (int t = 0; t < MT; t++) {
        m[t][0] = m[t][1] = ATTENTION_NEG_INF;
        l[t][0] = l[t][1] = 0.f;
    }

    unsigned stage = 0;
    for (int j = 0; j < total; j += KEY_TILE) {
        if (j > 0) copies_wait_all();
        __syncthreads(); // this tile has arrived, and no warp still reads the other stage
        unsigned keys = shared + stage, values = keys + TILE_BYTES;
        stage = STAGE_BYTES - stage;
        if (j + KEY_TILE < total) {
            copy_keys_values<FORWARD_THREADS>(shared + stage, k, v, k_stride, v_stride, it, total,
                                              j + KEY_TILE);
            copies_commit();
        }
        unsigned keys_at = keys + offset_b, values_at = values + offset_a;
        if (rows <= 0) continue;
        if (FORWARD_KEYS == 32) {
#pragma unroll 1
            for (int part = 0; part < KEY_TILE && j + part < total; part += 32) {
                unsigned down = part * ROW * 2;
                if (rows > 16)
                    forward_tile<32, MT, MT>(qf, o, m, l, keys_at + down, values_at + down, j + part,
                                             limit_first, limit_last, lane);
                else
                    forward_tile<32, 1, MT>(qf, o, m, l, keys_at + down, values_at + down, j + part,
                                            limit_first, limit_last, lane);
            }
        } else if (total - j > 32) {
            forward_tile<64, 1, MT>(qf, o, m, l, keys_at, values_at, j, limit_first, limit_last, lane);
        } else {
            forward_tile<32, 1, MT>(qf, o, m, l, keys_at, values_at, j, limit_first, limit_last, lane);
        }
    }
    __syncthreads();
    if (rows <= 0) return;
    float* lse_to = lse + (size_t)head * T + it.q0 + row0;
    float inverse[MT][2];
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float sum = quad_sum(l[t][r]);
            inverse[t][r] = sum > 0.f ? 1.f / sum : 0.f;
            int row = t * 16 + r * 8 + (lane >> 2);
            if ((lane & 3) == 0 && row < rows) lse_to[row] = m[t][r] + log2_fast(sum);
        }
    store_warp_rows(attention_shared + warp_place, o, inverse,
                    out + (size_t)(it.q0 + row0) * (HEADS * D) + head * D, HEADS * D, rows, lane);
}

// ------------------------------------------------------------------------------------- backward: gradient of
// the queries

constexpr int DQ_CTAS = D < 64 ? 1 : (D == 64 && DQ_TILES == 1 ? 12 : 8) / DQ_WARPS;
constexpr int DQ_KEYS = DQ_TILES == 2 ? 16 : 32; // keys that a warp takes at a time

// DQ_KEYS keys for the first TILES * 16 queries of this warp: scores, probabilities, their gradients, and
// what they add to c.
template <int TILES, int MT>
__device__ __forceinline__ void
dq_part(const unsigned (&q)[MT][KSTEPS][4], const unsigned (&g)[MT][KSTEPS][4], float (&c)[MT][NTILES][4],
        const float (&lse)[MT][2], const float (&delta)[MT][2], unsigned keys, unsigned values,
        unsigned offset_a, unsigned offset_b, int first_key, int limit_first, int limit_last, int lane) {
    float s[TILES][DQ_KEYS / 8][4], dp[TILES][DQ_KEYS / 8][4];
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < DQ_KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[t][n][e] = dp[t][n][e] = 0.f;
#pragma unroll
    for (int d = 0; d < KSTEPS; d++) {
#pragma unroll
        for (int n = 0; n < DQ_KEYS / 16; n++) {
            unsigned b[4];
            ldmatrix(b, keys + offset_b + (unsigned)(n * 16 * ROW + d * 16) * 2);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma(s[t][2 * n], q[t][d], b[0], b[1]);
                mma(s[t][2 * n + 1], q[t][d], b[2], b[3]);
            }
            ldmatrix(b, values + offset_b + (unsigned)(n * 16 * ROW + d * 16) * 2);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma(dp[t][2 * n], g[t][d], b[0], b[1]);
                mma(dp[t][2 * n + 1], g[t][d], b[2], b[3]);
            }
        }
    }
    // dS = P * (dP - delta), kept in s. Keys that a query does not see have P = 0.
#pragma unroll
    for (int t = 0; t < TILES; t++)
#pragma unroll
        for (int n = 0; n < DQ_KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                float p = exp2_fast(s[t][n][e] * SCALE_LOG2 - lse[t][e >> 1]);
                s[t][n][e] = p * (dp[t][n][e] - delta[t][e >> 1]);
            }
    if (first_key + DQ_KEYS > limit_first) {
        int column = first_key + (lane & 3) * 2;
#pragma unroll
        for (int t = 0; t < TILES; t++)
#pragma unroll
            for (int e = 0; e < 4; e++) {
                int limit = row_limit(limit_first, limit_last, t * 16 + (e >> 1) * 8 + (lane >> 2));
#pragma unroll
                for (int n = 0; n < DQ_KEYS / 8; n++)
                    if (column + n * 8 + (e & 1) >= limit) s[t][n][e] = 0.f;
            }
    }
#pragma unroll
    for (int n = 0; n < DQ_KEYS / 16; n++) {
        unsigned a[TILES][4];
#pragma unroll
        for (int t = 0; t < TILES; t++) as_left_operand(a[t], s[t][2 * n], s[t][2 * n + 1]);
#pragma unroll
        for (int d = 0; d < KSTEPS; d++) {
            unsigned b[4];
            ldmatrix_transposed(b, keys + offset_a + (unsigned)(n * 16 * ROW + d * 16) * 2);
#pragma unroll
            for (int t = 0; t < TILES; t++) {
                mma(c[t][2 * d], a[t], b[0], b[1]);
                mma(c[t][2 * d + 1], a[t], b[2], b[3]);
            }
        }
    }
}

// attention_backward_dq: dq, and delta[h, t] = sum over d of d_out * out, which attention_backward_dkv needs.
// Launch geometry:
//   grid: as attention_forward
//   block: 64 / ATTENTION_DQ_TILES * CTA_HEADS
//   dynamic shared memory: (128 + max(128, 96 * CTA_HEADS)) * (D + 8) * 2 bytes
// Shared memory: the first stage of (keys, values), then the second one, through which the queries, d_out and
// out pass before the loop.
extern "C" __global__ void __launch_bounds__(DQ_THREADS, DQ_CTAS)
    attention_backward_dq(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                          const bf16* __restrict__ out, const bf16* __restrict__ d_out,
                          const float* __restrict__ lse, float* __restrict__ delta, bf16* __restrict__ dq,
                          const int* __restrict__ items, int q_stride, int k_stride, int v_stride,
                          int dq_stride, int T) {
    constexpr int MT = DQ_TILES;
    extern __shared__ __align__(128) bf16 attention_shared[];
    constexpr unsigned TILE_BYTES = KEY_TILE * ROW * 2, STAGE_BYTES = 2 * TILE_BYTES;
    int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int part_of_item = blockIdx.x % (KV_HEADS * SPLITS);
    int kv_head = part_of_item / SPLITS, group_head = part_of_item % SPLITS * CTA_HEADS + warp / (2 / MT);
    int head = kv_head * GROUP + group_head;
    Item it = load_item(items, blockIdx.x / (KV_HEADS * SPLITS));
    int total = it.p_len + it.o_len, row0 = warp % (2 / MT) * 16 * MT;
    int rows = group_head < GROUP ? min(16 * MT, it.q_len - row0) : 0;
    unsigned shared = shared_address(attention_shared);
    k += kv_head * D;
    v += kv_head * D;

    copy_keys_values<DQ_THREADS>(shared, k, v, k_stride, v_stride, it, total, 0);
    constexpr unsigned PLACE = 16 * MT * ROW; // elements: this warp's rows of q, then of d_out, then of out
    unsigned warp_place = 2 * KEY_TILE * ROW + warp * 3 * PLACE;
    float lse_of[MT][2];
    if (rows > 0) {
        size_t t0 = it.q0 + row0;
        copy_warp_rows<MT>(shared + warp_place * 2, q + t0 * q_stride + head * D, q_stride, rows, lane);
        copy_warp_rows<MT>(shared + (warp_place + PLACE) * 2, d_out + t0 * (HEADS * D) + head * D, HEADS * D,
                           rows, lane);
        copy_warp_rows<MT>(shared + (warp_place + 2 * PLACE) * 2, out + t0 * (HEADS * D) + head * D,
                           HEADS * D, rows, lane);
#pragma unroll
        for (int t = 0; t < MT; t++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                int row = t * 16 + r * 8 + (lane >> 2);
                lse_of[t][r] = row < rows ? lse[(size_t)head * T + t0 + row] : 0.f;
            }
    }
    copies_commit();
    copies_wait_all();
    __syncthreads();
    unsigned offset_a = lane_offset_a(lane), offset_b = lane_offset_b(lane);
    unsigned qf[MT][KSTEPS][4], gf[MT][KSTEPS][4]; // the queries and d_out as left operands
    float delta_of[MT][2];
    if (rows > 0) {
#pragma unroll
        for (int t = 0; t < MT; t++) {
            unsigned from = shared + (warp_place + t * 16 * ROW) * 2 + offset_a;
            float sum[2] = {0.f, 0.f};
#pragma unroll
            for (int d = 0; d < KSTEPS; d++) {
                unsigned of[4];
                ldmatrix(qf[t][d], from + d * 32);
                ldmatrix(gf[t][d], from + PLACE * 2 + d * 32);
                ldmatrix(of, from + PLACE * 4 + d * 32);
#pragma unroll
                for (int e = 0; e < 4; e++)
                    sum[e & 1] +=
                        low_half(gf[t][d][e]) * low_half(of[e]) + high_half(gf[t][d][e]) * high_half(of[e]);
            }
#pragma unroll
            for (int r = 0; r < 2; r++) {
                delta_of[t][r] = quad_sum(sum[r]);
                int row = t * 16 + r * 8 + (lane >> 2);
                if ((lane & 3) == 0 && row < rows)
                    delta[(size_t)head * T + it.q0 + row0 + row] = delta_of[t][r];
            }
        }
    }

    float c[MT][NTILES][4];
    clear(c);
    int limit_first, limit_last;
    key_limits(it, total, row0, limit_first, limit_last);

    unsigned stage = 0;
    for (int j = 0; j < total; j += KEY_TILE) {
        if (j > 0) copies_wait_all();
        __syncthreads(); // this tile has arrived, and no warp still reads the other stage
        unsigned keys = shared + stage, values = keys + TILE_BYTES;
        stage = STAGE_BYTES - stage;
        if (j + KEY_TILE < total) {
            copy_keys_values<DQ_THREADS>(shared + stage, k, v, k_stride, v_stride, it, total, j + KEY_TILE);
            copies_commit();
        }
        if (rows <= 0) continue;
#pragma unroll 1
        for (int part = 0; part < KEY_TILE && j + part < total; part += DQ_KEYS) {
            unsigned part_keys = keys + part * ROW * 2, part_values = values + part * ROW * 2;
            if (rows > 16)
                dq_part<MT, MT>(qf, gf, c, lse_of, delta_of, part_keys, part_values, offset_a, offset_b,
                                j + part, limit_first, limit_last, lane);
            else
                dq_part<1, MT>(qf, gf, c, lse_of, delta_of, part_keys, part_values, offset_a, offset_b,
                               j + part, limit_first, limit_last, lane);
        }
    }
    __syncthreads();
    if (rows <= 0) return;
    float factor[MT][2];
#pragma unroll
    for (int t = 0; t < MT; t++) factor[t][0] = factor[t][1] = INV_SQRT_D;
    store_warp_rows(attention_shared + warp_place, c, factor,
                    dq + (size_t)(it.q0 + row0) * dq_stride + head * D, dq_stride, rows, lane);
}

// ------------------------------------------------------------------------------ backward: gradients of the
// keys and values

// A team is the warps that hold one copy of the tile's gradients. With two teams, each takes every second
// step on its own, and the gradients are added at the end: the CTA of a tile that very many items see is then
// done in half the time.
#ifndef ATTENTION_DKV_TEAMS
#define ATTENTION_DKV_TEAMS (HEAD_DIM <= 64 ? 2 : 1)
#endif
constexpr int TEAMS = ATTENTION_DKV_TEAMS;
constexpr int KEY_WARPS = KEY_TILE / (16 * DKV_TILES); // warps of a team
static_assert(TEAMS == 1 || KEY_TILE * D * 8 <= TEAMS * 4 * QUERY_TILE * ROW * 2,
              "a team's sums must fit in shared memory");
constexpr int KEY_THREADS = 32 * KEY_WARPS; // threads of a team

__device__ __forceinline__ void team_barrier(int team) {
    if (TEAMS == 1)
        __syncthreads();
    else
        asm volatile("bar.sync %0, %1;" ::"r"(team + 1), "n"(KEY_THREADS) : "memory");
}
constexpr int ITEM_CHUNK = 64; // items whose descriptions are in shared memory at a time (two such chunks)

// Starts the copies for one step: queries and d_out of one head of an item, with their lse and delta.
__device__ __forceinline__ void copy_queries(unsigned to, unsigned numbers, const bf16* q, const bf16* d_out,
                                             const float* lse, const float* delta, int q_stride, int q0,
                                             int q_len, int head, int T, int thread) {
    Walk<KEY_THREADS> w(thread);
    if (w.active) {
        q += (size_t)q0 * q_stride + head * D + w.column;
        d_out += (size_t)q0 * (HEADS * D) + head * D + w.column;
        to += w.place();
#pragma unroll(D <= 64 ? 2 : 8) // more would cost registers that the products need
        for (int i = 0; i < QUERY_TILE; i += w.STEP) {
            if (i + w.STEP > QUERY_TILE && w.row + i >= QUERY_TILE) break;
            bool valid = w.row + i < q_len;
            copy16(to + i * ROW * 2, row_address(q, w.row + i, q_stride * 2), valid);
            copy16(to + (QUERY_TILE + i) * ROW * 2, row_address(d_out, w.row + i, HEADS * D * 2), valid);
        }
    }
    if (thread < 2 * QUERY_TILE) { // there are at least 64 threads
        int row = thread & (QUERY_TILE - 1);
        bool valid = row < q_len;
        const float* from = thread < QUERY_TILE ? lse : delta;
        copy4(numbers + thread * 4, from + (size_t)head * T + q0 + (valid ? row : 0), valid);
    }
}

// Copies the descriptions of items item_list[first ... first + n) to shared memory.
__device__ __forceinline__ void stage_items(int4* to, const int* items, const int* item_list, int first,
                                            int n, int thread) {
    for (int i = thread; i < ITEM_CHUNK && i < n; i += KEY_THREADS) {
        const int4* from = reinterpret_cast<const int4*>(items) + 2 * (size_t)item_list[first + i];
        to[2 * i] = from[0];
        to[2 * i + 1] = from[1];
    }
}

// attention_backward_dkv: dk and dv, from lse (attention_forward) and delta (attention_backward_dq).
// key_tiles: int32[4] each: k0, k_len (1..64), first, count. item_list[first ... first + count) are the items
// that see any of the tile's keys; a tile that no item sees gets zeros.
// Launch geometry:
//   grid: number of key tiles * KV_HEADS
//   block: 128 / ATTENTION_DKV_TILES * ATTENTION_DKV_TEAMS
//   dynamic shared memory: 128 * (D + 8) * 2 + ATTENTION_DKV_TEAMS * (128 * (D + 8) * 2 + 4608) bytes
// One CTA takes a tile of keys of one key/value head; a warp has 16 or 32 keys. Tiles with many items should
// come first. A step is one query head of one item: S^T = K Q^T and dP^T = V dO^T are made in registers and
// used at once as left operands of dV += P^T dO and dK += dS^T Q. The next step's queries are copied
// meanwhile.
// Shared memory: keys, values; then for each team two stages of (queries, d_out); then for each team two
// stages of (lse, delta); then for each team two chunks of item descriptions.
extern "C" __global__ void __launch_bounds__(KEY_THREADS* TEAMS, D < 64 ? 1 : 8 / (KEY_WARPS * TEAMS))
    attention_backward_dkv(const bf16* __restrict__ q, const bf16* __restrict__ k, const bf16* __restrict__ v,
                           const bf16* __restrict__ d_out, const float* __restrict__ lse,
                           const float* __restrict__ delta, bf16* __restrict__ dk, bf16* __restrict__ dv,
                           const int* __restrict__ items, const int* __restrict__ key_tiles,
                           const int* __restrict__ item_list, int q_stride, int k_stride, int v_stride,
                           int dk_stride, int dv_stride, int T) {
    constexpr int MT = DKV_TILES;
    extern __shared__ __align__(128) bf16 attention_shared[];
    constexpr unsigned STAGE_BYTES = 2 * QUERY_TILE * ROW * 2;
    int lane = threadIdx.x & 31, warp = (threadIdx.x >> 5) % KEY_WARPS, kv_head = blockIdx.x % KV_HEADS;
    int team = threadIdx.x / KEY_THREADS, thread = threadIdx.x % KEY_THREADS;
    int4 tile = reinterpret_cast<const int4*>(key_tiles)[blockIdx.x / KV_HEADS];
    int k0 = tile.x, k_len = tile.y, list_first = tile.z, list_count = tile.w;
    unsigned shared = shared_address(attention_shared);
    unsigned queries = shared + (2 * KEY_TILE + team * 4 * QUERY_TILE) * ROW * 2;
    float* all_numbers =
        reinterpret_cast<float*>(attention_shared + (2 * KEY_TILE + TEAMS * 4 * QUERY_TILE) * ROW);
    float* numbers = all_numbers + team * 4 * QUERY_TILE; // [stage][lse, delta][32]
    int4* descriptions = reinterpret_cast<int4*>(all_numbers + TEAMS * 4 * QUERY_TILE) +
                         team * 4 * ITEM_CHUNK; // [chunk][64][2]
    unsigned offset_a = lane_offset_a(lane), offset_b = lane_offset_b(lane);

#pragma unroll
    for (int at = threadIdx.x; at < KEY_TILE * CHUNKS; at += KEY_THREADS * TEAMS) {
        int row = at / CHUNKS, column = at % CHUNKS * 8;
        unsigned to = shared + (unsigned)(row * ROW + column) * 2;
        copy16(to, row_address(k + kv_head * D + column, k0 + row, k_stride * 2), row < k_len);
        copy16(to + KEY_TILE * ROW * 2, row_address(v + kv_head * D + column, k0 + row, v_stride * 2),
               row < k_len);
    }
    stage_items(descriptions, items, item_list, list_first, list_count, thread);
    stage_items(descriptions + 2 * ITEM_CHUNK, items, item_list, list_first + ITEM_CHUNK,
                list_count - ITEM_CHUNK, thread);
    __syncthreads();
    int entry = team / GROUP,
        group_head = team % GROUP; // of the current step: a place in the list and a query head
    if (entry < list_count) {
        int4 a = descriptions[entry * 2];
        copy_queries(queries, shared_address(numbers), q, d_out, lse, delta, q_stride, a.x, a.y,
                     kv_head * GROUP + group_head, T, thread);
    }
    copies_commit();
    copies_wait_all();
    __syncthreads();

    unsigned warp_keys = shared + (unsigned)(warp * 16 * MT * ROW) * 2 + offset_a;
    unsigned kf[MT][KSTEPS][4], vf[MT][KSTEPS][4]; // this warp's keys and values as left operands
#pragma unroll
    for (int t = 0; t < MT; t++)
#pragma unroll
        for (int d = 0; d < KSTEPS; d++) {
            ldmatrix(kf[t][d], warp_keys + (unsigned)(t * 16 * ROW + d * 16) * 2);
            ldmatrix(vf[t][d], warp_keys + (unsigned)((KEY_TILE + t * 16) * ROW + d * 16) * 2);
        }
    float ck[MT][NTILES][4], cv[MT][NTILES][4]; // the gradients
    clear(ck);
    clear(cv);
    int first_token = k0 + warp * 16 * MT;
    int rows = min(16 * MT, k0 + k_len - first_token); // keys of this warp; may be 0 or less

    int fetched = 2; // chunks of descriptions fetched so far
    bool first = true;
    unsigned stage = 0;
    while (entry < list_count) {
        if (!first) {
            copies_wait_all();
            team_barrier(team); // this step's queries have arrived, and no warp of the team still reads the
                                // other stage
        }
        first = false;
        // In the last chunk of descriptions that was fetched: the one before it is free, fetch the one after
        // it.
        if (entry >= (fetched - 1) * ITEM_CHUNK) {
            stage_items(descriptions + fetched % 2 * (2 * ITEM_CHUNK), items, item_list,
                        list_first + fetched * ITEM_CHUNK, list_count - fetched * ITEM_CHUNK, thread);
            fetched++;
        }
        int next_head = group_head + TEAMS, next_entry = entry;
        while (next_head >= GROUP) {
            next_head -= GROUP;
            next_entry++;
        }
        unsigned now = stage;
        stage ^= 1;
        if (next_entry < list_count) {
            int4 a = descriptions[next_entry % (2 * ITEM_CHUNK) * 2];
            copy_queries(queries + stage * STAGE_BYTES, shared_address(numbers + stage * 2 * QUERY_TILE), q,
                         d_out, lse, delta, q_stride, a.x, a.y, kv_head * GROUP + next_head, T, thread);
            copies_commit();
        }
        const int4* description = descriptions + entry % (2 * ITEM_CHUNK) * 2;
        entry = next_entry;
        group_head = next_head;
        bool any, whole; // does the item see any, or all, of this warp's keys?
        int q_len;
        {
            int4 a = description[0], b = description[1];
            q_len = a.y;
            int p0 = a.z, p_end = a.z + a.w, o0 = b.x, o_end = b.x + b.y, last_token = first_token + rows - 1;
            int own_first =
                b.z ? b.y - q_len + 1 : b.y; // keys of its own run that the item's first query sees
            any = rows > 0 &&
                  ((first_token < p_end && last_token >= p0) || (first_token < o_end && last_token >= o0));
            whole = (first_token >= p0 && last_token < p_end) ||
                    (first_token >= o0 && last_token - o0 < own_first);
        }
        if (!any) continue;

        unsigned q_tile = queries + now * STAGE_BYTES, g_tile = q_tile + QUERY_TILE * ROW * 2;
        const float* lse_now = numbers + now * 2 * QUERY_TILE + (lane & 3) * 2;
        const float* delta_now = lse_now + QUERY_TILE;
#pragma unroll 1
        for (int part = 0; part < q_len; part += 16) { // 16 queries at a time
            float s[MT][2][4], dp[MT][2][4];
            unsigned w[4], left[MT][4];
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int n = 0; n < 2; n++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[t][n][e] = dp[t][n][e] = 0.f;
#pragma unroll
            for (int d = 0; d < KSTEPS; d++) {
                ldmatrix(w, q_tile + offset_b + (unsigned)(part * ROW + d * 16) * 2);
#pragma unroll
                for (int t = 0; t < MT; t++) {
                    mma(s[t][0], kf[t][d], w[0], w[1]);
                    mma(s[t][1], kf[t][d], w[2], w[3]);
                }
            }
#pragma unroll
            for (int n = 0; n < 2; n++) {
                float2 l = *reinterpret_cast<const float2*>(lse_now + part + n * 8);
#pragma unroll
                for (int t = 0; t < MT; t++)
#pragma unroll
                    for (int e = 0; e < 4; e++)
                        s[t][n][e] = exp2_fast(s[t][n][e] * SCALE_LOG2 - (e & 1 ? l.y : l.x));
            }
            if (!whole) { // keys that a query does not see have P = 0
                int4 a = description[0], b = description[1];
                int p0 = a.z, p_end = a.z + a.w, o0 = b.x;
                int own_first = b.z ? b.y - q_len + 1 : b.y;
#pragma unroll
                for (int t = 0; t < MT; t++)
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        int token = first_token + t * 16 + half * 8 + (lane >> 2);
                        bool in_prefix = token >= p0 && token < p_end;
                        int own = token - o0;
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            int i = part + (e >> 1) * 8 + (lane & 3) * 2 + (e & 1); // the query
                            bool seen = in_prefix || (own >= 0 && own < own_first + (b.z ? i : 0));
                            if (!seen) s[t][e >> 1][half * 2 + (e & 1)] = 0.f;
                        }
                    }
            }
#pragma unroll
            for (int t = 0; t < MT; t++) as_left_operand(left[t], s[t][0], s[t][1]);
#pragma unroll
            for (int d = 0; d < KSTEPS; d++) { // dV += P^T dO
                ldmatrix_transposed(w, g_tile + offset_a + (unsigned)(part * ROW + d * 16) * 2);
#pragma unroll
                for (int t = 0; t < MT; t++) {
                    mma(cv[t][2 * d], left[t], w[0], w[1]);
                    mma(cv[t][2 * d + 1], left[t], w[2], w[3]);
                }
            }
#pragma unroll
            for (int d = 0; d < KSTEPS; d++) { // dP^T = V dO^T
                ldmatrix(w, g_tile + offset_b + (unsigned)(part * ROW + d * 16) * 2);
#pragma unroll
                for (int t = 0; t < MT; t++) {
                    mma(dp[t][0], vf[t][d], w[0], w[1]);
                    mma(dp[t][1], vf[t][d], w[2], w[3]);
                }
            }
#pragma unroll
            for (int n = 0; n < 2; n++) { // dS = P * (dP - delta)
                float2 x = *reinterpret_cast<const float2*>(delta_now + part + n * 8);
#pragma unroll
                for (int t = 0; t < MT; t++)
#pragma unroll
                    for (int e = 0; e < 4; e++) s[t][n][e] *= dp[t][n][e] - (e & 1 ? x.y : x.x);
            }
#pragma unroll
            for (int t = 0; t < MT; t++) as_left_operand(left[t], s[t][0], s[t][1]);
#pragma unroll
            for (int d = 0; d < KSTEPS; d++) { // dK += dS^T Q
                ldmatrix_transposed(w, q_tile + offset_a + (unsigned)(part * ROW + d * 16) * 2);
#pragma unroll
                for (int t = 0; t < MT; t++) {
                    mma(ck[t][2 * d], left[t], w[0], w[1]);
                    mma(ck[t][2 * d + 1], left[t], w[2], w[3]);
                }
            }
        }
    }
    // One after the other, the other teams hand their sums to the first one.
    float4* handed = reinterpret_cast<float4*>(attention_shared + 2 * KEY_TILE * ROW) + thread;
#pragma unroll 1
    for (int giver = 1; giver < TEAMS; giver++) {
        __syncthreads();
        if (team == giver) {
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int n = 0; n < NTILES; n++) {
                    float4* to = handed + (t * NTILES + n) * 2 * KEY_THREADS;
                    to[0] = make_float4(ck[t][n][0], ck[t][n][1], ck[t][n][2], ck[t][n][3]);
                    to[KEY_THREADS] = make_float4(cv[t][n][0], cv[t][n][1], cv[t][n][2], cv[t][n][3]);
                }
        }
        __syncthreads();
        if (team == 0) {
#pragma unroll
            for (int t = 0; t < MT; t++)
#pragma unroll
                for (int n = 0; n < NTILES; n++) {
                    const float4* from = handed + (t * NTILES + n) * 2 * KEY_THREADS;
                    float4 a = from[0], b = from[KEY_THREADS];
                    ck[t][n][0] += a.x, ck[t][n][1] += a.y, ck[t][n][2] += a.z, ck[t][n][3] += a.w;
                    cv[t][n][0] += b.x, cv[t][n][1] += b.y, cv[t][n][2] += b.z, cv[t][n][3] += b.w;
                }
        }
    }
    if (team > 0 || rows <= 0) return;
    // The warp's own rows of the key tile are no longer needed: the results pass through them.
    __syncwarp();
    bf16* place = attention_shared + warp * 16 * MT * ROW;
    float factor[MT][2], one[MT][2];
#pragma unroll
    for (int t = 0; t < MT; t++) {
        factor[t][0] = factor[t][1] = INV_SQRT_D;
        one[t][0] = one[t][1] = 1.f;
    }
    store_warp_rows(place, ck, factor, dk + (size_t)first_token * dk_stride + kv_head * D, dk_stride, rows,
                    lane);
    store_warp_rows(place, cv, one, dv + (size_t)first_token * dv_stride + kv_head * D, dv_stride, rows,
                    lane);
}

} // namespace attention_kernels
