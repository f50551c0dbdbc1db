#!/usr/bin/env python3
"""Greedy decoding with llama.cpp (PyPI llama-cpp-python) from token ids: one JSON line per prompt. A line may
say its own number of tokens, "new".

    python decode_llama_cpp.py MODEL.gguf PROMPTS.jsonl THREADS NEW_TOKENS

Prefill is the evaluation of the whole prompt with its last logits, decoding that of one token after the other. Times are the
least of the rounds that the caller makes; here each prompt is decoded once.
"""
import ctypes
import json
import sys
import time

import llama_cpp
import numpy as np


def main():
    model, prompts, threads, new = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    llm = llama_cpp.Llama(model, n_ctx=2048, n_batch=512, n_ubatch=512, n_threads=threads, n_threads_batch=threads, verbose=False)
    vocab = llm.n_vocab()

    def best():
        logits = llama_cpp.llama_get_logits_ith(llm.ctx, -1)
        return int(np.argmax(np.ctypeslib.as_array(ctypes.cast(logits, ctypes.POINTER(ctypes.c_float)), shape=(vocab,))))

    llm.eval([1, 2, 3])
    for line in open(prompts):
        line = json.loads(line)
        ids, count = line["ids"], line.get("new", new)
        llm.reset()
        started, cpu = time.perf_counter(), time.process_time()
        llm.eval(ids)
        out = [best()]
        middle, cpu_middle = time.perf_counter(), time.process_time()
        while len(out) < count:
            llm.eval([out[-1]])
            out.append(best())
        ended, cpu_ended = time.perf_counter(), time.process_time()
        print(json.dumps({
            "ids": out, "prefill_tokens": len(ids), "prefill_s": middle - started, "prefill_cpu_s": cpu_middle - cpu,
            "decode_tokens": len(out) - 1, "decode_s": ended - middle, "decode_cpu_s": cpu_ended - cpu_middle,
        }), flush=True)


main()
