#!/usr/bin/env python3
"""Writes a Llama checkpoint (a Hugging Face folder) as GGUF without a vocabulary, for llama.cpp fed with token ids.

    python gguf_of.py MODEL OUT.gguf f16|bf16|q8_0

Norms stay in fp32. Rotary rows are interleaved, as llama.cpp's Llama expects them. Needs gguf, numpy, safetensors, ml_dtypes for
bf16 checkpoints.
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from safetensors import safe_open

NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}


def interleaved(w, heads):
    """The halves of each head's rotary rows in turn."""
    rows, columns = w.shape
    return w.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def main():
    folder, out, kind = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    c = json.loads((folder / "config.json").read_text())
    if c["architectures"] != ["LlamaForCausalLM"]:
        sys.exit(f"{folder} is a {c['architectures']}; this script writes LlamaForCausalLM only")
    heads, kv = c["num_attention_heads"], c["num_key_value_heads"]
    w = gguf.GGUFWriter(out, "llama")
    w.add_block_count(c["num_hidden_layers"])
    w.add_context_length(c["max_position_embeddings"])
    w.add_embedding_length(c["hidden_size"])
    w.add_feed_forward_length(c["intermediate_size"])
    w.add_head_count(heads)
    w.add_head_count_kv(kv)
    rope = c.get("rope_parameters") or {}
    w.add_rope_freq_base(float(c.get("rope_theta") or rope.get("rope_theta")))
    w.add_rope_dimension_count(c.get("head_dim") or c["hidden_size"] // heads)
    w.add_layer_norm_rms_eps(c["rms_norm_eps"])
    w.add_vocab_size(c["vocab_size"])
    w.add_tokenizer_model("none")
    types = {"f16": gguf.GGMLQuantizationType.F16, "bf16": gguf.GGMLQuantizationType.BF16, "q8_0": gguf.GGMLQuantizationType.Q8_0}
    kind = types[kind]
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():
                t = tensors.get_tensor(name).astype(np.float32)
                part = name.removeprefix("model.").removesuffix(".weight")
                if part == "embed_tokens":
                    to = "token_embd.weight"
                elif part == "norm":
                    to = "output_norm.weight"
                elif part == "lm_head":
                    if c.get("tie_word_embeddings"):
                        continue
                    to = "output.weight"
                else:
                    _, layer, part = part.split(".", 2)
                    if part.endswith(("q_proj", "k_proj")):
                        t = interleaved(t, heads if part.endswith("q_proj") else kv)
                    to = f"blk.{layer}.{NAMES[part]}.weight"
                if t.ndim == 1:
                    w.add_tensor(to, t)
                else:
                    w.add_tensor(to, gguf.quants.quantize(t, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


main()
