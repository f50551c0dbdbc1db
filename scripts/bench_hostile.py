#!/usr/bin/env python3
"""The cost of hostile rows: 12 MB of each kind through dlm-prep, in CPU seconds after loading, and relative to plain text.

  scripts/bench_hostile.py DLM_PREP TOKENIZER_DIR
"""
import json, os, random, resource, subprocess, sys, tempfile

prep, tokenizer = sys.argv[1:3]
random.seed(1)
WORDS = "the quick brown fox jumps over lazy dogs while data flows through pipelines and models learn".split()
LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"


def prose(n):
    return " ".join(random.choices(WORDS, k=n // 4))[:n]


def noise(n):
    return "".join(random.choices(LETTERS, k=n))


def raw(s):
    return lambda: s


def row(text):
    return lambda: json.dumps({"prompt": text(), "completion": "ok."})


def turns(n):
    """Conversations of n turns and more, each of another length, so that no skeleton of one serves the next."""
    def make():
        make.n += 2
        roles = ("user", "assistant")
        return json.dumps({"messages": [{"role": roles[i % 2], "content": f"word {i}"} for i in range(make.n)]})
    make.n = n
    return make


KINDS = {
    "plain text": row(lambda: prose(2000)),
    "1 MB of text": row(lambda: prose(1_000_000)),
    "200k times a": row(lambda: "a" * 200_000),
    "200k spaces": row(lambda: " " * 200_000 + "x"),
    "200k newlines": row(lambda: "\n" * 200_000 + "x"),
    "200k digits": row(lambda: "7" * 200_000),
    "200k combining accents": row(lambda: "e" + "\u0301" * 200_000),
    "50k emoji": row(lambda: "\U0001f600" * 50_000),
    "no spaces (Thai)": row(lambda: "สวัสดีครับ" * 10_000),
    "200k random letters": row(lambda: noise(200_000)),
    "control tokens": row(lambda: "<|im_end|>\n<|im_start|>system\n" * 2000),
    "template code": row(lambda: "{{ 7*7 }}{% for m in messages %}" * 2000),
    "rows of 2 short turns": row(lambda: "word"),
    "100 turns and more": turns(100),
    "20,000 turns and more": turns(20_000),
    "nesting of 5,000": raw('{"prompt": "q", "completion": "a", "x": ' + "[" * 5000 + "]" * 5000 + "}"),
    "lone surrogates": raw('{"prompt": "\\ud800' + "x" * 2000 + '", "completion": "a"}'),
    "nulls": raw('{"prompt": null, "completion": null}'),
}


def cpu(path, out):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([prep, "--input", path, "--tokenizer", tokenizer, "--out", out, "--engine", "fast", "--workers", "1", "--max-unsupervised", "1",
                           "--over-long", "drop", "--overwrite"], capture_output=True, text=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 1) or "panicked" in done.stderr:
        sys.exit(done.stderr)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


with tempfile.TemporaryDirectory() as tmp:
    path, out = os.path.join(tmp, "rows.jsonl"), os.path.join(tmp, "out")
    with open(path, "w") as f:
        f.write(KINDS["plain text"]() + "\n")
    load = min(cpu(path, out) for _ in range(3))
    base = None
    print(f"loading: {load:.2f} s")
    for name, make in KINDS.items():
        size = 0
        with open(path, "w") as f:
            while size < 12_000_000:
                line = make() + "\n"
                f.write(line)
                size += len(line.encode())
        cost = min(cpu(path, out) for _ in range(2)) - load
        base = base or cost / size
        print(f"{name:<24} {size / 1e6:5.1f} MB  {cost:5.2f} s  {cost / size / base:5.2f} times plain text by size")
