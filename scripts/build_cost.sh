#!/bin/bash
# What a cold default build costs, crate by crate: CPU seconds (user and system) of the whole and of each compiler run.
#   scripts/build_cost.sh TARGET    a folder that does not exist yet; left there, with costs.txt: seconds, name
# CPU seconds of one tree differ by up to half between calm and busy machines: measure two trees on a calm one, or in turn.
set -euo pipefail
[ $# = 1 ] && [ ! -e "$1" ] || { sed -n '2,4s/^# //p' "$0" >&2; exit 2; }
cd "$(dirname "$0")/.."
mkdir -p "$1"
target=$(cd "$1" && pwd)
cat > "$target/wrapper" <<'WRAPPER'
#!/bin/bash
name=; before=
for word in "$@"; do [ "$before" = --crate-name ] && name=$word; before=$word; done
TIMEFORMAT="%U %S $name"
{ time "$@" 2>&3; } 3>&2 2>> "${0%/*}/each.txt"
WRAPPER
chmod +x "$target/wrapper"
TIMEFORMAT='whole build: %U s user, %S s system, %R s elapsed'
time RUSTC_WRAPPER="$target/wrapper" CARGO_INCREMENTAL=0 cargo build --release --target-dir "$target"
awk '$3 != "" && $3 != "___" { cost[$3] += $1 + $2 } END { for (name in cost) printf "%.1f %s\n", cost[name], name }' "$target/each.txt" |
    sort -rn > "$target/costs.txt"
awk '{ sum += $1 } END { printf "compiler runs: %.0f s; the rest is build scripts, most of it C\n", sum }' "$target/costs.txt"
head -40 "$target/costs.txt"
