"""Checks that an exported BitNet folder (`export.format=hf`) is what microsoft/BitNet's conversion to an I2_S GGUF reads, and what it makes of it.

    python check_bitnet_i2s.py FOLDER PACKED_FOLDER

Written anew from what that conversion does (utils/convert-helper-bitnet.py there): the matrices of `model.safetensors` are quantised in float32, names are
mapped to GGUF's, `llama-quantize I2_S` packs four values a byte in runs of 128 with one scale a tensor. PACKED_FOLDER is the same run exported as
packed-ternary: its values are those that were trained. Prints one line of JSON: values, and how many of them the I2_S tensors have otherwise.
"""

import json
import pathlib
import struct
import sys

import numpy as np

DTYPES = {"F32": np.float32, "F16": np.float16, "BF16": np.uint16, "I32": np.int32}
MATRICES = tuple(f"{name}_proj.weight" for name in ("q", "k", "v", "o", "gate", "up", "down"))
# As the conversion's table has them, `{}` a layer.
NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "model.layers.{}.input_layernorm.weight": "blk.{}.attn_norm.weight",
    "model.layers.{}.post_attention_layernorm.weight": "blk.{}.ffn_norm.weight",
    "model.layers.{}.self_attn.attn_sub_norm.weight": "blk.{}.attn_sub_norm.weight",
    "model.layers.{}.mlp.ffn_sub_norm.weight": "blk.{}.ffn_sub_norm.weight",
    **{f"model.layers.{{}}.self_attn.{n}_proj.weight": f"blk.{{}}.attn_{n}.weight" for n in "qkv"},
    "model.layers.{}.self_attn.o_proj.weight": "blk.{}.attn_output.weight",
    **{f"model.layers.{{}}.mlp.{n}_proj.weight": f"blk.{{}}.ffn_{n}.weight" for n in ("gate", "up", "down")},
}
RUN = 128


def read(path, types):
    """Tensors of a safetensors file; bf16 widened."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    tensors = {}
    for name, one in header.items():
        if name == "__metadata__":
            continue
        assert one["dtype"] in types, f"{name} is {one['dtype']}; the conversion reads {', '.join(types)}"
        begin, end = one["data_offsets"]
        values = np.frombuffer(data[8 + length + begin : 8 + length + end], types[one["dtype"]])
        if one["dtype"] == "BF16":
            values = (values.astype(np.uint32) << 16).view(np.float32)
        tensors[name] = values.reshape(one["shape"])
    return tensors


def quantised(weight):
    """The conversion's first step: ternary values times their scale, float32."""
    weight = weight.astype(np.float32)
    scale = np.float32(1) / max(np.abs(weight).mean(dtype=np.float32), np.float32(1e-5))
    return (np.clip(np.round(weight * scale), -1, 1) / scale).astype(np.float32)


def i2_s(weight):
    """The bytes of an I2_S tensor, and the scale behind them."""
    flat = weight.reshape(-1)
    assert flat.size % RUN == 0, f"{flat.size} values are no multiple of {RUN}"
    codes = np.where(np.abs(flat) < 1e-6, 1, np.where(flat > 0, 2, 0)).astype(np.uint8)
    codes = codes.reshape(-1, 4, RUN // 4)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    return packed.reshape(-1), np.abs(flat).max()


def unpacked(packed, shape):
    """-1, 0 and 1 of an I2_S tensor."""
    packed = packed.reshape(-1, RUN // 4)
    codes = np.stack([packed >> 6 & 3, packed >> 4 & 3, packed >> 2 & 3, packed & 3], 1)
    assert codes.max() <= 2
    return codes.reshape(shape).astype(np.int8) - 1


def trained(tensors, name, divides):
    """-1, 0 and 1 of a packed-ternary export, and their scale."""
    packed, scale = tensors[name], float(tensors[name + "_scale"][0])
    rows = [(packed >> 2 * i & 3).astype(np.int8) - 1 for i in range(4)]
    return np.concatenate(rows), 1 / scale if divides else scale


def main():
    folder, packed_folder = map(pathlib.Path, sys.argv[1:3])
    config = json.loads((folder / "config.json").read_text())
    files = [f.name for f in folder.glob("*.safetensors")]
    assert files == ["model.safetensors"], f"the conversion takes one model.safetensors, here are {files}"
    read_keys = ("vocab_size", "hidden_size", "num_hidden_layers", "max_position_embeddings", "intermediate_size", "num_attention_heads",
                 "num_key_value_heads", "rms_norm_eps", "rope_theta")
    missing = [key for key in read_keys if config.get(key) is None]
    assert not missing, f"config.json has no {missing}"
    assert not (config.get("rope_scaling") or {}).get("type"), "the conversion scales RoPE by its own rules"
    tensors = read(folder / "model.safetensors", DTYPES)
    names = {}
    for name in tensors:
        parts = name.split(".")
        layer = parts[2] if name.startswith("model.layers.") else None
        pattern = name.replace(f"layers.{layer}.", "layers.{}.", 1) if layer else name
        assert pattern in NAMES, f"the conversion knows no tensor {name}"
        names[NAMES[pattern].format(layer)] = name
    wanted = {new.format(layer) for new in NAMES.values() for layer in range(config["num_hidden_layers"])}
    wanted -= {"output.weight"} if config["tie_word_embeddings"] else set()
    assert set(names) == wanted, sorted(set(names) ^ wanted)

    packed_config = json.loads((packed_folder / "config.json").read_text())
    divides = packed_config["quantization_config"]["linear_class"] == "bitlinear"
    reference = read(packed_folder / "model.safetensors", DTYPES | {"U8": np.uint8})
    values = changed = 0
    for name, weight in tensors.items():
        if not name.endswith(MATRICES):
            continue
        ternary = quantised(weight)
        packed, scale = i2_s(ternary)
        found, (right, right_scale) = unpacked(packed, weight.shape), trained(reference, name, divides)
        assert packed.nbytes * 4 == weight.size and len(np.unique(found)) == 3, name
        assert abs(scale / right_scale - 1) < 5e-3, f"{name}: scale {scale}, trained {right_scale}"
        values += found.size
        changed += int((found != right).sum())
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    ids = len(tokenizer["model"]["vocab"].keys() | {token["content"] for token in tokenizer["added_tokens"]})
    print(json.dumps({"values": values, "changed": changed, "tensors": len(names), "pads_vocabulary_by": config["vocab_size"] - ids}))


if __name__ == "__main__":
    main()
