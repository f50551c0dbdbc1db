#!/usr/bin/env python3
"""Reference values of the optimizer, computed independently of the trainer: AdamW, Muon and ZClip in numpy float64.

  optim_reference.py [--check-torch] > trainer/src/tests/optim_reference.json

AdamW   Loshchilov & Hutter, arXiv:1711.05101, algorithm 2 (decoupled decay), as torch.optim.AdamW.
Muon    K. Jordan 2024: momentum, Nesterov look-ahead, five quintic Newton-Schulz steps on the Frobenius-normalised matrix;
        scaled by 0.2 sqrt(max(rows, columns)) (arXiv:2502.16982, section 2.2). Written in the lerp form of torch.optim.Muon.
ZClip   arXiv:2504.02507, z-score mode with adaptive scaling, and max_grad_norm.
--check-torch compares with torch.optim.AdamW (float64) and torch.optim.Muon (whose iteration runs in bfloat16).
"""
import json, math, sys
import numpy as np

HYPER = dict(lr=0.02, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=0.1, muon_lr=0.05, muon_momentum=0.95)


def newton_schulz(g, steps=5, eps=1e-7):
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g.copy()
    x = x / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(w, grads, h):
    buf, out = np.zeros_like(w), []
    for g in grads:
        buf = buf + (1 - h["muon_momentum"]) * (g - buf)
        look = g + h["muon_momentum"] * (buf - g)
        w = w * (1 - h["muon_lr"] * h["weight_decay"])
        w = w - h["muon_lr"] * 0.2 * math.sqrt(max(w.shape)) * newton_schulz(look)
        out.append(w.copy())
    return out


def adamw(w, grads, h, decay):
    m, v, out = np.zeros_like(w), np.zeros_like(w), []
    for t, g in enumerate(grads, 1):
        m = h["beta1"] * m + (1 - h["beta1"]) * g
        v = h["beta2"] * v + (1 - h["beta2"]) * g * g
        w = w * (1 - h["lr"] * decay)
        w = w - h["lr"] * (m / (1 - h["beta1"] ** t)) / (np.sqrt(v / (1 - h["beta2"] ** t)) + h["eps"])
        out.append(w.copy())
    return out


def zclip(norms, z_threshold, alpha, max_norm, warmup=25, eps=1e-6):
    """The norm of each gradient after clipping, and mean and variance after each step."""
    buffer, mean, var, rows = [], None, None, []
    for g in norms:
        target = g
        if mean is None:
            buffer.append(g)
            if len(buffer) == warmup:
                mean = sum(buffer) / warmup
                var = sum((x - mean) ** 2 for x in buffer) / warmup
        else:
            std = math.sqrt(var)
            score = (g - mean) / (std + eps)
            if score > z_threshold:
                target = mean + z_threshold * std / (score / z_threshold)
            mean = alpha * mean + (1 - alpha) * target
            var = alpha * var + (1 - alpha) * (target - mean) ** 2
        if max_norm is not None:
            target = min(target, max_norm)
        rows.append([target, mean, var])
    return rows


def rounded(a):
    return [float(x) for x in np.asarray(a).reshape(-1)]


def main():
    rng = np.random.default_rng(20251125)
    # Values that float32 represents exactly, so that both sides start from the same numbers.
    draw = lambda *shape: rng.normal(0, 1, shape).astype(np.float32).astype(np.float64)
    cases = []
    for name, shape in [("wide", (6, 14)), ("tall", (14, 6)), ("square", (8, 8)), ("rank one", (10, 5))]:
        w, grads = draw(*shape), [draw(*shape) * s for s in (1.0, 30.0, 1e-3)]
        if name == "rank one":
            grads = [np.outer(draw(shape[0]), draw(shape[1])).astype(np.float32).astype(np.float64) for _ in grads]
        cases.append(dict(name=name, shape=shape, weight=w, grads=grads, muon=muon(w, grads, HYPER),
                          adamw=adamw(w, grads, HYPER, HYPER["weight_decay"]), adamw_no_decay=adamw(w, grads, HYPER, 0.0)))
    norms = [float(np.exp(0.3 * rng.normal())) for _ in range(60)]
    for at, factor in [(10, 20.0), (30, 8.0), (41, 3.0), (42, 50.0), (55, 0.01)]:
        norms[at] *= factor
    clips = [dict(z=z, alpha=a, max_norm=m, rows=zclip(norms, z, a, m)) for z, a, m in [(3.0, 0.99, None), (2.5, 0.97, 1.0), (2.0, 0.9, 4.0)]]
    if "--check-torch" in sys.argv:
        import torch
        for case in cases:
            for what, make in [("adamw", lambda p: torch.optim.AdamW([p], lr=HYPER["lr"], betas=(HYPER["beta1"], HYPER["beta2"]), eps=HYPER["eps"], weight_decay=HYPER["weight_decay"])),
                               ("muon", lambda p: torch.optim.Muon([p], lr=HYPER["muon_lr"], weight_decay=HYPER["weight_decay"], momentum=HYPER["muon_momentum"], adjust_lr_fn="match_rms_adamw"))]:
                p = torch.nn.Parameter(torch.tensor(case["weight"]))
                opt = make(p)
                worst = 0.0
                for g, expected in zip(case["grads"], case[what]):
                    p.grad = torch.tensor(g)
                    opt.step()
                    worst = max(worst, float((p.detach() - torch.tensor(expected)).abs().max()))
                # Five steps amplify bfloat16's rounding of a rank-one matrix by 3.44^5 = 485, so it cannot be compared.
                limit = 1e-12 if what == "adamw" else math.inf if case["name"] == "rank one" else 0.05 * HYPER["muon_lr"] * 3
                print(f"{case['name']} {what}: {worst:.2e} from torch {torch.__version__} (limit {limit:.1e})", file=sys.stderr)
                assert worst < limit
    flat = [{k: (rounded(v) if k == "weight" else [rounded(x) for x in v] if isinstance(v, list) else v) for k, v in c.items()} for c in cases]
    json.dump(dict(hyper=HYPER, matrices=flat, norms=norms, zclip=clips), sys.stdout)
    print()


if __name__ == "__main__":
    main()
