"""Checks a packed folder against the contract of docs/format.md, with pyarrow and polars only.

In: a folder written by dlm-prep. Out: one line of JSON with the counts; exit 1 and a message at the first violation. Checks that
pyarrow maps the files without copying, that polars reads the same values, the invariants of documents, labels and padding, and that
the manifest's counts are those of the files.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa


def fail(message):
    print(f"check_packed: {message}", file=sys.stderr)
    sys.exit(1)


def expect(condition, message):
    if not condition:
        fail(message)


def check_file(path, entry, manifest, totals):
    """Checks one Arrow file: bytes, mapping without copies, values, invariants."""
    seq_len, bd_size = manifest["seq_len"], manifest["bd_size"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    expect(digest == entry["sha256"], f"{path}: sha256 {digest}, the manifest says {entry['sha256']}")
    expect(path.stat().st_size == entry["bytes"], f"{path}: {path.stat().st_size} bytes, the manifest says {entry['bytes']}")
    before = pa.total_allocated_bytes()
    table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    copied = pa.total_allocated_bytes() - before
    expect(copied == 0, f"{path}: pyarrow copied {copied} bytes instead of mapping the file")
    expect(table.num_rows == entry["rows"], f"{path}: {table.num_rows} rows, the manifest says {entry['rows']}")
    ids_type = pa.list_(pa.field("item", pa.int32(), nullable=False), seq_len)
    for name in ("input_ids", "labels"):
        expect(table.schema.field(name).type == ids_type, f"{path}: {name} is {table.schema.field(name).type}, expected {ids_type}")

    matrix = lambda name: np.concatenate(
        [c.flatten().to_numpy(zero_copy_only=True).reshape(-1, seq_len) for c in table.column(name).chunks]
    )
    ids, labels = matrix("input_ids"), matrix("labels")
    expect(((labels == -100) | (labels == ids)).all(), f"{path}: a label is neither -100 nor the id at its position")
    expect((labels != manifest["mask_token_id"]).all(), f"{path}: the mask token {manifest['mask_token_id']} is supervised")
    expect((ids >= 0).all() and (ids < manifest["vocab_size"]).all(), f"{path}: ids outside 0..{manifest['vocab_size']}")

    frame = pl.scan_ipc(path).collect()
    for name, mine in (("input_ids", ids), ("labels", labels)):
        theirs = frame[name].to_numpy()
        expect(theirs.shape == mine.shape and (theirs == mine).all(), f"{path}: polars reads other {name} than pyarrow")

    for row, documents in enumerate(table.column("documents").to_pylist()):
        end = 0
        for d in documents:
            where = f"{path}, row {row}, document at {d['start']}"
            expect(d["start"] % bd_size == 0 and d["length"] % bd_size == 0, f"{where}: not on the grid of {bd_size}: {d}")
            expect(d["start"] >= end and d["length"] > 0, f"{where}: overlaps the one before, which ends at {end}")
            expect(0 <= d["source"] < len(manifest["sources"]), f"{where}: source {d['source']} is not in the manifest")
            end = d["start"] + d["length"]
            expect(end <= seq_len, f"{where}: ends at {end}, rows have {seq_len}")
            expect((labels[row, d["start"]:end] != -100).any(), f"{where}: has no label")
        expect((labels[row, end:] == -100).all(), f"{path}, row {row}: labels after the last document")
        expect((ids[row, end:] == manifest["pad_token_id"]).all(), f"{path}, row {row}: ids other than the pad id after the last document")
        totals["documents"] += len(documents)
        totals["slots"] += end
    totals["rows"] += table.num_rows
    totals["response_tokens"] += int((labels != -100).sum())


def main():
    if len(sys.argv) != 2:
        fail("usage: check_packed.py DIR")
    folder = Path(sys.argv[1])
    manifest = json.loads((folder / "manifest.json").read_text())
    expect(manifest["format_version"] == 1, f"format_version {manifest['format_version']}, this check knows 1")
    totals = {"rows": 0, "documents": 0, "slots": 0, "response_tokens": 0}
    for entry in manifest["files"]:
        check_file(folder / entry["path"], entry, manifest, totals)
    counts = manifest["counts"]
    for name in ("documents", "response_tokens"):
        expect(totals[name] == counts[name], f"{name}: the files have {totals[name]}, the manifest says {counts[name]}")
    dropped = sum(counts["dropped"].values())
    expect(counts["rows_read"] == counts["rows_kept"] + dropped, f"rows read {counts['rows_read']} != kept {counts['rows_kept']} + dropped {dropped}")
    expect(totals["slots"] == counts["tokens"] + counts["block_padding"], f"{totals['slots']} slots in documents, the manifest says {counts['tokens']} tokens + {counts['block_padding']} padding")
    tokenizer = folder / "tokenizer" / "tokenizer.json"
    expect(hashlib.sha256(tokenizer.read_bytes()).hexdigest() == manifest["tokenizer_sha256"], f"{tokenizer}: not the one of the manifest")
    print(json.dumps(totals))


if __name__ == "__main__":
    main()
