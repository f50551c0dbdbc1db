"""Sends the steps in ../metrics.jsonl to Weights & Biases with its own Python client.

dlm-train writes this file and settings.json to RUN/wandb, starts `sync.py --follow` beside the training and starts it again
when it dies. Training does not wait for it. Called by hand, `python3 RUN/wandb/sync.py` sends whatever is missing. The API
key comes from the environment (WANDB_API_KEY) or from `wandb login`, never from here.
"""

import fcntl
import glob
import json
import os
import select
import signal
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
NO_CLIENT = 3  # exit code: the package is not installed


def scalars(r):
    """A line of metrics.jsonl under the names of the Python converter, then those that it did not have."""
    out = {
        "train/loss": r["loss"],
        "train/tokens": r["tokens"],
        "train/step": r["step"],
        "train/lr": r["lr"],
        "train/lr_adam": r["lr"],
        "train/grad_norm": r["grad_norm"],
        "train/grad_norm_raw": r["grad_norm"],
        "train/grad_norm_clipped": r["grad_norm"] * r["clip"],
        "train/loss_spike": int(r.get("skipped", False)),
        "train/tokens_per_second": r["tok_s"],
        "train/step_time": r["seconds"],
        "train/counted": r["counted"],
        "train/processed": r["processed"],
        "train/data_wait": r["data_wait"],
        "system/rss_mib": r["rss_mib"],
    }
    if r["counted"] and "sure" in r:
        out["train/sure"] = r["sure"] / r["counted"]
    for key, name in [("mfu", "train/mfu"), ("eval_loss", "eval/loss")]:
        if r.get(key) is not None:
            out[name] = r[key]
    if r.get("eval_acceptance"):
        out["eval/acceptance"] = r["eval_acceptance"]["share"]
        out["eval/hidden_tokens"] = r["eval_acceptance"]["hidden"]
    if r.get("eval_decode"):
        out["eval/tokens_per_forward"] = r["eval_decode"]["tokens_per_forward"]
        out["eval/decoded_tokens"] = r["eval_decode"]["tokens"]
    return out


def records(path):
    """The whole records of a .wandb file: 7 bytes of header, then blocks of 32 KiB as in a LevelDB log."""
    with open(path, "rb") as file:
        data = file.read()
    at, record = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        size, kind = struct.unpack_from("<HB", data, at + 4)
        if kind == 0 or at + 7 + size > len(data):
            return
        record += data[at + 7 : at + 7 + size]
        at += 7 + size
        if kind in (1, 4):  # whole, or last piece
            yield record
            record = b""


def last_on_disk(run_id):
    """The last step in the offline files of a run. A client that was killed may have lost what it had not yet written."""
    from wandb.proto import wandb_internal_pb2

    last = 0
    for path in glob.glob(os.path.join(glob.escape(HERE), "offline-run-*", "run-%s.wandb" % glob.escape(run_id))):
        for data in records(path):
            record = wandb_internal_pb2.Record.FromString(data)
            if record.WhichOneof("record_type") == "history":
                last = max(last, record.history.step.num)
    return last


def main():
    follow = "--follow" in sys.argv[1:]
    if follow:
        # the trainer ends by a signal after it has saved; this process ends when the trainer is gone
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # one at a time: that of a killed session may still be sending its last steps
    lock = open(os.path.join(HERE, "lock"), "w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    try:
        import wandb
    except ImportError as error:
        print(error, file=sys.stderr)
        sys.exit(NO_CLIENT)
    with open(os.path.join(HERE, "settings.json")) as file:
        settings = json.load(file)
    last = last_on_disk(settings["id"]) if settings["mode"] == "offline" else 0
    run = wandb.init(
        dir=os.path.dirname(HERE),
        id=settings["id"],
        resume="allow",
        project=settings["project"],
        entity=settings["entity"],
        name=settings["name"],
        mode=settings["mode"],
        config=settings["config"],
        settings=wandb.Settings(console="off", silent=True),
    )
    last = max(last, run.step - 1)
    ended, code = not follow, 0
    with open(os.path.join(os.path.dirname(HERE), "metrics.jsonl")) as metrics:
        while True:
            at = metrics.tell()
            line = metrics.readline()
            if line.endswith("\n"):
                record = json.loads(line)
                if record["step"] > last:
                    last = record["step"]
                    run.log(scalars(record), step=last)
                continue
            metrics.seek(at)
            if ended:
                break
            # stdin is a pipe from the trainer: "done" and its end, or its end alone when training stopped early
            if select.select([0], [], [], 0.5)[0]:
                told = os.read(0, 16)
                ended, code = True, 0 if told == b"done" else 1
    run.finish(exit_code=code)


if __name__ == "__main__":
    main()
