"""Checks that a folder of `export.format=sdar` has what SGLang and LMDeploy read of SDAR's models.

    python check_sdar_folder.py FOLDER [--packages DIR]

DIR holds `sglang/` and `lmdeploy/` as their wheels have them (`pip download --no-deps sglang lmdeploy`, then unzip): the tables of their source are read
then, without importing them, which would take a GPU. Without it the tables below are used; they are those of SGLang 0.5 and LMDeploy 0.18. Prints one
line for each engine.
"""

import argparse
import ast
import json
import pathlib
import re
import struct

from transformers import AutoConfig

# As published: what each engine takes a folder by, and the module names that its loader merges or knows.
SGLANG = {"architecture": "SDARForCausalLM", "block_size": 4, "mask_id": 151669}
LMDEPLOY = {"model_type": "sdar", "mask_id": 151669}
LAYER = {
    *(f"self_attn.{name}_proj.weight" for name in "qkvo"),
    "self_attn.q_norm.weight",
    "self_attn.k_norm.weight",
    *(f"mlp.{name}_proj.weight" for name in ("gate", "up", "down")),
    "input_layernorm.weight",
    "post_attention_layernorm.weight",
}
# What the engines put into the configuration themselves.
GIVEN = {"dllm_block_length", "quant_config", "get", "items"}
OUTER = {"model.embed_tokens.weight", "model.norm.weight"}


def tensors(folder):
    names = {}
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        names |= {name: one for name, one in header.items() if name != "__metadata__"}
    return names


def entry(source, key):
    """The literal under a key of a dictionary that stands anywhere in a module; the rest of the dictionary may be code."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Dict):
            for name, value in zip(node.keys, node.values):
                if isinstance(name, ast.Constant) and name.value == key:
                    return ast.literal_eval(value)
    raise AssertionError(f"no entry {key!r}")


def find(folder, pattern, needle):
    """The sources of a package that hold a text."""
    found = [path for path in sorted(folder.rglob(pattern)) if needle in path.read_text(errors="replace")]
    assert found, f"{folder}: no {pattern} with {needle!r}"
    return found


def check_attributes(source, config, engine):
    """Every attribute of the configuration that a model's source reads without a default is there."""
    read = set(re.findall(r"\bconfig\.([a-z_]+)", source)) - GIVEN
    missing = sorted(name for name in read if not hasattr(config, name))
    assert not missing, f"{engine} reads config.{missing[0]} and more: {missing}"
    return len(read)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--packages", type=pathlib.Path)
    args = parser.parse_args()
    config = json.loads((args.folder / "config.json").read_text())
    loaded = AutoConfig.from_pretrained(args.folder, trust_remote_code=True)
    names = tensors(args.folder)
    assert json.loads((args.folder / "dlm_config.json").read_text())["token_shift"] is False
    tokenizer = json.loads((args.folder / "tokenizer.json").read_text())
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    mask = json.loads((args.folder / "dlm_config.json").read_text())["mask_token"]
    assert ids[mask] == config["mask_token_id"] == 151669, (ids.get(mask), config["mask_token_id"])
    assert config["vocab_size"] > 151669 and names["model.embed_tokens.weight"]["shape"][0] == config["vocab_size"]

    # names of weights: every one that an SDAR model has, and no other
    head = set() if config["tie_word_embeddings"] else {"lm_head.weight"}
    wanted = OUTER | head | {f"model.layers.{i}.{name}" for i in range(config["num_hidden_layers"]) for name in LAYER}
    assert set(names) == wanted, sorted(set(names) ^ wanted)[:5]
    dim = config["head_dim"]
    first = "model.layers.0.self_attn."
    assert names[first + "q_norm.weight"]["shape"] == [dim]
    assert names[first + "q_proj.weight"]["shape"] == [config["num_attention_heads"] * dim, config["hidden_size"]]
    assert names[first + "k_proj.weight"]["shape"] == [config["num_key_value_heads"] * dim, config["hidden_size"]]

    packages = args.packages
    table, where = SGLANG, "its published table"
    if packages and (packages / "sglang").is_dir():
        path = find(packages / "sglang", "*.py", '"SDARForCausalLM": {"block_size"')[0]
        table = entry(path.read_text(), "SDARForCausalLM") | {"architecture": "SDARForCausalLM"}
        where = str(path.relative_to(packages))
        model = find(packages / "sglang", "sdar.py", "class SDARForCausalLM")[0].read_text()
        for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            assert f'"{part}"' in model, f"sglang's loader does not know {part}"
        where += f", {check_attributes(model, loaded, 'sglang')} attributes read"
    assert config["architectures"] == [table["architecture"]] and config["mask_token_id"] == table["mask_id"], table
    more = "" if config["bd_size"] == table["block_size"] else f"; its YAML needs block_size: {config['bd_size']}"
    print(f"sglang ({where}): architecture {table['architecture']}, mask {table['mask_id']}, {len(names)} weights{more}")

    table, where = LMDEPLOY, "its published table"
    if packages and (packages / "lmdeploy").is_dir():
        path = find(packages / "lmdeploy", "sdar.py", "dllm_mask_token")[0]
        source = path.read_text()
        types = [ast.literal_eval(text) for text in re.findall(r"model_type in (\[[^\]]*\])", source)]
        assert any(config["model_type"] in one for one in types), types
        table = {"model_type": config["model_type"], "mask_id": int(re.search(r"dllm_mask_token = (\d+)", source)[1])}
        where = str(path.relative_to(packages))
        known = find(packages / "lmdeploy", "module_map.py", "SDARForCausalLM")[0]
        model = find(packages / "lmdeploy", "sdar.py", "class SDARForCausalLM")[0].read_text()
        for part in ("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"):
            assert f"'{part}'" in model or f"'.{part}'" in model, f"lmdeploy's loader does not know {part} ({known})"
        where += f", {check_attributes(model, loaded, 'lmdeploy')} attributes read"
    assert config["model_type"] == table["model_type"] and config["mask_token_id"] == table["mask_id"], table
    print(f"lmdeploy ({where}): model_type {table['model_type']}, mask {table['mask_id']}, {len(names)} weights; --dllm-block-length {config['bd_size']}")


if __name__ == "__main__":
    main()
