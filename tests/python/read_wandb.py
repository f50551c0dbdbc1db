"""Prints what W&B's offline folders below a run's folder hold, with wandb's own messages: [{id, project, name, entity, steps: {step: {key: value}}}].

The records of a .wandb file are framed as in a LevelDB log, in blocks of 32 KiB after a header of 7 bytes.
"""

import glob
import json
import os
import struct
import sys

from wandb.proto import wandb_internal_pb2


def records(path):
    with open(path, "rb") as file:
        data = file.read()
    if data[:4] != b":W&B":
        sys.exit(f"{path}: not a .wandb file")
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0 or at + 7 + size > len(data):
            return
        whole += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):
            yield wandb_internal_pb2.Record.FromString(whole)
            whole = b""


def main():
    if len(sys.argv) != 2:
        sys.exit("usage: read_wandb.py RUN")
    out = []
    for path in sorted(glob.glob(os.path.join(sys.argv[1], "wandb", "offline-run-*", "*.wandb"))):
        session = {"steps": {}}
        for record in records(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = record.run
                session.update(id=run.run_id, project=run.project, name=run.display_name, entity=run.entity)
                session["config"] = {item.key: json.loads(item.value_json) for item in run.config.update}
            elif kind == "history":
                items = {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item}
                session["steps"][record.history.step.num] = items
        out.append(session)
    print(json.dumps(out))


if __name__ == "__main__":
    main()
