#!/usr/bin/env bash
# Wall time, CPU time and memory of dlm-prep and of Python peers, whole processes in turn on the same file, cores and tokenizer.
#   [RC3=FOLDER] [TURBO=PYTHON] scripts/bench_prep.sh SHARED TOKENIZER_DIR [PYTHON] [COPIES]
# RC3 is an unpacked wheel of tokenizers 1.0.0rc3, for peers on dlm-prep's own engine (scripts/peers/prep_rc3.py).
# TURBO is a Python with `pip install "turbo-dllm[data]==0.1.6"` (scripts/peers/prep_turbo.py); default: PYTHON.
# SHARED has assets/conversations (third-party data) and peers/peer_prep.py (the stock peer); COPIES of the conversations are joined
# into one parquet file.
set -euo pipefail
shared=$1 tokenizer=$2 python=${3:-python3} copies=${4:-2}
bin=${DLM_PREP:-target/release/dlm-prep}
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
"$python" - "$shared" "$tmp/data.parquet" "$copies" <<'PY'
import glob, sys, pyarrow as pa, pyarrow.parquet as pq
t = pa.concat_tables([pq.read_table(f) for f in sorted(glob.glob(sys.argv[1] + "/assets/conversations/*.parquet"))] * int(sys.argv[3]))
pq.write_table(t.filter(pa.compute.is_valid(t["output"])), sys.argv[2], row_group_size=1000)
PY
# Prints "WALL USER+SYSTEM" seconds of a command; its output goes to a log.
clock() {
    local t0 t1 cpu TIMEFORMAT='%U + %S'
    t0=$(date +%s.%N)
    cpu=$( { time "$@" >"$tmp/out" 2>"$tmp/log" || { cat "$tmp/log" >&2; exit 1; }; } 2>&1 ) || { echo "$cpu" >&2; exit 1; }
    t1=$(date +%s.%N)
    echo "$(echo "$t1 - $t0" | bc) $(echo "$cpu" | tail -1 | bc)"
}
declare -A wall
run() { # NAME COMMAND…
    local name=$1 took; shift
    took=$(clock "$@")
    wall[$name]="${wall[$name]:-}${took% *} "
    last_cpu=${took#* }
    printf '%-28s %8.2f s wall %8.2f s CPU   %s\n' "$name" ${took} "$(grep -o '[0-9]* MB peak memory' "$tmp/log" || tail -1 "$tmp/out" | cut -c1-80)"
}
ours() { rm -rf "$tmp/ours"; run "$1" "$bin" --input "$2" --tokenizer "$tokenizer" --out "$tmp/ours" --workers 2 --json; }
median() { printf '%s\n' ${wall[$1]} | sort -g | sed -n "$((($(printf '%s\n' ${wall[$1]} | wc -l) + 1) / 2))p"; }

for round in 1 2 3; do
    ours dlm-prep "$tmp/data.parquet"
    if PYTHONPATH="${RC3:-}" "$python" -c 'import tokenizers, datasets; assert tokenizers.__version__.startswith("1.")' 2>/dev/null; then
        for way in datasets lean; do
            run "1.0 engine, $way" env PYTHONPATH="${RC3:-}" "$python" "$(dirname "$0")/peers/prep_rc3.py" --data "$tmp/data.parquet" \
                --tokenizer "$tokenizer/tokenizer.json" --out "$tmp/peer" --way $way
        done
    else
        echo "SKIP: no tokenizers 1.0 in RC3 (an unpacked wheel of tokenizers==1.0.0rc3) or no datasets"
    fi
done
if "$python" -c 'import datasets, trl, transformers' 2>/dev/null; then
    run "stock peer" "$python" "$shared/peers/peer_prep.py" --data "$tmp/data.parquet" --tokenizer "$tokenizer/tokenizer.json" --out "$tmp/peer" --procs 2 --batched
else
    echo "SKIP: $python lacks datasets, trl or transformers; no stock peer"
fi
for name in "${!wall[@]}"; do
    [ "$name" = dlm-prep ] || echo "ratio to $name (medians): $(echo "scale=1; $(median "$name") / $(median dlm-prep)" | bc)"
done
# Ten times the input, where loading counts for little: memory and ratio.
"$python" - "$tmp/data.parquet" "$tmp/ten.parquet" <<'PY'
import sys, pyarrow as pa, pyarrow.parquet as pq
pq.write_table(pa.concat_tables([pq.read_table(sys.argv[1])] * 10), sys.argv[2], row_group_size=1000)
PY
for round in 1 2; do
    ours "dlm-prep, ten times" "$tmp/ten.parquet"
    if [ -n "${wall[1.0 engine, lean]:-}" ]; then
        run "lean, ten times" env PYTHONPATH="${RC3:-}" "$python" "$(dirname "$0")/peers/prep_rc3.py" --data "$tmp/ten.parquet" \
            --tokenizer "$tokenizer/tokenizer.json" --out "$tmp/peer" --way lean
    fi
done
[ -z "${wall[lean, ten times]:-}" ] ||
    echo "ratio, ten times (medians): $(echo "scale=1; $(median "lean, ten times") / $(median "dlm-prep, ten times")" | bc)"
"$bin" bench --input "$tmp/data.parquet" --tokenizer "$tokenizer" --workers 2

# Turbo-dLLM: what is lost, and kept source tokens per CPU second of the whole process, on the conversations once.
"$python" - "$tmp/data.parquet" "$tmp/once.parquet" "$copies" <<'PY'
import sys, pyarrow.parquet as pq
t = pq.read_table(sys.argv[1])
pq.write_table(t.slice(0, t.num_rows // int(sys.argv[3])), sys.argv[2], row_group_size=1000)
PY
turbo=${TURBO:-$python}
echo "rows lost, end-of-turn tokens kept, kept source tokens per CPU second (seq 512, bd_size 32):"
ours "dlm-prep, once" "$tmp/once.parquet"
cpu=${last_cpu}
"$python" - "$tmp/ours/manifest.json" "$cpu" <<'PY'
import json, sys
c, cpu = json.load(open(sys.argv[1]))["counts"], float(sys.argv[2])
lost, tokens = c["rows_read"] - c["rows_kept"], c["tokens"]
ended = 100 * (c["label_runs"] - c["unfinished_runs"]) / c["label_runs"]
print(f"  dlm-prep     lost {lost} of {c['rows_read']} ({100 * lost / c['rows_read']:.1f} %)   end of turn kept {ended:.1f} %   {tokens / cpu:,.0f} tokens per CPU second")
PY
if "$turbo" -c 'import dllm_parallel.data.tokenization' 2>/dev/null; then
    run "Turbo-dLLM, one process" "$turbo" "$(dirname "$0")/peers/prep_turbo.py" --data "$tmp/once.parquet" --tokenizer "$tokenizer" --out "$tmp/turbo"
    "$python" - "$tmp/out" "$last_cpu" "$cpu" "$tmp/ours/manifest.json" <<'PY'
import json, sys
c, cpu = json.loads(open(sys.argv[1]).read().strip().splitlines()[-1]), float(sys.argv[2])
lost = c["read"] - c["kept"]
print(f"  Turbo-dLLM   lost {lost} of {c['read']} ({100 * lost / c['read']:.1f} %)   end of turn kept {100 * c['ended'] / c['kept']:.1f} %   {c['kept_tokens'] / cpu:,.0f} tokens per CPU second   refused: {c['refused']}")
ours = json.load(open(sys.argv[4]))["counts"]["tokens"] / float(sys.argv[3])
print(f"  ratio of kept source tokens per CPU second: {ours / (c['kept_tokens'] / cpu):.1f}")
PY
else
    echo "SKIP: $turbo has no turbo-dllm (pip install \"turbo-dllm[data]==0.1.6\", or it cannot be had from the registry): no Turbo-dLLM" | tee /dev/stderr
fi

# Long multi-turn rows, alike over the file: does the rate fall in the course of a run?
"$python" - "$tmp/once.parquet" "$tmp/long.parquet" <<'PY'
import random, sys, pyarrow as pa, pyarrow.parquet as pq
rows = pq.read_table(sys.argv[1], columns=["input", "output"]).to_pylist()
random.seed(1)
long = []
for _ in range(4):
    random.shuffle(rows)
    for k in range(0, len(rows), 20):
        turns = []
        for r in rows[k:k + 20]:
            turns += [m for m in r["input"] if m["role"] == "user"][-1:] + [{"role": "assistant", "content": r["output"]}]
        long.append({"messages": turns})
pq.write_table(pa.Table.from_pylist(long), sys.argv[2], row_group_size=100)
PY
for round in 1 2 3; do
    "$bin" bench --input "$tmp/long.parquet" --tokenizer "$tokenizer" --workers 2 --repeat 1 | grep 'by tenths' | sed 's/^worker/long rows/'
done
