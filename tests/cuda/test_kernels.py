"""Tests (and times) the kernels of common.cu, layers.cu, distill.cu and update.cu through the CUDA driver API.

    test_kernels.py                 compares every kernel with numpy in float64, for several sizes of model
    test_kernels.py --only NAME     only the kernels whose name contains NAME
    test_kernels.py --shape 0,2     only these shapes
    test_kernels.py --fp32          the same with fp32 activations (#define FP32 1)
    test_kernels.py --time          on a real card: milliseconds and GB/s of every kernel at T = 20000
"""
import argparse, ctypes as C, glob, math, os, pathlib, sys
import numpy as np

# the sources, beside this script or in the engine
HERE = os.environ.get("KERNEL_SOURCES", str(pathlib.Path(__file__).resolve().parents[2] / "trainer/engine/src/kernels"))
parser = argparse.ArgumentParser()
parser.add_argument("--only", default="")
parser.add_argument("--shape", default="")
parser.add_argument("--time", action="store_true")
parser.add_argument("--fp32", action="store_true")
parser.add_argument("--tokens", type=int, default=20000)
parser.add_argument("--extra", default="", help="more source files, compiled with ours (comma-separated)")
args = parser.parse_args()
FP32 = args.fp32
BYTES = 4 if FP32 else 2  # of an activation

cu = C.CDLL("libcuda.so.1")
STANDIN = "NULLCUDA_DIR" in os.environ  # not a real card: it takes PTX only


def open_nvrtc():
    places = [os.environ.get("NVRTC", "libnvrtc.so"), "libnvrtc.so.13", "libnvrtc.so.12"]
    places += sorted(glob.glob("/usr/local/cuda*/lib64/libnvrtc.so*"))
    for folder in sys.path:
        places += glob.glob(f"{folder}/nvidia/*/lib/libnvrtc.so*")
    for place in places:
        try:
            return C.CDLL(place)
        except OSError:
            pass
    raise SystemExit("no libnvrtc found; name it in NVRTC")


rtc = open_nvrtc()


def ok(code, what=""):
    if code != 0:
        raise SystemExit(f"CUDA error {code} {what}")


ok(cu.cuInit(0))
dev, ctx = C.c_int(), C.c_void_p()
ok(cu.cuDeviceGet(C.byref(dev), 0))
ok(cu.cuDevicePrimaryCtxRetain(C.byref(ctx), dev))
ok(cu.cuCtxSetCurrent(ctx))
EPS = 1e-6


class Shape:
    def __init__(self, E, F, H, K, D, V, bias=False, norm=False, relu2=False, T=37):
        self.E, self.F, self.H, self.K, self.D, self.V = E, F, H, K, D, V
        self.bias, self.norm, self.relu2, self.T = bias, norm, relu2, T
        self.S = (V + 63) // 64 * 64
        self.name = f"E={E} F={F} H={H} K={K} D={D} V={V} bias={bias} norm={norm} relu2={relu2}"
        # Launch geometry that depends on E
        self.row_cta = 256 if E <= 1024 else 32 * ((E + 511) // 512)
        self.rows_per_cta = 8 if E <= 1024 else 1
        self.head_lanes = 8 if D == 96 else D // 16

    def compile(self):
        names = ["common.cu", "layers.cu", "distill.cu", "update.cu"] + [x for x in args.extra.split(",") if x]
        source = "".join(open(n if "/" in n else f"{HERE}/{n}").read() for n in names)
        # The sizes stand in front of the source, not among the options: the stand-in's cache knows the source only.
        sizes = dict(HIDDEN=self.E, FFN=self.F, HEADS=self.H, KV_HEADS=self.K, HEAD_DIM=self.D, VOCAB=self.V,
                     VOCAB_STRIDE=self.S, EPS=f"{EPS:e}f", **dict(RELU2=1) if self.relu2 else {},
                     **dict(FP32=1) if FP32 else {})
        source = "".join(f"#define {name} {value}\n" for name, value in sizes.items()) + source
        options = [f"--gpu-architecture={'compute' if STANDIN else 'sm'}_90a", "--std=c++17", "-default-device"]
        prog = C.c_void_p()
        ok(rtc.nvrtcCreateProgram(C.byref(prog), source.encode(), b"dlm.cu", 0, None, None))
        array = (C.c_char_p * len(options))(*[o.encode() for o in options])
        code = rtc.nvrtcCompileProgram(prog, len(options), array)
        size = C.c_size_t()
        if code != 0:
            rtc.nvrtcGetProgramLogSize(prog, C.byref(size))
            log = C.create_string_buffer(size.value)
            rtc.nvrtcGetProgramLog(prog, log)
            raise SystemExit(log.value.decode())
        get_size, get = (rtc.nvrtcGetPTXSize, rtc.nvrtcGetPTX) if STANDIN else (rtc.nvrtcGetCUBINSize, rtc.nvrtcGetCUBIN)
        ok(get_size(prog, C.byref(size)))
        self.image = C.create_string_buffer(size.value)
        ok(get(prog, self.image))
        self.module = C.c_void_p()
        ok(cu.cuModuleLoadData(C.byref(self.module), self.image), "module")


allocated = []


GUARD = np.frombuffer(b"do not write behind the end!" * 40, np.uint8)[:1024]


class Buffer:
    """Device memory with the contents of a numpy array; behind its end are bytes that must not change."""

    def __init__(self, data):
        self.shape, self.dtype, self.bytes = data.shape, data.dtype, data.nbytes
        self.ptr = C.c_uint64()
        ok(cu.cuMemAlloc_v2(C.byref(self.ptr), C.c_size_t(data.nbytes + GUARD.nbytes)), "alloc")
        both = np.concatenate([np.ascontiguousarray(data).reshape(-1).view(np.uint8), GUARD])
        ok(cu.cuMemcpyHtoD_v2(self.ptr, both.ctypes.data_as(C.c_void_p), C.c_size_t(both.nbytes)))
        allocated.append(self)

    def intact(self):
        guard = np.empty_like(GUARD)
        ok(cu.cuMemcpyDtoH_v2(guard.ctypes.data_as(C.c_void_p), C.c_uint64(self.ptr.value + self.bytes),
                              C.c_size_t(guard.nbytes)), "copy back")
        return (guard == GUARD).all()

    def get(self):
        out = np.empty(self.shape, self.dtype)
        ok(cu.cuMemcpyDtoH_v2(out.ctypes.data_as(C.c_void_p), self.ptr, C.c_size_t(out.nbytes)), "copy back")
        return out


def free_all():
    global failures
    for b in allocated:
        if hasattr(b, "bytes") and not b.intact():
            failures += 1
            print(f"  FAIL bytes behind a buffer of shape {b.shape} were changed")
        cu.cuMemFree_v2(b.ptr)
    allocated.clear()


def to_bf16(x):
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def from_bf16(b):
    return (b.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def round16(x):
    return from_bf16(to_bf16(x))


rng = np.random.default_rng(7)


def to_act(x):
    """Activations as the kernels keep them: the bits of bf16 numbers, or fp32."""
    return np.asarray(x, np.float32) if FP32 else to_bf16(x)


def from_act(x):
    return np.asarray(x, np.float64) if FP32 else from_bf16(x)


def round_act(x):
    """What remains of exact numbers as activations."""
    return np.asarray(x, np.float64).astype(np.float32).astype(np.float64) if FP32 else round16(x)


def normals(*shape, scale=1.0):
    """Random activations: what the device holds, and their values in float64."""
    b = to_act(rng.standard_normal(shape, np.float32) * scale)
    return Buffer(b), from_act(b)


def normal32(*shape, mean=0.0, scale=1.0):
    x = (mean + scale * rng.standard_normal(shape, np.float32)).astype(np.float32)
    return Buffer(x), x.astype(np.float64)


def ints(x):
    return Buffer(np.asarray(x, np.int32))


ACT = np.float32 if FP32 else np.uint16


def poison(*shape, kind=ACT):
    return Buffer(np.full(shape, 0x7FC1 if kind == np.uint16 else np.nan, kind))


class i64(int):
    pass


class u64(int):
    pass


functions = {}


def prepare(shape, name, grid, block, arguments, shared=0):
    """A function that launches the kernel."""
    key = (shape.module.value, name)
    if key not in functions:
        f = C.c_void_p()
        ok(cu.cuModuleGetFunction(C.byref(f), shape.module, name.encode()), name)
        functions[key] = f
    f = functions[key]
    if shared > 8192:
        ok(cu.cuFuncSetAttribute(f, 8, shared), "shared")
    grid = (grid if isinstance(grid, tuple) else (grid,)) + (1, 1)
    values = []
    for a in arguments:
        if a is None:
            values.append(C.c_uint64(0))
        elif isinstance(a, Buffer):
            values.append(a.ptr)
        elif isinstance(a, i64):
            values.append(C.c_longlong(a))
        elif isinstance(a, u64):
            values.append(C.c_uint64(a))
        elif isinstance(a, float):
            values.append(C.c_float(a))
        else:
            values.append(C.c_int(int(a)))
    pointers = (C.c_void_p * len(values))(*[C.cast(C.pointer(v), C.c_void_p) for v in values])
    full = (f, grid[0], grid[1], grid[2], block, 1, 1, shared, None, pointers, None)
    return lambda keep=values: ok(cu.cuLaunchKernel(*full), name)


def launch(*how):
    prepare(*how)()


def ceil(a, b):
    return -(-a // b)


failures = 0


def compare(name, got, want, limit, size=None):
    """The largest error relative to `size`: |want|, but not less than a part of its root mean square. In fp32,
    where a difference of numbers has the error of the numbers, that part is all."""
    global failures
    got = from_bf16(got) if got.dtype == np.uint16 else got.astype(np.float64)
    want = np.asarray(want, np.float64)
    if size is None:
        size = np.maximum(np.abs(want), (1.0 if FP32 else 0.05) * math.sqrt((want**2).mean()) + 1e-30)
    error = np.abs(got - want) / size
    worst = float(error.max()) if np.isfinite(got).all() else float("inf")
    bad = not worst <= limit
    failures += bad
    print(f"  {'FAIL' if bad else 'ok  '} {name:34} worst relative error {worst:.2e} (limit {limit:.1e})", flush=True)


# One rounding to bf16 and a little more; in fp32 the few roundings of fp32 arithmetic.
BF = 1e-6 if FP32 else 2.0**-8 * 1.02


# --- The tests: one function a group of kernels --------------------------------------------------------------
def test_copy_rows(s):
    T, E = s.T, s.E
    table, tv = normals(61, E)
    ids = rng.integers(0, 61, T)
    x = poison(T, E)
    launch(s, "embed_rows", ceil(T * E // 8, 256), 256, [ints(ids), table, x, T])
    compare("embed_rows", x.get(), tv[ids], 0)
    at = rng.permutation(T)[: T // 2 + 1]
    out = poison(len(at), E)
    launch(s, "gather_rows", ceil(len(at) * E // 8, 256), 256, [x, ints(at), out, len(at)])
    compare("gather_rows", out.get(), tv[ids][at], 0)
    for n in (T * E, T * E - 3):
        a, av = normals(n)
        b, bv = normals(n)
        out = poison(n)
        launch(s, "add_rows_plain", ceil(ceil(n, 8), 256), 256, [a, b, out, i64(n)])
        compare("add_rows_plain", out.get(), round_act(av + bv), 0)


def test_rms_norm(s):
    T, E = s.T, s.E
    x, xv = normals(T, E, scale=0.7)
    y, yv = normals(T, E, scale=0.4)
    w, wv = normal32(E, mean=1, scale=0.3)
    h, r = poison(T, E), poison(T, kind=np.float32)
    rows = ceil(T, s.rows_per_cta)
    launch(s, "rms_norm", rows, s.row_cta, [x, w, h, r, T])
    rv = 1 / np.sqrt((xv**2).mean(1) + EPS)
    compare("rms_norm h", h.get(), xv * rv[:, None] * wv, BF)
    compare("rms_norm rstd", r.get(), rv, 1e-6)
    h, r, total = poison(T, E), poison(T, kind=np.float32), poison(T, E)
    launch(s, "add_rms_norm", rows, s.row_cta, [x, y, total, w, h, r, T])
    sv = round_act(xv + yv)
    rv = 1 / np.sqrt((sv**2).mean(1) + EPS)
    compare("add_rms_norm sum", total.get(), sv, 0)
    compare("add_rms_norm h", h.get(), sv * rv[:, None] * wv, BF)
    compare("add_rms_norm rstd", r.get(), rv, 1e-6)


def test_rms_norm_backward(s):
    T, E = s.T, s.E
    x, xv = normals(T, E, scale=0.7)
    w, wv = normal32(E, mean=1, scale=0.3)
    rv = (1 / np.sqrt((xv**2).mean(1) + EPS)).astype(np.float32).astype(np.float64)[:, None]
    r = Buffer(rv[:, 0].astype(np.float32))
    for with_res, P in ((False, 3), (True, 2)):
        dh, dv = normals(T, E)
        res, resv = normals(T, E)
        dx = res if with_res else poison(T, E)
        part = poison(P, E, kind=np.float32)
        launch(s, "rms_norm_backward", P, s.row_cta, [dh, x, w, r, res if with_res else None, dx, part, T])
        g = dv * wv
        want = rv * g - xv * rv**3 * (g * xv).mean(1, keepdims=True) + (resv if with_res else 0)
        compare(f"rms_norm_backward dx dres={with_res}", dx.get(), want, BF)
        dw = (dv * xv * rv).sum(0)
        compare("rms_norm_backward dw_part", part.get().astype(np.float64).sum(0), dw, 1e-4)
        out, ov = normal32(E)
        launch(s, "reduce_rows", ceil(E, 32), 1024, [part, out, P, E, with_res])
        compare("reduce_rows (dw)", out.get(), dw + (ov if with_res else 0), 1e-4)
    part, pv = normal32(71, 45)
    out = poison(45, kind=np.float32)
    launch(s, "reduce_rows", 2, 1024, [part, out, 71, 45, 0])
    compare("reduce_rows", out.get(), pv.sum(0), 1e-5)
    out = poison(24, kind=np.float32)
    launch(s, "reduce_columns", 1, 1024, [part, out, 71, 24, 45, 0])
    compare("reduce_columns", out.get(), pv.sum(0)[:24], 1e-5)


def rope_table(s, places):
    angle = np.arange(places)[:, None] * 10000.0 ** (-np.arange(s.D // 2) / (s.D // 2))
    x = np.concatenate([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    return Buffer(x), x.astype(np.float64)


def rotate(x, table, positions, back=False):
    """x [T, heads, D]"""
    half = x.shape[2] // 2
    c, sn = table[positions][:, None, :half], table[positions][:, None, half:]
    if back:
        sn = -sn
    x1, x2 = x[..., :half], x[..., half:]
    return np.concatenate([x1 * c - x2 * sn, x2 * c + x1 * sn], 2)


def test_qkv(s):
    T, H, K, D = s.T, s.H, s.K, s.D
    W, HK = (H + 2 * K) * D, H + K
    qkv, v = normals(T, W)
    positions = rng.integers(0, 50, T)
    rope, table = rope_table(s, 50)
    biases = [normal32(n * D, scale=0.5) for n in (H, K, K)] if s.bias else [(None, 0)] * 3
    norms = [normal32(D, mean=1, scale=0.3) for _ in range(2)] if s.norm else [(None, 0)] * 2
    qk = poison(T, HK, D) if s.norm else None
    r = poison(T, HK, kind=np.float32) if s.norm else None
    pos = ints(positions)
    heads = H + 2 * K if s.bias else HK
    launch(s, "qkv_forward", ceil(T * heads * s.head_lanes, 256), 256,
           [qkv, *[b for b, _ in biases], *[n for n, _ in norms], pos, rope, qk, r, T])
    if s.bias:
        v = round_act(v + np.concatenate([b for _, b in biases]))
    raw = v.reshape(T, H + 2 * K, D)
    x = raw[:, :HK]
    weight = np.stack([norms[0][1]] * H + [norms[1][1]] * K)[None] if s.norm else None
    if s.norm:
        rv = 1 / np.sqrt((x**2).mean(2) + EPS)
        compare("qkv_forward rstd", r.get(), rv, 1e-6)
        compare("qkv_forward raw", qkv.get(), v, 0)
        x = x * rv[..., None] * weight
    want = rotate(x, table, positions)
    got = qkv.get().reshape(T, H + 2 * K, D)
    compare("qkv_forward q, k", qk.get() if s.norm else got[:, :HK], want, BF)
    compare("qkv_forward v", got[:, HK:], raw[:, HK:], 0)

    raw_buffer, P = Buffer(to_act(v).reshape(T, W)), 3
    d, dv = normals(T, H + 2 * K, D)
    part = poison(P, 2 * D, kind=np.float32) if s.norm else None
    launch(s, "qkv_backward", P, 256, [d, raw_buffer, r, *[n for n, _ in norms], pos, rope, part, T])
    back = rotate(dv[:, :HK], table, positions, back=True)
    if s.norm:
        xhat = raw[:, :HK] * rv[..., None]
        dn = back * xhat
        g = back * weight
        back = rv[..., None] * (g - xhat * (g * xhat).mean(2, keepdims=True))
        sums = part.get().astype(np.float64).sum(0)
        compare("qkv_backward dnorm_q", sums[:D], dn[:, :H].sum((0, 1)), 1e-4)
        compare("qkv_backward dnorm_k", sums[D:], dn[:, H:].sum((0, 1)), 1e-4)
    got = d.get()
    compare("qkv_backward dq, dk", got[:, :HK], back, BF)
    compare("qkv_backward dv", got[:, HK:], dv[:, HK:], 0)

    C_, P = W, 3
    part = poison(P, C_, kind=np.float32)
    launch(s, "column_sums", (ceil(C_, 256), P), 256, [d, part, T, C_])
    compare("column_sums", part.get().astype(np.float64).sum(0), from_act(got).reshape(T, W).sum(0), 1e-4)


def test_swiglu(s):
    T, F = s.T, s.F
    gu, v = normals(T, 2 * F, scale=2)
    a = poison(T, F)
    grid = ceil(T * F // 8, 256)
    launch(s, "swiglu", grid, 256, [gu, a, T])
    g, u = v[:, :F], v[:, F:]
    sig = 1 / (1 + np.exp(-g))
    act = np.maximum(g, 0) ** 2 if s.relu2 else g * sig
    slope = 2 * np.maximum(g, 0) if s.relu2 else sig * (1 + g * (1 - sig))
    compare("swiglu", a.get(), act * u, BF)
    da, dv = normals(T, F)
    out = poison(T, 2 * F)
    launch(s, "swiglu_backward", grid, 256, [gu, da, out, T])
    compare("swiglu_backward", out.get(), np.concatenate([dv * u * slope, dv * act], 1), BF * 1.05)


def test_cross_entropy(s):
    N, V, S = 11, s.V, s.S
    for spread, shared, gradient in ((3.0, 0, 1), (30.0, 1024, 1), (1.0, S * BYTES, 1), (2.0, 0, 0)):
        bits = to_act(rng.standard_normal((N, S), np.float32) * spread)
        bits[:, V:] = np.nan if FP32 else 0x7FC1
        targets = rng.integers(0, V, N)
        targets[0], targets[1] = V - 1, 0
        logits, losses = Buffer(bits), poison(N, kind=np.float32)
        launch(s, "cross_entropy", N, 512, [logits, ints(targets), losses, 0.037, N, (shared or 1) if gradient else 0], shared)
        x = from_act(bits[:, :V])
        top = x.max(1)
        lse = top + np.log(np.exp(x - top[:, None]).sum(1))
        compare(f"cross_entropy losses shared={shared}", losses.get(), lse - x[np.arange(N), targets],
                1e-6 if FP32 else 2e-6 * spread)
        got = logits.get()
        if gradient:
            want = np.zeros((N, S))
            want[:, :V] = np.exp(x - lse[:, None])
            # In fp32 even small probabilities are exact, but exp(-d) has d times the rounding error; p - 1 has
            # the error of 1.
            size = np.maximum(want, 1e-7) * 0.037 if FP32 else None
            if FP32:
                size[np.arange(N), targets] += 0.037
            want[np.arange(N), targets] -= 1
            compare("cross_entropy gradient", got, want * 0.037, 2e-6 if FP32 else BF, size)
            if (got[:, V:] != 0).any():
                compare("padding", got[:, V:], 0 * got[:, V:], 0)
        elif got.tobytes() != bits.tobytes():
            compare("unchanged", np.full(1, np.nan), np.zeros(1), 0)


def test_mixed_losses(s):
    N, V, S = 11, s.V, s.S
    scale = 0.037
    for spread, share, gradient in ((3.0, 1.0, 1), (30.0, 0.3, 1), (1.0, 0.0, 1), (2.0, 0.5, 0)):
        rows = [to_act(rng.standard_normal((N, S), np.float32) * spread) for _ in range(2)]
        rows[0][2:4] = rows[1][2:4]  # these two diverge by nothing
        for bits in rows:
            bits[:, V:] = np.nan if FP32 else 0x7FC1
        x, t = (from_act(bits[:, :V]).astype(np.float64) for bits in rows)
        # The mask token: the best column of some row of each; -1 is none.
        for never in (-1, int(x[0].argmax()), int(t[2].argmax())):
            targets = rng.integers(0, V, N)
            targets[0], targets[1] = V - 1, 0
            logits, judged = Buffer(rows[0].copy()), poison(N, 3, kind=np.float32)
            launch(s, "mixed_losses", N, 512,
                   [logits, Buffer(rows[1]), ints(targets), judged, never, float(share), scale, N, gradient])  # fmt: skip
            log_s, log_q = (v - v.max(1)[:, None] - np.log(np.exp(v - v.max(1)[:, None]).sum(1))[:, None] for v in (x, t))
            own, q = np.exp(log_s), np.exp(log_q)
            best = [np.where(np.arange(V) == never, -np.inf, v).argmax(1) for v in (x, t)]
            got = judged.get()
            size = 1e-6 if FP32 else 2e-6 * spread
            label = f"mixed_losses spread={spread} share={share} never={never}"
            compare(f"{label}: cross-entropy", got[:, 0], -log_s[np.arange(N), targets], size)
            compare(f"{label}: divergence", got[:, 1], (q * (log_q - log_s)).sum(1), 4 * size, 1 + np.abs(x - t).max(1))
            compare(f"{label}: same", got[:, 2], (best[0] == best[1]).astype(np.float64), 0)
            if not gradient:
                if logits.get().tobytes() != rows[0].tobytes():
                    compare("unchanged", np.full(1, np.nan), np.zeros(1), 0)
                continue
            want = np.zeros((N, S))
            want[:, :V] = own - share * q
            want[np.arange(N), targets] -= 1 - share
            # A difference has the rounding error of what is subtracted; exp(-d) has d times that.
            most = np.full((N, S), 1e-7)
            most[:, :V] += own + share * q
            most[np.arange(N), targets] += 1 - share
            got = logits.get()
            compare(f"{label}: gradient", got, want * scale, 4e-6 if FP32 else BF, most * scale)
            if (got[:, V:] != 0).any():
                compare("padding", got[:, V:], 0 * got[:, V:], 0)


def groups(destinations):
    """Like RowGroups in trainer/src/kernels/add_rows: order, pieces, firsts, rows."""
    order = np.argsort(destinations, kind="stable")
    pieces, firsts, rows = [], [], []
    last, length = None, 0
    for at, i in enumerate(order):
        row = destinations[i]
        if row != last:
            firsts.append(len(pieces))
            rows.append(row)
            pieces.append(at)
            last, length = row, 0
        elif length == 64:
            pieces.append(at)
            length = 0
        length += 1
    firsts.append(len(pieces))
    pieces.append(len(order))
    return order, pieces, firsts, rows


def test_rows(s):
    T, E = s.T, s.E
    N = T * 2 // 3
    d, dv = normals(N, E)
    to = rng.integers(0, T, N)
    picks = np.argsort(to, kind="stable")
    start = np.searchsorted(to[picks], np.arange(T + 1))
    out = poison(T, E)
    launch(s, "scatter_rows", ceil(T * E // 8, 256), 256, [d, ints(start), ints(picks), out, T])
    want = np.zeros((T, E))
    np.add.at(want, to, dv)
    compare("scatter_rows", out.get(), want, BF)

    N = 4 * T
    source, sv = normals(N, E)
    destinations = np.where(rng.random(N) < 0.5, 3, rng.integers(0, 29, N))
    order, pieces, firsts, rows = groups(destinations)
    partial = poison(len(pieces) - 1, E, kind=np.float32)
    launch(s, "piece_sums", ceil((len(pieces) - 1) * E // 8, 256), 256,
           [source, ints(order), ints(pieces), partial, len(pieces) - 1])
    table, tv = normal32(31, E)
    launch(s, "add_pieces", ceil(len(rows) * E // 4, 256), 256, [partial, ints(firsts), ints(rows), table, len(rows)])
    np.add.at(tv, destinations, sv)
    compare("piece_sums + add_pieces", table.get(), tv, 1e-5)


def test_update(s):
    n = 5003
    x, xv = normal32(n)
    y = poison(n, kind=np.uint16)
    launch(s, "cast_to_bf16", ceil(ceil(n, 8), 256), 256, [x, y, i64(n)])
    compare("cast_to_bf16", y.get(), round16(xv), 0)
    part, out = poison(3, kind=np.float32), poison(1, kind=np.float32)
    launch(s, "sum_squares", 3, 256, [x, i64(n), part])
    launch(s, "finish_sum", 1, 256, [part, 3, out])
    compare("sum_squares, finish_sum", out.get(), [(xv**2).sum()], 1e-6)
    w, wv = normal32(n)
    m, mv = normal32(n, scale=0.1)
    v = np.abs(rng.standard_normal(n, np.float32)).astype(np.float32) * np.float32(0.01)
    vb, vv = Buffer(v), v.astype(np.float64)
    keep, lr, b1, b2, eps, clip, c1, c2 = [float(np.float32(z)) for z in
                                          (1 - 3e-4 * 0.1, 3e-4, 0.9, 0.95, 1e-8, 0.7, 0.4, 0.3)]
    w16 = None if FP32 else poison(n, kind=np.uint16)
    launch(s, "adamw", ceil(ceil(n, 4), 256), 256, [w, m, vb, x, w16, i64(n), keep, lr, b1, b2, eps, clip, c1, c2])
    g = xv * clip
    first, second = mv * b1 + g * (1 - b1), vv * b2 + g * g * (1 - b2)
    wv = wv * keep - first / c1 / (np.sqrt(second / c2) + eps) * lr
    compare("adamw m", m.get(), first, 1e-5)
    compare("adamw v", vb.get(), second, 1e-5)
    compare("adamw w", w.get(), wv, 1e-6)
    if not FP32:
        compare("adamw w16", w16.get(), round16(w.get()), 0)
    z = poison(20001, kind=np.float32)
    launch(s, "fill_normal", ceil(ceil(20001, 4), 256), 256, [z, i64(20001), 0.02, u64(12345678901), u64(3)])
    z = z.get().astype(np.float64)
    compare("fill_normal mean, deviation, kurtosis / 3", np.array([1 + z.mean() / 0.02, z.std() / 0.02,
            ((z / 0.02) ** 4).mean() / 3]), np.ones(3), 0.06)


TESTS = [test_copy_rows, test_rms_norm, test_rms_norm_backward, test_qkv, test_swiglu, test_cross_entropy, test_mixed_losses, test_rows,
         test_update]
SHAPES = [
    Shape(64, 128, 4, 2, 32, 203, norm=True),
    Shape(96, 192, 6, 3, 16, 515),
    Shape(576, 1536, 9, 3, 64, 1023, bias=True, T=21),
    Shape(1024, 352, 2, 1, 128, 8837, norm=True, bias=True, relu2=True, T=19),
    Shape(1040, 272, 3, 1, 96, 4099, norm=True, T=13),
    Shape(2560, 160, 2, 1, 128, 64, norm=True, T=9),
    Shape(2048, 128, 5, 1, 64, 1000, norm=True, bias=True, T=5),
    Shape(896, 80, 7, 1, 128, 12345, bias=True, T=50),
    Shape(8192, 16, 1, 1, 16, 9, norm=True, T=3),
    Shape(16, 16, 1, 1, 16, 9, norm=True, T=1),
]


# --- Times on a real card ------------------------------------------------------------------------------------
def timed(s, name, bytes_, grid, block, arguments, shared=0, label=""):
    if args.only and args.only not in name:
        return
    a, b = C.c_void_p(), C.c_void_p()
    ok(cu.cuEventCreate(C.byref(a), 0))
    ok(cu.cuEventCreate(C.byref(b), 0))
    run = prepare(s, name, grid, block, arguments, shared)
    for _ in range(3):
        run()
    ok(cu.cuEventRecord(a, None))
    count = 20
    for _ in range(count):
        run()
    ok(cu.cuEventRecord(b, None))
    ok(cu.cuEventSynchronize(b), name)
    ms = C.c_float()
    ok(cu.cuEventElapsedTime(C.byref(ms), a, b))
    t = ms.value / count
    print(f"  {name + ' ' + label:44} {t:8.4f} ms {bytes_ / t / 1e6:8.0f} GB/s", flush=True)


def fill(buffer, pattern, count):
    if not STANDIN:  # which lacks this call, and does not execute in this mode anyway
        ok(cu.cuMemsetD32_v2(buffer.ptr, C.c_uint(pattern), C.c_size_t(count)))


def device(bytes_, pattern=0x3F33BF31):
    """Device memory filled with a 32-bit pattern (default: two bf16 numbers of about 0.7)."""
    b = Buffer.__new__(Buffer)
    b.ptr = C.c_uint64()
    ok(cu.cuMemAlloc_v2(C.byref(b.ptr), C.c_size_t(bytes_ + 256)), "alloc")
    fill(b, pattern, bytes_ // 4)
    allocated.append(b)
    return b


def time_all(s, T=20000):
    E, F, H, K, D, V, S = s.E, s.F, s.H, s.K, s.D, s.V, s.S
    print(s.name, f"T={T}")
    one = 0x3F800000
    x, y, z, h = [device(T * E * BYTES) for _ in range(4)]
    w, r = device(E * 4, one), device(T * (H + K) * 4, one)
    ids = ints(rng.integers(0, V, T))
    table = device(V * E * BYTES)
    row = T * E * BYTES
    timed(s, "embed_rows", 2 * row, ceil(T * E // 8, 256), 256, [ids, table, x, T])
    timed(s, "gather_rows", 2 * row, ceil(T * E // 8, 256), 256, [y, ints(rng.permutation(T)), z, T])
    timed(s, "add_rows_plain", 3 * row, ceil(T * E // 8, 256), 256, [x, y, z, i64(T * E)])
    rows = ceil(T, s.rows_per_cta)
    timed(s, "rms_norm", 2 * row, rows, s.row_cta, [x, w, h, r, T])
    timed(s, "add_rms_norm", 4 * row, rows, s.row_cta, [x, y, z, w, h, r, T])
    for P in (132, 264, 396, 528):
        part = device(P * E * 4)
        timed(s, "rms_norm_backward", 4 * row, P, s.row_cta, [h, x, w, r, y, y, part, T], label=f"P={P}")
        timed(s, "reduce_rows", P * E * 4, ceil(E, 32), 1024, [part, w, P, E, 0], label=f"rows={P} cols={E}")
    fill(w, one, E)
    W = (H + 2 * K) * D
    qkv, raw, qk = device(T * W * BYTES), device(T * W * BYTES), device(T * (H + K) * D * BYTES)
    rope, pos = device(4096 * D * 4, one), ints(np.arange(T) % 4096)
    norms, bias = device(D * 4, one), device(W * 4, one)
    heads = T * (H + K) * D * BYTES
    grid = ceil(T * (H + K) * s.head_lanes, 256)
    timed(s, "qkv_forward", 2 * heads, grid, 256, [qkv, None, None, None, norms, norms, pos, rope, qk, r, T], label="norm")
    timed(s, "qkv_forward", 2 * heads, grid, 256, [qkv, None, None, None, None, None, pos, rope, None, None, T],
          label="plain")
    grid = ceil(T * (H + 2 * K) * s.head_lanes, 256)
    timed(s, "qkv_forward", 2 * T * W * BYTES, grid, 256, [qkv, bias, bias, bias, None, None, pos, rope, None, None, T],
          label="bias")
    fill(qkv, 0x3F33BF31, T * W * BYTES // 4)
    for P in (264, 396, 528, 1056):
        part = device(P * D * 8)
        timed(s, "qkv_backward", 3 * heads, P, 256, [qkv, raw, r, norms, norms, pos, rope, part, T], label=f"norm P={P}")
        timed(s, "qkv_backward", 2 * heads, P, 256, [qkv, raw, r, None, None, pos, rope, None, T], label=f"plain P={P}")
    for P in (16, 32, 64, 128):
        part = device(P * W * 4)
        timed(s, "column_sums", T * W * BYTES, (ceil(W, 256), P), 256, [raw, part, T, W], label=f"P={P}")
    gu, d, a = device(T * 2 * F * BYTES), device(T * 2 * F * BYTES), device(T * F * BYTES)
    grid = ceil(T * F // 8, 256)
    timed(s, "swiglu", 3 * T * F * BYTES, grid, 256, [gu, a, T])
    timed(s, "swiglu_backward", 5 * T * F * BYTES, grid, 256, [gu, a, d, T])
    N = 4000
    logits, losses = device(N * S * BYTES), device(N * 4)
    for shared in (0, 65536, 113664, 163840, 204800):
        if shared <= BYTES * S + 16384:
            timed(s, "cross_entropy", 2 * N * S * BYTES, N, 512, [logits, ids, losses, 1e-4, N, shared or 1], shared,
                  label=f"N={N} shared={shared}")
    timed(s, "cross_entropy", N * S * BYTES, N, 512, [logits, ids, losses, 1e-4, N, 0], 0, label=f"N={N} losses only")
    to = np.sort(rng.permutation(T)[: T // 2])
    start = np.searchsorted(to, np.arange(T + 1))
    timed(s, "scatter_rows", row * 3 // 2, ceil(T * E // 8, 256), 256, [x, ints(start), ints(np.arange(T // 2)), y, T])
    destinations = np.where(rng.random(T) < 0.5, 3, rng.integers(0, V, T))
    order, pieces, firsts, rows = groups(destinations)
    n = len(pieces) - 1
    partial, grads = device(n * E * 4), device(V * E * 4, 0)
    timed(s, "piece_sums", row + n * E * 4, ceil(n * E // 8, 256), 256, [x, ints(order), ints(pieces), partial, n])
    timed(s, "add_pieces", n * E * 4 + len(rows) * E * 8, ceil(len(rows) * E // 4, 256), 256,
          [partial, ints(firsts), ints(rows), grads, len(rows)])
    n = 200_000_000
    W32, m, v, g, w16 = [device(n * 4, 0x3C23D70A) for _ in range(4)] + [device(n * 2)]
    timed(s, "cast_to_bf16", 6 * n, ceil(n // 8, 256), 256, [g, w16, i64(n)])
    for P in (528, 1056):
        timed(s, "sum_squares", 4 * n, P, 256, [g, i64(n), losses], label=f"P={P}")
    timed(s, "finish_sum", 4 * 1056, 1, 256, [losses, 1056, norms])
    timed(s, "adamw", (28 if FP32 else 30) * n, ceil(n // 4, 256), 256,
          [W32, m, v, g, w16, i64(n), 0.99997, 3e-4, 0.9, 0.95, 1e-8, 0.7, 0.4, 0.3])
    timed(s, "fill_normal", 4 * n, ceil(n // 4, 256), 256, [W32, i64(n), 0.02, u64(1), u64(2)])
    free_all()


if args.time:
    for shape in (Shape(576, 1536, 9, 3, 64, 49152), Shape(1024, 3072, 16, 8, 128, 151936)):
        shape.compile()
        time_all(shape, args.tokens)
    sys.exit(0)

chosen = [int(i) for i in args.shape.split(",")] if args.shape else range(len(SHAPES))
for number in chosen:
    shape = SHAPES[number]
    print(shape.name, f"T={shape.T}", flush=True)
    shape.compile()
    for test in TESTS:
        if args.only in test.__name__:
            test(shape)
            free_all()
print("all kernels are right" if failures == 0 else f"{failures} FAILURES")
sys.exit(failures > 0)
