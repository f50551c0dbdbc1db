#!/usr/bin/env python3
"""Decoding on the CPU: dlm-train against llama.cpp and transformers, one Llama checkpoint, the same prompts and threads.

    python scripts/bench_decode_cpu.py target/release/dlm-train MODEL [--baseline DLM_TRAIN]
        [--threads 1,2] [--rounds 3] [--new 64]
        [--converted DIR --tasks FILE.jsonl [--limit 8] [--thresholds 0.9] [--sub-blocks 8,16]]

Needs gguf, llama-cpp-python (built for this machine), numpy and safetensors; torch and transformers for its rows, else they are
skipped. All programs take turns within a round, and each decodes the same prompts (random ids) one after the other to the same
number of tokens. For each row: decoded tokens per second and prompt tokens per second (medians and best of all prompts and
rounds), and CPU milliseconds per decoded token, which other programs on the machine change less than they change wall time.

With --converted, a second table: the answers to real prompts, whole, one after the other: the converted model in block mode and
MODEL in ar mode until the answer ends; the other programs decode MODEL from the same prompts for as many tokens as MODEL's own
answers have. Tokens per second count the prompts' passes too.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile

HERE = pathlib.Path(__file__).resolve().parent
p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
p.add_argument("dlm_train")
p.add_argument("model")
p.add_argument("--baseline", help="another dlm-train, measured as well")
p.add_argument("--threads", default="1,2")
p.add_argument("--rounds", type=int, default=3)
p.add_argument("--new", type=int, default=64)
p.add_argument("--prompt-tokens", type=int, default=64)
p.add_argument("--converted", help="MODEL after its conversion to block diffusion")
p.add_argument("--tasks", help="JSONL of messages or prompts with expected answers, as for dlm-train eval --tasks")
p.add_argument("--limit", type=int, default=8, help="tasks that are answered")
p.add_argument("--thresholds", default="0.9")
p.add_argument("--sub-blocks", default="8,16")
p.add_argument("--max-answer", type=int, default=128, help="longest answer, tokens")
a = p.parse_args()
if bool(a.converted) != bool(a.tasks):
    p.error("--converted and --tasks belong together")
work = pathlib.Path(tempfile.mkdtemp())
prompts = [[(i * 7919 + k * 104729 + 13) % 40000 + 100 for i in range(a.prompt_tokens)] for k in range(2)]
(work / "prompts.jsonl").write_text("".join(json.dumps({"ids": ids}) + "\n" for ids in prompts))


def run(command, threads):
    env = {**os.environ, "RAYON_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    out = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    return (out if status == 0 else None), usage.ru_utime + usage.ru_stime


def dlm(exe, threads, *more):
    """Passes are timed inside (least and median), CPU seconds by the difference of two lengths."""
    common = [exe, "generate", "--model", a.model, "--input", str(work / "prompts.jsonl"), "--device", "cpu", "--mode", "ar",
              "--stop-token-id", "none", "--json", *more]
    out, long = run([*common, "--max-new-tokens", str(a.new)], threads)
    short_out, short = run([*common, "--max-new-tokens", "1"], threads)
    if out is None or short_out is None:
        return None
    rows = []
    for done, start in zip(map(json.loads, out.splitlines()), map(json.loads, short_out.splitlines())):
        rows.append(dict(prefill_tokens=a.prompt_tokens, prefill_s=start["seconds"], decode_tokens=a.new - 1,
                         decode_s=max(done["seconds"] - start["seconds"], 1e-9), ids=done["completion_ids"]))
    return rows, 1e3 * (long - short) / (a.new - 1) / len(prompts)


def peer(command, threads):
    out, _ = run(command, threads)
    if out is None:
        return None
    rows = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return rows, 1e3 * sum(r["decode_cpu_s"] for r in rows) / max(1, sum(r["decode_tokens"] for r in rows))


programs, peers = {}, {}
for weights in ("fp32", "bf16", "int8"):
    programs[f"dlm-train, ar, weights {weights}"] = lambda t, w=weights: dlm(a.dlm_train, t, "--weights", w)
if a.baseline:
    programs["dlm-train before, ar, fp32"] = lambda t: dlm(a.baseline, t)
for kind in ("f16", "bf16", "q8_0"):
    gguf = work / f"{kind}.gguf"
    made = subprocess.run([sys.executable, HERE / "peers/gguf_of.py", a.model, gguf, kind], capture_output=True, text=True)
    if made.returncode:
        print(f"llama.cpp {kind} is left out: {made.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
        continue
    llama = [sys.executable, str(HERE / "peers/decode_llama_cpp.py"), str(gguf)]
    peers[f"llama.cpp, ar, {kind}"] = lambda prompts, t, c=llama: [*c, str(prompts), str(t), str(a.new)]
hf = [sys.executable, str(HERE / "peers/decode_hf_cpu.py"), a.model]
for dtype in ("float32", "bfloat16"):
    peers[f"transformers, ar, {dtype}"] = lambda prompts, t, d=dtype: [*hf, str(prompts), str(t), str(a.new), d]
for name, command in peers.items():
    programs[name] = lambda t, c=command: peer(c(work / "prompts.jsonl", t), t)

def answers(threads, model, *more):
    """Whole answers to the tasks by dlm-train: completions, CPU seconds of the program."""
    out, cpu = run([a.dlm_train, "generate", "--model", model, "--input", str(work / "tasks.jsonl"), "--device", "cpu",
                    "--batch-size", "1", "--max-new-tokens", str(a.max_answer), "--json", *more], threads)
    return None if out is None else ([json.loads(line) for line in out.splitlines()], cpu)


def table_of_answers(threads):
    lines = [json.loads(line) for line in open(a.tasks)][: a.limit]
    (work / "tasks.jsonl").write_text("".join(json.dumps({k: v for k, v in line.items() if k in ("messages", "prompt", "tools")}) + "\n"
                                              for line in lines))
    expected = [line.get("expected") or line.get("answer") for line in lines]
    own = answers(threads, a.model, "--mode", "ar")
    if own is None:
        sys.exit("dlm-train does not decode the tasks")
    (work / "answers.jsonl").write_text("".join(json.dumps({"ids": c["prompt_ids"], "new": len(c["completion_ids"])}) + "\n" for c in own[0]))
    rows = {}
    for weights in ("fp32", "bf16", "int8"):
        rows[f"dlm-train, ar, {weights}"] = lambda w=weights: answers(threads, a.model, "--mode", "ar", "--weights", w)
        for threshold in a.thresholds.split(","):
            for size in a.sub_blocks.split(","):
                more = ["--mode", "block", "--threshold", threshold, "--sub-block-size", size, "--weights", weights]
                rows[f"dlm-train, block {threshold}/{size}, {weights}"] = lambda m=more: answers(threads, a.converted, *m)
    for name, command in peers.items():
        def answer(c=command):
            out, _ = run(c(work / "answers.jsonl", threads), threads)
            return None if out is None else ([json.loads(line) for line in out.splitlines() if line.startswith("{")], None)
        rows[name] = answer
    found = {name: [] for name in rows}
    for _ in range(a.rounds):
        for name, row in rows.items():
            found[name].append(row())
    print(f"\n{threads} thread(s), {len(lines)} tasks of {a.tasks}, whole answers, {a.rounds} rounds\n")
    print("| program | tokens/s of all answers, best (median) | times the first row (medians) | tokens per forward | right |")
    print("|---|---|---|---|---|")
    base = None
    for name, rounds in found.items():
        rounds = [r for r in rounds if r and r[0]]
        if not rounds:
            print(f"| {name} | not run | | | |")
            continue
        ours = "seconds" in rounds[0][0][0]
        if ours:
            rates = [sum(len(c["completion_ids"]) for c in r) / sum(c["seconds"] for c in r) for r, _ in rounds]
            first = rounds[0][0]
            forward = sum(len(c["completion_ids"]) for c in first) / sum(c["passes"]["total"] for c in first)
            texts = [(c["text"] or "").split("<|im_end|>")[0].strip() for c in first]
            right = f"{sum(t == e for t, e in zip(texts, expected))} of {len(lines)}"
        else:
            rates = [sum(len(c["ids"]) for c in r) / sum(c["prefill_s"] + c["decode_s"] for c in r) for r, _ in rounds]
            forward, right = 1.0, ""
        base = base or statistics.median(rates)
        print(f"| {name} | {max(rates):.1f} ({statistics.median(rates):.1f}) | {statistics.median(rates) / base:.2f} | {forward:.2f} | {right} |", flush=True)


for threads in map(int, a.threads.split(",")):
    found = {name: ([], []) for name in programs}
    for _ in range(a.rounds):
        for name, program in programs.items():
            got = program(threads)
            if got is None:
                continue
            found[name][0].extend(got[0])
            found[name][1].append(got[1])
    print(f"\n{threads} thread(s), {len(prompts)} prompts of {a.prompt_tokens} tokens, {a.new} new ones, {a.rounds} rounds\n")
    print("| program | decoding tokens/s, best (median) | CPU ms per token, least (median) | prefill tokens/s, best (median) | same tokens as the first row |")
    print("|---|---|---|---|---|")
    first = next((rows for rows, _ in found.values() if rows), [])
    for name, (rows, cpu) in found.items():
        if not rows:
            print(f"| {name} | not run | | | |")
            continue
        decode = [r["decode_tokens"] / r["decode_s"] for r in rows]
        prefill = [r["prefill_tokens"] / r["prefill_s"] for r in rows]
        same = sum(x == y for r, f in zip(rows, first) for x, y in zip(r["ids"], f["ids"]))
        total = sum(min(len(r["ids"]), len(f["ids"])) for r, f in zip(rows, first))
        print(f"| {name} | {max(decode):.1f} ({statistics.median(decode):.1f}) | {min(cpu):.1f} ({statistics.median(cpu):.1f}) | "
              f"{max(prefill):.0f} ({statistics.median(prefill):.0f}) | {same} of {total} |", flush=True)
    if a.converted:
        table_of_answers(threads)
