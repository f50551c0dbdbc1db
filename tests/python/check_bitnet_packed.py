"""Checks that an exported packed-ternary folder is what microsoft/BitNet's direct conversion reads, and that its I2_S tensors hold what was trained.

    python check_bitnet_packed.py PACKED_FOLDER FOLDER

Written anew from what that conversion does with an offline-quantised model (utils/convert-hf-to-gguf-bitnet.py there, `--outtype i2_s`): bytes hold four
values, the first quarter of the rows in the lowest bits; `weight_scale` becomes the scale of the I2_S tensor as it is; every other matrix but the embeddings
is quantised, too. FOLDER is the same run exported as `hf` in fp32: the masters, whose ternary values and scales are what must come out. Prints one line of
JSON. Written against the state of November 2026; the table that maps the names is in that repository's fork of llama.cpp and was not seen, so names are
compared with those of the published model (microsoft/bitnet-b1.58-2B-4T).
"""

import json
import pathlib
import sys

import numpy as np

from check_bitnet_i2s import DTYPES, MATRICES, NAMES, RUN, quantised, read, unpacked

ARCHITECTURES = ("BitnetForCausalLM", "BitNetForCausalLM")
# Without these the conversion stops, or writes a model without what they say.
CONFIG = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
          "rms_norm_eps", "rope_theta")
TAIL = 32
HALF = 65504


def pattern(name):
    """A tensor's name with `{}` for its layer, and the layer."""
    parts = name.split(".")
    if not name.startswith("model.layers."):
        return name, None
    return name.replace(f"layers.{parts[2]}.", "layers.{}.", 1), int(parts[2])


def i2_s(values, scale):
    """The conversion's bytes for values of -1, 0 and 1: runs of 128 in 32 bytes, then the scale in a tail of 32 bytes."""
    flat = values.reshape(-1)
    assert flat.size % RUN == 0, f"{flat.size} values are no multiple of {RUN}: the conversion would cut the last ones off"
    codes = (np.sign(flat) + 1).astype(np.uint8).reshape(-1, 4, RUN // 4)
    packed = codes[:, 0] << 6 | codes[:, 1] << 4 | codes[:, 2] << 2 | codes[:, 3]
    out = np.zeros(flat.size // 4 + TAIL, np.uint8)
    out[:-TAIL] = packed.reshape(-1)
    out[-TAIL:-TAIL + 4] = np.frombuffer(np.float32(scale).tobytes(), np.uint8)
    return out


def main():
    folder, masters_folder = map(pathlib.Path, sys.argv[1:3])
    config = json.loads((folder / "config.json").read_text())
    architecture = config["architectures"][0]
    assert architecture in ARCHITECTURES, f"{architecture}: the conversion quantises {' and '.join(ARCHITECTURES)} only"
    missing = [key for key in CONFIG if config.get(key) is None]
    assert not missing, f"config.json has no {missing}"
    kind = config["quantization_config"]["linear_class"]
    assert kind == "autobitlinear", f"linear_class {kind}: the conversion would take the divisor for the scale"
    files = sorted(f.name for f in folder.glob("*.safetensors"))
    wanted = ["model.safetensors"] if len(files) == 1 else [f"model-{k + 1:05}-of-{len(files):05}.safetensors" for k in range(len(files))]
    assert files == wanted, f"the conversion reads {wanted}, here are {files}"
    tensors = {}
    for file in files:
        tensors |= read(folder / file, DTYPES | {"U8": np.uint8})
    masters = read(masters_folder / "model.safetensors", {"F32": np.float32})

    scales = {name.removesuffix("_scale"): tensor for name, tensor in tensors.items() if name.endswith(".weight_scale")}
    expected = {one.format(layer) for one in NAMES if "{}" in one for layer in range(config["num_hidden_layers"])}
    expected |= {one for one in NAMES if "{}" not in one}
    expected -= {"lm_head.weight"} if config["tie_word_embeddings"] else set()
    assert set(tensors) == expected | {name + "_scale" for name in scales}, sorted(set(tensors) ^ (expected | {name + "_scale" for name in scales}))
    assert set(scales) == {name for name in expected if name.endswith(MATRICES)}, "a matrix has no weight_scale, or something else has one"

    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    head = config.get("head_dim") or hidden // heads
    q, kv, ffn = heads * head, config["num_key_value_heads"] * head, config["intermediate_size"]
    shapes = {"q_proj": (q, hidden), "k_proj": (kv, hidden), "v_proj": (kv, hidden), "o_proj": (hidden, q), "gate_proj": (ffn, hidden), "up_proj": (ffn, hidden),
              "down_proj": (hidden, ffn), "embed_tokens": (config["vocab_size"], hidden), "lm_head": (config["vocab_size"], hidden), "ffn_sub_norm": (ffn,), "attn_sub_norm": (q,)}
    count, quantised_otherwise, largest = 0, [], 0.0
    for name, tensor in tensors.items():
        if name.endswith("_scale"):
            assert tensor.size == 1 and tensor.dtype == np.float32, f"{name}: one float32 is read"
            continue
        shape = shapes.get(name.split(".")[-2], (hidden,))
        if name not in scales:
            assert tensor.shape == shape and tensor.dtype != np.uint8, f"{name}: {tensor.dtype} {tensor.shape}, wanted {shape}"
            assert np.abs(tensor).max() <= HALF, f"{name} does not fit float16, in which the conversion keeps it"
            if tensor.ndim == 2 and pattern(name)[0] != "model.embed_tokens.weight":
                quantised_otherwise.append(name)
            continue
        assert tensor.dtype == np.uint8 and (tensor.shape[0] * 4, *tensor.shape[1:]) == shape, f"{name}: {tensor.dtype} {tensor.shape} for {shape}"
        fields = np.concatenate([tensor >> 2 * k & 3 for k in range(4)])
        assert fields.max() <= 2, f"{name}: a field of 3"
        scale = np.float32(scales[name].reshape(-1)[0])
        data = i2_s(fields.astype(np.int8) - 1, scale)
        ternary = unpacked(data[:-TAIL], shape)
        master = quantised(masters[name])
        assert (ternary == np.sign(master)).all(), f"{name}: other values than were trained"
        right = np.abs(master).max()
        largest = max(largest, float(abs(data[-TAIL:-TAIL + 4].copy().view(np.float32)[0] / right - 1)))
        count += ternary.size
    assert largest < 5e-3, f"a scale is off by {largest}"
    assert not quantised_otherwise, f"{', '.join(quantised_otherwise)}: the conversion would quantise it to three values; it reads tied embeddings only"
    print(json.dumps({"values": count, "matrices": len(scales), "tensors": len(tensors) - len(scales)}))


if __name__ == "__main__":
    main()
