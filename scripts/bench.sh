#!/usr/bin/env bash
# Measures a cluster of three nodes on this machine: acknowledged sends, push latency, fan-out to subscribers, webhook deliveries,
# start-up, and the loss of the leader.
#
# usage: scripts/bench.sh [--tsv] [options]
#
#   --tsv                print rows for other programs instead of a table: peer, metric, in flight, run, value, unit, p50 ms,
#                        p99 ms, note. It measures once unless --runs is given.
#   --modes LIST         what to measure, in this order (ws-push,fanout,http,batch,deliver,start,crash). Light load comes first,
#                        because heavy load leaves compactions behind.
#   --in-flight LIST     how many sends are under way at a time, for http and batch (1,16,64,256)
#   --seconds COUNT      duration of one measurement (4)
#   --runs COUNT         number of measurements of each kind (3); the table shows their minimum, median and maximum
#   --port PORT          first client port (17700)
#   --peer-port PORT     first port between the nodes (17800)
#   --bin DIR            take the binaries from DIR instead of building the release
#   --help               print this text
#
# The script starts a cluster of its own with fresh data in a temporary directory under the cache, and removes both at the end.
# Every send carries 200 bytes to one of 1,000 inboxes and counts only when it is acknowledged, which means that a majority of
# the nodes has called fsync. The load generator and the three nodes share this machine, so compare only figures of one run.

# shellcheck source-path=SCRIPTDIR
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/build.sh
. "$HERE/lib/build.sh"
# shellcheck source=lib/cluster.sh
. "$HERE/lib/cluster.sh"

TSV=no MODES=ws-push,fanout,http,batch,deliver,start,crash IN_FLIGHT=1,16,64,256 SECONDS_EACH=4 RUNS='' PORT=17700 PEER_PORT=17800 BIN=''
while [ $# -gt 0 ]; do
  case $1 in
    --tsv) TSV=yes ;;
    --modes | --in-flight | --bin | --seconds | --runs | --port | --peer-port) need_value "$1" $# ;;&
    --seconds | --runs | --port | --peer-port) need_count "$1" "$2" ;;&
    --modes) MODES=$2; shift ;;
    --in-flight) IN_FLIGHT=$2; shift ;;
    --bin) BIN=$2; shift ;;
    --seconds) SECONDS_EACH=$2; shift ;;
    --runs) RUNS=$2; shift ;;
    --port) PORT=$2; shift ;;
    --peer-port) PEER_PORT=$2; shift ;;
    -h | --help) usage "$0"; exit 0 ;;
    *) die "unknown argument '$1'; see --help" ;;
  esac
  shift
done
[ -n "$RUNS" ] || { [ "$TSV" = yes ] && RUNS=1 || RUNS=3; }
for mode in ${MODES//,/ }; do
  case $mode in http | batch | ws-push | fanout | deliver | start | crash) ;; *) die "unknown mode '$mode'; see --help" ;; esac
done

if [ -n "$BIN" ]; then install_packages curl jq; else build_binaries release; BIN=$BUILT_BIN; fi
NODES=3 WORKERS=$(($(nproc) / 3))
[ "$WORKERS" -ge 1 ] || WORKERS=1
mkdir -p "$AGENTPOST_CACHE"
WORK=$(mktemp -d "$AGENTPOST_CACHE/bench.XXXXXX")
DIR=$WORK/cluster ROWS=$WORK/rows
mkdir -p "$DIR"

stop_cluster() {
  local n
  for n in $(all_nodes); do signal_node "$n" "${1:-TERM}" || true; done
  for n in $(all_nodes); do await_gone 20 "$n" || signal_node "$n" KILL || true; done
}
finish() {
  local status=$?
  stop_cluster KILL
  rm -rf "$WORK"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

# row METRIC IN-FLIGHT RUN VALUE UNIT P50 P99 NOTE
row() { printf 'agentpost\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$ROWS"; }

# start_cluster: starts an empty cluster. STARTED_MS is the time from its launch to the first acknowledged message.
start_cluster() {
  local n began team key
  stop_cluster KILL
  rm -rf "$DIR"
  mkdir -p "$DIR"
  copy_binaries "$BIN"
  for n in $(all_nodes); do
    if ! port_free $((PORT + n - 1)) || ! port_free $((PEER_PORT + n - 1)); then die "another program uses one of the ports from $PORT and $PEER_PORT; choose others with --port and --peer-port"; fi
  done
  make_files
  began=$(now_ms)
  for n in $(all_nodes); do spawn_node "$n"; done
  until [ -s "$DIR/admin.key" ]; do
    [ $(($(now_ms) - began)) -lt 30000 ] || die "node 1 wrote no admin key within 30 s; its log ends with: $(tail -n 5 "$DIR/1/log")"
    sleep 0.02
  done
  ensure_team
  read -r team key <"$DIR/team"
  until api POST "$(node_url 1)/api/v1/agents/messages?team_id=$team" "$key" '{"from":"bench","to":"bench","body":"first"}' && [ "$STATUS" = 200 ]; do
    [ $(($(now_ms) - began)) -lt 30000 ] || die "no message was acknowledged within 30 s; the last answer was: $STATUS $REPLY"
    sleep 0.01
  done
  STARTED_MS=$(($(now_ms) - began))
  await_ready 30 1 2 3
  write_env
  # shellcheck disable=SC1091
  . "$DIR/env"
}

# bench_program RUN ARGS...: runs the load generator and writes the number of the run into the fourth column of its rows.
bench_program() {
  local run=$1; shift
  "$DIR/bin/agentpost" bench "$@" --seconds "$SECONDS_EACH" --tsv | awk -F'\t' -v OFS='\t' -v r="$run" 'NF >= 6 && $1 != "peer" { $4 = r; print }' >>"$ROWS"
}

peak_memory() {
  local n
  for n in $(all_nodes); do
    row peak-memory 0 "node$n" "$(awk '/^VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$(node_pid "$n")/status")" MiB NaN NaN VmHWM
  done
}

measure() {
  local run mode
  for run in $(seq "$RUNS"); do
    say "run $run of $RUNS"
    for mode in ${MODES//,/ }; do
      say "  $mode"
      case $mode in
        start)
          start_cluster
          row startup-to-first-ack 0 "$run" "$(awk -v ms="$STARTED_MS" 'BEGIN { printf "%.2f", ms / 1000 }')" s NaN NaN "three nodes launched together, empty"
          ;;
        crash)
          bench_program "$run" --mode crash --in-flight 64 --kill "$(crash_pids)"
          # This cluster has lost a node, so the next measurement gets a new cluster.
          stop_cluster KILL
          start_cluster
          ;;
        *) bench_program "$run" --mode "$mode" --in-flight "$IN_FLIGHT" ;;
      esac
    done
  done
  peak_memory
}

crash_pids() { for n in $(all_nodes); do printf '%s%s=%s' "$([ "$n" = 1 ] || echo ,)" "$n" "$(node_pid "$n")"; done; }

facts() {
  local model disk
  model=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
  disk=$(df --output=fstype,source "$WORK" | tail -n 1 | tr -s ' ')
  printf '%s\n' "Agentpost $("$DIR/bin/agentpostd" --version | awk '{ print $NF }'), commit $(git -C "$ROOT" describe --always --dirty 2>/dev/null || echo unknown), $(date -u +%Y-%m-%d)" \
    "machine: $(nproc) cores (${model:-unknown}), $(awk '/^MemTotal/ { printf "%d", $2 / 1048576 }' /proc/meminfo) GiB, Linux $(uname -r), $disk" \
    "settings: 3 nodes and the load on this machine, $WORKERS worker thread(s) a node, fsync on, bodies of 200 bytes, 1,000 inboxes," \
    "          $SECONDS_EACH s each, $RUNS run(s)"
}

# table: prints minimum, median and maximum of the runs of each kind, and the latencies of the median run.
table() {
  printf '\n%-38s %9s %10s %10s %10s  %-9s %8s %8s  %s\n' what 'in flight' min median max unit 'p50 ms' 'p99 ms' note
  LC_ALL=C sort -t "$(printf '\t')" -k2,2 -k1,1 -k3,3n -k5,5n "$ROWS" | awk -F'\t' '
    function flush_group(   m) {
      if (!count) return
      m = int((count + 1) / 2)
      printf "%-38s %9s %10s %10s %10s  %-9s %8s %8s  %s\n", name, flight, value[1], value[m], value[count], unit, p50[m], p99[m], note[m]
      count = 0
    }
    { if ($1 SUBSEP $2 SUBSEP $3 != group) { flush_group(); group = $1 SUBSEP $2 SUBSEP $3; name = $1 " " $2; flight = $3; unit = $6 }
      count++; value[count] = $5; p50[count] = $7 == "NaN" ? "" : $7; p99[count] = $8 == "NaN" ? "" : $8; note[count] = $9 }
    END { flush_group() }'
}

start_cluster
measure
if [ "$TSV" = yes ]; then cat "$ROWS"; else facts; table; fi
