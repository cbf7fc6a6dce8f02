#!/usr/bin/env bash
# Measures a cluster of three nodes on this machine: acknowledged sends, push latency, fan-out to subscribers, webhook deliveries,
# start-up, the loss of the leader, and what age, size and sustained load cost.
#
# usage: scripts/bench.sh [--tsv] [options]
#
#   --tsv                print rows for other programs instead of a table: peer, metric, in flight, run, value, unit, p50 ms,
#                        p99 ms, note. It measures once unless --runs is given.
#   --modes LIST         what to measure, in this order (ws-push,fanout,http,batch,deliver,start,crash). Light load comes first,
#                        because heavy load leaves compactions behind. More modes:
#                        sustain     batches for 10 minutes: a row for each 10 s, then the last minute in percent of the first
#                        aged        keyed, full-inbox, idle-teams, busy-teams and agents; each is a mode of its own, too:
#                        keyed       sends with idempotency keys on two clusters; on one of them a day passes in a minute, and
#                                    the rows of the day before are swept meanwhile; keyed-batch sends 100 a request
#                        full-inbox  batches to inboxes of 100,000 entries, in turns with empty ones
#                        idle-teams  100,000 teams that do nothing for 10 minutes: elections, CPU, sends before and after
#                        busy-teams  sends of 2,000 teams in turns with those of 100
#                        agents      sends to 1,000,000 agents of one team in turns with those to 1,000
#                        grown       http on a cluster with --preload messages in turns with an empty one
#                        failover    kill -9 of the leader, --kills times
#                        restart     kill -9 of a follower, and the time from its start to /health and /readyz
#                        join        an empty node joins the state of --preload while --rate sends a second go on
#                        Modes that leave much behind get a cluster of their own, and run once unless --runs is given.
#   --in-flight LIST     how many sends are under way at a time, for http and batch (1,16,64,256)
#   --seconds COUNT      duration of one measurement (4; sustain and idle-teams 600, keyed 60, join 10)
#   --runs COUNT         number of measurements of each kind (3); the table shows their minimum, median and maximum
#   --preload COUNT      messages that every cluster holds before it is measured (0; grown 10,000,000)
#   --sizes LIST         other sizes: full-inbox=N,idle-teams=N,busy-teams=N,agents=N, and day=N, the seconds of a day in keyed
#   --kills COUNT        how often failover kills the leader (20)
#   --rate COUNT         sends a second while a node joins (5,000)
#   --port PORT          first client port (17700)
#   --peer-port PORT     first port between the nodes (17800)
#   --bin DIR            take the binaries from DIR instead of building the release; keyed needs nodes with the feature failpoints
#   --help               print this text
#
# The script starts clusters of its own with fresh data in a temporary directory under the cache, and removes them at the end.
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

TSV=no MODES=ws-push,fanout,http,batch,deliver,start,crash IN_FLIGHT='' SECONDS_EACH='' RUNS='' PORT=17700 PEER_PORT=17800 BIN=''
PRELOAD=0 SIZES='' KILLS=20 RATE=5000
while [ $# -gt 0 ]; do
  case $1 in
    --tsv) TSV=yes ;;
    --modes | --in-flight | --bin | --seconds | --runs | --port | --peer-port | --preload | --sizes | --kills | --rate) need_value "$1" $# ;;&
    --seconds | --runs | --port | --peer-port | --preload | --kills | --rate) need_count "$1" "$2" ;;&
    --modes) MODES=$2; shift ;;
    --in-flight) IN_FLIGHT=$2; shift ;;
    --bin) BIN=$2; shift ;;
    --seconds) SECONDS_EACH=$2; shift ;;
    --runs) RUNS=$2; shift ;;
    --port) PORT=$2; shift ;;
    --peer-port) PEER_PORT=$2; shift ;;
    --preload) PRELOAD=$2; shift ;;
    --sizes) SIZES=$2; shift ;;
    --kills) KILLS=$2; shift ;;
    --rate) RATE=$2; shift ;;
    -h | --help) usage "$0"; exit 0 ;;
    *) die "unknown argument '$1'; see --help" ;;
  esac
  shift
done
LONG_RUNS=${RUNS:-1}
[ -n "$RUNS" ] || { [ "$TSV" = yes ] && RUNS=1 || RUNS=3; }
MODES=,$MODES,
MODES=${MODES//,aged,/,keyed,full-inbox,idle-teams,busy-teams,agents,} MODES=${MODES#,} MODES=${MODES%,}
AGES=no
for mode in ${MODES//,/ }; do
  case $mode in
    http | batch | ws-push | fanout | deliver | start | crash | sustain | full-inbox | idle-teams | busy-teams | agents) ;;
    grown | failover | restart | join) ;;
    keyed | keyed-batch) AGES=yes ;;
    *) die "unknown mode '$mode'; see --help" ;;
  esac
done
DAY=60
[[ ,$SIZES, =~ ,day=([1-9][0-9]{0,4}), ]] && DAY=${BASH_REMATCH[1]}

NODES=3 WORKERS=$(($(nproc) / 3)) FIRST_PORT=$PORT FIRST_PEER_PORT=$PEER_PORT
[ "$WORKERS" -ge 1 ] || WORKERS=1
mkdir -p "$AGENTPOST_CACHE"
WORK=$(mktemp -d "$AGENTPOST_CACHE/bench.XXXXXX")
ROWS=$WORK/rows

# use_cluster NAME OFFSET: the following functions act on the cluster of this name, whose ports are OFFSET after the first ones.
use_cluster() { DIR=$WORK/$1 PORT=$((FIRST_PORT + $2)) PEER_PORT=$((FIRST_PEER_PORT + $2)); mkdir -p "$DIR"; }

# started_nodes: prints the nodes that were ever started, including one that joined.
started_nodes() { local file; for file in "$DIR"/*/pid; do [ ! -f "$file" ] || basename "$(dirname "$file")"; done; }
stop_cluster() {
  local n
  for n in $(started_nodes); do signal_node "$n" "${1:-TERM}" || true; done
  for n in $(started_nodes); do await_gone 20 "$n" || signal_node "$n" KILL || true; done
}
finish() {
  local status=$? dir
  for dir in "$WORK"/*/; do DIR=${dir%/} stop_cluster KILL; done
  rm -rf "$WORK"
  exit "$status"
}
use_cluster cluster 0
trap finish EXIT
trap 'exit 130' INT TERM

if [ -n "$BIN" ]; then
  install_packages curl jq
  AGES_BIN=$BIN
else
  build_binaries release
  # Copies, because the next build replaces the node.
  BIN=$WORK/bin AGES_BIN=$WORK/bin-ages
  mkdir -p "$BIN" "$AGES_BIN"
  cp "$BUILT_BIN"/{agentpostd,kite,agentpost} "$BIN"
  if [ "$AGES" = yes ]; then
    cp "$BIN"/{kite,agentpost} "$AGES_BIN"
    cargo_build --profile release --features agentpost-node/failpoints --bin agentpostd
    cp "$BUILT_BIN/agentpostd" "$AGES_BIN"
  fi
fi
CLUSTER_BIN=$BIN

# row METRIC IN-FLIGHT RUN VALUE UNIT P50 P99 NOTE
row() { printf 'agentpost\t%s\t%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$@" >>"$ROWS"; }

# start_cluster: starts an empty cluster of CLUSTER_BIN. STARTED_MS is the time from its launch to the first acknowledged message.
start_cluster() {
  local n began team key
  stop_cluster KILL
  rm -rf "$DIR"
  mkdir -p "$DIR"
  copy_binaries "$CLUSTER_BIN"
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

# preload COUNT: sends messages to the cluster.
preload() { [ "$1" -eq 0 ] || bench_program 1 '' --mode preload --preload "$1"; }

# fresh_cluster: starts a cluster that holds the messages of --preload.
fresh_cluster() { start_cluster; preload "$PRELOAD"; }

# bench_program RUN SUFFIX ARGS...: runs the load generator and writes the number of the run into the fourth column of its rows,
# and the suffix after the name in the first.
bench_program() {
  local run=$1 suffix=$2; shift 2
  # shellcheck disable=SC2086
  "$DIR/bin/agentpost" bench ${SECONDS_EACH:+--seconds "$SECONDS_EACH"} "$@" --data "$(data_dirs)" --tsv |
    awk -F'\t' -v OFS='\t' -v r="$run" -v s="$suffix" 'NF >= 6 && $1 != "peer" { $4 = r; $1 = $1 s; print }' >>"$ROWS"
}
data_dirs() { local n; for n in $(all_nodes); do printf '%s%s=%s' "$([ "$n" = 1 ] || echo ,)" "$n" "$DIR/$n/data"; done; }

# starter: writes a program that starts the node whose number it is given, and prints its path. A node that does not exist yet
# gets the next ports.
starter() {
  cat >"$WORK/start-node" <<END
#!/usr/bin/env bash
set -euo pipefail
. "$HERE/lib/common.sh"
. "$HERE/lib/cluster.sh"
DIR=$DIR PORT=$PORT PEER_PORT=$PEER_PORT WORKERS=$WORKERS NODES=\$1
[ -f "\$DIR/\$1/config.toml" ] || make_files
spawn_node "\$1"
node_pid "\$1"
END
  chmod +x "$WORK/start-node"
  echo "$WORK/start-node"
}

# ratio RUN A B: writes rows with the figures of the rows whose first column ends with B, in percent of those that end with A.
ratio() {
  awk -F'\t' -v OFS='\t' -v run="$1" -v a="$2" -v b="$3" '
    $4 != run || $2 != "acked-writes" { next }
    { name = $1; key = "" }
    substr(name, length(name) - length(a) + 1) == a { key = substr(name, 1, length(name) - length(a)) SUBSEP $3; value[key] = $5; p99[key] = $8 }
    substr(name, length(name) - length(b) + 1) == b {
      key = substr(name, 1, length(name) - length(b)) SUBSEP $3
      if (!(key in value) || value[key] <= 0) next
      printf "%s\trate\t%s\t%s\t%.1f\t%%\tNaN\tNaN\tthe rate in percent of %s\n", name, $3, run, 100 * $5 / value[key], a
      if (p99[key] > 0) printf "%s\tp99\t%s\t%s\t%.1f\t%%\tNaN\tNaN\tthe p99 in percent of %s\n", name, $3, run, 100 * $8 / p99[key], a
    }' "$ROWS" >"$WORK/ratios"
  cat "$WORK/ratios" >>"$ROWS"
}

peak_memory() {
  local n
  for n in $(all_nodes); do
    # The last mode may have killed it.
    [ "$(node_state "$n")" != stopped ] || continue
    row peak-memory 0 "node$n" "$(awk '/^VmHWM/ { printf "%d", $2 / 1024 }' "/proc/$(node_pid "$n")/status")" MiB NaN NaN VmHWM
  done
}

measure() {
  # Whether the next mode needs a new cluster.
  local run mode used=yes
  for run in $(seq "$RUNS"); do
    say "run $run of $RUNS"
    for mode in ${MODES//,/ }; do
      case $mode in
        sustain | keyed | keyed-batch | full-inbox | idle-teams | busy-teams | agents | grown | failover | restart | join)
          [ "$run" -le "$LONG_RUNS" ] || continue ;;&
        # These start clusters themselves.
        start | keyed | keyed-batch | grown) ;;
        *) [ "$used" = no ] || { fresh_cluster; used=no; } ;;
      esac
      say "  $mode"
      case $mode in
        start)
          start_cluster
          row startup-to-first-ack 0 "$run" "$(awk -v ms="$STARTED_MS" 'BEGIN { printf "%.2f", ms / 1000 }')" s NaN NaN "three nodes launched together, empty"
          preload "$PRELOAD"
          used=no
          ;;
        crash) bench_program "$run" '' --mode crash --in-flight "${IN_FLIGHT:-64}" --kill "$(pids)"; used=yes ;;
        failover) bench_program "$run" '' --mode failover --kills "$KILLS" --kill "$(pids)" --start "$(starter)"; used=yes ;;
        restart) bench_program "$run" '' --mode restart --kill "$(pids)" --start "$(starter)"; used=yes ;;
        join)
          bench_program "$run" '' --mode join --rate "$RATE" --start "$(starter)" \
            --place "127.0.0.1:$((PEER_PORT + NODES)),http://127.0.0.1:$((PORT + NODES))"
          used=yes
          ;;
        keyed | keyed-batch) young_and_aged "$run" "$mode"; used=yes ;;
        grown) empty_and_grown "$run"; used=yes ;;
        *)
          # shellcheck disable=SC2086
          bench_program "$run" '' --mode "$mode" ${IN_FLIGHT:+--in-flight "$IN_FLIGHT"} ${SIZES:+--sizes "$SIZES"}
          case $mode in sustain | full-inbox | idle-teams | busy-teams | agents) used=yes ;; esac
          ;;
      esac
    done
  done
  peak_memory
}

# young_and_aged RUN MODE: keyed sends on two clusters, one after the other. On the second, a day of cluster time takes DAY
# seconds, and both have run for a day and the next round of the sweeper when the measurement begins.
young_and_aged() {
  local age
  CLUSTER_BIN=$AGES_BIN
  for age in young aged; do
    say "    $age"
    unset AGENTPOST_CLUSTER_TIME_SPEED
    [ "$age" = young ] || export AGENTPOST_CLUSTER_TIME_SPEED=$((86400 / DAY))
    fresh_cluster
    # shellcheck disable=SC2086
    case $age in
      young) bench_program "$1" -young --mode "$2" --warm-up $((DAY + 15)) --sizes day=0 ${IN_FLIGHT:+--in-flight "$IN_FLIGHT"} ;;
      aged) bench_program "$1" -aged --mode "$2" --sizes "day=$DAY" ${IN_FLIGHT:+--in-flight "$IN_FLIGHT"} ;;
    esac
  done
  unset AGENTPOST_CLUSTER_TIME_SPEED
  CLUSTER_BIN=$BIN
  ratio "$1" -young -aged
}

# empty_and_grown RUN: http on two clusters in turns. One of them holds the messages of --preload. The other is idle meanwhile.
empty_and_grown() {
  local turn
  use_cluster grown 10
  start_cluster
  say "    preload"
  preload $((PRELOAD > 0 ? PRELOAD : 10000000))
  use_cluster cluster 0
  start_cluster
  for turn in $(seq 4); do
    say "    turn $turn of 4"
    on_cluster cluster 0 bench_program "$1.$turn" -empty --mode http --in-flight "${IN_FLIGHT:-1,16,256}"
    on_cluster grown 10 bench_program "$1.$turn" -grown --mode http --in-flight "${IN_FLIGHT:-1,16,256}"
    ratio "$1.$turn" -empty -grown
  done
  use_cluster grown 10
  stop_cluster KILL
  rm -rf "$DIR"
  use_cluster cluster 0
}

# on_cluster NAME OFFSET COMMAND...: runs the command on a cluster that runs.
on_cluster() {
  use_cluster "$1" "$2"; shift 2
  # shellcheck disable=SC1091
  . "$DIR/env"
  "$@"
}

pids() { local n; for n in $(all_nodes); do printf '%s%s=%s' "$([ "$n" = 1 ] || echo ,)" "$n" "$(node_pid "$n")"; done; }

facts() {
  local model disk
  model=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | head -n 1)
  disk=$(df --output=fstype,source "$WORK" | tail -n 1 | tr -s ' ')
  printf '%s\n' "Agentpost $("$DIR/bin/agentpostd" --version | awk '{ print $NF }'), commit $(git -C "$ROOT" describe --always --dirty 2>/dev/null || echo unknown), $(date -u +%Y-%m-%d)" \
    "machine: $(nproc) cores (${model:-unknown}), $(awk '/^MemTotal/ { printf "%d", $2 / 1048576 }' /proc/meminfo) GiB, Linux $(uname -r), $disk" \
    "settings: 3 nodes and the load on this machine, $WORKERS worker thread(s) a node, fsync on, bodies of 200 bytes, 1,000 inboxes," \
    "          ${SECONDS_EACH:-4} s each unless a mode has another length, $RUNS run(s), $PRELOAD messages before the first measurement"
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

measure
if [ "$TSV" = yes ]; then cat "$ROWS"; else facts; table; fi
