#!/usr/bin/env bash
# The proof on a real model: a chat model is converted, and answers as its source does in fewer passes. The same commands on CPU and CUDA.
#   scripts/proof_smollm2.sh narrow  MODEL OUT [TOKENS] [BIN] [DEVICE]
#   scripts/proof_smollm2.sh general MODEL OUT [TOKENS] [BIN] [DEVICE]    with DATA= and TASKS=
# MODEL   a Hugging Face folder (or ORG/NAME of the hub): SmolLM2-135M-Instruct, or any other model that dlm-train reads
# OUT     receives data, models, evaluations and NARROW.txt or GENERAL.txt
# TOKENS  budget of the conversion in source tokens (default 340000). Called again with more, the training goes on from where it was
# BIN     has dlm-prep, dlm-train and make-tasks (default target/release); DEVICE is cpu (default) or cuda
#
# narrow: the tasks of datasets/sample in plain words. AR fine-tuning (AR_TOKENS=30000), then block_diffusion; settings are chosen on one set
#   of held-out prompts (VAL=128), and reported on another (TEST=256). BD=16 is the block size, BATCH=16 prompts are decoded together.
# general: conversations in DATA (a file or folder that dlm-prep reads): held-out loss before and
#   after in both objectives; answers to TASKS (JSON lines with answers, such as GSM8K's test.jsonl; LIMIT=200 of them) beside the source's.
#   With a .jsonl as DATA and no TASKS the last 200 conversations of the file are kept out of training and are the tasks.
# Every step is skipped once it has succeeded; a training or evaluation that was cut off goes on where it stopped.
# LR, ROWS (rows of 512 tokens a step), THRESHOLDS and SUBS (sub-block sizes of narrow) change what their names say.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: scripts/proof_smollm2.sh narrow|general MODEL OUT [TOKENS] [BIN] [DEVICE]"
part=${1:?$usage} model=${2:?$usage} out=${3:?$usage} tokens=${4:-340000} bin=${5:-$here/target/release} device=${6:-cpu}
thresholds=${THRESHOLDS:-0.5,0.7,0.8,0.9,0.95,0.99}
batch=${BATCH:-16}
mkdir -p "$out/log"
out=$(cd "$out" && pwd) bin=$(cd "$bin" && pwd)
[ -d "$model" ] && model=$(cd "$model" && pwd)
data=${DATA:-} tasks=${TASKS:-}
[ "$part" = general ] && [ -z "$data" ] && { echo "general: set DATA to conversations that dlm-prep reads (a file or folder)" >&2; exit 2; }
[ -e "$data" ] && data=$(realpath "$data")
[ -n "$tasks" ] && tasks=$(realpath "$tasks")
cd "$here"

say() { echo "[$(date +%H:%M:%S)] $*" >&2; }
once() { # NAME COMMAND…
    local name=$1; shift
    [ -e "$out/log/$name.done" ] && return
    say "$name: log in $out/log/$name.log"
    "$@" >>"$out/log/$name.log" 2>&1 || { tail -5 "$out/log/$name.log" >&2; say "$name did not succeed; the same command goes on from there"; exit 1; }
    : >"$out/log/$name.done"
}
train() { # NAME FOLDER SOURCE DATA TOKENS SETTINGS…
    local name=$1 folder=$2 source=$3 data=$4 budget=$5; shift 5
    once "$name" "$bin/dlm-train" --data "$out/$data" --device "$device" model=smollm2_135m source.path="$source" output.dir="$out/$folder" \
        conversion.total_tokens="$budget" optim.schedule=wsd optim.min_lr_ratio=0.05 train.log_every=5 train.keep_checkpoints=3 "$@"
}
# "THRESHOLD SUB_BLOCK" of the fastest block run with at least as many right answers as the source, else of the one with most.
choice() { # EVALUATION
    sed 's/{"name"/\n&/g' "$out/$1/results.json" |
        sed -n 's/^{"name":"\([^"]*\)".*"right":\([0-9]*\),.*"tokens_per_forward":\([0-9.]*\),.*/\1;\2;\3/p' | awk -F';' '
        $1 == "source ar" { source = $2 }
        $1 ~ /^block/ {
            if ($2 > most) { most = $2; best = $1 }
            if ($2 >= source && $3 > fastest) { fastest = $3; pick = $1 }
        }
        END { if (pick == "") pick = best; sub("block ", "", pick); sub("/", " ", pick); print pick }'
}
judge() { # NAME MODEL SOURCE TASKS ARGUMENTS…
    local name=$1 of=$2 source=$3 file=$4; shift 4
    once "$name" "$bin/dlm-train" eval --model "$of" --source "$source" --tasks "$file" --device "$device" --batch-size "$batch" --out "$out/$name" "$@"
}
table() { sed -n '/^run /,/^wrote/{/^wrote/d;/cut at the limit/d;p}' "$out/log/$1.log"; }
head_line() {
    echo "# $(date -u +%F), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) threads, device $device, $("$bin/dlm-train" --version)"
    echo "# scripts/proof_smollm2.sh $part MODEL OUT $tokens"
}
trained() { grep -h '^done:' "$out/log/$1.log" | tail -1; }

narrow() {
    local size=${BD:-16} val=${VAL:-128} test=${TEST:-256} threshold sub
    local subs=${SUBS:-4,8,$size}
    once tasks "$bin/make-tasks" plain "$out/tasks" 42 8000 512
    once data "$bin/dlm-prep" --input "$out/tasks/train.jsonl" --tokenizer "$model" --out "$out/data" --seq-len 512 --bd-size "$size" \
        --eval-fraction 0.01 --overwrite
    train ar ar "$model" data "${AR_TOKENS:-30000}" conversion.objective=sft optim.lr=2e-4 optim.decay_ratio=0.4 optim.warmup_ratio=0.05 \
        train.batch_rows=1 train.eval_every=20 train.eval_rows=4 export.dtype=fp32
    train "diffusion-$tokens" diffusion "$out/ar" data "$tokens" optim.lr="${LR:-3e-4}" optim.decay_ratio=0.7 optim.warmup_ratio=0.01 \
        train.batch_rows="${ROWS:-1}" train.eval_every=25 train.eval_rows=4 train.save_every=100 export.dtype=fp32
    judge before "$model" none "$out/tasks/val.jsonl" --mode ar --limit 32 --max-new-tokens 96
    judge "val-$tokens" "$out/diffusion" "$out/ar" "$out/tasks/val.jsonl" --mode block --limit "$val" --threshold "$thresholds" \
        --sub-block-size "$subs" --max-new-tokens 96
    read -r threshold sub <<<"$(choice "val-$tokens")"
    judge "test-$tokens" "$out/diffusion" "$out/ar" "$out/tasks/test.jsonl" --mode block --limit "$test" --threshold "$threshold" \
        --sub-block-size "$sub" --max-new-tokens 96
    {
        head_line
        echo; echo "## before any training, val"; table before
        echo; echo "## AR fine-tuning: $(trained ar)"
        echo "## conversion: $(trained "diffusion-$tokens")"
        echo; echo "## val"; table "val-$tokens"
        echo; echo "## test, with the settings chosen on val: threshold $threshold, sub-blocks of $sub"; table "test-$tokens"
    } >"$out/NARROW.txt"
    say "wrote $out/NARROW.txt"
}

general() {
    local size=${BD:-32} rows=${ROWS:-1} inputs=$data
    case $device in cuda*) rows=${ROWS:-32} ;; esac
    if [ -z "$tasks" ] && [ "${data##*.}" = jsonl ]; then
        tasks=$out/held-out.jsonl inputs=$out/train.jsonl
        once split sh -c 'tail -n 200 "$1" >"$2" && head -n -200 "$1" >"$3"' - "$data" "$tasks" "$inputs"
    fi
    once data "$bin/dlm-prep" --input "$inputs" --tokenizer "$model" --out "$out/data" --seq-len 512 --bd-size "$size" --eval-fraction 0.01 \
        --over-long turns --overwrite
    train "diffusion-$tokens" diffusion "$model" data "$tokens" optim.lr="${LR:-1e-4}" optim.decay_ratio=0.5 train.batch_rows="$rows" \
        train.eval_every=100 train.eval_rows=8 train.save_every=100 export.dtype=fp32
    loss() { once "$1" "$bin/dlm-train" eval --model "$2" --data "$out/data" --device "$device" --rows "${EVAL_ROWS:-64}"; }
    loss loss-before "$model"
    loss "loss-$tokens" "$out/diffusion"
    if [ -n "$tasks" ]; then
        judge "tasks-$tokens" "$out/diffusion" "$model" "$tasks" --limit "${LIMIT:-200}" --threshold "$thresholds" --sub-block-size 8,"$size" \
            --max-new-tokens "${NEW_TOKENS:-256}"
    fi
    {
        head_line
        echo; echo "## conversion: $(trained "diffusion-$tokens")"
        echo "before: $(tail -1 "$out/log/loss-before.log")"
        echo "after:  $(tail -1 "$out/log/loss-$tokens.log")"
        if [ -n "$tasks" ]; then echo; echo "## $tasks"; table "tasks-$tokens"; fi
    } >"$out/GENERAL.txt"
    say "wrote $out/GENERAL.txt"
}

case $part in
    narrow) narrow ;;
    general) general ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
