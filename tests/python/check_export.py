"""Loads an exported folder in transformers and writes its logits and loss, for `dlm-train parity` to compare with.

In: an exported folder and the path of the case to write. Out: CASE.safetensors with `input_ids`, `labels`, `logits`, `loss` (causal,
float32, eager attention), and one line of JSON about the tokenizer: the rendered prompt's ids and the mask token. Exits with 1 and a
message where the folder does not load or contradicts itself.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def fail(message):
    print(f"check_export: {message}", file=sys.stderr)
    sys.exit(1)


def main():
    if len(sys.argv) != 3:
        fail("usage: check_export.py FOLDER CASE.safetensors")
    folder, case = Path(sys.argv[1]), sys.argv[2]
    torch.manual_seed(0)
    torch.set_num_threads(2)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info[kind]:
            fail(f"{folder}: {kind}: {sorted(map(str, info[kind]))}")
    model.eval()
    with open(folder / "dlm_config.json") as f:
        dlm = json.load(f)
    for name in ("bd_size", "mask_token_id"):
        if getattr(model.config, name, None) != dlm[name]:
            fail(f"{folder}: config.json has {name} {getattr(model.config, name, None)}, dlm_config.json {dlm[name]}")

    tokenizer = AutoTokenizer.from_pretrained(folder)
    mask_id = tokenizer.convert_tokens_to_ids(dlm["mask_token"])
    if mask_id != dlm["mask_token_id"]:
        fail(f"{folder}: the tokenizer gives {dlm['mask_token']} the id {mask_id}, dlm_config.json says {dlm['mask_token_id']}")
    if len(tokenizer) > model.config.vocab_size:
        fail(f"{folder}: {len(tokenizer)} ids in the tokenizer, {model.config.vocab_size} rows in the embedding table")
    messages = [{"role": "user", "content": "Write as JSON:\nname=Anna Berg; age=42"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(text, add_special_tokens=False).input_ids
    if tokenizer.decode(prompt) != text:
        fail(f"{folder}: {text!r} decodes to {tokenizer.decode(prompt)!r}")

    rows, length = 2, 48
    ids = torch.randint(0, len(tokenizer) - 1, (rows, length))
    ids[0, : min(len(prompt), length)] = torch.tensor(prompt[:length])
    labels = ids.clone()
    labels[:, : length // 2] = -100
    with torch.no_grad():
        logits = model(input_ids=ids).logits.float()
    kept = labels[:, 1:] != -100
    loss = torch.nn.functional.cross_entropy(logits[:, :-1][kept], labels[:, 1:][kept])
    save_file({"input_ids": ids, "labels": labels, "logits": logits.contiguous(), "loss": loss.reshape(1)}, case)
    weights = next(iter(folder.glob("*.safetensors")))
    print(json.dumps({
        "text": messages[0]["content"],
        "prompt_ids": prompt,
        "mask_token_id": mask_id,
        "stored_dtype": str(next(iter(load_file(weights).values())).dtype),
        "logits_spread": float(logits.std()),
    }))


if __name__ == "__main__":
    main()
