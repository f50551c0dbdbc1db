#!/usr/bin/env bash
# The lossless objective: the source's own answers in fewer passes. Adapters are trained, answers with and without them compared.
#   scripts/proof_lossless.sh sample  OUT [BIN] [DEVICE]          the sample model, every number of docs/results.md, "Lossless"
#   scripts/proof_lossless.sh smollm2 MODEL OUT [BIN] [DEVICE]    SmolLM2-135M-Instruct or another chat model, on the narrow tasks
# OUT     receives data, models, evaluations and LOSSLESS.txt. What is there already is used: give the OUT of scripts/proof_sample.sh, or of
#         `scripts/proof_smollm2.sh narrow`, and its tasks and AR models are taken
# MODEL   a Hugging Face folder (or ORG/NAME of the hub)
# BIN     has dlm-prep, dlm-train and make-tasks (default target/release); DEVICE is cpu (default) or cuda
# Every step is skipped once it has succeeded; a training that was cut off goes on where it stopped. TOKENS (400000; smollm2 120000) is the
# budget of each adapter, AR_TOKENS (1200000; smollm2 30000) that of a source; SEEDS="42 43 44", HELD_OUT=512, LR and PROPOSE (tokens of a pass
# beside the last decided one) change what their names say; ALL= leaves the comparisons of settings out.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
usage="usage: scripts/proof_lossless.sh sample OUT [BIN] [DEVICE] | smollm2 MODEL OUT [BIN] [DEVICE]"
part=${1:?$usage}; shift
case $part in
    sample) ;;
    smollm2) model=${1:?$usage}; shift ;;
    *) echo "$usage" >&2; exit 2 ;;
esac
out=${1:?$usage} bin=${2:-$here/target/release} device=${3:-cpu}
seeds=${SEEDS:-42 43 44} held_out=${HELD_OUT:-512} propose=${PROPOSE:-4,8,12,16,24} all=${ALL-yes}
mkdir -p "$out/log"
out=$(cd "$out" && pwd) bin=$(cd "$bin" && pwd)
[ "$part" = smollm2 ] && [ -d "$model" ] && model=$(cd "$model" && pwd)
cd "$here"

. scripts/once.sh
train() { # NAME DATA SETTINGS…
    local name=$1 data=$2; shift 2
    once "$name" "$bin/dlm-train" --data "$out/$data" --device "$device" output.dir="$out/$name" train.log_every=100 "$@"
}
# Answers of SOURCE alone, one token a pass, and of SOURCE with the adapter in verify mode. The column "same text" is the proof.
verify() { # NAME ADAPTER SOURCE TASKS ARGUMENTS…
    local name=$1 adapter=$2 source=$3 tasks=$4; shift 4
    once "$name" "$bin/dlm-train" eval --model "$source" --adapter "$out/$adapter" --source "$source" --tasks "$out/tasks/$tasks.jsonl" \
        --mode verify --device "$device" --max-new-tokens 96 --out "$out/$name" "$@"
}
# The runs of an evaluation as a table, and how many of the answers are the source's.
table() { sed -n '/^run .*exact match/,/^$/{/^$/d;p}; /own tokens;/p' "$out/log/$1.log"; }
# What held-out text says of an adapter at the end of its training: share accepted and expected tokens of a pass.
held_out() { grep -oh 'eval [0-9.]* (ce.*' "$out/log/$1.log" | tail -1; }
# The smallest of PROPOSE with which a run on val takes the fewest passes.
fewest_passes() {
    sed 's/{"name"/\n&/g' "$out/$1/results.json" | sed -n 's/^{"name":"verify \([0-9]*\)".*"tokens_per_forward":\([0-9.]*\),.*/\1 \2/p' |
        awk '$2 > most { most = $2; pick = $1 } END { print pick }'
}
head_line() {
    echo "# $(date -u +%F), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) threads, device $device, $("$bin/dlm-train" --version)"
}
lossless="conversion.objective=lossless export.lora=adapter optim.schedule=wsd optim.decay_ratio=0.4 optim.min_lr_ratio=0.05"

sample() {
    local tokens=${TOKENS:-400000} ar_tokens=${AR_TOKENS:-1200000} lr=${LR:-5e-3} first=${seeds%% *} seed size
    local base="model=sample conversion=sample_diffusion $lossless conversion.total_tokens=$tokens train.eval_rows=200"
    adapter() { # NAME DATA SOURCE SETTINGS…; later settings override earlier ones
        local name=$1 data=$2 source=$3; shift 3
        train "$name" "$data" $base source.path="$out/$source" "conversion.lora={rank: 16}" optim.lr="$lr" "$@"
    }
    once tasks "$bin/make-tasks" sample "$out/tasks" 7 0 "$held_out"
    for size in 8 16 32; do
        once "data$size" "$bin/dlm-prep" --input datasets/sample/train.parquet --tokenizer datasets/sample/tokenizer --out "$out/data$size" \
            --seq-len 256 --eval-fraction 0.02 --overwrite --bd-size "$size"
    done
    sed -e 's/LlamaForCausalLM/BitNetForCausalLM/; s/"llama"/"bitnet"/; s/"silu"/"relu2"/' configs/model/sample.json >"$out/bitnet.json"

    # 1. Each source with its adapter: --propose chosen on val, reported on test, alone and 16 at a time.
    for seed in $seeds bitnet; do
        case $seed in bitnet) source=(source.config="$out/bitnet.json") number=42 ;; *) source=() number=$seed ;; esac
        train "ar-$seed" data32 model=sample conversion=sample_ar conversion.total_tokens="$ar_tokens" train.seed="$number" "${source[@]}"
        adapter "lossless-$seed" data16 "ar-$seed" train.seed="$number"
        verify "val-lossless-$seed" "lossless-$seed" "$out/ar-$seed" val --propose "$propose" --batch-size 16
        best=$(fewest_passes "val-lossless-$seed")
        verify "test-lossless-$seed" "lossless-$seed" "$out/ar-$seed" test --propose "$best" --batch-size 16
        verify "test-lossless-$seed-alone" "lossless-$seed" "$out/ar-$seed" test --propose "$best" --batch-size 1
    done
    # 2. One change at a time, from the first source.
    changes=
    if [ -n "$all" ]; then
        for change in rank8 rank32 bd8 bd32 distill0 distill05 lr25 lr10 offsets4; do
            data=data16 settings=()
            case $change in
                rank8) settings=("conversion.lora={rank: 8}") ;;
                rank32) settings=("conversion.lora={rank: 32}") ;;
                bd8) data=data8 ;;
                bd32) data=data32 ;;
                distill0) settings=(conversion.distill=0) ;;
                distill05) settings=(conversion.distill=0.5) ;;
                lr25) settings=(optim.lr=2.5e-3) ;;
                lr10) settings=(optim.lr=1e-2) ;;
                offsets4) settings=(conversion.block_offsets=4) ;;
            esac
            adapter "lossless-$change" "$data" "ar-$first" "${settings[@]}"
            verify "val-lossless-$change" "lossless-$change" "$out/ar-$first" val --propose 12 --batch-size 16
            changes+=" $change"
        done
        # 3. The usual conversion with the same tokens, in block mode.
        for size in 32 16; do
            name=block-third-$size
            train "$name" "data$size" model=sample conversion=sample_diffusion source.path="$out/ar-$first" conversion.total_tokens="$tokens" train.save_every=400
            once "val-$name" "$bin/dlm-train" eval --model "$out/$name" --source "$out/ar-$first" --tasks "$out/tasks/val.jsonl" --device "$device" \
                --batch-size 16 --max-new-tokens 96 --out "$out/val-$name" --mode block --threshold 0.9,0.95 --sub-block-size 8,"$size"
        done
    fi
    {
        head_line
        echo "# TOKENS=$tokens AR_TOKENS=$ar_tokens LR=$lr HELD_OUT=$held_out scripts/proof_lossless.sh sample"
        for seed in $seeds bitnet; do
            echo; echo "## source ar-$seed, val; adapter on held-out text: $(held_out "lossless-$seed")"
            table "val-lossless-$seed"
            echo; echo "## source ar-$seed, test, 16 at a time"; table "test-lossless-$seed"
            echo; echo "## source ar-$seed, test, one at a time"; table "test-lossless-$seed-alone"
        done
        for change in $changes; do
            echo; echo "## $change: $(held_out "lossless-$change")"; table "val-lossless-$change"
        done
        if [ -n "$all" ]; then
            for size in 32 16; do echo; echo "## block mode after as many tokens, bd_size $size"; table "val-block-third-$size"; done
        fi
        echo; echo "## seconds of training"
        grep -h '^done:' "$out"/log/lossless-*.log | paste -d' ' <(grep -l '^done:' "$out"/log/lossless-*.log | sed 's/.*\///; s/\.log$/:/') -
    } >"$out/LOSSLESS.txt"
}

smollm2() {
    local tokens=${TOKENS:-120000} size=${BD:-8} lr=${LR:-1e-3} best
    once tasks "$bin/make-tasks" plain "$out/tasks" 42 8000 512
    once "data$size" "$bin/dlm-prep" --input "$out/tasks/train.jsonl" --tokenizer "$model" --out "$out/data$size" --seq-len 512 --bd-size "$size" \
        --eval-fraction 0.01 --overwrite
    # as scripts/proof_smollm2.sh fine-tunes it; any block size does for that
    train ar "data$size" model=smollm2_135m source.path="$model" conversion.total_tokens="${AR_TOKENS:-30000}" conversion.objective=sft optim.lr=2e-4 \
        optim.schedule=wsd optim.min_lr_ratio=0.05 optim.decay_ratio=0.4 optim.warmup_ratio=0.05 train.batch_rows=1 train.eval_every=20 \
        train.eval_rows=4 export.dtype=fp32
    train lossless "data$size" model=smollm2_135m source.path="$out/ar" conversion.total_tokens="$tokens" $lossless "conversion.lora={rank: ${RANK:-16}}" \
        optim.lr="$lr" optim.warmup_ratio=0.02 train.batch_rows="${ROWS:-1}" train.eval_every=50 train.eval_rows=8 train.save_every=50
    verify val-lossless lossless "$out/ar" val --propose "$propose" --batch-size 1 --limit "${VAL:-64}"
    best=$(fewest_passes val-lossless)
    verify test-lossless lossless "$out/ar" test --propose "$best" --batch-size 16 --limit "${TEST:-512}"
    verify test-lossless-alone lossless "$out/ar" test --propose "$best" --batch-size 1 --limit "${TEST:-512}"
    {
        head_line
        echo "# TOKENS=$tokens BD=$size LR=$lr scripts/proof_lossless.sh smollm2 MODEL OUT"
        echo; echo "## adapter on held-out text: $(held_out lossless)"; grep -h '^done:' "$out/log/lossless.log"
        for name in val-lossless test-lossless test-lossless-alone; do echo; echo "## $name"; table "$name"; done
    } >"$out/LOSSLESS.txt"
}

"$part"
say "wrote $out/LOSSLESS.txt"
