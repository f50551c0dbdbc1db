#!/usr/bin/env python3
"""Tests attention.cu, or attention_fp32.cu with --fp32, against dense float64 attention in numpy, on a card or the stand-in driver.

test_attention.py [--seed N] [--only NAME]     correctness
test_attention.py --fp32 ...                   attention_fp32.cu, which needs common.cu beside it
test_attention.py --time                       times at a realistic shape (needs a real card)
test_attention.py --compile DIR                writes PTX of a few shapes to DIR
"""

import argparse, ctypes, os, pathlib, sys
import numpy as np

HERE = os.environ.get("KERNEL_SOURCES", str(pathlib.Path(__file__).resolve().parents[2] / "trainer/engine/src/kernels"))
FP32 = False  # set by --fp32


def source():
    names = ("common.cu", "attention_fp32.cu") if FP32 else ("attention.cu",)
    return "#define FP32 1\n" * FP32 + "".join(open(os.path.join(HERE, n)).read() for n in names)


u64, vp, ci = ctypes.c_uint64, ctypes.c_void_p, ctypes.c_int


# ------------------------------------------------------------------------- driver and compiler
def libraries():
    global cuda, nvrtc
    cuda = ctypes.CDLL("libcuda.so.1")
    for name in ("libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"):
        try:
            nvrtc = ctypes.CDLL(name)
            break
        except OSError:
            pass


def check(code):
    if code:
        raise RuntimeError(f"CUDA error {code}")


def start():
    libraries()
    check(cuda.cuInit(0))
    dev, ctx = ci(), vp()
    check(cuda.cuDeviceGet(ctypes.byref(dev), 0))
    check(cuda.cuDevicePrimaryCtxRetain(ctypes.byref(ctx), dev))
    check(cuda.cuCtxSetCurrent(ctx))
    name = ctypes.create_string_buffer(100)
    cuda.cuDeviceGetName(name, 100, dev)
    return name.value.decode()


def compile_ptx(h, k, d, tiles=None, cubin=False):
    """tiles: (forward, dq, dkv) rows of a warp in units of 16, then teams of dkv; None: the default."""
    defines = f"#define HEADS {h}\n#define KV_HEADS {k}\n#define HEAD_DIM {d}\n"
    for name, n in zip(("FORWARD_TILES", "DQ_TILES", "DKV_TILES", "DKV_TEAMS"), tiles or ()):
        defines += f"#define ATTENTION_{name} {n}\n"
    src = (defines + source()).encode()
    return compile_source(src, cubin)


def compile_source(src, cubin=False):
    prog = vp()
    check(nvrtc.nvrtcCreateProgram(ctypes.byref(prog), src, b"attention.cu", 0, None, None))
    opts = [
        b"--gpu-architecture=" + (b"sm_90a" if cubin else b"compute_90a"),
        b"--std=c++17",
        b"-default-device",
    ]
    r = nvrtc.nvrtcCompileProgram(prog, len(opts), (ctypes.c_char_p * len(opts))(*opts))
    if r:
        n = ctypes.c_size_t()
        nvrtc.nvrtcGetProgramLogSize(prog, ctypes.byref(n))
        log = ctypes.create_string_buffer(n.value + 1)
        nvrtc.nvrtcGetProgramLog(prog, log)
        sys.exit(log.value.decode())
    n = ctypes.c_size_t()
    size, get = (
        (nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN)
        if cubin
        else (nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX)
    )
    check(size(prog, ctypes.byref(n)))
    code = ctypes.create_string_buffer(n.value + 1)
    check(get(prog, code))
    return code.raw[: n.value] if cubin else code.value


class Buffer:
    def __init__(self, array):
        self.n = array.nbytes
        self.dtype, self.shape = array.dtype, array.shape
        self.p = u64()
        check(cuda.cuMemAlloc_v2(ctypes.byref(self.p), ctypes.c_size_t(max(self.n, 256))))
        self.write(array)

    def write(self, array):
        a = np.ascontiguousarray(array)
        check(cuda.cuMemcpyHtoD_v2(self.p, a.ctypes.data_as(vp), ctypes.c_size_t(self.n)))

    def read(self):
        a = np.empty(self.shape, self.dtype)
        check(cuda.cuCtxSynchronize())
        check(cuda.cuMemcpyDtoH_v2(a.ctypes.data_as(vp), self.p, ctypes.c_size_t(self.n)))
        return a

    def at(self, elements):
        return u64(self.p.value + elements * self.dtype.itemsize)

    def free(self):
        cuda.cuMemFree_v2(self.p)


def to_bf16(x):
    u = np.ascontiguousarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((u + 0x7FFF + (u >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(x):
    return (x.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def to_act(x):
    """Numbers as the kernels take them: bf16, or fp32 with --fp32."""
    return np.ascontiguousarray(x, np.float32) if FP32 else to_bf16(x)


def from_act(x):
    return x.astype(np.float64) if FP32 else from_bf16(x)


def poison(*shape):
    """Activations with all bits set, a NaN."""
    return np.full(shape, 0xFFFFFFFF, np.uint32).view(np.float32) if FP32 else np.full(shape, 0xFFFF, np.uint16)


def bits(x):
    return np.ascontiguousarray(x).view(np.uint8)


class Kernels:
    """The three kernels for one shape, with their launch geometry."""

    def __init__(self, h, k, d, tiles=None):
        self.h, self.k, self.d = h, k, d
        self.module = vp()
        if cuda.cuModuleLoadData(ctypes.byref(self.module), compile_ptx(h, k, d, tiles)):
            # A driver older than the compiler does not read its PTX.
            check(cuda.cuModuleLoadData(ctypes.byref(self.module), compile_ptx(h, k, d, tiles, cubin=True)))
        group = h // k
        most = 4 if d <= 64 else 2
        self.splits = (group + most - 1) // most
        heads = (group + self.splits - 1) // self.splits
        if not tiles:  # as attention.cu chooses
            tiles = (2 if d <= 64 and heads > 1 else 1, 2 if d <= 64 and heads % 2 == 0 else 1) + (
                (2, 2) if d <= 64 else (1, 1)
            )
        self.teams = tiles[3]
        self.block = [64 // tiles[0] * heads, 64 // tiles[1] * heads, 128 // tiles[2] * self.teams]
        row = (d + 8) * 2
        self.smem = {
            "attention_forward": 256 * row,
            "attention_backward_dq": (128 + max(128, 96 * heads)) * row,
            "attention_backward_dkv": 128 * row + self.teams * (128 * row + 512 + 4096),
        }
        if FP32:
            per_cta = 16 if d <= 64 else 8
            self.item_ctas, self.tile_ctas = h * 32 // per_cta, k * 64 // per_cta
            self.block = [128] * 3
            self.smem = dict.fromkeys(self.smem, 0)
        else:
            self.item_ctas, self.tile_ctas = k * self.splits, k
        self.fn = {}
        for name, bytes_ in self.smem.items():
            f = vp()
            check(cuda.cuModuleGetFunction(ctypes.byref(f), self.module, name.encode()))
            check(cuda.cuFuncSetAttribute(f, 8, bytes_))  # largest dynamic shared memory
            cuda.cuFuncSetAttribute(f, 9, 100)  # as much shared memory as possible, the rest is L1 cache
            self.fn[name] = f

    def launch(self, name, grid, block, args):
        cs = [a if isinstance(a, u64) else ci(a) for a in args]
        params = (vp * len(cs))(*[ctypes.cast(ctypes.pointer(c), vp) for c in cs])
        check(
            cuda.cuLaunchKernel(self.fn[name], grid, 1, 1, block, 1, 1, self.smem[name], None, params, None)
        )

    def forward(self, n_items, args):
        self.launch("attention_forward", n_items * self.item_ctas, self.block[0], args)

    def dq(self, n_items, args):
        self.launch("attention_backward_dq", n_items * self.item_ctas, self.block[1], args)

    def dkv(self, n_tiles, args):
        self.launch("attention_backward_dkv", n_tiles * self.tile_ctas, self.block[2], args)


# ------------------------------------------------------------------------------------------------ work items
def block_document(items, at, length, bd, views):
    """Clean tokens in blocks of bd, then `views` noised copies; longer blocks are several items."""
    for view in range(views + 1):
        base = at + view * length
        for b in range(0, length, bd):
            n = min(bd, length - b)
            for piece in range(0, n, 32):
                items.append([base + b + piece, min(32, n - piece), at, b, base + b, n, 0, 0])
    return at + length * (views + 1)


def causal_document(items, at, length, piece, one_run):
    for b in range(0, length, piece):
        n = min(piece, length - b)
        if one_run:
            items.append([at + b, n, 0, 0, at, b + n, 1, 0])
        else:
            items.append([at + b, n, at, b, at + b, n, 1, 0])
    return at + length


def key_tiles(items, T, sizes):
    tiles, lists, at, i = [], [], 0, 0
    while at < T:
        n = min(sizes[i % len(sizes)], T - at)
        i += 1
        seen = np.flatnonzero(
            ((items[:, 2] < at + n) & (items[:, 2] + items[:, 3] > at) & (items[:, 3] > 0))
            | ((items[:, 4] < at + n) & (items[:, 4] + items[:, 5] > at))
        )
        tiles.append([at, n, len(lists), len(seen)])
        lists += seen.tolist()
        at += n
    return np.array(tiles, np.int32), np.array(lists or [0], np.int32)


def mask_of(items, T):
    mask = np.zeros((T, T), bool)
    for q0, ql, p0, pl, o0, ol, causal, _ in items:
        mask[q0 : q0 + ql, p0 : p0 + pl] = True
        for i in range(ql):
            mask[q0 + i, o0 : o0 + (i + 1 + ol - ql if causal else ol)] = True
    return mask


def reference(q, k, v, g, mask, h, kh, d):
    """Dense float64 attention and its gradients; q [T, H, D], k and v [T, K, D], g = d_out."""
    T = q.shape[0]
    out, dq = np.zeros_like(q), np.zeros_like(q)
    dk, dv = np.zeros_like(k), np.zeros_like(v)
    lse, delta = np.zeros((h, T)), np.zeros((h, T))
    for i in range(h):
        j = i // (h // kh)
        s = np.where(mask, q[:, i] @ k[:, j].T / np.sqrt(d), -np.inf)
        top = s.max(1, keepdims=True)
        e = np.exp(s - top)
        z = e.sum(1, keepdims=True)
        p = e / z
        lse[i] = (top + np.log(z))[:, 0] / np.log(2)
        out[:, i] = p @ v[:, j]
        delta[i] = (g[:, i] * out[:, i]).sum(1)
        dv[:, j] += p.T @ g[:, i]
        ds = p * (g[:, i] @ v[:, j].T - delta[i][:, None])
        dq[:, i] = ds @ k[:, j] / np.sqrt(d)
        dk[:, j] += ds.T @ q[:, i] / np.sqrt(d)
    return out, lse, delta, dq, dk, dv


def l2(x, ref):
    return np.linalg.norm(x - ref) / max(np.linalg.norm(ref), 1e-30) if np.isfinite(x).all() else np.inf


# ------------------------------------------------------------------------------------------------ correctness
def layouts(name, rng):
    items, at = [], 0
    if name == "blocks32":
        at = block_document(items, at, 101, 32, 2)
        at = block_document(items, at, 40, 32, 1)
    elif name == "blocks8":
        at = block_document(items, at, 61, 8, 2)
        at = causal_document(items, at, 19, 7, False)
    elif name == "mixed":
        at = causal_document(items, at, 77, 32, False)
        at = block_document(items, at, 106, 48, 1)
        at = causal_document(items, at, 75, 29, True)
        at = block_document(items, at, 1, 4, 2)
    elif name == "long":
        at = block_document(items, at, 165, 32, 1)
    elif name == "many":  # more items in a key tile than fit in shared memory at once, twice over
        at = block_document(items, at, 210, 1, 0)
        at = block_document(items, at, 9, 4, 1)
    elif name == "unseen":  # 150 tokens that nobody sees: their key tiles have no items
        at = block_document(items, at, 70, 32, 0)
        items += [[at + i, min(32, 150 - i), 0, 64, 64, 6, 0, 0] for i in range(0, 150, 32)]
        at += 150
        at = causal_document(items, at, 40, 32, False)
    items = np.array(items, np.int32)
    return items[rng.permutation(len(items))], at


def run_case(h, k, d, layout, seed, one_buffer, sharp=1.0, tiles=None):
    rng = np.random.default_rng(seed)
    items, T = layouts(layout, rng)
    kern = Kernels(h, k, d, tiles)
    mask = mask_of(items, T)
    assert mask.any(1).all()
    qd, kd = h * d, k * d
    # Token rows: q, k and v columns of one buffer, or q and k in one and v in another, with columns to spare.
    if one_buffer:
        widths, q_at, k_at, v_at = [qd + 2 * kd], (0, 0), (0, qd), (0, qd + kd)
    else:
        widths, q_at, k_at, v_at = [qd + kd + 16, kd + 8], (0, 0), (0, qd + 16), (1, 8)
    host = [to_act(rng.standard_normal((T, w)) * sharp) for w in widths]
    g_host = to_act(rng.standard_normal((T, qd)))
    get = lambda at, heads: from_act(host[at[0]])[:, at[1] : at[1] + heads * d].reshape(T, heads, d)
    g = from_act(g_host).reshape(T, h, d)
    ref = reference(get(q_at, h), get(k_at, k), get(v_at, k), g, mask, h, k, d)

    bufs = [Buffer(x) for x in host]
    grads = [Buffer(poison(T, w)) for w in widths]
    out, g_buf = Buffer(poison(T, qd)), Buffer(g_host)
    lse, delta = [Buffer(np.full((h, T), np.nan, np.float32)) for _ in range(2)]
    it = Buffer(items)
    key_rows, lists = key_tiles(items, T, [64] if seed % 2 else [64, 37, 16, 1, 50])
    key_rows = key_rows[rng.permutation(len(key_rows))]
    tb, lb = Buffer(key_rows), Buffer(lists)
    place = lambda b, at: b[at[0]].at(at[1])
    qs, ks, vs = widths[q_at[0]], widths[k_at[0]], widths[v_at[0]]
    q, kk, v = place(bufs, q_at), place(bufs, k_at), place(bufs, v_at)
    dq, dk, dv = place(grads, q_at), place(grads, k_at), place(grads, v_at)

    def run():
        kern.forward(len(items), [q, kk, v, out.p, lse.p, it.p, qs, ks, vs, T])
        kern.dq(len(items), [q, kk, v, out.p, g_buf.p, lse.p, delta.p, dq, it.p, qs, ks, vs, qs, T])
        kern.dkv(
            len(key_rows),
            [q, kk, v, g_buf.p, lse.p, delta.p, dk, dv, it.p, tb.p, lb.p, qs, ks, vs, ks, vs, T],
        )
        return [x.read() for x in grads + [out, lse, delta]]

    first = run()
    same = True
    for _ in range(0 if os.environ.get("NULLCUDA_EXEC") else 5):  # on a card: the same bits every time
        for x in grads + [out, lse, delta]:
            x.write(np.full(x.shape, np.nan, np.float32) if x in (lse, delta) else poison(*x.shape))
        same &= all((a.view(np.uint8) == b.view(np.uint8)).all() for a, b in zip(first, run()))
    gh = [b.read() for b in grads]
    take = lambda at, heads: from_act(gh[at[0]][:, at[1] : at[1] + heads * d]).reshape(T, heads, d)
    got = (
        from_act(out.read()).reshape(T, h, d),
        lse.read().astype(np.float64),
        delta.read().astype(np.float64),
        take(q_at, h),
        take(k_at, k),
        take(v_at, k),
    )
    errors = dict(zip(("out", "lse", "delta", "dq", "dk", "dv"), (l2(x, r) for x, r in zip(got, ref))))
    # Columns between the tensors must be as they were.
    for at, heads in ((q_at, h), (k_at, k), (v_at, k)):
        gh[at[0]][:, at[1] : at[1] + heads * d] = poison(1)
    clean = all((bits(x) == 0xFF).all() for x in gh)
    limits = {"lse": 1e-6 if FP32 else 1e-3}
    ok = clean and same and all(e < limits.get(n, 1e-5 if FP32 else 1e-2) for n, e in errors.items())
    print(
        f"{'ok  ' if ok else 'FAIL'} H={h} K={k} D={d} {layout} tiles={tiles} T={T} items={len(items)} "
        + " ".join(f"{n} {e:.1e}" for n, e in errors.items())
        + ("" if clean else " wrote outside")
        + ("" if same else " not the same twice"),
        flush=True,
    )
    for b in bufs + grads + [out, g_buf, lse, delta, it, tb, lb]:
        b.free()
    return ok


CASES = [
    (2, 2, 16, "mixed", True, 1.0),
    (4, 2, 32, "blocks32", False, 1.0),
    (3, 1, 64, "blocks32", True, 1.0),
    (2, 1, 128, "blocks32", True, 1.0),
    (4, 1, 64, "mixed", False, 1.0),
    (7, 1, 64, "blocks8", True, 1.0),
    (2, 2, 128, "mixed", False, 2.0),
    (3, 1, 96, "blocks8", True, 1.0),
    (6, 2, 16, "many", True, 1.0),
    (4, 1, 128, "long", True, 1.0),
    (14, 2, 32, "blocks8", False, 3.0),
    (3, 1, 64, "unseen", False, 1.0),
    (2, 1, 128, "unseen", True, 1.0),
    (2, 2, 64, "mixed", False, 1.0),
    (10, 2, 16, "mixed", True, 1.0),
]


# ------------------------------------------------------------------------------------------------ times
def time_shape(h, k, d, variants, rows=16, length=512, bd=32, repeats=20, warm=3, check_some=True):
    """Times of the three kernels for each variant (rows of a warp, teams) and each order of the work."""
    items, at = [], 0
    for _ in range(rows):
        at = block_document(items, at, length, bd, 2)
    T = at
    items = np.array(items, np.int32)
    key_rows, lists = key_tiles(items, T, [64])
    pairs = int((items[:, 1].astype(np.int64) * (items[:, 3] + items[:, 5])).sum())
    print(
        f"H={h} K={k} D={d}: T={T}, {len(items)} items, {len(key_rows)} key tiles, "
        f"{pairs / T:.0f} keys a query",
        flush=True,
    )
    rng = np.random.default_rng(1)
    w = (h + 2 * k) * d
    qkv = Buffer(to_act(rng.standard_normal((T, w), dtype=np.float32)))
    g = Buffer(to_act(rng.standard_normal((T, h * d), dtype=np.float32)))
    grads, out = Buffer(to_act(np.zeros((T, w)))), Buffer(to_act(np.zeros((T, h * d))))
    lse, delta = Buffer(np.zeros((h, T), np.float32)), Buffer(np.zeros((h, T), np.float32))
    q, kk, v = qkv.at(0), qkv.at(h * d), qkv.at((h + k) * d)
    a, b = vp(), vp()
    check(cuda.cuEventCreate(ctypes.byref(a), 0))
    check(cuda.cuEventCreate(ctypes.byref(b), 0))
    for tiles in variants:
        kern = Kernels(h, k, d, tiles)
        for order in ("as they come", "long first"):
            if order == "long first":
                by_length = np.argsort(-(items[:, 3] + items[:, 5]), kind="stable")
                rank = np.empty(len(items), np.int32)
                rank[by_length] = np.arange(len(items))
                it, lb = Buffer(items[by_length]), Buffer(rank[lists])
                tb = Buffer(key_rows[np.argsort(-key_rows[:, 3], kind="stable")])
            else:
                it, lb, tb = Buffer(items), Buffer(lists), Buffer(key_rows)
            dq, dk, dv = grads.at(0), grads.at(h * d), grads.at((h + k) * d)
            runs = {
                "attention_forward": (
                    2,
                    kern.forward,
                    len(items),
                    [q, kk, v, out.p, lse.p, it.p, w, w, w, T],
                ),
                "attention_backward_dq": (
                    3,
                    kern.dq,
                    len(items),
                    [q, kk, v, out.p, g.p, lse.p, delta.p, dq, it.p, w, w, w, w, T],
                ),
                "attention_backward_dkv": (
                    4,
                    kern.dkv,
                    len(key_rows),
                    [q, kk, v, g.p, lse.p, delta.p, dk, dv, it.p, tb.p, lb.p, w, w, w, w, w, T],
                ),
            }
            print(f"  variant {tiles or 'default'}, {order}", flush=True)
            for name, (products, f, n, args) in runs.items():
                for _ in range(warm):
                    f(n, args)
                check(cuda.cuEventRecord(a, None))
                for _ in range(repeats):
                    f(n, args)
                check(cuda.cuEventRecord(b, None))
                check(cuda.cuEventSynchronize(b))
                ms = ctypes.c_float()
                cuda.cuEventElapsedTime(ctypes.byref(ms), a, b)
                ms = ms.value / repeats
                flop = 2.0 * products * pairs * h * d
                regs, local = ci(), ci()
                cuda.cuFuncGetAttribute(ctypes.byref(regs), 4, kern.fn[name])
                cuda.cuFuncGetAttribute(ctypes.byref(local), 3, kern.fn[name])
                print(
                    f"    {name:24s} {ms:8.3f} ms  {flop / ms / 1e9:7.1f} TFLOP/s  {regs.value} registers, "
                    f"{local.value} B local, {kern.smem[name]} B shared",
                    flush=True,
                )
            for x in (it, tb, lb):
                x.free()
    if check_some:
        check_parts(h, k, d, items, key_rows, lists, *[x.read() for x in (qkv, g, out, lse, grads)])
    for x in (qkv, g, grads, out, lse, delta):
        x.free()


def check_parts(h, k, d, items, key_rows, lists, qkv, g, out, lse, grads):
    """Some items and key tiles of a large run against float64."""
    T = qkv.shape[0]
    f = lambda x, rows, at, heads: from_act(x[rows, at : at + heads * d]).reshape(-1, heads, d)
    rng = np.random.default_rng(5)

    def item(i):
        q0, n, p0, pl, o0, ol, _, _ = items[i]
        rows, keys = np.arange(q0, q0 + n), np.r_[p0 : p0 + pl, o0 : o0 + ol]
        q, gg = f(qkv, rows, 0, h), f(g, rows, 0, h)
        kk, v = f(qkv, keys, h * d, k).repeat(h // k, 1), f(qkv, keys, (h + k) * d, k).repeat(h // k, 1)
        s = np.einsum("qhd,khd->hqk", q, kk) / np.sqrt(d)
        top = s.max(2, keepdims=True)
        p = np.exp(s - top)
        z = p.sum(2, keepdims=True)
        p /= z
        o = np.einsum("hqk,khd->qhd", p, v)
        ds = p * (np.einsum("qhd,khd->hqk", gg, v) - (o * gg).sum(2).T[:, :, None])
        return rows, keys, q, gg, p, ds, o, ((top + np.log(z)) / np.log(2))[:, :, 0], kk

    err = {}
    add = lambda name, x, r: err.setdefault(name, []).append(l2(x, r))
    for i in rng.choice(len(items), 8, replace=False):
        rows, keys, q, gg, p, ds, o, ls, kk = item(i)
        add("out", f(out, rows, 0, h), o)
        add("lse", lse[:, rows].astype(np.float64), ls)
        add("dq", f(grads, rows, 0, h), np.einsum("hqk,khd->qhd", ds, kk) / np.sqrt(d))
    for t in list(rng.choice(len(key_rows), 3, replace=False)) + [0]:
        k0, n, first, count = key_rows[t]
        dk, dv = np.zeros((n, k, d)), np.zeros((n, k, d))
        for i in lists[first : first + count]:
            rows, keys, q, gg, p, ds, o, ls, kk = item(i)
            at = np.flatnonzero((keys >= k0) & (keys < k0 + n))
            sum_group = lambda x: x.reshape(len(at), k, h // k, d).sum(2)
            dv[keys[at] - k0] += sum_group(np.einsum("hqk,qhd->khd", p[:, :, at], gg))
            dk[keys[at] - k0] += sum_group(np.einsum("hqk,qhd->khd", ds[:, :, at], q)) / np.sqrt(d)
        add("dk", f(grads, np.arange(k0, k0 + n), h * d, k), dk)
        add("dv", f(grads, np.arange(k0, k0 + n), (h + k) * d, k), dv)
    good = all(e < (1e-5 if FP32 else 1e-2) for es in err.values() for e in es)
    print(
        f"  {'ok  ' if good else 'FAIL'} parts of T={T}: "
        + " ".join(f"{n} {max(e):.1e}" for n, e in err.items()),
        flush=True,
    )


if __name__ == "__main__":
    ap = argparse.ArgumentParser()
    ap.add_argument("--seed", type=int, default=None)
    ap.add_argument("--only", default="")
    ap.add_argument("--time", action="store_true")
    ap.add_argument("--tiles", help="e.g. 1,1,1: rows of a warp in units of 16 in the three kernels")
    ap.add_argument("--compile")
    ap.add_argument("--fp32", action="store_true")
    a = ap.parse_args()
    FP32 = a.fp32
    if a.compile:
        libraries()
        os.makedirs(a.compile, exist_ok=True)
        for h, k, d in (
            (9, 3, 64),
            (16, 8, 128),
            (32, 8, 128),
            (14, 2, 64),
            (4, 1, 96),
            (4, 2, 32),
            (4, 2, 16),
        ):
            open(os.path.join(a.compile, f"h{h}k{k}d{d}.ptx"), "wb").write(compile_ptx(h, k, d))
        sys.exit()
    print(start())
    if a.time and FP32:
        for h, k, d in ((9, 3, 64), (16, 8, 128)):
            time_shape(h, k, d, [None])
        sys.exit()
    if a.time:
        time_shape(9, 3, 64, [None, (1, 1, 1, 1), (2, 2, 2, 1), (2, 1, 2, 2), (2, 2, 2, 4)])
        time_shape(16, 8, 128, [None, (1, 1, 1, 2)])
        time_shape(14, 2, 64, [None, (2, 1, 2, 2)])
        time_shape(32, 8, 128, [None], rows=8)
        sys.exit()
    seed = a.seed if a.seed is not None else int.from_bytes(os.urandom(3), "little")
    print("seed", seed)
    good = True
    for i, (h, k, d, layout, one, sharp) in enumerate(CASES):
        if a.only in f"h{h}k{k}d{d}{layout}":
            good &= run_case(
                h,
                k,
                d,
                layout,
                seed + i,
                one,
                sharp,
                tuple(map(int, a.tiles.split(","))) if a.tiles else None,
            )
    print("all ok" if good else "FAILED")
    sys.exit(not good)
