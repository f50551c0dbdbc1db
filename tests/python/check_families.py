"""Loads exported folders in transformers and compares their logits with those that `dlm-train parity --dump-logits` wrote.

In: a JSON list of {name, folder, ids, logits, class, quantized}; `ids` and `logits` are safetensors files. Out: one line per
folder with the largest difference; exit 1 where a folder does not load completely, is of another class, or has other logits.
Floating-point models must agree to 1e-3 everywhere. Quantised activations are rounded, which is a step function: there the lower
quartile over positions must agree to 1e-3, and no logit may differ by more than 0.5 (times the logits' spread where that is above 1).
"""

import json
import sys
import warnings

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

TOLERANCE, WORST = 1e-3, 0.5


def check(case):
    model, info = AutoModelForCausalLM.from_pretrained(
        case["folder"], dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if info.get(kind):
            return f"{kind}: {sorted(map(str, info[kind]))}"
    if type(model).__name__ != case["class"]:
        return f"loads as {type(model).__name__}, expected {case['class']}"
    linears = {type(m).__name__ for n, m in model.named_modules() if n.endswith("_proj")}
    if ("Linear" in linears) == case["quantized"]:
        return f"quantization_config is {'present' if case['quantized'] else 'absent'}, the projections are {sorted(linears)}"
    ids, ours = load_file(case["ids"])["input_ids"], load_file(case["logits"])["logits"]
    with torch.no_grad():
        theirs = model.eval()(input_ids=ids).logits.float()
    if ours.shape != theirs.shape:
        return f"logits are {list(ours.shape)}, in transformers {list(theirs.shape)}"
    spread = float(theirs.std())
    if not spread > 0.05:
        return f"the logits' standard deviation is {spread}: too flat to show anything"
    worst = (ours - theirs).abs().amax(-1).flatten().sort().values
    quartile, largest = float(worst[len(worst) // 4]), float(worst[-1])
    print(f"{case['name']}: {type(model).__name__} with {'/'.join(sorted(linears))}, logits of spread {spread:.2f} "
          f"differ by {largest:.1e} at most, {quartile:.1e} at the lower quartile")
    if case["quantized"]:
        ok = quartile < TOLERANCE and largest < WORST * max(1.0, spread)
    else:
        ok = largest < TOLERANCE
    return None if ok else f"largest difference {largest}, lower quartile {quartile}"


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: check_families.py CASES.json")
    warnings.simplefilter("ignore")
    torch.set_num_threads(2)
    with open(sys.argv[1]) as f:
        cases = json.load(f)
    wrong = [(case["name"], said) for case in cases if (said := check(case))]
    for name, said in wrong:
        print(f"check_families: {name}: {said}", file=sys.stderr)
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
