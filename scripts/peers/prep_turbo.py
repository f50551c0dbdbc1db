#!/usr/bin/env python3
"""Turbo-dLLM's data preparation (PyPI turbo-dllm 0.1.6, extra `data`) on the input of scripts/bench_prep.sh, by the package's own functions.

  prep_turbo.py --data FILE.parquet --tokenizer FOLDER --out FOLDER [--seq 512] [--bd 32]

Columns input (messages), output, system_prompt become prompt and completion messages; loss on the completion, `truncate_right` for length
and for the block grid (the package's defaults; it has no padding). `dllm data prepare` stops at the first row that it refuses; here such
rows are skipped and counted, so that there is something to compare. Prints one JSON object.
"""

import argparse
import json
import os
import shutil

os.environ.setdefault("HF_HUB_OFFLINE", "1")
ap = argparse.ArgumentParser()
ap.add_argument("--data", required=True)
ap.add_argument("--tokenizer", required=True)
ap.add_argument("--out", required=True)
ap.add_argument("--seq", type=int, default=512)
ap.add_argument("--bd", type=int, default=32)
a = ap.parse_args()

import pyarrow.parquet as pq
from dllm_parallel.data.formatting import format_record
from dllm_parallel.data.indexed import write_indexed_artifact
from dllm_parallel.data.packing import prepare_indexed_record
from dllm_parallel.data.schemas import PackingSpec, RecordSpec, SupervisionSpec, TokenizerSpec
from dllm_parallel.data.tokenization import load_tokenizer, tokenize_record

tokenizer_spec = TokenizerSpec(model=a.tokenizer)
tokenizer = load_tokenizer(tokenizer_spec)
record_spec = RecordSpec(type="prompt_completion")
supervision = SupervisionSpec(policy="completion_only")
packing = PackingSpec(maximum_length=a.seq, alignment=a.bd, overflow="truncate_right", alignment_policy="truncate_right")
eot = tokenizer.convert_tokens_to_ids("<|im_end|>")
count = dict(read=0, kept=0, ended=0, source_tokens=0, kept_tokens=0)
refused = {}


def rows():
    for batch in pq.ParquetFile(a.data).iter_batches(1000):
        for row in batch.to_pylist():
            system = [{"role": "system", "content": row["system_prompt"]}] if row.get("system_prompt") else []
            yield {"prompt": system + row["input"], "completion": [{"role": "assistant", "content": row["output"]}]}


def records():
    for row in rows():
        count["read"] += 1
        try:
            record = tokenize_record(format_record(row, record_spec), tokenizer=tokenizer, tokenizer_spec=tokenizer_spec, supervision=supervision)
            count["source_tokens"] += len(record.tokens)
            packed = prepare_indexed_record(record, packing).record
        except (ValueError, RuntimeError, TypeError) as e:
            reason = str(e).split(" is below")[0] if "minimum" in str(e) else str(e)
            reason = "record shorter than a block" if reason.startswith("record length") else reason[:80]
            refused[reason] = refused.get(reason, 0) + 1
            continue
        count["kept"] += 1
        count["kept_tokens"] += len(packed.tokens)
        count["ended"] += eot in packed.tokens[-2:]
        yield packed


shutil.rmtree(a.out, ignore_errors=True)
write_indexed_artifact(a.out, records(), packing=packing, metadata={}, include_groups=False)
print(json.dumps(dict(count, refused=refused)))
