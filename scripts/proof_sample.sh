#!/usr/bin/env bash
# What a conversion keeps of its source, on the sample's tasks: every number of docs/results.md about the sample model.
#   scripts/proof_sample.sh OUT [BIN] [DEVICE]
# OUT receives data, models, evaluations and results.txt; BIN has dlm-prep, dlm-train and make-tasks (default target/release; `cargo build
# --release` makes them). Under 60 minutes on two free cores. Called again after a break it goes on: finished trainings and evaluations are
# kept, a training that was cut off resumes. AR_TOKENS=1200000 TOKENS=1200000 SEEDS="42 43 44" HELD_OUT=512 change it; with a tenth of them the
# script can be tried.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
out=${1:?usage: scripts/proof_sample.sh OUT [BIN] [DEVICE]} bin=${2:-$here/target/release} device=${3:-cpu}
ar_tokens=${AR_TOKENS:-1200000} tokens=${TOKENS:-1200000} seeds=${SEEDS:-42 43 44} held_out=${HELD_OUT:-512}
thresholds=0.5,0.7,0.8,0.9,0.95,0.99
mkdir -p "$out/log"
out=$(cd "$out" && pwd) bin=$(cd "$bin" && pwd)
cd "$here"

. scripts/once.sh
prep() { # NAME [ARGUMENTS]
    local name=$1; shift
    once "$name" "$bin/dlm-prep" --input datasets/sample/train.parquet --tokenizer datasets/sample/tokenizer --out "$out/$name" --seq-len 256 \
        --eval-fraction 0.02 --overwrite "$@"
}
train() { # NAME DATA SETTINGS…
    local name=$1 data=$2; shift 2
    once "$name" "$bin/dlm-train" --data "$out/$data" --device "$device" model=sample output.dir="$out/$name" train.log_every=100 "$@"
}
convert() { # NAME DATA SOURCE [SETTINGS…]
    local name=$1 data=$2 source=$3; shift 3
    train "$name" "$data" conversion=sample_diffusion source.path="$out/$source" conversion.total_tokens="$tokens" train.save_every=400 "$@"
}
judge() { # NAME MODEL SOURCE TASKS ARGUMENTS…
    local name=$1 model=$2 source=$3 tasks=$4; shift 4
    once "$name" "$bin/dlm-train" eval --model "$out/$model" --source "$out/$source" --tasks "$out/tasks/$tasks.jsonl" --device "$device" \
        --batch-size 16 --max-new-tokens 96 --out "$out/$name" "$@"
}
# The runs of an evaluation, one a line: name, right answers, tokens per forward pass, tokens per second.
runs() {
    sed 's/{"name"/\n&/g' "$out/$1/results.json" |
        sed -n 's/^{"name":"\([^"]*\)".*"right":\([0-9]*\),.*"tokens_per_forward":\([0-9.]*\),.*"tokens_per_second":\([0-9.]*\).*/\1;\2;\3;\4/p'
}
# "THRESHOLD SUB_BLOCK" of the fastest block run that has at least as many right answers as the source, else of the one with most.
choice() {
    runs "$1" | awk -F';' '
        $1 == "source ar" { source = $2 }
        $1 ~ /^block/ {
            if ($2 > most) { most = $2; best = $1 }
            if ($2 >= source && $3 > fastest) { fastest = $3; pick = $1 }
        }
        END { if (pick == "") pick = best; sub("block ", "", pick); sub("/", " ", pick); print pick }'
}

once tasks "$bin/make-tasks" sample "$out/tasks" 7 0 "$held_out"
for size in 32 16 8; do prep "data$size" --bd-size "$size"; done
# Every dataset is padded to the grid of blocks; what can be changed is from where blocks are counted, and with what they are filled.
prep data-response --alignment response
prep data-eos --padding eos

# 1. Three seeds: an AR model, its conversion, settings chosen on val, reported on test.
for seed in $seeds; do
    train "ar-$seed" data32 conversion=sample_ar conversion.total_tokens="$ar_tokens" train.seed="$seed"
    convert "bd32-$seed" data32 "ar-$seed" train.seed="$seed"
    judge "val-$seed" "bd32-$seed" "ar-$seed" val --threshold $thresholds --sub-block-size 8,16,32
    read -r threshold sub <<<"$(choice "val-$seed")"
    judge "test-$seed" "bd32-$seed" "ar-$seed" test --threshold "$threshold" --sub-block-size "$sub"
done

# 2. One change at a time, from the first seed's AR model.
first=${seeds%% *}
convert bd16 data16 "ar-$first"
convert bd8 data8 "ar-$first"
convert one-view data32 "ar-$first" conversion.complementary=false
convert response-grid data-response "ar-$first"
convert eos-padding data-eos "ar-$first"
convert whole-rows data32 "ar-$first" conversion.document_mask=none
convert sft data32 "ar-$first" conversion.objective=sft
convert tokens-third data32 "ar-$first" conversion.total_tokens=$((tokens / 3))
for name in bd16 bd8 one-view response-grid eos-padding whole-rows sft tokens-third; do
    case $name in bd16) subs=8,16 ;; bd8) subs=4,8 ;; *) subs=8,32 ;; esac
    judge "val-$name" "$name" "ar-$first" val --threshold $thresholds --sub-block-size $subs
done

# 3. The published layout (4L tokens) trains the same model: losses of the first 50 steps.
for layout in saving reference; do
    convert "layout-$layout" data32 "ar-$first" conversion.layout=$layout train.max_steps=50 train.log_every=1 train.eval_every=0
done

# 4. A ternary source: BitNet's architecture (ReLU squared, sub-norms, BitLinear) trained from random weights, then converted.
sed -e 's/LlamaForCausalLM/BitNetForCausalLM/; s/"llama"/"bitnet"/; s/"silu"/"relu2"/' configs/model/sample.json >"$out/bitnet.json"
train ar-bitnet data32 conversion=sample_ar conversion.total_tokens="$ar_tokens" source.config="$out/bitnet.json"
convert bitnet data32 ar-bitnet
judge val-bitnet bitnet ar-bitnet val --threshold $thresholds --sub-block-size 8,32

losses() { grep -o '"loss":[0-9.e-]*' "$out/layout-$1/metrics.jsonl" | head -50 | cut -d: -f2; }
{
    echo "# $(date -u +%F), $(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -1), $(nproc) threads, device $device, $("$bin/dlm-train" --version)"
    echo "# AR_TOKENS=$ar_tokens TOKENS=$tokens SEEDS=\"$seeds\" HELD_OUT=$held_out scripts/proof_sample.sh"
    for seed in $seeds; do
        echo; echo "## seed $seed: settings chosen on val ($(choice "val-$seed")), reported on test"
        sed -n '/^run /,/^$/p' "$out/log/test-$seed.log"
    done
    for name in "$first" bd16 bd8 one-view response-grid eos-padding whole-rows sft tokens-third bitnet; do
        echo; echo "## $name, val"
        sed -n '/^run /,/^wrote/{/^wrote/d;p}' "$out/log/val-$name.log" | grep -v 'were cut at the limit'
    done
    echo; echo "## layouts: loss of steps 1 to 50, saving and reference"
    paste <(losses saving) <(losses reference) | awk '
        { d = ($1 - $2) / ($2 + 1e-9); if (d < 0) d = -d; if (d > most) most = d; last = $0 }
        END { print NR " steps, largest relative difference " most "; step " NR ": " last }'
    echo; echo "## seconds of training"
    grep -h '^done:' "$out"/log/*.log | paste -d' ' <(grep -l '^done:' "$out"/log/*.log | sed 's/.*\///; s/\.log$/:/') -
} >"$out/results.txt"
say "wrote $out/results.txt"
