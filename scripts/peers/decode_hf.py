#!/usr/bin/env python3
"""Greedy decoding by transformers with a key/value cache, for comparison with `dlm-train generate --mode ar`.

  decode_hf.py MODEL --batch 32 --prompt 64 --new 128

Random prompts, bf16, on the first GPU. Prints one JSON object: completion tokens per second and milliseconds per pass, without
loading and without a first short run.
"""

import argparse
import json
import time

import torch
from transformers import AutoModelForCausalLM

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model")
parser.add_argument("--batch", type=int, default=1)
parser.add_argument("--prompt", type=int, default=64)
parser.add_argument("--new", type=int, default=128)
a = parser.parse_args()
model = AutoModelForCausalLM.from_pretrained(a.model, dtype=torch.bfloat16).cuda().eval()
ids = torch.randint(0, 1000, (a.batch, a.prompt), device="cuda", generator=torch.Generator("cuda").manual_seed(1))


def run(new):
    torch.cuda.synchronize()
    start = time.perf_counter()
    with torch.inference_mode():
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, do_sample=False, pad_token_id=0)
    torch.cuda.synchronize()
    return time.perf_counter() - start


run(8)
seconds = run(a.new)
print(json.dumps(dict(program="transformers", mode="ar", batch=a.batch, tokens=a.batch * a.new, seconds=seconds,
                      tokens_per_s=a.batch * a.new / seconds, ms_per_pass=1000 * seconds / a.new)))
