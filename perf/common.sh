# What the scripts in this folder share; to be sourced in the repository's root.

bin=${CARGO_TARGET_DIR:-target}/release
target='sip:127.0.0.1:5060;transport=tcp'
node=
# What the node is started by, before its own command.
under=()

for program in "$bin/voxring" "$bin/voxperf" "$bin/examples/floor"; do
    [ -x "$program" ] || { echo "${0##*/}: $program is missing; build first" >&2; exit 2; }
done
# Both sides of each call have their sockets here.
ulimit -n "$(ulimit -Hn)"

say() { printf '\n== %s\n' "$*"; }

stop() {
    [ -z "$node" ] || { kill "$node" && wait "$node"; } 2>/dev/null || true
    node=
}

# start LOG ARGUMENT...: a fresh node with these arguments, once it is ready.
start() {
    local log=$1
    shift
    stop
    "${under[@]}" "$bin/voxring" serve "$@" >"$log" 2>&1 &
    node=$!
    for _ in $(seq 100); do
        grep -q '^ready' "$log" && return
        sleep 0.1
    done
    cat "$log" >&2
    return 1
}
