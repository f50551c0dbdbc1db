#!/usr/bin/env python3
"""Training on several GPUs against training on one, in fp32: losses and gradient norms to 1e-5.

  NULLCUDA_DEVICES=3 tests/cuda/run --exec --no-ptxas NAME python3 tests/cuda/train_team.py --train BINARY --prep DLM_PREP --out FOLDER

The tiny model of train_steps.py on the packed sample: 4 steps on one GPU and on several, those again, which must have the same bits;
and a run whose first 2 steps are taken by several GPUs and whose others by one, from the checkpoint.
--gpus 1,2 on a machine with two.
"""

import argparse
import json
import pathlib
import sys

from train_steps import packed_sample, run

STEPS = 4


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, type=pathlib.Path)
    parser.add_argument("--prep", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--gpus", default="1,3")
    a = parser.parse_args()
    out = packed_sample(a)

    def train(name, gpus, steps=STEPS):
        run([
            a.train, "--data", out / "data", "--device", "cuda:" + ",".join(map(str, range(gpus))), "model=sample",
            "conversion=sample_diffusion", "source.init=random", "source.path=null", f"source.config={out}/config.json",
            "train.batch_rows=6", "train.micro_batch_rows=1", "train.dtype=fp32", f"train.max_steps={steps}", "train.log_every=1",
            "train.eval_every=0", "train.save_every=2", "optim.schedule=constant_with_warmup", "optim.warmup_ratio=0",
            "optim.lr=3e-3", f"output.dir={out}/{name}",
        ], name)  # fmt: skip
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        return [(r["loss"], r["grad_norm"], r["tokens"]) for r in map(json.loads, lines)]

    failed = False

    def compare(name, steps, one, exact=False):
        nonlocal failed
        pairs = [(x, y) for a, b in zip(steps, one) for x, y in zip(a, b)]
        worst = max(abs(x - y) / max(1, abs(y)) for x, y in pairs)
        good = len(steps) == len(one) and (worst == 0 if exact else worst <= 1e-5)
        failed |= not good
        print(f"loss: {name}: {len(steps)} steps, differs by at most {worst:.1e}{'' if good else ' FAILED'}")

    counts = [int(n) for n in a.gpus.split(",")]
    one = train("of-1", 1)
    for n in counts[1:]:
        steps = train(f"of-{n}", n)
        compare(f"{n} GPUs against one", steps, one)
        compare(f"{n} GPUs once more", train(f"again-{n}", n), steps, exact=True)
    most = counts[-1]
    train("changed", most, 2)
    compare(f"2 steps on {most} GPUs, then on one", train("changed", 1), one)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
