#!/usr/bin/env python3
"""Greedy decoding by transformers on the CPU from token ids, with a key/value cache: one JSON line per prompt. A line may
say its own number of tokens, "new".

    python decode_hf_cpu.py MODEL PROMPTS.jsonl THREADS NEW_TOKENS float32|bfloat16
"""
import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

path, prompts, threads, new, dtype = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
torch.set_num_threads(threads)
model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()


def clocks():
    return time.perf_counter(), time.process_time()


with torch.inference_mode():
    model(torch.tensor([[1, 2, 3]]))
    for line in open(prompts):
        line = json.loads(line)
        ids, count = line["ids"], line.get("new", new)
        start = clocks()
        step = model(torch.tensor([ids]), use_cache=True, logits_to_keep=1)
        out = [int(step.logits[0, -1].argmax())]
        middle = clocks()
        while len(out) < count:
            step = model(torch.tensor([[out[-1]]]), past_key_values=step.past_key_values, use_cache=True)
            out.append(int(step.logits[0, -1].argmax()))
        end = clocks()
        print(json.dumps({
            "ids": out, "prefill_tokens": len(ids), "prefill_s": middle[0] - start[0], "prefill_cpu_s": middle[1] - start[1],
            "decode_tokens": len(out) - 1, "decode_s": end[0] - middle[0], "decode_cpu_s": end[1] - middle[1],
        }), flush=True)
