# Manages a cluster of node processes on 127.0.0.1: its files, its processes, its readiness. Sourced after common.sh.
# shellcheck shell=bash
#
# DIR/settings        number of nodes, ports and worker threads
# DIR/env             the variables that a client needs, for `. DIR/env`
# DIR/cluster.secret  the secret that the nodes share
# DIR/admin.key       the first admin key, written by node 1
# DIR/team            id and key of the team `default`
# DIR/bin/            a copy of the binaries, so that a later build does not change a running cluster
# DIR/N/              config.toml, data/, log and pid of node N

DIR=${DIR:-} NODES=${NODES:-3} PORT=${PORT:-7700} PEER_PORT=${PEER_PORT:-7800} WORKERS=${WORKERS:-}
STATUS=000 REPLY=''

node_url() { echo "http://127.0.0.1:$((PORT + $1 - 1))"; }
node_pid() { cat "$DIR/$1/pid" 2>/dev/null || true; }
all_nodes() { seq 1 "$NODES"; }

# node_state N: prints running, paused or stopped.
node_state() {
  local pid stat
  pid=$(node_pid "$1")
  if ! is_process "$pid" agentpostd "$DIR/$1/config.toml"; then echo stopped; return; fi
  stat=$(sed 's/.*) //' "/proc/$pid/stat" 2>/dev/null) || true
  case $stat in
    T*) echo paused ;;
    Z* | '') echo stopped ;;
    *) echo running ;;
  esac
}

# load_settings: reads DIR/settings, because a cluster keeps the ports and the number of nodes that it was created with. It fails
# if there is no cluster in DIR.
load_settings() {
  local key value
  [ -f "$DIR/settings" ] || return 1
  while IFS='=' read -r key value; do
    case $key in
      NODES) NODES=$value ;;
      PORT) PORT=$value ;;
      PEER_PORT) PEER_PORT=$value ;;
      WORKERS) WORKERS=$value ;;
    esac
  done <"$DIR/settings"
}

save_settings() { printf 'NODES=%s\nPORT=%s\nPEER_PORT=%s\nWORKERS=%s\n' "$NODES" "$PORT" "$PEER_PORT" "$WORKERS" >"$DIR/settings"; }

# make_files: writes the secret unless it exists, and the configuration of each node.
make_files() {
  local n i
  if [ ! -s "$DIR/cluster.secret" ]; then
    (umask 077 && head -c 32 /dev/urandom >"$DIR/cluster.secret.tmp")
    mv "$DIR/cluster.secret.tmp" "$DIR/cluster.secret"
  fi
  for n in $(all_nodes); do
    mkdir -p "$DIR/$n"
    {
      echo "# Written by scripts/cluster.sh up; every key is explained in node/src/base/default.toml."
      printf '[node]\nid = %d\ndata_dir = "%s"\n' "$n" "$DIR/$n/data"
      printf 'client_addr = "127.0.0.1:%d"\npeer_addr = "127.0.0.1:%d"\n\n' $((PORT + n - 1)) $((PEER_PORT + n - 1))
      printf '[cluster]\nsecret_file = "%s"\nnodes = [\n' "$DIR/cluster.secret"
      for i in $(all_nodes); do
        printf '  { id = %d, peer_addr = "127.0.0.1:%d", url = "%s" },\n' "$i" $((PEER_PORT + i - 1)) "$(node_url "$i")"
      done
      printf ']\n\n'
      # Exactly one node creates the cluster.
      [ "$n" -ne 1 ] || printf '[bootstrap]\nadmin_key_file = "%s"\n\n' "$DIR/admin.key"
      # Programs on this machine may receive webhooks.
      printf '[webhooks]\nallow_http = true\nallow_networks = ["127.0.0.0/8", "::1/128"]\n\n'
      printf '[runtime]\nworker_threads = %d\n' "$WORKERS"
    } >"$DIR/$n/config.toml"
  done
}

# copy_binaries FROM: copies into DIR/bin the binaries that differ from those there.
copy_binaries() {
  local b
  mkdir -p "$DIR/bin"
  for b in agentpostd kite agentpost; do
    [ -x "$1/$b" ] || die "$1 has no $b"
    cmp -s "$1/$b" "$DIR/bin/$b" && continue
    cp "$1/$b" "$DIR/bin/$b.tmp"
    mv "$DIR/bin/$b.tmp" "$DIR/bin/$b"
  done
}

# spawn_node N: starts the process and does not wait until it serves. The process gets a session of its own, so that it outlives
# this script and its terminal.
spawn_node() {
  local dir=$DIR/$1 pid
  [ -f "$dir/config.toml" ] || die "node $1 does not exist; see --help"
  (
    # The locks of `up` and of the target directory are for this script only.
    exec 9>&- 6<&-
    exec setsid "$DIR/bin/agentpostd" start --config "$dir/config.toml" >>"$dir/log" 2>&1 </dev/null
  ) &
  pid=$!
  disown "$pid" # Otherwise the shell prints a message when the node is killed.
  echo "$pid" >"$dir/pid"
  # Until setsid has run, the process has the command line of this script.
  until is_process "$pid" agentpostd "$dir/config.toml" || ! kill -0 "$pid" 2>/dev/null; do sleep 0.002; done
}

# is_ready N: /readyz of the node answers 200.
is_ready() { curl -fs -o /dev/null --max-time 1 "$(node_url "$1")/readyz" 2>/dev/null; }

# await_ready SECONDS N...: waits until all these nodes are ready. It fails at once, with the end of the log, when a process ends.
await_ready() {
  local limit=$1 deadline n; shift
  deadline=$(($(now_ms) + limit * 1000))
  for n in "$@"; do
    until is_ready "$n"; do
      if [ "$(node_state "$n")" = stopped ]; then
        tail -n 15 "$DIR/$n/log" >&2
        die "node $n ended; its log is $DIR/$n/log"
      fi
      [ "$(now_ms)" -lt "$deadline" ] || die "node $n was not ready within $limit s; its log is $DIR/$n/log"
      sleep 0.05
    done
  done
}

# signal_node N SIGNAL: fails if the process does not run.
signal_node() {
  [ "$(node_state "$1")" != stopped ] || return 1
  kill -s "$2" "$(node_pid "$1")" 2>/dev/null
}

# await_gone SECONDS N: waits until the process has ended, and fails if it has not ended in that time.
await_gone() {
  local deadline=$(($(now_ms) + $1 * 1000))
  until [ "$(node_state "$2")" = stopped ]; do
    [ "$(now_ms)" -lt "$deadline" ] || return 1
    sleep 0.02
  done
}

# api METHOD URL KEY [BODY]: sends a request and sets STATUS and REPLY. STATUS is 000 if there was no answer.
api() {
  local out args=(-sS --max-time 10 -X "$1" -H "Authorization: Bearer $3" -w '\n%{http_code}')
  [ $# -lt 4 ] || args+=(-H 'Content-Type: application/json' --data-binary "$4")
  out=$(curl "${args[@]}" "$2" 2>/dev/null) || true
  STATUS=${out##*$'\n'} REPLY=${out%$'\n'*}
  [ -n "$STATUS" ] || STATUS=000
}

# admin METHOD PATH [BODY]: sends a request to the operator API of any node. It repeats the request during an election and in the
# first seconds of a new cluster, for 30 s at most.
admin() {
  local deadline=$(($(now_ms) + 30000)) n key
  while :; do
    for n in $(all_nodes); do
      key=$(cat "$DIR/admin.key" 2>/dev/null) || continue
      api "$1" "$(node_url "$n")/admin/v1$2" "$key" "${@:3}"
      case $STATUS in 000 | 401 | 429 | 5*) ;; *) return 0 ;; esac
    done
    [ "$(now_ms)" -lt "$deadline" ] || die "$1 /admin/v1$2 kept failing: ${STATUS:-no admin key} ${REPLY:-}"
    sleep 0.05
  done
}

# ensure_team: creates the team `default` and a key that may write, unless DIR/team holds them.
ensure_team() {
  local id
  [ ! -s "$DIR/team" ] || return 0
  admin POST /teams '{"name":"default"}'
  if [ "$STATUS" = 409 ]; then
    admin GET /teams
    id=$(jq -r '.teams[] | select(.name == "default") | .id' <<<"$REPLY")
  else
    [ "$STATUS" = 200 ] || die "cannot create the team: $STATUS $REPLY"
    id=$(jq -r .id <<<"$REPLY")
  fi
  admin POST "/teams/$id/keys" '{"name":"default","permissions":["write"]}'
  [ "$STATUS" = 200 ] || die "cannot create the key: $STATUS $REPLY"
  (umask 077 && printf '%s %s\n' "$id" "$(jq -r .api_key <<<"$REPLY")" >"$DIR/team.tmp")
  mv "$DIR/team.tmp" "$DIR/team"
}

# write_env: writes DIR/env, for `. DIR/env`.
write_env() {
  local n urls=() team key
  for n in $(all_nodes); do urls+=("$(node_url "$n")"); done
  read -r team key <"$DIR/team"
  (
    umask 077
    {
      echo "# Settings for clients of the cluster in $DIR. Use them in a shell with: . $DIR/env"
      printf 'export AGENTPOST_URLS="%s"\n' "${urls[*]}"
      printf 'export AGENTPOST_ADMIN_KEY="%s"\n' "$(cat "$DIR/admin.key")"
      printf 'export AGENTPOST_BIN="%s"\n' "$DIR/bin"
      printf 'export KITE_API_KEY="%s"\n' "$key"
      printf 'export KITE_TEAM_ID="%s"\n' "$team"
      printf 'export KITE_WS_URL="%s"\n' "ws://127.0.0.1:$PORT/ws"
    } >"$DIR/env.tmp"
  )
  mv "$DIR/env.tmp" "$DIR/env"
}
