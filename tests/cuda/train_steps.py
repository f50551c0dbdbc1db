#!/usr/bin/env python3
"""Training steps of a small model on the sample data, on CUDA in bf16 and on the CPU.

  train_steps.py --train BINARY --prep DLM_PREP --out FOLDER [--cuda "COMMAND..."] [KEY=VALUE...]

The losses and gradient norms may differ from the CPU's in fp32 by at most three times what the CPU's in
bf16 differ: each of the first 20 steps, and the mean of all. --cuda is put in front of the run on CUDA (tests/cuda/run ...); "none" leaves it
out. What FOLDER holds of an earlier call (the packed sample, the runs on the CPU) is not made again, so
that a folder made here can be carried to a machine with a GPU: --steps and --model are those of the
folder then. --model sample takes the whole model of
configs/model/sample.json, which is too slow for the stand-in.
"""

import argparse
import json
import pathlib
import shlex
import shutil
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
# Small enough that executing the kernels on a CPU takes seconds; neither size is a power of two.
SHAPES = {
    "hidden_size": 96,
    "intermediate_size": 176,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 16,
}


def run(command, what):
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{what}: exit {done.returncode}\n{done.stdout[-1500:]}{done.stderr[-3000:]}")


def packed_sample(a, more=()):
    """The folder a.out with `data`, the packed sample, and `config.json` of the tiny model; its path."""
    out = a.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    shapes = json.loads((ROOT / "configs/model/sample.json").read_text()) | SHAPES
    (out / "config.json").write_text(json.dumps(shapes))
    run([a.prep, *f"--input datasets/sample/train.parquet --tokenizer datasets/sample/tokenizer --out {out}/data".split(),
         *"--seq-len 64 --bd-size 16 --max-rows 400 --overwrite".split(), *more], "dlm-prep")  # fmt: skip
    return out


def evaluations_agree(exact, rounded, cuda):
    """Whether the evaluation after the last step counts what the CPU's does: the same tokens, and right ones
    that differ by no more than rounding may turn."""
    if "eval_acceptance" not in exact:
        return "eval_acceptance" not in cuda
    counts = [(r["eval_acceptance"]["hidden"], r["eval_decode"]["tokens"], r["eval_decode"]["completions"])
              for r in (exact, cuda)]  # fmt: skip
    right = [r["eval_acceptance"]["right"] for r in (exact, rounded, cuda)]
    passes = [r["eval_decode"]["passes"] for r in (exact, rounded, cuda)]
    allowed = 3 * abs(right[0] - right[1]) + max(2, counts[0][0] // 50)
    allowed_passes = 3 * abs(passes[0] - passes[1]) + max(2, passes[0] // 20)
    print(
        f"evaluation: {right[2]} of {counts[1][0]} hidden tokens right, CPU {right[0]} of {counts[0][0]} (allowed +-{allowed}); "
        f"{counts[1][1]} tokens in {passes[2]} passes, CPU {counts[0][1]} in {passes[0]} (allowed +-{allowed_passes})"
    )
    return (
        counts[0] == counts[1]
        and abs(right[0] - right[2]) <= allowed
        and abs(passes[0] - passes[2]) <= allowed_passes
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, type=pathlib.Path)
    parser.add_argument("--prep", type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--cuda", default="", help="command in front of the run on CUDA")
    parser.add_argument("--device", default="cuda", help="GPUs of the run on CUDA: cuda, cuda:0,1 ...")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", choices=("tiny", "sample"), default="tiny")
    parser.add_argument("keys", nargs="*")
    a = parser.parse_args()
    out = a.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    earlier = out / "cpu_bf16/metrics.jsonl"
    if earlier.is_file():
        a.steps = sum("grad_norm" in line for line in earlier.read_text().splitlines())
    else:
        shapes = json.loads((ROOT / "configs/model/sample.json").read_text())
        if a.model == "tiny":
            shapes |= SHAPES
        (out / "config.json").write_text(json.dumps(shapes))
    sample = "--input datasets/sample/train.parquet --tokenizer datasets/sample/tokenizer"
    rows = "--seq-len 64 --bd-size 16 --eval-fraction 0.02 --overwrite"
    if not (out / "data").is_dir():
        run([a.prep, *f"{sample} --out {out}/data {rows}".split()], "packing the sample")

    def steps_of(name):
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        steps = [r for r in map(json.loads, lines) if "grad_norm" in r]
        if len(steps) != a.steps:
            sys.exit(f"{name}: {len(steps)} steps in metrics.jsonl, expected {a.steps}")
        return steps

    def train(name, before, arguments):
        if name != "cuda" and (out / name / "metrics.jsonl").is_file():
            return steps_of(name)
        run(
            [
                *before, a.train, "--data", out / "data", "--resume", "never", "--overwrite",
                "model=sample", "conversion=sample_diffusion", "source.init=random",
                "source.path=null", f"source.config={out}/config.json", "train.batch_rows=4",
                f"train.max_steps={a.steps}", "train.log_every=1", f"train.eval_every={a.steps}", "train.eval_rows=4",
                "train.save_every=0", "optim.lr=3e-3", f"output.dir={out}/{name}", *a.keys, *arguments,
            ],
            f"training: {name}",
        )  # fmt: skip
        return steps_of(name)

    exact = train("cpu_fp32", [], ["--device", "cpu", "train.dtype=fp32"])
    rounded = train("cpu_bf16", [], ["--device", "cpu", "train.dtype=bf16"])
    for name in ("cpu_fp32", "cpu_bf16"):
        shutil.rmtree(out / name / "checkpoints", ignore_errors=True)
        (out / name / "model.safetensors").unlink(missing_ok=True)
    if a.cuda == "none":
        return
    cuda = train("cuda", shlex.split(a.cuda), ["--device", a.device, "train.dtype=bf16"])
    failed = False
    for key in ("loss", "grad_norm"):
        roundings = [abs(x[key] - y[key]) for x, y in zip(exact, rounded)]
        differences = [abs(x[key] - y[key]) for x, y in zip(exact, cuda)]
        # Runs that differ by rounding drift apart: later steps are compared by the mean.
        worst, allowed = max(differences[:20]), 3 * max(roundings[:20])
        mean, mean_allowed = sum(differences) / a.steps, 3 * sum(roundings) / a.steps
        failed |= not (worst <= allowed and mean <= mean_allowed)
        print(
            f"{key}: {exact[0][key]:.4f} to {exact[-1][key]:.4f}, CUDA {cuda[-1][key]:.4f}; differs from "
            f"the CPU in fp32 by at most {worst:.1e} in 20 steps (allowed {allowed:.1e}), on average by "
            f"{mean:.1e} in {a.steps} steps (allowed {mean_allowed:.1e})"
        )
    failed |= not evaluations_agree(exact[-1], rounded[-1], cuda[-1])
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
