#!/usr/bin/env bash
# Ours and the Python peer in turn, whole process against whole process, on the same file, cores and tokenizer.
#   scripts/bench_prep.sh SHARED TOKENIZER_DIR [PYTHON] [COPIES]
# SHARED has assets/conversations and peers/peer_prep.py; COPIES of the conversations are joined into one parquet file.
set -euo pipefail
shared=$1 tokenizer=$2 python=${3:-python3} copies=${4:-2}
bin=${DLM_PREP:-target/release/dlm-prep}
tmp=$(mktemp -d); trap 'rm -rf "$tmp"' EXIT
"$python" - "$shared" "$tmp/data.parquet" "$copies" <<'PY'
import glob, sys, pyarrow as pa, pyarrow.parquet as pq
t = pa.concat_tables([pq.read_table(f) for f in sorted(glob.glob(sys.argv[1] + "/assets/conversations/*.parquet"))] * int(sys.argv[3]))
pq.write_table(t.filter(pa.compute.is_valid(t["output"])), sys.argv[2], row_group_size=1000)
PY
clock() { local t0 t1; t0=$(date +%s.%N); "$@" >"$tmp/log" 2>&1 || { cat "$tmp/log"; exit 1; }; t1=$(date +%s.%N); echo "$t1 - $t0" | bc; }
TIMEFORMAT='%U %S'
for round in 1 2; do
    rm -rf "$tmp/ours"
    cpu=$( { time clock "$bin" --input "$tmp/data.parquet" --tokenizer "$tokenizer" --out "$tmp/ours" --workers 2 --json >"$tmp/ours.wall"; } 2>&1 )
    echo "ours:  $(cat "$tmp/ours.wall") s wall, $cpu s CPU (user, system)"
done
if "$python" -c 'import datasets, trl, transformers' 2>/dev/null; then
    cpu=$( { time clock "$python" "$shared/peers/peer_prep.py" --data "$tmp/data.parquet" --tokenizer "$tokenizer/tokenizer.json" --out "$tmp/peer" --procs 2 --batched >"$tmp/peer.wall"; } 2>&1 )
    echo "peer:  $(cat "$tmp/peer.wall") s wall, $cpu s CPU (user, system)"
    echo "ratio: $(echo "scale=1; $(cat "$tmp/peer.wall") / $(cat "$tmp/ours.wall")" | bc) (wall)"
else
    echo "SKIP: $python lacks datasets, trl or transformers; no peer"
fi
