"""Loads folders of `export.format=fast-dllm` and `export.format=sdar` in transformers with their own modeling file and decodes with it.

    python check_engine_formats.py FOLDER...

Beside each FOLDER: FOLDER.json, `{"cases": [{"options", "prompt_ids", "completion_ids"}]}` as `dlm-train generate --json` printed them; the completions must be
equal. FOLDER-plain, where it is there, has the same weights for transformers' own architecture, whose logits under a block-causal mask must be those of the
forward pass. Runs on transformers 4.46 and newer and on 5.x; without einops, flash-attn and a GPU. Prints a line for each folder.
"""

import json
import pathlib
import sys

import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer


def check(folder):
    raw = json.loads((folder / "config.json").read_text())
    config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
    for key in ("bd_size", "mask_token_id", "pad_token_id", "eos_token_id", "hidden_size", "num_key_value_heads", "head_dim"):
        assert getattr(config, key) == raw[key], f"{key}: {getattr(config, key)}, config.json says {raw[key]}"
    model, report = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert type(model).__name__ == raw["architectures"][0], type(model)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report.get(what), f"{what}: {report[what]}"
    assert model.lm_head.weight.dtype == getattr(torch, raw.get("dtype", raw.get("torch_dtype")))
    if raw["tie_word_embeddings"]:
        assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr(), "the head is not tied"
    model = model.float().eval()
    length, bd = 37, config.bd_size
    ids = torch.arange(length)[None] * 37 % 300
    logits = model(ids).logits
    hidden = AutoModel.from_pretrained(folder, trust_remote_code=True).float()(ids).last_hidden_state
    assert torch.equal(model.lm_head(hidden), logits), "AutoModel differs"
    # padding behind a row changes nothing in front of it
    padded = torch.cat([ids, torch.zeros(1, 5, dtype=ids.dtype)], 1)
    seen = model(padded, attention_mask=(torch.arange(length + 5) < length).long()[None]).logits[:, :length]
    assert torch.allclose(seen, logits, atol=1e-4), "padding is seen"
    compared = "-"
    if pathlib.Path(f"{folder}-plain").is_dir():
        plain = AutoModelForCausalLM.from_pretrained(f"{folder}-plain", attn_implementation="eager").float().eval()
        block = torch.arange(length) // bd
        mask = torch.where(block[None] <= block[:, None], 0.0, torch.finfo(torch.float32).min)[None, None]
        wanted = plain(ids, attention_mask=mask).logits
        difference = (wanted - logits).abs().max().item()
        assert difference < 2e-4, f"logits differ by {difference}"
        compared = f"{difference:.1e}"
    cases = json.loads(pathlib.Path(f"{folder}.json").read_text())["cases"]
    for i, case in enumerate(cases):
        found = model.generate(torch.tensor([case["prompt_ids"]]), **case["options"])[0].tolist()
        wanted = case["prompt_ids"] + case["completion_ids"]
        assert found == wanted, f"case {i}, {case['options']}: {found[len(case['prompt_ids']):]} instead of {case['completion_ids']}"
    # rows of different lengths together, padded on the left as tokenizers do for decoding
    longest = max(len(case["prompt_ids"]) for case in cases)
    same = [case for case in cases if case["options"] == cases[0]["options"]]
    rows = [[0] * (longest - len(c["prompt_ids"])) + c["prompt_ids"] for c in same]
    mask = [[0] * (longest - len(c["prompt_ids"])) + [1] * len(c["prompt_ids"]) for c in same]
    found = model.generate(torch.tensor(rows), attention_mask=torch.tensor(mask), **cases[0]["options"])
    for row, case in zip(found.tolist(), same):
        wanted = case["prompt_ids"] + case["completion_ids"]
        assert row[: len(wanted)] == wanted and set(row[len(wanted) :]) <= {config.pad_token_id}, "a batch"
    try:
        model.generate(ids, temperature=0.7)
        raise AssertionError("an argument that is not known was ignored")
    except TypeError as error:
        assert "temperature" in str(error), error
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    encoded = dict(tokenizer("w1 w2", return_tensors="pt"), token_type_ids=torch.zeros(1, 2, dtype=torch.int64))
    if encoded["input_ids"].shape[1] == 2:
        assert model.generate(**encoded, max_new_tokens=1, stop_token=[]).shape[1] == 3, "what a tokenizer returns"
    assert "einops" not in sys.modules
    tokens = sum(len(case["completion_ids"]) for case in cases)
    print(f"{raw['architectures'][0]} in transformers {transformers.__version__}, torch {torch.__version__}: {len(cases)} completions of {tokens} tokens "
          f"equal, {len(same)} of them in a batch; largest difference of logits from transformers' own architecture {compared}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    for name in sys.argv[1:]:
        check(pathlib.Path(name))
