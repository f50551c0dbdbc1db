#!/usr/bin/env python3
"""Training of adapters (LoRA) by the native engine against Burn on the CPU, in fp32: losses and gradient norms.

  NULLCUDA_DEVICES=2 tests/cuda/run --exec --no-ptxas NAME python3 tests/cuda/train_adapters.py --train BINARY --prep DLM_PREP --out FOLDER

A tiny source on the packed sample, then 4 steps of adapters beside it, ordinary ones and those of the lossless objective, without and with
distillation: on the CPU, on one GPU, on two (--gpus 2), and 2 steps on the CPU or on two GPUs whose checkpoint one GPU continues. The lossless
ones evaluate too, and say the same of proposals. The exported adapters have the same tensors, and the frozen weights of a merged export are the
source's, bit for bit. --gpus 1 on a machine with one.
"""

import argparse
import json
import pathlib
import struct
import sys

from train_steps import packed_sample, run

STEPS = 4


def tensors(path):
    """Names and fp32 values of a safetensors file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    found = {}
    for name, entry in header.items():
        if name != "__metadata__":
            if entry["dtype"] != "F32":
                sys.exit(f"{path}: {name} is {entry['dtype']}")
            start, end = (8 + length + at for at in entry["data_offsets"])
            found[name] = memoryview(data[start:end]).cast("f")
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True, type=pathlib.Path)
    parser.add_argument("--prep", required=True, type=pathlib.Path)
    parser.add_argument("--out", required=True, type=pathlib.Path)
    parser.add_argument("--gpus", type=int, default=2)
    a = parser.parse_args()
    out = packed_sample(a, ["--eval-fraction", "0.05"])

    def train(name, device, keys, steps=STEPS):
        run([
            a.train, "--data", out / "data", "--device", device, "model=sample", "conversion=sample_diffusion",
            "train.batch_rows=6", "train.micro_batch_rows=1", "train.dtype=fp32", f"train.max_steps={steps}", "train.log_every=1",
            "train.eval_every=0", "train.save_every=2", "optim.schedule=constant_with_warmup", "optim.warmup_ratio=0",
            "optim.lr=3e-3", "export.dtype=fp32", f"output.dir={out}/{name}", *keys,
        ], name)  # fmt: skip
        lines = (out / name / "metrics.jsonl").read_text().splitlines()
        return list(map(json.loads, lines))

    failed = False

    def compare(name, steps, one, most=1e-5):
        nonlocal failed
        numbers = ["loss", "grad_norm", "tokens", "cross_entropy", "divergence", "eval_loss", "eval_cross_entropy", "eval_divergence"]
        pairs = [(a.get(key), b.get(key)) for a, b in zip(steps, one) for key in numbers]
        said = [pair for pair in pairs if pair != (None, None)]
        worst = max(abs(x - y) / max(1, abs(y)) if None not in (x, y) else float("inf") for x, y in said)
        counts = [(a.get(key), b.get(key)) for a, b in zip(steps, one) for key in ("proposals", "eval_proposals")]
        same = all(x == y for x, y in counts)
        counted = sum(x is not None for x, _ in counts)
        good = len(steps) == len(one) == STEPS and worst <= most and same
        failed |= not good
        print(f"loss: {name}: {len(steps)} steps, {len(said)} numbers differ by at most {worst:.1e}, {counted} counts of proposals"
              f" {'are equal' if same else 'DIFFER'}{'' if good else ' FAILED'}")  # fmt: skip
        return counted

    random = ["source.init=random", "source.path=null", f"source.config={out}/config.json"]
    train("source", "cpu", random)
    beside = ["source.init=pretrained", f"source.path={out}/source", "conversion.lora={rank: 4}"]
    gpus = "cuda:" + ",".join(map(str, range(a.gpus)))
    lossless = ["export.lora=adapter", "conversion.objective=lossless", "train.eval_every=2", "train.eval_rows=4"]
    for kind, more in (
        ("ordinary", ["export.lora=merged"]),
        ("some", ["export.lora=adapter", "conversion.lora.targets=[v_proj, gate_proj]"]),
        ("lossless", [*lossless, "conversion.distill=0", "train.activation_checkpointing=layer"]),
        # 0.75 is exact in fp32; few rows of logits at a time, so that there are several chunks
        ("distilled", [*lossless, "conversion.distill=0.75", "train.loss_chunk=48"]),
    ):  # fmt: skip
        keys = [*beside, *more]
        native = [*keys, "train.engine=native"]
        cpu = train(f"{kind}-cpu", "cpu", keys)
        one = train(f"{kind}-one", "cuda:0", native)
        counted = compare(f"{kind} adapters, one GPU against the CPU", one, cpu)
        # evaluations count proposals, and steps where they learn from the source
        failed |= counted != {"lossless": 2, "distilled": 2 + STEPS}.get(kind, 0)
        if a.gpus > 1 and kind != "some":
            compare(f"{kind} adapters, {a.gpus} GPUs against one", train(f"{kind}-all", gpus, native), one)
        first = (gpus, native) if kind in ("lossless", "distilled") else ("cpu", keys)
        train(f"{kind}-changed", *first, 2)
        compare(f"{kind} adapters, 2 steps on {first[0]}, then on one GPU", train(f"{kind}-changed", "cuda:0", native), one)
        file = "model.safetensors" if kind == "ordinary" else "adapter_model.safetensors"
        ours, theirs = tensors(out / f"{kind}-one" / file), tensors(out / f"{kind}-cpu" / file)
        if ours.keys() != theirs.keys():
            sys.exit(f"{kind}: other tensors than on the CPU")
        far = max(abs(x - y) for name in ours for x, y in zip(ours[name], theirs[name]))
        good = far <= 1e-4
        failed |= not good
        print(f"loss: {kind} adapters, {len(ours)} exported tensors: differ by at most {far:.1e}{'' if good else ' FAILED'}")
        if kind == "ordinary":
            source = tensors(out / "source/model.safetensors")
            frozen = [name for name in source if "norm" in name]
            failed |= not frozen or any(source[name] != ours[name] for name in frozen)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
