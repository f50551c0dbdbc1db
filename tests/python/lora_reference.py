"""Writes the LoRA fixtures: adapters as `peft` saves them, and the loss and gradients of one step as torch and peft compute them.

    python tests/python/lora_reference.py tests/fixtures

For each case of CASES: the tiny model is loaded in transformers (fp32, eager attention), `peft` adds adapters and a trainable mask row,
the block-diffusion objective of tests/fixtures/README.md is computed on the inputs of obj_<inputs>.safetensors, and out come
`lora_<case>/` (adapter_config.json, adapter_model.safetensors), `lora_<case>.safetensors` (the inputs and `loss` [1]) and
`lora_<case>_grads.safetensors` (for every tensor of the adapter its gradient under the same name). Before the adapters are drawn, the loss of the bare model is compared with the
fixture's own: a wrong mask or position would show there. Needs torch, transformers, peft, safetensors.
"""

import json
import pathlib
import shutil
import sys

import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: model, inputs, rank, alpha, targets, BitLinear
CASES = {
    "llama": ("llama_tiny", "llama_bd8", 4, 6, ALL, False),
    "qwen2": ("qwen2_tiny", "qwen2_bd8", 3, 12, ["q_proj", "v_proj", "down_proj"], False),
    "qwen2_untied": ("qwen2_peaky", "qwen2_bd8", 2, 2, ALL, False),
    "qwen3": ("qwen3_tiny", "qwen3_bd8", 4, 8, ALL, False),
    "bitnet": ("bitnet_tiny", "bitnet_bd8", 4, 8, ALL, False),
    "bitnet_online": ("bitnet_tiny", "bitnet_online_bd8", 4, 8, ALL, True),
}


class BitLinear(torch.nn.Linear):
    """Online quantisation with straight-through gradients, as tests/fixtures/README.md states it."""

    def forward(self, x):
        scale = 1 / self.weight.abs().mean().clamp(min=1e-5)
        ternary = (self.weight * scale).round().clamp(-1, 1) / scale
        weight = self.weight + (ternary - self.weight).detach()
        scale = 127 / x.abs().amax(-1, keepdim=True).clamp(min=1e-5)
        int8 = (x * scale).round().clamp(-128, 127) / scale
        return F.linear(x + (int8 - x).detach(), weight, self.bias)


def attention(length, bd):
    """[2L, 2L], true where a query sees a key; the noised copy comes first."""
    block = torch.arange(length) // bd
    q, k = block[:, None], block[None, :]
    noised = torch.cat([q == k, k < q], 1)
    clean = torch.cat([torch.zeros(length, length, dtype=torch.bool), k <= q], 1)
    return torch.cat([noised, clean], 0)


def loss_of(model, case, bd, mask_id):
    ids, labels, mask = (case[name].long() for name in ("input_ids", "labels", "mask"))
    rows, length = ids.shape
    hidden = torch.cat([mask == 1, mask == 0]) & (labels != -100).repeat(2, 1)
    noised = torch.where(hidden, mask_id, ids.repeat(2, 1))
    sees = attention(length, bd)[None, None].expand(2 * rows, 1, -1, -1)
    bias = torch.zeros(sees.shape).masked_fill(~sees, torch.finfo(torch.float32).min)
    positions = torch.arange(length).repeat(2 * rows, 2)
    out = model(
        input_ids=torch.cat([noised, ids.repeat(2, 1)], 1), attention_mask=bias, position_ids=positions, use_cache=False
    )
    logits = out.logits[:, : length - 1].float()
    targets = torch.where(hidden, labels.repeat(2, 1), -100)[:, 1:]
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=-100)


def write(name, folder):
    base, inputs, rank, alpha, targets, quantised = CASES[name]
    record = json.loads((folder / "objective.json").read_text())[inputs]
    case = load_file(folder / f"obj_{inputs}.safetensors")
    bd, mask_id = record["block_size"], record["mask_id"]
    torch.manual_seed(len(name) * 1000 + rank)
    model = AutoModelForCausalLM.from_pretrained(folder / base, dtype=torch.float32, attn_implementation="eager")
    if quantised:
        for module in list(model.modules()):
            if isinstance(module, torch.nn.Linear) and module is not model.lm_head:
                module.__class__ = BitLinear
    if record["model"] == base:
        found = loss_of(model, case, bd, mask_id).item()
        tolerance = 5e-3 if quantised else 1e-5
        assert abs(found - record["loss"]) < tolerance * record["loss"], (name, found, record["loss"])
    config = LoraConfig(
        r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", trainable_token_indices={"embed_tokens": [mask_id]}
    )
    model = get_peft_model(model, config)
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_B" in key:
                value.normal_(0, 0.05)
            if "trainable_tokens" in key:
                value.add_(torch.randn_like(value) * 0.02)
    loss = loss_of(model, case, bd, mask_id)
    loss.backward()
    out = folder / f"lora_{name}"
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "README.md").unlink(missing_ok=True)
    saved = json.loads((out / "adapter_config.json").read_text())
    saved["base_model_name_or_path"] = base
    saved["target_modules"] = targets
    (out / "adapter_config.json").write_text(json.dumps(saved, indent=1, sort_keys=True) + "\n")
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    gradients = {key: value.grad.clone() for key, value in trained.items()}
    state = get_peft_model_state_dict(model, state_dict=gradients)
    expected = set(load_file(out / "adapter_model.safetensors"))
    assert set(state) == expected, sorted(set(state) ^ expected)
    save_file({key: value.contiguous() for key, value in state.items()}, folder / f"lora_{name}_grads.safetensors")
    written = {key: case[key] for key in ("input_ids", "labels", "mask")} | {"loss": loss.detach().reshape(1)}
    save_file(written, folder / f"lora_{name}.safetensors")
    count = sum(value.numel() for value in trained.values())
    print(f"lora_{name}: {base}, rank {rank}, alpha {alpha}, {len(targets)} targets, {count} trained, loss {loss.item():.6f}")


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: lora_reference.py tests/fixtures")
    torch.set_num_threads(1)
    for name in CASES:
        write(name, pathlib.Path(sys.argv[1]))


if __name__ == "__main__":
    main()
