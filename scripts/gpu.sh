#!/usr/bin/env bash
# Everything to measure on one GPU in one call: parity, then training throughput per preset and layout.
#
#   scripts/gpu.sh BINARY OUT [FIXTURES]      BINARY: a dlm-train built with --features cuda (may be compressed, .xz)
#                                             OUT: receives log.txt, parity.jsonl, bench.jsonl, env.txt
#                                             FIXTURES: folder of models and reference tensors; default tests/fixtures
# DEVICE=cpu PRESETS="tiny_llama tiny_qwen3" STEPS=2 scripts/gpu.sh …   tries the script itself without a GPU; DEVICE=wgpu (a
# binary with that feature) runs the GPU kernels too, on Mesa's software driver if there is no GPU: fp32 only.
# SECONDS_LEFT=540: no new measurement is started after that many seconds.
set -uo pipefail
binary=$1 out=$2
fixtures=${3:-$(dirname "${BASH_SOURCE[0]}")/../tests/fixtures}
device=${DEVICE:-cuda}
presets=${PRESETS:-"smollm2_135m qwen3_0.6b qwen3_4b"}
steps=${STEPS:-10}
limit=${SECONDS_LEFT:-540}
mkdir -p "$out"
log=$out/log.txt
: >"$log" >"$out/parity.jsonl" >"$out/bench.jsonl"
case $binary in
    *.xz) xz -dkc "$binary" >/tmp/dlm-train && chmod +x /tmp/dlm-train && binary=/tmp/dlm-train ;;
esac
{ uname -a; nvidia-smi 2>&1; "$binary" --version; } >"$out/env.txt" 2>&1

passed=0 failed=0
# parity NAME ARGS...: runs one comparison, writes a line of JSON and counts it
parity() {
    local name=$1 line
    shift
    if line=$(timeout 120 "$binary" parity --device "$device" --json "$@" 2>>"$log"); then passed=$((passed + 1)); else failed=$((failed + 1)); fi
    echo "{\"case\": \"$name\", \"result\": ${line:-null}}" >>"$out/parity.jsonl"
}
for dtype in fp32 bf16; do
    # In bf16, rounding the inputs alone changes these tiny random models by this much (docs/log.md).
    tol=()
    [ "$dtype" = bf16 ] && tol=(--tol-logits 0.5 --tol-loss 3e-3 --tol-grads 0.1 --grads-l2)
    for m in llama qwen2 qwen3 bitnet; do
        parity "causal_${m}_$dtype" --dtype "$dtype" --model "$fixtures/${m}_tiny" --case "$fixtures/causal_${m}_tiny.safetensors" \
            --grads "$fixtures/causal_${m}_tiny_grads.safetensors" "${tol[@]}"
    done
    for c in qwen2_bd8:8 qwen2_bd32:32 qwen2_bd16_edge:16 llama_bd8:8 qwen3_bd8:8 bitnet_bd8:8 packed_qwen2_bd8:8; do
        n=${c%%:*} m=${c#packed_}
        m=${m%%_*}
        for layout in reference saving; do
            parity "${n}_${layout}_$dtype" --dtype "$dtype" --model "$fixtures/${m}_tiny" --case "$fixtures/obj_$n.safetensors" \
                --grads "$fixtures/obj_${n}_grads.safetensors" --bd-size "${c##*:}" --layout "$layout" "${tol[@]}"
        done
    done
done
echo "parity: $passed passed, $failed failed" | tee -a "$log"

# bench PRESET LAYOUT BATCH [ARGS]: skipped once time is short; a run that fails, for example for lack of memory, is a line in the log
bench() {
    [ "$SECONDS" -gt "$limit" ] && echo "SKIP (time): $*" | tee -a "$log" && return
    local preset=$1 layout=$2 batch=$3
    shift 3
    timeout 240 "$binary" bench train --device "$device" --preset "$preset" --layout "$layout" --batch "$batch" --seq 512 --steps "$steps" \
        --dtype "$([[ $device = cuda* ]] && echo bf16 || echo fp32)" --json "$@" >>"$out/bench.jsonl" 2>>"$log" || echo "failed: $preset $layout $batch $*" | tee -a "$log"
}
for preset in $presets; do
    for batch in ${BATCHES:-"4 16"}; do
        for layout in saving reference; do
            bench "$preset" "$layout" "$batch"
        done
    done
    bench "$preset" saving 8 --activation-checkpointing
    # Dense attention for comparison with the default (key ranges).
    bench "$preset" saving 4 --attention dense
done

python3 - "$out/bench.jsonl" <<'PY' 2>/dev/null || cat "$out/bench.jsonl"
import json, sys
print(f"{'preset':14} {'layout':10} {'attention':9} {'batch':>5} {'recompute':>9} {'tok/s':>9} {'h per 1B':>9} {'MFU':>6} {'ms/step':>9} {'loss':>8}")
for line in open(sys.argv[1]):
    r = json.loads(line)
    mfu = f"{100 * r['mfu']:.1f}%" if r["mfu"] else "-"
    print(f"{r['preset']:14} {r['layout']:10} {r['attention']:9} {r['batch']:5} {str(r['recompute']):>9} {r['tokens_per_s_median']:9.0f} {r['hours_per_billion_tokens']:9.1f} {mfu:>6} {r['ms_per_step_median']:9.1f} {r['loss_last']:8.4f}")
PY
[ "$failed" -eq 0 ]
