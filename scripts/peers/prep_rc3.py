#!/usr/bin/env python3
"""A Python peer with the tokenizer engine that dlm-prep uses: tokenizers 1.0.0rc3 from PyPI.

It does the work of dlm-prep: parquet with the columns input, output, system_prompt -> ChatML -> ids of prompt and response -> labels
(-100 on the prompt) -> truncated to --seq -> padded with the mask id to a multiple of --bd -> packed best-fit to --seq -> saved. Two ways:

  datasets   load_dataset, map(batched), filter, pack, save_to_disk: the usual data pipeline in Python
  lean       pyarrow, a pool of forked processes, numpy: a Python pipeline written for speed

transformers (and so trl) refuses this engine, so packing is implemented here; it is trl's "bfd" on whole documents.
"""
import argparse, bisect, json, os, shutil, sys, tempfile, time

begin = time.perf_counter()
ap = argparse.ArgumentParser()
ap.add_argument("--data", required=True)
ap.add_argument("--tokenizer", required=True, help="path of a tokenizer.json")
ap.add_argument("--out", required=True)
ap.add_argument("--procs", type=int, default=2)
ap.add_argument("--seq", type=int, default=512)
ap.add_argument("--bd", type=int, default=32)
ap.add_argument("--way", choices=["datasets", "lean"], default="datasets")
a = ap.parse_args()
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if a.procs > 1:
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    os.environ["RAYON_NUM_THREADS"] = "1"
cache = tempfile.mkdtemp(prefix="peer_prep_")
os.environ["HF_DATASETS_CACHE"] = cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tokenizers

if not tokenizers.__version__.startswith("1."):
    sys.exit(f"tokenizers {tokenizers.__version__} found; this peer needs 1.0.0rc3 (pip install --pre tokenizers==1.0.0rc3)")
SEQ, BD = a.seq, a.bd
tok = tokenizers.Tokenizer.from_file(a.tokenizer)
with open(a.tokenizer) as f:
    t = json.load(f)
MASK = max(max(t["model"]["vocab"].values()), max((x["id"] for x in t["added_tokens"]), default=0)) + 1
del t
loaded = time.perf_counter()


def render(messages, system, output):
    s = f"<|im_start|>system\n{system}<|im_end|>\n" if system else ""
    for m in messages:
        s += f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n"
    s += "<|im_start|>assistant\n"
    return s, f"{output}<|im_end|>\n"


def many(b):
    """Ids and labels of a batch; prompt and response are encoded separately, each once."""
    pairs = [render(m, s, o) for m, s, o in zip(b["input"], b.get("system_prompt") or [None] * len(b["input"]), b["output"])]
    enc = tok.encode_batch([x for p in pairs for x in p], add_special_tokens=False)
    ids, labels = [], []
    for k in range(0, len(enc), 2):
        p, r = enc[k].ids_array, enc[k + 1].ids_array
        n = min(len(p) + len(r), SEQ)
        x = np.full(n + -n % BD, MASK, np.int32)
        y = np.full(len(x), -100, np.int32)
        x[:min(len(p), SEQ)] = p[:SEQ]
        if len(p) < SEQ:
            x[len(p):n] = y[len(p):n] = r[:n - len(p)]
        ids.append(x)
        labels.append(y)
    return {"input_ids": ids, "labels": labels}


def best_fit(lengths):
    """Rows as lists of documents: largest first, each into the fullest row that still holds it."""
    open_rows = [[] for _ in range(SEQ + 1)]  # rows by free space
    free, rows = [], []
    for k in sorted(range(len(lengths)), key=lambda k: -lengths[k]):
        n = lengths[k]
        at = bisect.bisect_left(free, n)
        if at < len(free):
            space = free[at]
            row = open_rows[space].pop()
            if not open_rows[space]:
                free.pop(at)
        else:
            space, row = SEQ, len(rows)
            rows.append([])
        rows[row].append(k)
        left = space - n
        if left:
            if not open_rows[left]:
                bisect.insort(free, left)
            open_rows[left].append(row)
    return rows


def pack(ids, labels, offsets):
    """Packed columns from flat ones."""
    lengths = np.diff(offsets)
    rows = best_fit(lengths.tolist())
    out = np.full((2, len(rows) * SEQ), MASK, np.int32)
    out[1] = -100
    for r, row in enumerate(rows):
        at = r * SEQ
        for k in row:
            n = lengths[k]
            out[0, at:at + n] = ids[offsets[k]:offsets[k + 1]]
            out[1, at:at + n] = labels[offsets[k]:offsets[k + 1]]
            at += n
    return out, len(rows), int(lengths.sum())


def lean_part(groups):
    f = pq.ParquetFile(a.data)
    got = [], []
    for g in groups:
        d = many(f.read_row_group(g, columns=["input", "output", "system_prompt"]).to_pydict())
        for x, y in zip(d["input_ids"], d["labels"]):
            if (y != -100).any():
                got[0].append(x)
                got[1].append(y)
    return np.concatenate(got[0]), np.concatenate(got[1]), np.array([len(x) for x in got[0]])


shutil.rmtree(a.out, ignore_errors=True)
if a.way == "lean":
    import multiprocessing
    groups = pq.ParquetFile(a.data).num_row_groups
    with multiprocessing.get_context("fork").Pool(a.procs) as pool:
        step = max(1, groups // (8 * a.procs))
        parts = pool.map(lean_part, [range(g, min(g + step, groups)) for g in range(0, groups, step)], chunksize=1)
    ids, labels, lengths = (np.concatenate([p[k] for p in parts]) for k in range(3))
    out, rows, tokens = pack(ids, labels, np.concatenate([[0], np.cumsum(lengths)]))
    os.makedirs(a.out)
    table = pa.table({k: pa.FixedSizeListArray.from_arrays(pa.array(v), SEQ) for k, v in zip(["input_ids", "labels"], out)})
    with pa.OSFile(a.out + "/data.arrow", "wb") as f, pa.ipc.new_file(f, table.schema) as w:
        w.write_table(table)
else:
    import datasets
    datasets.disable_progress_bars()
    sys.modules["prep_rc3"] = sys.modules["__main__"]
    many.__module__ = "prep_rc3"  # pickled by reference, so that forked workers use the loaded tokenizer
    ds = datasets.load_dataset("parquet", data_files=a.data, split="train")
    np_ = a.procs if a.procs > 1 else None
    tk = ds.map(many, batched=True, num_proc=np_, remove_columns=ds.column_names)
    tk = tk.filter(lambda b: [any(x != -100 for x in l) for l in b], input_columns="labels", batched=True, num_proc=np_)
    cols = tk.with_format("arrow")[:]
    flat = [cols[c].combine_chunks() for c in ("input_ids", "labels")]
    out, rows, tokens = pack(*(f.flatten().to_numpy() for f in flat), flat[0].offsets.to_numpy())
    packed = datasets.Dataset(pa.table({k: pa.FixedSizeListArray.from_arrays(pa.array(v), SEQ) for k, v in zip(["input_ids", "labels"], out)}))
    packed.save_to_disk(a.out)
shutil.rmtree(cache, ignore_errors=True)
end = time.perf_counter()
print(f"tokens {tokens}  rows {rows}  fill {tokens / rows / SEQ:.4f}  load {loaded - begin:.2f} s  rest {end - loaded:.2f} s")
