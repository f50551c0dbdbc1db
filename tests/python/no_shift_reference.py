"""Reference values for models without the token shift: position i predicts token i (`conversion.token_shift=false`, SDAR).

    python tests/python/no_shift_reference.py            # writes tests/fixtures again; equal bytes with equal torch and transformers
    python tests/python/no_shift_reference.py --check    # compares instead

Independent of the Rust code: the objective runs transformers' own models in float64 under masks written out from the definition (docs/objective.md), one
row [x_t ; x_0] per view; decoding runs a plain PyTorch forward pass in float64 over the whole text for every pass, and keeps keys and values only
where the definition of the sub-block cache asks for old ones (docs/decode.md). Needs torch, transformers, safetensors, numpy.

Writes obj_noshift_*.safetensors (input_ids, labels, mask, targets, loss; doc_ids and position_ids where rows are packed; logits in one), their
*_grads.safetensors, their lines of objective.json, and decode_noshift_<model>.json.
"""

import argparse
import json
import math
import pathlib

import numpy as np
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM

FIXTURES = pathlib.Path(__file__).resolve().parents[1] / "fixtures"
MASK, IGNORE = 319, -100
SOURCE = "tests/python/no_shift_reference.py over transformers"


# ---- the objective


def random_row(rng, length, block, documents):
    """ids, labels, hidden, doc_ids, positions of one row; `documents`: (start, length, first label) each."""
    ids = rng.integers(0, 318, length)
    labels = np.full(length, IGNORE)
    doc_ids, positions = np.full(length, -1), np.zeros(length, int)
    hidden = np.zeros(length, bool)
    for number, (start, n, first) in enumerate(documents):
        doc_ids[start : start + n] = number
        positions[start : start + n] = np.arange(n)
        labels[start + first : start + n] = ids[start + first : start + n]
        for at in range(start, start + n, block):
            hidden[at : at + block] = rng.random(len(hidden[at : at + block])) < rng.random()
    return ids, labels, hidden, doc_ids, positions


def masks_padding(row, tail):
    """The last `tail` tokens of a row's last document become an end of turn and mask padding without loss."""
    ids, labels, hidden, doc_ids, positions = row
    end = int(np.nonzero(doc_ids >= 0)[0].max()) + 1
    ids[end - tail] = 318
    labels[end - tail] = 318
    ids[end - tail + 1 : end], labels[end - tail + 1 : end] = MASK, IGNORE
    return row


def views(ids, labels, hidden):
    """x_t of both views, and the token that each position predicts there."""
    for chosen in (hidden, ~hidden):
        masked = chosen & (labels != IGNORE)
        yield np.where(masked, MASK, ids), np.where(masked, ids, IGNORE)


def allowed(doc_ids, positions, block):
    """[2L, 2L], true where a query of [x_t ; x_0] may attend to a key."""
    length = len(doc_ids)
    doc, blk = np.tile(doc_ids, 2), np.tile(positions // block, 2)
    noisy = np.arange(2 * length) < length
    same = doc[:, None] == doc[None, :]
    own, before, up_to = (blk[:, None] == blk[None, :]), (blk[None, :] < blk[:, None]), (blk[None, :] <= blk[:, None])
    q, k = noisy[:, None], noisy[None, :]
    return same & ((q & k & own) | (q & ~k & before) | (~q & ~k & up_to))


def objective(model, rows, block):
    """Mean loss, targets [2B, L] and logits of the noised half [2B, L, V]; gradients are left in the model."""
    losses, targets, logits = [], [[], []], [[], []]
    count = sum(int((labels != IGNORE).sum()) for _, labels, *_ in rows)
    for ids, labels, hidden, doc_ids, positions in rows:
        mask = torch.from_numpy(allowed(doc_ids, positions, block))
        additive = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, torch.finfo(torch.float64).min)[None, None]
        for view, (noised, target) in enumerate(views(ids, labels, hidden)):
            stream = torch.from_numpy(np.concatenate([noised, ids]))[None]
            where = torch.from_numpy(np.tile(positions, 2))[None]
            out = model(input_ids=stream, attention_mask=additive, position_ids=where, use_cache=False).logits[0, : len(ids)]
            chosen = torch.from_numpy(target != IGNORE)
            losses.append(torch.nn.functional.cross_entropy(out[chosen], torch.from_numpy(target)[chosen], reduction="sum"))
            targets[view].append(target)
            logits[view].append(out.detach().float().numpy())
    loss = sum(losses) / count
    model.zero_grad()
    loss.backward()
    return loss.item(), count, np.stack(targets[0] + targets[1]), np.stack(logits[0] + logits[1])


def objective_cases():
    rng = np.random.default_rng(20)
    whole = lambda length, block, first: random_row(rng, length, block, [(0, length, first)])  # noqa: E731
    bd4 = [whole(32, 4, 0), masks_padding(whole(32, 4, 9), 3)]
    bd4[0][2][8:12], bd4[0][2][12:16] = True, False  # a block hidden whole, one untouched
    yield "noshift_qwen2_bd4", "qwen2_tiny", 4, bd4, True
    yield "noshift_qwen3_bd8", "qwen3_tiny", 8, [whole(64, 8, 16), masks_padding(whole(64, 8, 21), 5)], False
    yield "noshift_qwen2_bd32", "qwen2_tiny", 32, [whole(128, 32, 32), masks_padding(whole(128, 32, 75), 20)], False
    packed = [
        random_row(rng, 48, 4, [(0, 16, 5), (16, 8, 0), (24, 20, 12)]),
        masks_padding(random_row(rng, 48, 4, [(0, 28, 20), (28, 20, 4)]), 3),
    ]
    yield "noshift_packed_qwen3_bd4", "qwen3_tiny", 4, packed, False
    yield "noshift_llama_bd64", "llama_tiny", 64, [whole(128, 64, 70), masks_padding(whole(128, 64, 30), 33)], False


def write_objective(out):
    listed = json.loads((FIXTURES / "objective.json").read_text())
    for name, folder, block, rows, with_logits in objective_cases():
        model = AutoModelForCausalLM.from_pretrained(FIXTURES / folder, dtype=torch.float64, attn_implementation="eager").eval()
        loss, count, targets, logits = objective(model, rows, block)
        column = lambda i, kind: np.stack([np.asarray(row[i]) for row in rows]).astype(kind)  # noqa: E731
        tensors = {"input_ids": column(0, np.int64), "labels": column(1, np.int64), "mask": column(2, np.uint8)}
        tensors |= {"targets": targets.astype(np.int64), "loss": np.array([loss], np.float32)}
        if "packed" in name:
            tensors |= {"doc_ids": column(3, np.int64), "position_ids": column(4, np.int64)}
        if with_logits:
            tensors["logits"] = logits
        out(f"obj_{name}.safetensors", tensors)
        if "llama" not in name:  # its gradients are a megabyte
            # a tied head is the embedding table, whose gradient holds both
            grads = {n: p.grad.float().numpy().copy() for n, p in model.named_parameters() if p.grad is not None}
            out(f"obj_{name}_grads.safetensors", grads)
        listed[name] = {"model": folder, "block_size": block, "mask_id": MASK, "token_shift": False, "loss": float(np.float32(loss)), "count": count,
                        "B": len(rows), "L": len(rows[0][0]), "source": SOURCE}
        print(f"{name}: loss {loss:.6f}, {count} counted")
    out("objective.json", listed)


# ---- decoding


class Plain:
    """Llama, Qwen2 and Qwen3 in float64, straight from the safetensors."""

    def __init__(self, folder):
        self.c = json.loads((folder / "config.json").read_text())
        self.w = {k: torch.from_numpy(v.astype(np.float64)) for k, v in load_file(folder / "model.safetensors").items()}
        rope = self.c.get("rope_parameters") or {}
        self.theta = rope.get("rope_theta", self.c.get("rope_theta", 10000.0))
        self.heads, self.kv = self.c["num_attention_heads"], self.c["num_key_value_heads"]
        self.dim = self.c.get("head_dim") or self.c["hidden_size"] // self.heads
        self.head = self.w.get("lm_head.weight", self.w["model.embed_tokens.weight"])

    def norm(self, x, name):
        return x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.c["rms_norm_eps"]) * self.w[name]

    def linear(self, x, name):
        y = x @ self.w[name + ".weight"].T
        return y + self.w[name + ".bias"] if name + ".bias" in self.w else y

    def rotated(self, x, positions):
        half = self.dim // 2
        angle = positions[:, None] * self.theta ** (-torch.arange(half, dtype=torch.float64) / half)
        cos, sin = torch.cos(angle)[:, None], torch.sin(angle)[:, None]
        a, b = x[..., :half], x[..., half:]
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def run(self, ids, positions, old, visible):
        """Logits of `ids` at `positions`, and keys and values by layer of all positions: `old` ones (by layer [K, V], one entry a position) with
        those of `ids` in their places. visible[i, j]: query i sees position j."""
        positions = torch.as_tensor(positions)
        x = self.w["model.embed_tokens.weight"][torch.as_tensor(ids)]
        kept = []
        for i in range(self.c["num_hidden_layers"]):
            at = f"model.layers.{i}."
            h = self.norm(x, at + "input_layernorm.weight")
            q, k, v = (self.linear(h, at + f"self_attn.{n}_proj").view(len(ids), -1, self.dim) for n in "qkv")
            if at + "self_attn.q_norm.weight" in self.w:
                q, k = self.norm(q, at + "self_attn.q_norm.weight"), self.norm(k, at + "self_attn.k_norm.weight")
            q, k = self.rotated(q, positions), self.rotated(k, positions)
            keys, values = (t.clone() for t in old[i]) if old else (torch.zeros_like(k), torch.zeros_like(v))
            grown = int(visible.shape[1]) - len(keys)
            if grown > 0:
                keys, values = (torch.cat([t, torch.zeros(grown, *t.shape[1:], dtype=t.dtype)]) for t in (keys, values))
            keys[positions], values[positions] = k, v
            kept.append((keys, values))
            group = self.heads // self.kv
            scores = torch.einsum("qhd,khd->hqk", q, keys[: visible.shape[1]].repeat_interleave(group, 1)) / math.sqrt(self.dim)
            share = torch.softmax(scores.masked_fill(~visible[None], -math.inf), -1)
            mixed = torch.einsum("hqk,khd->qhd", share, values[: visible.shape[1]].repeat_interleave(group, 1))
            x = x + self.linear(mixed.reshape(len(ids), -1), at + "self_attn.o_proj")
            h = self.norm(x, at + "post_attention_layernorm.weight")
            gate = self.linear(h, at + "mlp.gate_proj")
            x = x + self.linear(gate * torch.sigmoid(gate) * self.linear(h, at + "mlp.up_proj"), at + "mlp.down_proj")
        return self.norm(x, "model.norm.weight") @ self.head.T, kept


def decode(model, case):
    """Tokens, passes and the smallest gaps of a greedy decode."""
    block, small = case["block_size"], case["small_block_size"]
    text, prompt = list(case["prompt"]), len(case["prompt"])
    passes = {"prefill": 0, "block": 0, "small": 0, "commit": 0}
    gaps = {"argmax_logit_gap": math.inf, "threshold_gap": math.inf, "pick_gap": math.inf}
    limit, stop = case["max_new_tokens"], case["stop_token"]
    blocks = -(-(prompt % block + limit) // block) if limit else 0
    cache, cached_block = None, None
    passes["prefill"] = int(prompt >= block)
    done = False
    for number in range(blocks):
        start = prompt // block * block + number * block
        text += [MASK] * (start + block - len(text))
        opened = max(start, prompt)
        for sub in range(start, start + block, small):
            while not done and MASK in text[sub : sub + small]:
                hidden = [i for i in range(sub, sub + small) if text[i] == MASK]
                length = start + block
                if case["use_block_cache"] and cached_block == start and len(hidden) < small:
                    passes["small"] += 1
                    seen = torch.ones(small, length, dtype=torch.bool)
                    logits, cache = model.run(text[sub : sub + small], range(sub, sub + small), cache, seen)
                    first = sub
                else:
                    passes["block"] += 1
                    grid = torch.arange(length) // block
                    logits, cache = model.run(text, range(length), None, grid[None, :] <= grid[:, None])
                    first, cached_block = 0, start
                judged = []
                for at in hidden:
                    row = logits[at - first].clone()
                    row[MASK] = -math.inf
                    best = torch.topk(row, 2).values
                    gaps["argmax_logit_gap"] = min(gaps["argmax_logit_gap"], float(best[0] - best[1]))
                    probability = torch.softmax(row, -1).max().item()
                    gaps["threshold_gap"] = min(gaps["threshold_gap"], abs(probability - case["threshold"]))
                    judged.append((probability, at, int(row.argmax())))
                ranked = sorted((math.log(p) for p, _, _ in judged), reverse=True)
                if len(ranked) > 1:
                    gaps["pick_gap"] = min(gaps["pick_gap"], ranked[0] - ranked[1])
                surest = max(judged, key=lambda one: one[0])[1]
                for probability, at, token in judged:
                    if probability > case["threshold"] or at == surest:
                        text[at] = token
                ends = [t for t in text[opened:length] if t in (MASK, stop)]
                done = bool(ends) and ends[0] == stop
        if done:
            break
        passes["commit"] += int(number + 1 < blocks)
    text = text[: prompt + limit]
    if stop in text[prompt:]:
        text = text[: prompt + text[prompt:].index(stop) + 1]
    elif MASK in text[prompt:]:
        raise AssertionError("a mask is left")
    return text, passes | {"total": sum(passes.values())}, gaps


def decode_cases(rng, name, model, wanted):
    cases = []
    shapes = [(4, 4), (4, 2), (8, 8), (16, 8), (32, 8), (64, 16), (12, 4), (1, 1)]
    for number in range(40 * wanted):
        block, small = shapes[number % len(shapes)]
        lengths = [1, 3, block - 1, block, block + 1, 2 * block, 2 * block + 3, 21]
        length = max(1, lengths[(number // len(shapes)) % len(lengths)])
        case = {
            "prompt": [int(t) for t in rng.integers(0, 318, length)],
            "max_new_tokens": int(rng.choice([block, 2 * block, 7, 33, 1])),
            "block_size": block,
            "small_block_size": small,
            "threshold": float(rng.choice([0.3, 0.5, 0.9, 1.0])),
            "use_block_cache": bool(number % 3 == 2),
            "stop_token": None,
        }
        text, _, _ = decode(model, case)
        answer = text[length:]
        if number % 2:
            case["stop_token"] = int(answer[int(rng.integers(len(answer)))])
        text, passes, gaps = decode(model, case)
        if min(gaps["argmax_logit_gap"], gaps["pick_gap"]) < 2e-3 or gaps["threshold_gap"] < 2e-3:
            continue
        gaps = {k: (None if v == math.inf else v) for k, v in gaps.items()}
        cases.append(case | {"expected": text, "passes": passes, "margins": gaps, "source": "tests/python/no_shift_reference.py"})
        if len(cases) == wanted:
            break
    print(f"decode {name}: {len(cases)} cases, {sum(c['use_block_cache'] for c in cases)} with cache, "
          f"{sum(c['stop_token'] is not None for c in cases)} with a stop token, "
          f"{sum(len(c['expected']) - len(c['prompt']) > c['passes']['block'] + c['passes']['small'] for c in cases)} with several tokens a pass")
    return cases


def write_decodes(out):
    for name, wanted in (("qwen2_peaky", 48), ("qwen3_tiny", 16)):
        rng = np.random.default_rng(len(name))
        cases = decode_cases(rng, name, Plain(FIXTURES / name), wanted)
        out(f"decode_noshift_{name}.json", {"model": name, "token_shift": False, "mask_id": MASK, "cases": cases})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="compare with tests/fixtures instead of writing")
    check = parser.parse_args().check

    def out(name, content):
        path = FIXTURES / name
        if not check:
            if name.endswith(".json"):
                path.write_text(json.dumps(content, indent=1 if name == "objective.json" else None) + "\n")
            else:
                save_file(content, path)
        elif name.endswith(".json"):
            found = json.loads(path.read_text())
            for drop in ("margins", "loss"):
                strip = lambda v: {k: strip(x) for k, x in v.items() if k != drop} if isinstance(v, dict) else v  # noqa: B023, E731
                found, content = strip(found), strip(content)
            for one in (found, content):
                for case in one.get("cases", []):
                    case.pop("margins", None)
            assert found == content, name
        else:
            found = load_file(path)
            assert found.keys() == content.keys(), name
            for key, value in content.items():
                assert np.allclose(found[key], value, rtol=1e-5, atol=1e-6), f"{name}: {key}"

    torch.set_num_threads(1)
    write_objective(out)
    write_decodes(out)
    print("no_shift_reference: ok")


if __name__ == "__main__":
    main()
