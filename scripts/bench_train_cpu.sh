#!/usr/bin/env bash
# Training throughput on the CPU in fp32: dlm-train and a PyTorch peer in turn with the same machine, threads and model, and their ratios.
#   scripts/bench_train_cpu.sh PEER.py [PYTHON] [PRESET] [ROUNDS] [STEPS]     PEER.py: a peer_train.py with the options used below
# PRESET: tiny_llama, tiny_qwen3, demo_5m (4.5 M parameters, defined here for the peer). Throughput is source tokens/s, the median over
# the steps of a run; ratios are taken within a round. "reference" is the published formulation: [x_t ; x_0] per view, and all logits.
set -euo pipefail
peer=$1 python=${2:-python3} preset=${3:-tiny_llama} rounds=${4:-3} steps=${5:-8}
binary=${DLM_TRAIN:-target/release/dlm-train}
shape=(--batch 4 --seq 256 --steps "$steps" --warmup 2)
with_presets='
import os, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(sys.argv[1])))
import peer_train as p
from transformers import LlamaConfig
p.PRESETS["demo_5m"] = lambda: LlamaConfig(vocab_size=2048, hidden_size=256, intermediate_size=768, num_hidden_layers=5, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, rms_norm_eps=1e-5, tie_word_embeddings=True, rope_parameters=p.rope(1e4))
del sys.argv[1]
p.main()'
field() { "$python" -c "import json,sys; print(json.loads(sys.stdin.readline())['tokens_per_s_median'])"; }
ours() { "$binary" bench train --device cpu --preset "$preset" "${shape[@]}" --layout "$1" --json | field; }
theirs() { "$python" -c "$with_presets" "$peer" --preset "$preset" "${shape[@]}" --formulation "$1" --logits "$2" --device cpu --precision fp32 --json - 2>/dev/null | field; }
"$python" -c "
import torch, transformers
cpu = next((l.split(':')[1].strip() for l in open('/proc/cpuinfo') if l.startswith('model name')), '?')
flags = next((l for l in open('/proc/cpuinfo') if l.startswith('flags')), '')
print('$preset', '${shape[*]}', '| torch', torch.__version__, 'transformers', transformers.__version__, torch.get_num_threads(), 'threads |', cpu, 'avx512' if 'avx512f' in flags else 'avx2', '| ours: $(nproc) threads')"
for round in $(seq "$rounds"); do
    echo "$round $(ours saving) $(theirs reference all) $(ours reference) $(theirs shared_clean selected)"
done | "$python" -c "
import sys
from statistics import median
ratios = {'saving / peer reference': [], 'saving / peer shared_clean': [], 'reference / peer reference': []}
for line in sys.stdin:
    k, s, p, r, c = line.split()[0], *map(float, line.split()[1:])
    for name, v in zip(ratios, (s / p, s / c, r / p)):
        ratios[name].append(v)
    print(f'round {k}: ours saving {s:.0f}, ours reference {r:.0f}, peer reference {p:.0f}, peer shared_clean {c:.0f} tokens/s', flush=True)
for name, v in ratios.items():
    print(f'{name}: min {min(v):.2f}, median {median(v):.2f}, max {max(v):.2f} of {len(v)} rounds')"
