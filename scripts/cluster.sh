#!/usr/bin/env bash
# Runs an Agentpost cluster of several nodes on this machine's loopback.
#
# usage: scripts/cluster.sh COMMAND [N...] [options]
#
#   up           build the binaries if they are missing, start every node that does not run, write DIR/env, and return when the
#                cluster serves
#   down         stop all nodes gracefully and keep their data for the next `up`; with --wipe, remove the data too
#   status       print one line for each node
#   kill N...    kill these nodes with SIGKILL
#   start N...   start or resume these nodes, and return when /readyz of each answers 200
#   pause N...   pause these nodes with SIGSTOP
#   resume N...  resume these nodes with SIGCONT
#   logs N       print the log of node N; with --follow, go on printing
#
#   --nodes COUNT           number of nodes (3); the first `up` in DIR fixes it, --port and --peer-port
#   --dir DIR               directory of the cluster (~/.cache/agentpost/cluster)
#   --port PORT             node N serves clients on PORT + N - 1 (7700)
#   --peer-port PORT        node N serves other nodes on PORT + N - 1 (7800)
#   --worker-threads COUNT  worker threads of each node (cores divided by nodes, at least 1)
#   --bin DIR               take agentpostd, kite and agentpost from DIR instead of building them
#   --timeout SECONDS       how long `up` and `start` wait for readiness (60)
#   --help                  print this text
#
# The binaries are built with the cargo profile `quickstart`, which compiles fast and runs somewhat slower than a release. To run
# others, name them with --bin.
#
# DIR/env exports AGENTPOST_URLS (in the order of the nodes), AGENTPOST_ADMIN_KEY, AGENTPOST_BIN, KITE_API_KEY, KITE_TEAM_ID and
# KITE_WS_URL. The key belongs to the team `default` and may write. Webhooks may go to 127.0.0.1, also without TLS.

# shellcheck source-path=SCRIPTDIR
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/build.sh
. "$HERE/lib/build.sh"
# shellcheck source=lib/cluster.sh
. "$HERE/lib/cluster.sh"

COMMAND='' TARGETS=() ASKED=() BIN='' TIMEOUT=60 WIPE=no FOLLOW=no
DIR=$AGENTPOST_CACHE/cluster

parse() {
  while [ $# -gt 0 ]; do
    case $1 in
      --nodes | --port | --peer-port | --worker-threads | --timeout) need_value "$1" $#; need_count "$1" "$2" ;;&
      --dir | --bin) need_value "$1" $# ;;&
      --nodes) NODES=$2; ASKED+=("NODES=$2"); shift ;;
      --port) PORT=$2; ASKED+=("PORT=$2"); shift ;;
      --peer-port) PEER_PORT=$2; ASKED+=("PEER_PORT=$2"); shift ;;
      --worker-threads) WORKERS=$2; shift ;;
      --timeout) TIMEOUT=$2; shift ;;
      --dir) DIR=$2; shift ;;
      --bin) BIN=$2; shift ;;
      --wipe) WIPE=yes ;;
      --follow) FOLLOW=yes ;;
      -h | --help) usage "$0"; exit 0 ;;
      -*) die "unknown option '$1'; see --help" ;;
      *) if [ -z "$COMMAND" ]; then COMMAND=$1; else TARGETS+=("$1"); fi ;;
    esac
    shift
  done
}

# lock: lets one `up` or `down` at a time work in DIR. The nodes do not inherit the lock.
lock() { exec 9>"$DIR/lock"; flock 9; }

up() {
  local n started wanted fresh=()
  mkdir -p "$DIR"
  lock
  wanted=$WORKERS
  if load_settings; then
    for n in "${ASKED[@]}"; do
      grep -qx "$n" "$DIR/settings" || die "$DIR holds a cluster of $NODES nodes on the ports from $PORT and $PEER_PORT; choose another --dir, or remove that cluster with: scripts/cluster.sh down --wipe --dir $DIR"
    done
  fi
  WORKERS=${wanted:-$(($(nproc) / NODES))}
  [ "$WORKERS" -ge 1 ] || WORKERS=1

  if [ -n "$BIN" ]; then install_packages curl jq; else build_binaries quickstart; fi
  copy_binaries "${BIN:-$BUILT_BIN}"
  save_settings
  make_files

  started=$(now_ms)
  for n in $(all_nodes); do
    case $(node_state "$n") in
      paused) signal_node "$n" CONT ;;
      stopped)
        if ! port_free $((PORT + n - 1)) || ! port_free $((PEER_PORT + n - 1)); then
          die "another program uses port $((PORT + n - 1)) or $((PEER_PORT + n - 1)); choose other ports with --port and --peer-port"
        fi
        spawn_node "$n"
        fresh+=("$n")
        ;;
    esac
  done
  # shellcheck disable=SC2046
  await_ready "$TIMEOUT" $(all_nodes)
  ensure_team
  write_env
  if [ ${#fresh[@]} -eq 0 ]; then say "the cluster was already running"
  else say "the cluster serves; its $NODES nodes were ready after $(($(now_ms) - started)) ms"
  fi
  for n in $(all_nodes); do say "  node $n  $(node_url "$n")  pid $(node_pid "$n")"; done
  say "settings for clients: . $DIR/env"
}

down() {
  local n
  [ -d "$DIR" ] || { say "there is no cluster in $DIR"; return 0; }
  lock
  load_settings || true
  for n in $(all_nodes); do
    # A paused process receives SIGTERM only when it is resumed.
    signal_node "$n" TERM || continue
    signal_node "$n" CONT || true
  done
  for n in $(all_nodes); do
    # A node first finishes its calls to webhooks, which takes half a minute at most.
    await_gone 45 "$n" || { warn "node $n did not stop within 45 s; it is being killed"; signal_node "$n" KILL || true; await_gone 5 "$n" || true; }
    rm -f "$DIR/$n/pid"
  done
  if [ "$WIPE" = yes ]; then wipe; fi
  say "the cluster in $DIR is down"
}

# wipe: removes only what `up` created, so that a mistaken --dir does no harm.
wipe() {
  local n
  for n in $(all_nodes); do rm -rf "${DIR:?}/$n"; done
  for n in bin settings env team admin.key cluster.secret lock; do rm -rf "${DIR:?}/$n"; done
  rmdir "$DIR" 2>/dev/null || true
}

# needs_cluster: fails if there is no cluster in DIR.
needs_cluster() { load_settings || die "there is no cluster in $DIR; start one with: scripts/cluster.sh up"; }
# targets: fails unless the command names nodes of the cluster.
targets() {
  local n
  [ ${#TARGETS[@]} -gt 0 ] || die "$COMMAND needs the number of a node"
  for n in "${TARGETS[@]}"; do
    if ! [[ $n =~ ^[1-9][0-9]{0,3}$ ]] || [ "$n" -gt "$NODES" ]; then die "this cluster has no node '$n'; its nodes are 1 to $NODES"; fi
  done
}

status() {
  local n state ready pid cluster='{}'
  for n in $(all_nodes); do
    [ "$(node_state "$n")" = running ] || continue
    api GET "$(node_url "$n")/admin/v1/cluster" "$(cat "$DIR/admin.key" 2>/dev/null)"
    [ "$STATUS" != 200 ] || break
  done
  [ "$STATUS" != 200 ] || cluster=$REPLY
  printf '%-5s %-8s %-8s %-6s %-10s %9s %5s  %s\n' node process pid ready role applied lag url
  for n in $(all_nodes); do
    state=$(node_state "$n") ready=no pid=-
    [ "$state" = stopped ] || pid=$(node_pid "$n")
    [ "$state" != running ] || ! is_ready "$n" || ready=yes
    printf '%-5s %-8s %-8s %-6s %-10s %9s %5s  %s\n' "$n" "$state" "$pid" "$ready" \
      "$(node_fact "$cluster" "$n" role)" "$(node_fact "$cluster" "$n" applied_index)" "$(node_fact "$cluster" "$n" lag)" "$(node_url "$n")"
  done
}
node_fact() { jq -r --argjson n "$2" "[.nodes[]? | select(.id == \$n) | .$3][0] // \"-\"" <<<"$1" 2>/dev/null || echo -; }

start_nodes() {
  local n started
  started=$(now_ms)
  for n in "${TARGETS[@]}"; do
    case $(node_state "$n") in
      paused) signal_node "$n" CONT ;;
      stopped) spawn_node "$n" ;;
    esac
  done
  await_ready "$TIMEOUT" "${TARGETS[@]}"
  for n in "${TARGETS[@]}"; do say "node $n is ready after $(($(now_ms) - started)) ms, pid $(node_pid "$n")"; done
}

# signal_nodes SIGNAL WORD: signals the nodes. A node that does not run is reported and is no error.
signal_nodes() {
  local n
  for n in "${TARGETS[@]}"; do
    if ! signal_node "$n" "$1"; then say "node $n was not running"; continue; fi
    [ "$1" != KILL ] || await_gone 5 "$n" || die "node $n still runs 5 s after SIGKILL; see its log, $DIR/$n/log"
    say "node $n $2"
  done
}

parse "$@"
[ -n "$COMMAND" ] || { usage "$0" >&2; exit 2; }
DIR=$(realpath -m "$DIR")
case $COMMAND in
  up | down | status) [ ${#TARGETS[@]} -eq 0 ] || die "$COMMAND takes no node number; see --help" ;;&
  status | kill | start | pause | resume | logs) needs_cluster ;;&
  kill | start | pause | resume | logs) targets ;;&
  up) up ;;
  down) down ;;
  status) status ;;
  kill) signal_nodes KILL killed ;;
  start) start_nodes ;;
  pause) signal_nodes STOP paused ;;
  resume) signal_nodes CONT resumed ;;
  logs) if [ "$FOLLOW" = yes ]; then exec tail -n +1 -F "$DIR/${TARGETS[0]}/log"; else exec cat "$DIR/${TARGETS[0]}/log"; fi ;;
  *) die "unknown command '$COMMAND'; see --help" ;;
esac
