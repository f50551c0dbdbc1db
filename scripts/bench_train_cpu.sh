#!/usr/bin/env bash
# Training throughput on the CPU, ours and the PyTorch peer in turn on the same machine, threads and model; prints the ratios.
#   scripts/bench_train_cpu.sh PEER.py [PYTHON] [PRESET] [ROUNDS]      PEER.py: shared/peers/peer_train.py
set -euo pipefail
peer=$1 python=${2:-python3} preset=${3:-tiny_llama} rounds=${4:-3}
binary=${DLM_TRAIN:-target/release/dlm-train}
shape=(--batch 4 --seq 256 --steps 8)
field() { "$python" -c "import json,sys; print(json.loads(sys.stdin.readline())['tokens_per_s_median'])"; }
ours() { "$binary" bench train --device cpu --preset "$preset" "${shape[@]}" --warmup 2 --layout "$1" --json | field; }
theirs() { "$python" "$peer" --preset "$preset" "${shape[@]}" --warmup 2 --formulation "$1" --logits "$2" --device cpu --json - 2>/dev/null | field; }
echo "$preset ${shape[*]}, source tokens/s"
for round in $(seq "$rounds"); do
    s=$(ours saving) r=$(ours reference) p=$(theirs reference all) c=$(theirs shared_clean selected)
    "$python" -c "s,r,p,c=$s,$r,$p,$c; print(f'round $round: ours saving {s:.0f}, ours reference {r:.0f}, peer reference {p:.0f}, peer shared_clean {c:.0f}; saving/peer reference {s/p:.2f}, saving/peer shared_clean {s/c:.2f}, reference/peer reference {r/p:.2f}')"
done
