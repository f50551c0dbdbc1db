"""Loads exported adapters in `peft` and compares logits with those that `dlm-train parity --adapter --dump-logits` wrote.

In: a JSON list of {name, source, adapter, ids, logits}; `ids` and `logits` are safetensors files. The source is loaded in transformers,
its tables are resized where the adapter's dlm_config.json names more rows, and the adapter is put beside it; then it is merged. Out: one
line per case with the largest differences; exit 1 where one is above 1e-4 of the logits' largest value, or a tensor of the adapter is
not used.
"""

import json
import pathlib
import sys
import warnings

import torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM


def check(case):
    adapter = pathlib.Path(case["adapter"])
    model = AutoModelForCausalLM.from_pretrained(case["source"], dtype=torch.float32, attn_implementation="eager")
    rows = json.loads((adapter / "dlm_config.json").read_text())["vocab_size"]
    if rows > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(rows)
    ids, ours = load_file(case["ids"])["input_ids"], load_file(case["logits"])["logits"]
    with torch.no_grad():
        bare = model.eval()(input_ids=ids).logits.float()
        model = PeftModel.from_pretrained(model, adapter).eval()
        beside = model(input_ids=ids).logits.float()
        loaded, stored = get_peft_model_state_dict(model), load_file(adapter / "adapter_model.safetensors")
        for name, value in stored.items():
            if name not in loaded or not torch.equal(loaded[name].float(), value):
                return f"{name} is not what peft holds"
        merged = model.merge_and_unload()(input_ids=ids).logits.float()
    scale = max(1.0, float(ours.abs().max()))
    far = [float((other - ours).abs().max()) / scale for other in (beside, merged, bare)]
    print(f"{case['name']}: {len(stored)} tensors; of a largest logit of {scale:.2f}, peft beside differs by {far[0]:.1e}, merged by {far[1]:.1e}, the bare model by {far[2]:.1e}")
    if max(far[:2]) > 1e-4:
        return f"logits differ by {far}"
    return None if far[2] > 1e-3 else "the adapter changes nothing"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check_lora.py CASES.json")
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    wrong = [(case["name"], said) for case in json.loads(pathlib.Path(sys.argv[1]).read_text()) if (said := check(case))]
    for name, said in wrong:
        print(f"check_lora: {name}: {said}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
