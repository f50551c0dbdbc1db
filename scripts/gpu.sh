#!/usr/bin/env bash
# Everything to measure on one GPU in one call of at most eight minutes, on a machine where nothing can
# be fetched: kernels, parity, training throughput, and PyTorch on the same card.
#
#   scripts/gpu.sh BINARY OUT [FIXTURES]
#
# BINARY     a dlm-train built with --features cuda (may be compressed, .xz)
# OUT        receives env.txt, log.txt, kernels.txt, parity.jsonl, training.txt, bench.jsonl, decode.jsonl, peer.jsonl, table.md
# FIXTURES   folder of models and reference tensors; default tests/fixtures
#
# SECTIONS   which of "env kernels parity training bench decode peer"; default all, in this order
# SECONDS_LEFT=470  nothing runs past that many seconds; what no longer fits is named in log.txt
# BENCH      shapes "PRESET:BATCH[:ARGUMENTS]", LAYOUTS, SEQ, STEPS
# PEERS      "PRESET:BATCH:FORMULATION" for PEER, the path of peer_train.py (default: beside this script)
# PROFILE=   no times of single kernels after each bench
# KERNELS    Python tests of the kernels, run on the card
# KERNEL_TIMES= TRAINING_SECONDS=400  no times of kernels, and patience: for the stand-in driver (tests/cuda)
# DECODE_SHAPE, DECODE_TOKENS  config.json of the model that decodes (default SmolLM2-135M's shape); new tokens (128)
# TRAINING   folder made before by tests/cuda/train_steps.py --steps 200 --model sample --cuda none
# DTYPES     of parity; default bf16
# DEVICE=cpu with BENCH="tiny_llama:2 tiny_qwen3:2" SEQ=64 STEPS=2 tries the script itself.
set -uo pipefail
if [ $# -lt 2 ]; then
    sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
binary=$1 out=$2 fixtures=${3:-$here/../tests/fixtures}
sections=" ${SECTIONS:-env kernels parity training bench decode peer} "
device=${DEVICE:-cuda}
limit=${SECONDS_LEFT:-470}
jobs=${JOBS:-4}
layouts=${LAYOUTS:-"saving reference"} seq=${SEQ:-512} steps=${STEPS:-20} warmup=${WARMUP:-5}
bench=${BENCH:-"smollm2_135m:16 qwen3_0.6b:16 qwen3_4b:8:--activation-checkpointing smollm2_135m:64 qwen3_0.6b:32"}
peers=${PEERS:-"smollm2_135m:16:reference qwen3_0.6b:16:reference smollm2_135m:16:shared_clean qwen3_0.6b:16:shared_clean"}
peer=${PEER:-$here/peer_train.py}
kernels=${KERNELS:-"$here/../tests/cuda/test_attention.py $here/../tests/cuda/test_kernels.py"}
dtypes=${DTYPES:-bf16}
case $device in cuda*) dtype=bf16 ;; *) dtype=fp32 ;; esac
dtype=${DTYPE:-$dtype}

mkdir -p "$out"
out=$(cd "$out" && pwd)
log=$out/log.txt
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
: >"$log"
say() { echo "[$SECONDS s] $*" | tee -a "$log"; }
wanted() { [[ $sections == *" $1 "* ]]; }

# Seconds that a run may take: at most $1, and not past the second $2 of the call. 0 if it is not worth
# starting any more.
room() {
    local left=$(($2 - SECONDS))
    [ "$left" -gt "$1" ] && left=$1
    [ "$left" -lt 5 ] && left=0
    echo "$left"
}
# Until when kernels, parity and bench may run: PyTorch's compiler takes a minute for each peer, and two
# peers are worth more than the last shapes of the bench.
after_bench=$limit
if wanted peer && [ -f "$peer" ]; then after_bench=$((limit - ${PEER_SECONDS:-150})); fi
after_parity=$after_bench
if wanted bench; then after_parity=$((after_bench - ${BENCH_SECONDS:-120})); fi

# The Python that has PyTorch, and CUDA's libraries, which may have come with it.
python=${PYTHON:-}
for p in python3 /opt/*/.venv/bin/python3 /opt/*/venv/bin/python3; do
    [ -z "$python" ] && "$p" -c 'import importlib.util as u, sys; sys.exit(not u.find_spec("torch"))' 2>/dev/null && python=$p
done
python=${python:-python3}
packages=$("$python" -c 'import nvidia; print(list(nvidia.__path__)[0])' 2>/dev/null || true)
# cuBLAS and its Lt part must be of one version, so they are linked, under all names that programs look for,
# from one folder: PyTorch's, else the toolkit's. What LD_LIBRARY_PATH names already comes first.
mkdir -p "$work/lib"
libraries=
for name in libcublas libnvrtc; do
    for folder in ${packages:+"$packages"/*/lib} /usr/local/cuda/lib64 /usr/local/cuda/targets/x86_64-linux/lib; do
        if [ -e "$folder/$name.so.13" ]; then
            libraries="$libraries $folder/$name.so.13"
            for file in "$folder/$name"*.so*; do ln -sf "$file" "$work/lib/"; done
            for part in "$name" libcublasLt; do
                if [ -e "$folder/$part.so.13" ]; then ln -sf "$folder/$part.so.13" "$work/lib/$part.so"; fi
            done
            break
        fi
    done
done
usual_library_path=${LD_LIBRARY_PATH:-}
if [ "$device" != cpu ]; then
    export LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$work/lib:/usr/local/nvidia/lib64"
fi
if [ -z "${CUDA_PATH:-}" ]; then
    for folder in /usr/local/cuda ${packages:+"$packages"/cu13 "$packages"/cuda_runtime}; do
        if [ -f "$folder/include/cuda_runtime.h" ]; then export CUDA_PATH=$folder && break; fi
    done
fi

case $binary in
    *.xz)
        xz -dkc "$binary" >"$work/dlm-train" 2>/dev/null ||
            "$python" -c 'import lzma, shutil, sys; shutil.copyfileobj(lzma.open(sys.argv[1]), open(sys.argv[2], "wb"))' "$binary" "$work/dlm-train"
        chmod +x "$work/dlm-train"
        binary=$work/dlm-train
        ;;
    */*) binary=$(realpath "$binary") ;;
esac

# Times of single kernels, in one more step, if the program can say them.
profile=${PROFILE---profile}
if [ -n "$profile" ] && ! "$binary" bench train --help 2>/dev/null | grep -q -e --profile; then profile=; fi

if wanted env; then
    {
        date
        uname -a
        nvidia-smi 2>&1
        nvidia-smi --query-gpu=name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit --format=csv 2>&1
        nproc
        "$binary" --version
        sha256sum "$binary" | cut -c1-16
        echo "LD_LIBRARY_PATH=${LD_LIBRARY_PATH:-} CUDA_PATH=${CUDA_PATH:-}"
        nvcc --version 2>&1 | tail -2
        # what the card can do: a large bf16 product on random numbers, and a large copy, both directions counted
        LD_LIBRARY_PATH="$usual_library_path" timeout 60 "$python" - <<'PY'
import torch, transformers
print("torch", torch.__version__, "transformers", transformers.__version__)
if torch.cuda.is_available():
    def ms(run):
        for _ in range(3): run()
        times = []
        for _ in range(10):
            start, end = torch.cuda.Event(True), torch.cuda.Event(True)
            start.record(); run(); end.record(); torch.cuda.synchronize()
            times.append(start.elapsed_time(end))
        return sorted(times)[5]
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    print(f"{torch.cuda.get_device_name()}: bf16 8192^3 {2 * 8192**3 / ms(lambda: a @ b) / 1e9:.0f} TFLOP/s")
    x, y = torch.empty(1 << 30, device="cuda"), torch.empty(1 << 30, device="cuda")
    print(f"copy of 4 GiB {2 * x.numel() * 4 / ms(lambda: y.copy_(x)) / 1e9:.2f} TB/s")
PY
    } >"$out/env.txt" 2>&1
    say "env: $(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null || echo "no nvidia-smi"), libraries${libraries:- not found}"
fi

# PyTorch's compiler fills its cache while kernels, parity and training are checked, so that a peer takes half a minute later. In
# a subshell, so that `wait` and `jobs` below do not see it.
warming=0
if wanted peer && [ "$device" != cpu ] && [ -f "$peer" ] && [ -z "${COLD_PEERS:-}" ]; then
    for p in $peers; do
        IFS=: read -r preset batch formulation <<<"$p"
        warming=$((warming + 1))
        (
            {
                LD_LIBRARY_PATH="$usual_library_path" timeout 200 "$python" "$peer" --preset "$preset" --batch "$batch" --seq "$seq" \
                    --steps 1 --warmup 1 --formulation "$formulation" --compile --precision amp --json - >/dev/null 2>&1 &
                echo $! >"$work/compiler.$warming"
                wait
                : >"$work/warm.$warming"
            } &
        )
    done
fi
# Nothing is measured before the compilers are done.
warmed() {
    [ "$warming" = 0 ] && return
    while [ "$(find "$work" -name 'warm.*' | wc -l)" -lt "$warming" ] && [ "$SECONDS" -lt "$1" ]; do sleep 0.5; done
    if [ "$(find "$work" -name 'warm.*' | wc -l)" -ge "$warming" ]; then
        say "PyTorch's compiler is done"
    else
        # it would hold memory of the card
        say "PyTorch's compiler is stopped (time)"
        cat "$work"/compiler.* | xargs kill 2>/dev/null
        sleep 3
    fi
}

failed=0
if wanted kernels; then
    : >"$out/kernels.txt"
    for test in $kernels; do
        name=$(basename "$test")
        if ! [ -f "$test" ]; then say "SKIP kernels: $name is not here" && continue; fi
        t=$(room 60 "$after_parity")
        if [ "$t" = 0 ]; then say "SKIP kernels (time): $name" && continue; fi
        echo "== $name" >>"$out/kernels.txt"
        if timeout "$t" "$python" "$test" >>"$out/kernels.txt" 2>&1; then
            say "kernels: $name passed"
        else
            say "FAILED kernels: $name (exit $?)"
            failed=$((failed + 1))
        fi
        # Their times, where the test can take them.
        t=$(room 45 "$after_parity")
        if [ "$t" != 0 ] && [ -n "${KERNEL_TIMES-yes}" ] && grep -q -e '--time' "$test"; then
            echo "== $name --time" >>"$out/kernels.txt"
            timeout "$t" "$python" "$test" --time >>"$out/kernels.txt" 2>&1 || say "FAILED kernels: $name --time (exit $?)"
        fi
    done
fi

# parity NAME ARGUMENTS...: one comparison in the background, its line of JSON in $work/parity.NAME
parity() {
    local name=$1 t line=null rc
    shift
    t=$(room 60 "$after_parity")
    if [ "$t" = 0 ]; then
        say "SKIP parity (time): $name"
        return
    fi
    while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
    {
        timeout "$t" "$binary" parity --device "$device" --json "$@" >"$work/line.$name" 2>"$work/error.$name"
        rc=$?
        [ -s "$work/line.$name" ] && line=$(cat "$work/line.$name")
        [ "$rc" = 0 ] || { echo "FAILED parity: $name (exit $rc)"; tail -n 5 "$work/error.$name"; } >>"$log"
        echo "{\"case\": \"$name\", \"exit\": $rc, \"result\": $line}" >"$work/parity.$name"
    } &
}
if wanted parity; then
    for d in $dtypes; do
        for m in llama qwen2 qwen3 bitnet; do
            parity "causal_${m}_$d" --dtype "$d" --model "$fixtures/${m}_tiny" --case "$fixtures/causal_${m}_tiny.safetensors" \
                --grads "$fixtures/causal_${m}_tiny_grads.safetensors"
        done
        for c in ${CASES:-llama_bd8:8 qwen2_bd8:8 qwen3_bd8:8 bitnet_bd8:8 bitnet_online_bd8:8 packed_qwen2_bd8:8 packed_ragged_qwen2_bd8:8 qwen2_bd32:32 qwen2_bd16_edge:16}; do
            n=${c%%:*} m=${c#packed_}
            m=${m#ragged_}
            online=()
            [[ $n == *online* ]] && online=(--bitlinear)
            for layout in saving reference; do
                parity "obj_${n}_${layout}_$d" "${online[@]}" --dtype "$d" --model "$fixtures/${m%%_*}_tiny" --case "$fixtures/obj_$n.safetensors" \
                    --grads "$fixtures/obj_${n}_grads.safetensors" --bd-size "${c##*:}" --layout "$layout"
            done
        done
    done
    wait
    cat "$work"/parity.* >"$out/parity.jsonl" 2>/dev/null
    bad=$(grep -c -v '"exit": 0,' "$out/parity.jsonl")
    say "parity: $(grep -c '"exit": 0,' "$out/parity.jsonl") passed, $bad failed"
    failed=$((failed + bad))
fi

if wanted training; then
    t=$(room "${TRAINING_SECONDS:-60}" "$after_parity")
    if [ -z "${TRAINING:-}" ]; then
        say "SKIP training: no folder with the CPU's losses (TRAINING)"
    elif [ "$t" = 0 ]; then
        say "SKIP training (time)"
    else
        cp -r "$TRAINING" "$work/training"
        if timeout "$t" "$python" "$here/../tests/cuda/train_steps.py" --train "$binary" --out "$work/training" >"$out/training.txt" 2>&1; then
            say "training: losses as on the CPU"
        else
            say "FAILED training (exit $?): $(tail -n 2 "$out/training.txt" | tr '\n' ' ')"
            failed=$((failed + 1))
        fi
    fi
fi

# measured FILE SECONDS COMMAND...: the command's one line of JSON goes to FILE with the largest memory that
# the card had in use meanwhile, sampled four times a second.
measured() {
    local file=$1 t=$2 watcher="" rc from=$SECONDS most
    shift 2
    if [ "$device" != cpu ] && command -v nvidia-smi >/dev/null; then
        nvidia-smi --query-gpu=memory.used --format=csv,noheader,nounits -lms 250 >"$work/memory" 2>/dev/null &
        watcher=$!
    fi
    timeout -k 5 "$t" "$@" >"$work/line" 2>"$work/error"
    rc=$?
    if [ -n "$watcher" ]; then kill "$watcher" 2>/dev/null; wait "$watcher" 2>/dev/null; fi
    most=$(sort -n "$work/memory" 2>/dev/null | tail -n 1)
    rm -f "$work/memory"
    grep -v '^{' "$work/error" | tail -n 20 >>"$log"
    if [ "$rc" = 0 ] && [ "$(tail -c 2 "$work/line" | head -c 1)" = "}" ]; then
        tail -n 1 "$work/line" | sed "s/}\$/, \"card_mib\": ${most:-null}, \"whole_s\": $((SECONDS - from))}/" >>"$file"
    fi
    return "$rc"
}

warmed "$after_parity"
if wanted bench; then
    : >"$out/bench.jsonl"
    for shape in $bench; do
        IFS=: read -r preset batch arguments <<<"$shape"
        for layout in $layouts; do
            t=$(room 75 "$after_bench")
            if [ "$t" = 0 ]; then say "SKIP bench (time): $shape $layout" && continue; fi
            # shellcheck disable=SC2086
            measured "$out/bench.jsonl" "$t" "$binary" bench train --device "$device" --preset "$preset" --layout "$layout" \
                --batch "$batch" --seq "$seq" --steps "$steps" --warmup "$warmup" --dtype "$dtype" --json $profile $arguments
            rc=$?
            if [ "$rc" = 0 ]; then
                say "bench: $shape $layout done"
            elif grep -q "out of device memory" "$work/error"; then
                say "bench: $shape $layout does not fit into the card's memory"
            else
                say "FAILED bench: $shape $layout (exit $rc, limit $t s)"
                failed=$((failed + 1))
            fi
        done
    done
fi

# Decoding by a model of SmolLM2-135M's shape with random weights, which one training step makes. Random weights are never sure of a
# token, so that block decoding takes nearly a pass per token: what counts is the time of a pass.
decode() {
    local batch=$1 mode=$2 graphs=$3 t
    t=$(room 60 "$after_bench")
    if [ "$t" = 0 ]; then say "SKIP decode (time): batch $batch $mode" && return; fi
    DLM_CUDA_GRAPHS=$graphs timeout "$t" "$binary" generate --device "$device" --model "$work/model" --input "$work/prompts.$batch" --mode "$mode" --batch-size "$batch" \
        --max-new-tokens "${DECODE_TOKENS:-128}" --stop-token-id none --json >"$work/decoded.$mode.$batch.$graphs" 2>"$work/error" || { say "FAILED decode: $mode $batch: $(tail -n 1 "$work/error")" && return; }
    "$python" - "$mode" "$batch" "$graphs" "$work/decoded.$mode.$batch" >>"$out/decode.jsonl" <<'PY' || say "FAILED decode: $mode $batch: other tokens without recorded passes"
import json, os, sys
mode, batch, graphs, file = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
def completions(path):
    return [json.loads(line)["completion_ids"] for line in open(path)]
rows = [json.loads(line) for line in open(f"{file}.{graphs}")]
tokens, seconds = sum(len(r["completion_ids"]) for r in rows), rows[0]["seconds"]
passes = max(sum(v for k, v in r["passes"].items() if k != "total") for r in rows)
program = "dlm-train" if graphs == "1" else "dlm-train, kernel by kernel,"
print(json.dumps(dict(program=program, mode=mode, batch=batch, tokens=tokens, seconds=seconds, tokens_per_s=tokens / seconds,
                      ms_per_pass=1000 * seconds / passes, passes=passes)))
if os.path.exists(f"{file}.1") and os.path.exists(f"{file}.0") and completions(f"{file}.1") != completions(f"{file}.0"):
    sys.exit(1)
PY
}
if wanted decode; then
    : >"$out/decode.jsonl"
    if [ -z "${TRAINING:-}" ]; then
        say "SKIP decode: no folder with a packed dataset (TRAINING)"
    else
        if [ -n "${DECODE_SHAPE:-}" ]; then cp "$DECODE_SHAPE" "$work/shape.json"; else cat >"$work/shape.json" <<'JSON'
{"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
 "num_attention_heads": 9, "num_key_value_heads": 3, "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "max_position_embeddings": 8192, "rope_theta": 100000.0}
JSON
        fi
        for batch in 1 32; do
            "$python" -c "import json, random; random.seed(1); [print(json.dumps({'ids': [random.randrange(1, 500) for _ in range(64)]})) for _ in range($batch)]" >"$work/prompts.$batch"
        done
        if timeout 60 "$binary" --data "$TRAINING/data" --device "$device" model=sample source.init=random source.config="$work/shape.json" \
            output.dir="$work/model" train.max_steps=1 train.batch_rows=2 train.eval_every=0 >"$work/error" 2>&1; then
            for batch in 1 32; do
                for mode in ar block; do
                    for graphs in 1 0; do decode "$batch" "$mode" "$graphs"; done
                done
                if [ -n "${PEER_DECODE-default}" ] && "$python" -c 'import torch, transformers' 2>/dev/null && [ "$device" != cpu ]; then
                    LD_LIBRARY_PATH="$usual_library_path" timeout "$(room 60 "$after_bench")" "$python" "${PEER_DECODE:-$here/peers/decode_hf.py}" "$work/model" --batch "$batch" >>"$out/decode.jsonl" 2>"$work/error" ||
                        say "FAILED decode: transformers, batch $batch: $(tail -n 1 "$work/error")"
                fi
            done
            say "decode done"
        else
            say "FAILED decode: no model: $(tail -n 2 "$work/error")"
        fi
    fi
fi

if wanted peer; then
    : >"$out/peer.jsonl"
    if ! [ -f "$peer" ]; then
        say "SKIP peer: no $peer"
    elif ! "$python" -c 'import torch, transformers' 2>/dev/null; then
        say "SKIP peer: $python has no PyTorch or no transformers"
    else
        for p in $peers; do
            IFS=: read -r preset batch formulation <<<"$p"
            t=$(room 130 "$limit")
            if [ "$t" -lt 25 ]; then say "SKIP peer (time): $p" && continue; fi
            compile=(--compile --precision amp)
            [ "$device" = cpu ] && compile=(--device cpu)
            if measured "$out/peer.jsonl" "$t" env LD_LIBRARY_PATH="$usual_library_path" "$python" "$peer" --preset "$preset" --batch "$batch" --seq "$seq" --steps "$steps" \
                --formulation "$formulation" "${compile[@]}" --json -; then
                say "peer: $p done"
            else
                say "FAILED peer: $p (exit $?, limit $t s)"
            fi
        done
    fi
fi

python3 - "$out" <<'PY' | tee "$out/table.md"
import json, pathlib, sys
out = pathlib.Path(sys.argv[1])
def read(name):
    path = out / name
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()] if path.is_file() else []
def number(x, form, times=1):
    return "-" if x is None else format(x * times, form)
bench, peer, parity = read("bench.jsonl"), read("peer.jsonl"), read("parity.jsonl")
if parity:
    print("| parity | logits | loss | gradients (L2) | |\n|---|---|---|---|---|")
    for r in parity:
        v = r["result"] or {}
        print(f"| {r['case']} | {number(v.get('logits_max_abs'), '.1e')} | {number(v.get('loss_rel'), '.1e')} | "
              f"{number(v.get('grads_max_l2'), '.1e')} | {'ok' if r['exit'] == 0 else 'FAILED'} |")
    print()
peers = {(r["preset"], r["batch"], r["seq"], r["formulation"]): r["tokens_per_s_median"] for r in peer}
# MFU counts useful operations, the same for every program: PyTorch's follows from ours by throughput.
useful = {(r["preset"], r["seq"]): r["mfu"] / r["tokens_per_s_median"] for r in bench if r.get("mfu")}
rows = []
for r in bench:
    gib = r["card_mib"] / 1024 if r.get("card_mib") else r.get("gpu_gib")
    key = (r["preset"], r["batch"], r["seq"])
    rows.append((key, r["layout"] + (" recompute" if r.get("recompute") else ""), r["tokens_per_s_median"], r.get("mfu"),
                 r["ms_per_step_median"], gib, r.get("first_step_s"), r.get("loss_last")))
for r in peer:
    gib = r["card_mib"] / 1024 if r.get("card_mib") else r.get("peak_mem_gib")
    per_s = r["tokens_per_s_median"]
    mfu = useful.get((r["preset"], r["seq"]))
    rows.append(((r["preset"], r["batch"], r["seq"]), "PyTorch " + r["formulation"], per_s, mfu and mfu * per_s,
                 r["ms_per_step_median"], gib, r["first_step_s"], r["loss_last"]))
if rows:
    print("| preset | batch | run | tok/s | h per 1B | MFU | ms/step | GiB | first step s | last loss | to PyTorch reference | to shared_clean |")
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    for (preset, batch, seq), run, per_s, mfu, ms, gib, first, loss in sorted(rows, key=lambda x: (x[0][0], x[0][1])):
        ratios = [peers.get((preset, batch, seq, f)) for f in ("reference", "shared_clean")]
        ratios = [number(per_s / p if p else None, ".2f") for p in ratios]
        print(f"| {preset} | {batch} | {run} | {per_s:,.0f} | {1e9 / per_s / 3600:.1f} | {number(mfu, '.1%')} | {ms:.1f} | "
              f"{number(gib, '.1f')} | {number(first, '.1f')} | {number(loss, '.4f')} | {ratios[0]} | {ratios[1]} |")
decode = read("decode.jsonl")
if decode:
    print("\n| decode | batch | completion tok/s | ms per pass |\n|---|---|---|---|")
    for r in decode:
        print(f"| {r['program']} {r['mode']} | {r['batch']} | {r['tokens_per_s']:,.0f} | {r['ms_per_pass']:.2f} |")
for r in bench:
    kernels = sorted(r.get("kernels") or [], key=lambda k: -k["ms"])
    if kernels:
        whole = sum(k["ms"] for k in kernels)
        print(f"\n{r['preset']}, batch {r['batch']}, {r['layout']}: {r.get('launches')} launches a step, {whole:.1f} ms in kernels\n")
        print("| kernel | launches | ms | share | TFLOP/s |\n|---|---|---|---|---|")
        for k in kernels[:14]:
            print(f"| {k['name']} | {k['launches']} | {k['ms']:.2f} | {k['ms'] / whole if whole else 0:.0%} | "
                  f"{number(k.get('tflops_per_s'), '.0f')} |")
PY
grep -h -A 5 "FAILED parity" "$log"
say "finished, $failed failed"
[ "$failed" -eq 0 ]
