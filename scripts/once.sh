# For scripts with steps that take long; sourced by them. $out is their folder: $out/log/NAME.log is what a step printed, NAME.done
# that it succeeded.
say() { echo "[$(date +%H:%M:%S)] $*" >&2; }
once() { # NAME COMMAND…: not repeated once it has succeeded
    local name=$1; shift
    [ -e "$out/log/$name.done" ] && return
    say "$name"
    "$@" >"$out/log/$name.log" 2>&1 || { tail -5 "$out/log/$name.log" >&2; say "$name failed: $out/log/$name.log"; exit 1; }
    : >"$out/log/$name.done"
}
