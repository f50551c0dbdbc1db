"""Writes the fixtures of the lossless objective: gated adapters, and the loss and gradients of one step as plain PyTorch computes them.

    python tests/python/lossless_reference.py tests/fixtures

The objective (docs/objective.md, "Lossless"). A row is a document of ids x_0 … x_{n-1} with labels. For a block size D and an offset o, cut
the positions at o, o + D, o + 2D, …; a *run* is a longest sequence of consecutive labelled positions (not position 0) between two cuts.
The view of o replaces every position of every run by MASK. A MASK at p in a run that begins at f sees the clean tokens before f, and the
MASKs of its run from f to p. Clean tokens see clean tokens up to themselves, as in the source. The logits at p predict x_{p+1}; this
counts where p + 1 is labelled. Loss: cross-entropies over all views / their number.
Adapters act at MASK tokens and nowhere else: y = W x + b + (alpha / r) · gate · B (A x). The trained row stands for the MASK's embedding;
the head, tied or not, keeps the source's. So the clean stream's logits are the source's (asserted, bit for bit against a run with zeroed adapters).

In: the tiny models and the inputs obj_<inputs>.safetensors. Out: `lossless_<case>/` (adapter_config.json, adapter_model.safetensors under
peft's names), `lossless_<case>.safetensors` (`input_ids`, `labels`, `offsets` [V], `bd_size` [1], `loss` [1], `count` [1], `kl` [1]) and
`lossless_<case>_grads.safetensors`. `kl` is the mean, over the same positions, of KL(source at clean p ‖ adapted at MASK p).
Distillation: `distilled_<case>.safetensors` is the same with `distill` [1], a share w, and `loss` = (1 - w) · cross-entropy + w · kl, where the
source's distribution has no gradient; `distilled_<case>_grads.safetensors` are the gradients of that loss.
Needs torch, transformers, safetensors.
"""

import json
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ROW = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
# name: share of the divergence in the distilled loss
DISTILL = {"llama": 0.5, "qwen2": 1.0, "qwen2_untied": 0.75, "qwen3": 0.25, "bitnet": 0.5, "bitnet_online": 0.9}
# name: model, inputs, rank, alpha, targets, block size, offsets, BitLinear
CASES = {
    "llama": ("llama_tiny", "llama_bd8", 4, 6, ALL, 4, [0, 2], False),
    "qwen2": ("qwen2_tiny", "qwen2_bd8", 3, 12, ["q_proj", "v_proj", "down_proj"], 8, [0, 3, 5], False),
    "qwen2_untied": ("qwen2_peaky", "qwen2_bd8", 2, 2, ALL, 2, [0, 1], False),
    "qwen3": ("qwen3_tiny", "qwen3_bd8", 4, 8, ALL, 8, [1, 6], False),
    "bitnet": ("bitnet_tiny", "bitnet_bd8", 4, 8, ALL, 32, [7], False),
    "bitnet_online": ("bitnet_tiny", "bitnet_online_bd8", 4, 8, ALL, 4, [0, 2], True),
}
MASK = 319


class BitLinear(torch.nn.Linear):
    """Online quantisation with straight-through gradients, as tests/fixtures/README.md states it."""

    def forward(self, x):
        scale = 1 / self.weight.abs().mean().clamp(min=1e-5)
        weight = (self.weight * scale).round().clamp(-1, 1) / scale
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        int8 = (x * scale).round().clamp(-128, 127) / scale
        return F.linear(x + (int8 - x).detach(), weight, self.bias)


class Gated(torch.nn.Module):
    """A linear map with an adapter at gated tokens. `gate` [rows, tokens, 1] is set before each pass."""

    gate = None

    def __init__(self, base, rank, alpha):
        super().__init__()
        self.base, self.scale = base, alpha / rank
        self.A = torch.nn.Parameter(torch.empty(rank, base.in_features).uniform_(-1, 1) / base.in_features**0.5)
        self.B = torch.nn.Parameter(torch.randn(base.out_features, rank) * 0.05)

    def forward(self, x):
        return self.base(x) + self.scale * Gated.gate * F.linear(F.linear(x, self.A), self.B)


def run_starts(labels, bd, offset):
    """For each position of a row the first position of its run, or -1."""
    first, starts = -1, []
    for p, label in enumerate(labels.tolist()):
        cut = (p - offset) % bd == 0
        if label == -100 or p == 0:
            first = -1
        elif first < 0 or cut:
            first = p
        starts.append(first)
    return starts


def view(ids, labels, bd, offset):
    """ids [2L], who sees whom [2L, 2L], gate [2L], targets [L] of one row: the noised copy first."""
    length = len(ids)
    starts = run_starts(labels, bd, offset)
    hidden = torch.tensor([s >= 0 for s in starts])
    sees = torch.zeros(2 * length, 2 * length, dtype=torch.bool)
    for q in range(length):
        sees[length + q, length : length + q + 1] = True
        if starts[q] < 0:
            sees[q, q] = True  # not used
            continue
        sees[q, length : length + starts[q]] = True
        sees[q, starts[q] : q + 1] = True
    following = torch.cat([labels[1:], torch.tensor([-100])])
    targets = torch.where(hidden & (following != -100), following, -100)
    noised = torch.where(hidden, MASK, ids)
    return torch.cat([noised, ids]), sees, torch.cat([hidden, torch.zeros_like(hidden)]), targets


def passes(model, row, views):
    """Logits [V, 2L, vocab] and targets [V, L] of the views of all rows."""
    ids, sees, gate, targets = (torch.stack(part) for part in zip(*views))
    Gated.gate = gate[..., None].float()
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)[:, None]
    positions = torch.arange(targets.shape[1]).repeat(len(ids), 2)
    table = model.get_input_embeddings().weight
    embedded = torch.where(gate[..., None], row, F.embedding(ids, table))
    out = model(inputs_embeds=embedded, attention_mask=bias, position_ids=positions, use_cache=False)
    return out.logits.float(), targets


def write(name, folder):
    base, inputs, rank, alpha, targets, bd, offsets, quantised = CASES[name]
    case = load_file(folder / f"obj_{inputs}.safetensors")
    torch.manual_seed(len(name) * 77 + rank)
    model = AutoModelForCausalLM.from_pretrained(folder / base, dtype=torch.float32, attn_implementation="eager")
    model.requires_grad_(False)
    state = {}
    for module_name, module in list(model.named_modules()):
        leaf = module_name.rsplit(".", 1)[-1]
        if isinstance(module, torch.nn.Linear) and leaf in ALL:
            if quantised:
                module.__class__ = BitLinear
            if leaf in targets:
                gated = Gated(module, rank, alpha)
                model.get_submodule(module_name.rsplit(".", 1)[0]).register_module(leaf, gated)
                state[f"base_model.model.{module_name}.lora_A.weight"] = gated.A
                state[f"base_model.model.{module_name}.lora_B.weight"] = gated.B
    row = torch.nn.Parameter(model.get_input_embeddings().weight[MASK : MASK + 1] + 0.02 * torch.randn(1, model.config.hidden_size))
    state[ROW] = row
    ids, labels = case["input_ids"].long(), case["labels"].long()
    length = ids.shape[1]
    views = [view(ids[r], labels[r], bd, offset) for offset in offsets for r in range(len(ids))]
    logits, wanted = passes(model, row, views)
    count = int((wanted != -100).sum())
    loss = F.cross_entropy(logits[:, :length].flatten(0, 1), wanted.flatten(), ignore_index=-100)
    source, adapted = logits[:, length:].detach().log_softmax(-1), logits[:, :length].log_softmax(-1)
    kl = (source.exp() * (source - adapted)).sum(-1)[wanted != -100].mean()
    share = torch.tensor(DISTILL[name])
    mixed = (1 - share) * loss + share * kl
    names, leaves = list(state), list(state.values())
    grads = dict(zip(names, torch.autograd.grad(loss, leaves, retain_graph=True)))
    mixed_grads = dict(zip(names, torch.autograd.grad(mixed, leaves)))
    with torch.no_grad():
        for gated in model.modules():
            if isinstance(gated, Gated):
                gated.B.data, gated.kept = torch.zeros_like(gated.B), gated.B.data
        bare, _ = passes(model, row, views)
        assert torch.equal(bare[:, length:], logits[:, length:]), f"{name}: the clean stream is not the source's"
        assert not torch.equal(bare[:, :length], logits[:, :length])
        for gated in model.modules():
            if isinstance(gated, Gated):
                gated.B.data = gated.kept
    out = folder / f"lossless_{name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    config = {
        "base_model_name_or_path": base, "bias": "none", "lora_alpha": alpha, "peft_type": "LORA", "r": rank, "target_modules": targets,
        "task_type": "CAUSAL_LM", "trainable_token_indices": {"embed_tokens": [MASK]},
    }
    (out / "adapter_config.json").write_text(json.dumps(config, indent=1, sort_keys=True) + "\n")
    save_file({key: value.detach().contiguous() for key, value in state.items()}, out / "adapter_model.safetensors")
    save_file({key: value.contiguous() for key, value in grads.items()}, folder / f"lossless_{name}_grads.safetensors")
    save_file({key: value.contiguous() for key, value in mixed_grads.items()}, folder / f"distilled_{name}_grads.safetensors")
    written = {
        "input_ids": case["input_ids"], "labels": case["labels"], "offsets": torch.tensor(offsets), "bd_size": torch.tensor([bd]),
        "loss": loss.detach().reshape(1), "count": torch.tensor([count]), "kl": kl.detach().reshape(1),
    }
    save_file(written, folder / f"lossless_{name}.safetensors")
    more = {"loss": mixed.detach().reshape(1), "distill": share.reshape(1)}
    save_file({**written, **more}, folder / f"distilled_{name}.safetensors")
    print(f"lossless_{name}: {base}, D {bd}, offsets {offsets}, {count} counted, loss {loss.item():.6f}, kl {kl.item():.6f}")
    print(f"distilled_{name}: share {share.item():.2f}, loss {mixed.item():.6f}")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: lossless_reference.py tests/fixtures")
    torch.set_num_threads(1)
    for name in CASES:
        write(name, pathlib.Path(sys.argv[1]))


if __name__ == "__main__":
    main()
