#!/usr/bin/env bash
# From a fresh checkout to agents that exchange mail on a three-node cluster, with the leader killed on the way.
#
# usage: scripts/quickstart.sh [--exit] [--dir DIR] [--port 7700] [--peer-port 7800] [--bin DIR]
#
#   --exit            stop the cluster at the end; without it the cluster goes on and its URLs and keys are printed
#   --dir DIR         where the cluster lives (the default is that of cluster.sh)
#   --port PORT       first client port
#   --peer-port PORT  first port between the nodes
#   --bin DIR         take the binaries from there instead of building them
#   --help            this text
#
# It installs what is missing, builds the release binaries, starts three nodes, logs a machine in, walks through both ways to
# send and read mail on different nodes, publishes to a topic, watches a webhook fail and succeed, kills the leader with
# kill -9 while mail is being sent, and checks that nothing was lost. Every command is printed as it is run. Your own Kite
# configuration is not touched. The exit status is 0 only if every check held.

# Commands are shown with their variables and expanded when they are run:
# shellcheck source-path=SCRIPTDIR disable=SC2016,SC2034
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/cluster.sh
. "$HERE/lib/cluster.sh"
# shellcheck source=lib/transcript.sh
. "$HERE/lib/transcript.sh"

DIR=$AGENTPOST_CACHE/cluster EXIT=no UP=()
while [ $# -gt 0 ]; do
  case $1 in
    --exit) EXIT=yes ;;
    --dir | --port | --peer-port | --bin) need_value "$1" $# ;;&
    --dir) DIR=$(realpath -m "$2"); shift ;;
    --port | --peer-port | --bin) UP+=("$1" "$2"); shift ;;
    -h | --help) usage "$0"; exit 0 ;;
    *) die "unknown argument '$1'; see --help" ;;
  esac
  shift
done

# The user's own settings must not leak in.
unset KITE_API_KEY KITE_TEAM_ID KITE_WS_URL KITE_HOOK_BASE_URL AGENTPOST_URLS AGENTPOST_ADMIN_KEY AGENTPOST_BIN
unset AGENTPOST_WEBHOOK_SECRET QSTASH_CURRENT_SIGNING_KEY QSTASH_NEXT_SIGNING_KEY
WORK=$(mktemp -d) LISTENERS=()

finish() {
  local status=$?
  [ ${#LISTENERS[@]} -eq 0 ] || kill "${LISTENERS[@]}" 2>/dev/null || true
  [ "$EXIT" = no ] || cluster down || true
  rm -rf "$WORK"
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT TERM

cluster() { "$HERE/cluster.sh" "$@" --dir "$DIR"; }

# on MACHINE COMMAND...: as the user of machine alpha or beta. Each has a home, with the configuration that `kite login` and
# `kite agent register` write there. It takes the place of the (sub)shell that calls it, so that the pid of a listener is the listener's.
on() {
  local machine=$1; shift
  cd "$WORK/$machine"
  exec env -u XDG_CONFIG_HOME -u XDG_DATA_HOME -u AGENTPOST_URLS -u KITE_API_KEY -u KITE_TEAM_ID -u KITE_WS_URL \
    HOME="$WORK/$machine" PATH="$AGENTPOST_BIN:$PATH" "$@"
}

# background NAME MACHINE COMMAND...: in the background, its output in WORK/NAME and WORK/NAME.err.
background() {
  local name=$1 machine=$2; shift 2
  printf '\n%s%s$ %s &%s\n' "$BOLD" "$machine" "$*" "$PLAIN"
  on "$machine" env AGENTPOST_URLS="$AGENTPOST_URLS" "$@" >"$WORK/$name" 2>"$WORK/$name.err" </dev/null &
  LISTENERS+=($!)
}

# listen NAME MACHINE ARGS...: a listener in the background.
listen() {
  background "$1" "$2" kite agent listen "${@:3}"
  check "the listener is connected" eventually 20 grep -q '^Connected' "$WORK/$1.err"
  sed 's/^/  /' "$WORK/$1.err"
}
# heard NAME TEXT: a listener has printed it.
heard() { eventually 10 grep -qF -- "$2" "$WORK/$1"; }
last_heard() { tail -n 1 "$WORK/$1" | sed 's/^/  alpha hears: /'; }

# leader: its number as the first node that answers knows it, or nothing.
leader() {
  local url
  for url in "$NODE1" "$NODE2" "$NODE3"; do
    api GET "$url/admin/v1/cluster" "$AGENTPOST_ADMIN_KEY"
    [ "$STATUS" != 200 ] || break
  done
  jq -r '.leader // empty' <<<"$REPLY" 2>/dev/null || true
}

start_cluster() {
  heading "1. Three nodes on this machine"
  text "Any of them takes any request; a majority of them has a message on disk before it is acknowledged."
  printf '\n%s$ scripts/cluster.sh up%s\n' "$BOLD" "$PLAIN"
  cluster up --nodes 3 "${UP[@]}"
  load_settings || die "cluster.sh up left no settings"
  # shellcheck disable=SC1091
  . "$DIR/env"
  read -r NODE1 NODE2 NODE3 <<<"$AGENTPOST_URLS"
  export AGENTPOST_URLS AGENTPOST_ADMIN_KEY
  PATH=$AGENTPOST_BIN:$PATH
  run 'agentpost cluster status'
  check "a leader is known" test -n "$(leader)"
}

# new_key VARIABLE JSON: a key of the team, into the variable.
new_key() {
  admin POST "/teams/$TEAM/keys" "$2"
  [ "$STATUS" = 200 ] || die "cannot create a key: $STATUS $REPLY"
  printf -v "$1" '%s' "$(jq -r .api_key <<<"$REPLY")"
}

make_team() {
  heading "2. A team and its keys"
  text "Nothing crosses the border of a team. A key may be bound to one agent; these three are. The machines of the Kite guide get theirs below."
  TEAM_NAME=quickstart-$(date +%Y%m%d-%H%M%S)-$$
  run 'curl -s -X POST "$NODE1/admin/v1/teams" -H "Authorization: Bearer $AGENTPOST_ADMIN_KEY" \
    -H "Content-Type: application/json" -d "{\"name\": \"$TEAM_NAME\"}"'
  TEAM=$(field .id)
  check "the team has an id" grep -qE '^team_[0-9a-f]{32}$' <<<"$TEAM"
  [ -n "$TEAM" ] || die "no team, no quickstart"
  run 'curl -s -X POST "$NODE2/admin/v1/teams/$TEAM/keys" -H "Authorization: Bearer $AGENTPOST_ADMIN_KEY" \
    -H "Content-Type: application/json" \
    -d '"'"'{"name": "receiver", "permissions": ["write"], "agent_id": "agt_receiver_001"}'"'"
  RECEIVER_KEY=$(field .api_key)
  new_key SENDER_KEY '{"name":"sender","permissions":["write"],"agent_id":"agt_sender_042"}'
  new_key INBOX_KEY '{"name":"alpha inbox","permissions":["read"],"agent_id":"agent-alpha"}'
}

# key_in TEXT: the API key that a command has printed.
key_in() { grep -oE 'kite_[0-9a-f]{8}_[0-9a-f]{32}' <<<"$1" | head -n 1 || true; }
# user_code NAME: what the login in the background tells its user to type.
user_code() { grep -ohE '\b[B-DF-HJ-NP-TV-XZ]{4}-[B-DF-HJ-NP-TV-XZ]{4}\b' "$WORK/$1" "$WORK/$1.err" | head -n 1; }

kite_login() {
  heading "3. The Kite guide: two machines get their keys"
  text "Machine alpha talks to node 1, machine beta to node 2. Each is a home directory of its own here. Alpha asks for a key; whoever administers the team lets it in, on any node: on the page $NODE2/activate, or by command."
  mkdir -p "$WORK/alpha" "$WORK/beta"
  background login alpha kite login --server "$NODE1"
  check "it shows a code" eventually 20 user_code login
  sed 's/^/  /' "$WORK/login.err" "$WORK/login"
  CODE=$(user_code login)
  run 'agentpost login approve "$CODE" --team "$TEAM" --permissions admin --yes'
  check "let in" test "$RC" -eq 0
  check "machine alpha has its key" eventually 20 grep -q '^Logged in' "$WORK/login"
  sed 's/^/  /' "$WORK/login"
  check "in a file that nobody else may read" test "$(stat -c %a "$WORK/alpha/.config/kite/config.toml")" = 600

  text "Alpha makes a key for machine beta, which has it in its environment, here by a .env file."
  run_on alpha 'kite keys create --name "machine beta" --permissions write'
  BETA_KEY=$(key_in "$OUT")
  check "a key of the form kite_..." test -n "$BETA_KEY"
  printf 'KITE_API_KEY=%s\nKITE_TEAM_ID=%s\nKITE_WS_URL=ws%s/ws\n' "$BETA_KEY" "$TEAM" "${NODE2#http}" >"$WORK/beta/.env"
}

kite_guide() {
  local id
  heading "4. The Kite guide: register, listen, send"
  run_on alpha 'kite agent register --name agent-alpha'
  check "alpha is agent-alpha" grep -q 'id: *agent-alpha' <<<"$OUT"
  run_on beta 'kite agent register --name agent-beta'
  listen plain alpha

  run_on beta 'kite agent send --to agent-alpha "Here are the results you asked for."'
  check "the send was acknowledged" test "$RC" -eq 0
  check "alpha hears it" heard plain 'agent-beta → agent-alpha: Here are the results you asked for.'
  last_heard plain
  id=$(sed -n 's/^ *id: *//p' <<<"$OUT")

  run_on beta "kite agent send --to agent-alpha --thread thread-abc123 --reply-to $id \"Re: those results — found one edge case.\""
  check "thread and reply arrive" heard plain "thread=thread-abc123 reply_to=$id: Re: those results — found one edge case."
  last_heard plain

  text "Without the CLI, through node 3, and with a second listener that prints the whole event:"
  listen json alpha --json
  run 'curl -s -X POST "$NODE3/api/v1/agents/messages?team_id=$TEAM" -H "Authorization: Bearer $BETA_KEY" \
    -H "Content-Type: application/json" \
    -d '"'"'{"from": "agent-beta", "to": "agent-alpha", "body": "Sent with curl.", "thread_id": "thread-abc123"}'"'"
  check "the reply has the event id and the usage" jq -e '(.id | length == 36) and .usage.events_used >= 3 and .usage.events_limit > 0' <<<"$OUT"
  check "alpha hears it" heard plain 'agent-beta → agent-alpha thread=thread-abc123: Sent with curl.'
  id=$(field .id)
  check "the second listener has the whole CloudEvent" heard json "$id"
  grep -F -- "$id" "$WORK/json" | head -n 1 | pretty | sed 's/^/  /'
  check "and it is a com.kite.agent.message" jq -e '.type == "com.kite.agent.message" and .data.to == "agent-alpha"' <<<"$(grep -F -- "$id" "$WORK/json" | head -n 1)"

  text "Who is there, and what went through:"
  run_on beta 'kite agent list'
  check "agent-alpha has two listeners" grep -qE '^agent-alpha .* 2 ' <<<"$OUT"
  run_on beta 'kite logs --limit 3'
  check "the newest event comes first" grep -qF 'Sent with curl.' <<<"$(head -n 1 <<<"$OUT")"
  run_on beta 'kite status'
  check "the team's numbers" grep -qF -- "- team_id: $TEAM" <<<"$OUT"
  # Listeners of one agent share its mailbox, so what one has acknowledged the other does not get after a break.
  kill "${LISTENERS[-1]}"
}

kite_mistakes() {
  local key
  text "What goes wrong says so:"
  run_on beta 'HOME=/nonexistent kite agent send --to agent-alpha hello'
  check "an unregistered machine is told to register" grep -qF 'kite agent register' <<<"$OUT"
  check "with exit status 1" test "$RC" -eq 1
  run_on alpha 'kite keys create --name "only reads"'
  key=$(key_in "$OUT")
  run_on beta "KITE_API_KEY=$key kite agent send --to agent-alpha hello"
  check "a key without write is refused" grep -qF 'send failed (403 Forbidden)' <<<"$OUT"
  run_on alpha "kite keys list"
  key=$(sed -n 's/^- id=\(key_[0-9a-f]*\) name=only reads .*/\1/p' <<<"$OUT")
  run_on alpha "kite keys revoke --id $key"
  check "and goes" grep -qF "Revoked API key: $key" <<<"$OUT"
}

abbababa_examples() {
  heading "5. The Abba Baba examples: send on node 2, read on node 3"
  text "Replies are shown without their empty keys and without \`data\`, where clients of the newer dialect find the same again."
  SHOWN='del(.data, .pagination) | walk(if type == "object" then with_entries(select(.value != null or .key == "readAt")) else . end)'
  run 'curl -s -X POST "$NODE2/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" -d '"'"'{
    "toAgentId": "agt_receiver_001",
    "type": "delivery.request",
    "body": {
      "serviceId": "svc_cl_audit_01",
      "payload": { "repo": "github.com/example/project" },
      "deadline": "2026-02-15T00:00:00Z"
    }
  }'"'"
  MESSAGE=$(field .messageId)
  check "a success with a message id" jq -e '.success == true and (.messageId | test("^msg_[0-9a-f]{32}$"))' <<<"$OUT"

  run 'curl -s "$NODE3/api/v1/messages?unreadOnly=true&limit=20" -H "X-API-Key: $RECEIVER_KEY"'
  check "the inbox on another node has it, unread" jq -e --arg m "$MESSAGE" '.messages[-1] | .id == $m and .readAt == null and .fromAgentId == "agt_sender_042"' <<<"$OUT"
  check "with a cursor to go on from" jq -e '.cursor | length > 0' <<<"$OUT"

  run 'curl -s "$NODE1/api/v1/messages/$MESSAGE" -H "X-API-Key: $RECEIVER_KEY"'
  check "the third node has it whole" jq -e '.message.body.payload.repo == "github.com/example/project"' <<<"$OUT"

  run 'curl -s -X PATCH "$NODE2/api/v1/messages/$MESSAGE" -H "X-API-Key: $RECEIVER_KEY" \
    -H "Content-Type: application/json" -d '"'"'{ "read": true }'"'"
  check "marked read" jq -e '.success == true' <<<"$OUT"
  run 'curl -s "$NODE3/api/v1/messages?unreadOnly=true" -H "X-API-Key: $RECEIVER_KEY"'
  check "and no longer unread, on any node" jq -e '.messages == []' <<<"$OUT"

  text "One mailbox behind both: mail sent here is heard by the Kite listener."
  run 'curl -s -X POST "$NODE3/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -H "Idempotency-Key: price-1" -d '"'"'{"toAgentId": "agent-alpha", "type": "price.quote", "body": "5 USDC"}'"'"
  MESSAGE=$(field .messageId)
  check "alpha hears it" heard plain 'agt_sender_042 → agent-alpha: 5 USDC'
  last_heard plain
  run 'curl -s -X POST "$NODE1/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -H "Idempotency-Key: price-1" -d '"'"'{"toAgentId": "agent-alpha", "type": "price.quote", "body": "5 USDC"}'"'"
  check "sent again under its idempotency key it is the same message" test "$(field .messageId)" = "$MESSAGE"
  run 'curl -s "$NODE1/v1/messages/$MESSAGE" -H "X-API-Key: no_such_key"'
  check "a wrong key is refused in JSON" jq -e '.error | type == "string"' <<<"$OUT"
  SHOWN=.
}

# hook NAME ANSWERS: a webhook in the background at HOOK_URL that verifies with SECRET and the team's signing keys, its
# output in WORK/NAME. The command takes the secrets from its environment.
hook() {
  local name=$1 answers=$2 port=${HOOK_URL##*:}
  port=${port%%/*}
  printf '\n%s$ agentpost webhook listen --port %s --answer %s &%s\n' "$BOLD" "$port" "$answers" "$PLAIN"
  AGENTPOST_WEBHOOK_SECRET=$SECRET agentpost webhook listen --port "$port" --answer "$answers" \
    >"$WORK/$name" 2>"$WORK/$name.err" </dev/null &
  LISTENERS+=($!)
  check "the webhook listens" eventually 20 grep -q '^Listening' "$WORK/$name.err"
  sed 's/^/  /' "$WORK/$name.err"
}
# free_port: the first from 9000 on, and the next at the next call.
free_port() {
  HOOK_PORT=$((${HOOK_PORT:-8999} + 1))
  until port_free "$HOOK_PORT"; do HOOK_PORT=$((HOOK_PORT + 1)); done
}
# notice_of MESSAGE: the sender's newest mail is the notice of its dead letter.
notice_of() {
  OUT=$(curl -s "$NODE3/v1/messages?order=desc&limit=1" -H "X-API-Key: $SENDER_KEY")
  jq -e --arg m "$1" '.messages[0] | .fromAgentId == "system" and .type == "delivery.failed" and .body.messageId == $m' <<<"$OUT"
}
# delivered MESSAGE ATTEMPTS: its receipt says so.
delivered() {
  OUT=$(curl -s "$NODE1/v1/messages/$1/receipt" -H "X-API-Key: $SENDER_KEY")
  jq -e --argjson n "$2" '.receipt.delivered[0] | .state == "delivered" and .attempts == $n' <<<"$OUT"
}

topics_and_webhooks() {
  local slow lost delivery
  heading "6. A topic, a webhook that fails twice, and a dead letter"
  SHOWN='del(.data, .pagination) | walk(if type == "object" then with_entries(select(.value != null)) else . end)'
  text "Who subscribes to a topic gets what is published to it, in its own inbox and in the order of publishing."
  run 'curl -s -X POST "$NODE1/v1/messages/subscribe" -H "X-API-Key: $RECEIVER_KEY" \
    -H "Content-Type: application/json" -d '"'"'{"topic": "marketplace.updates"}'"'"
  check "subscribed" jq -e '.subscription.topic == "marketplace.updates"' <<<"$OUT"
  run 'curl -s -X POST "$NODE3/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -d '"'"'{"topic": "marketplace.updates", "type": "price.change", "body": {"service": "audit", "usdc": 4}}'"'"
  MESSAGE=$(field .messageId)
  run 'curl -s "$NODE2/v1/messages?unreadOnly=true" -H "X-API-Key: $RECEIVER_KEY"'
  check "the subscriber has it, on another node" jq -e --arg m "$MESSAGE" '.messages[-1] | .id == $m and .topic == "marketplace.updates"' <<<"$OUT"

  text "A webhook gets mail as it comes. This one fails twice, so it is tried again after 1 s and after 10 s more. What verifies its calls is in the answers to the registration and to /v2/keys."
  free_port
  HOOK_URL=http://127.0.0.1:$HOOK_PORT/mail
  run 'curl -s -X POST "$NODE2/v1/messages/webhook" -H "X-API-Key: $RECEIVER_KEY" -H "Content-Type: application/json" \
    -d "{\"url\": \"$HOOK_URL\", \"events\": [\"message.received\", \"message.topic\"]}"'
  SECRET=$(field .webhook.secret)
  check "registered, with a secret" grep -q '^whsec_' <<<"$SECRET"
  run 'curl -s "$NODE3/v2/keys" -H "X-API-Key: $RECEIVER_KEY"'
  export QSTASH_CURRENT_SIGNING_KEY QSTASH_NEXT_SIGNING_KEY
  QSTASH_CURRENT_SIGNING_KEY=$(field .current) QSTASH_NEXT_SIGNING_KEY=$(field .next)
  hook slow 500,500,200
  run 'curl -s -X POST "$NODE1/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -d '"'"'{"toAgentId": "agt_receiver_001", "type": "delivery.request", "body": {"serviceId": "svc_cl_audit_02"}}'"'"
  slow=$(field .messageId)
  check "the first call comes at once; all its signatures verify" heard slow 'attempt 1, verified, answered 500'

  text "Meanwhile another agent: its webhook answers 489, which says that no retry will help. (So does 410, which also disables the URL. Everything else is tried four times, which takes 111 s.)"
  new_key AUDITOR_KEY '{"name":"auditor","permissions":["write"],"agent_id":"agt_auditor_007"}'
  free_port
  HOOK_URL=http://127.0.0.1:$HOOK_PORT/mail
  run 'curl -s -X POST "$NODE3/v1/messages/webhook" -H "X-API-Key: $AUDITOR_KEY" -H "Content-Type: application/json" \
    -d "{\"url\": \"$HOOK_URL\", \"events\": [\"message.received\"]}"'
  SECRET=$(field .webhook.secret)
  hook refusing 489
  run 'curl -s -X POST "$NODE2/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -d '"'"'{"toAgentId": "agt_auditor_007", "type": "delivery.request", "body": {"serviceId": "svc_cl_audit_03"}}'"'"
  lost=$(field .messageId)
  check "it is called once" heard refusing 'attempt 1, verified, answered 489'
  check "the sender finds a notice of the dead letter in its inbox" eventually 10 notice_of "$lost"
  run 'curl -s "$NODE3/v1/messages?order=desc&limit=1" -H "X-API-Key: $SENDER_KEY"'
  delivery=$(field '.messages[0].body.deliveryId')
  run 'agentpost deliveries list --team "$TEAM" --state dead'
  check "the operator sees it too" grep -q "^$delivery  dead (non_retryable)" <<<"$OUT"

  text "Its receiver is repaired, and the operator has it delivered after all."
  kill "${LISTENERS[-1]}"
  check "its port is free again" eventually 10 port_free "$HOOK_PORT"
  hook repaired 200
  run "agentpost deliveries redrive $delivery --team \"\$TEAM\""
  check "it arrives" heard repaired 'attempt 1, verified, answered 200'
  sed 's/^/  /' "$WORK/repaired"

  check "the webhook that failed twice has got its mail, with the third call" eventually 30 grep -q 'attempt 3, verified, answered 200' "$WORK/slow"
  sed 's/^/  /' "$WORK/slow"
  check "the sender's receipt tells of three attempts" eventually 10 delivered "$slow" 3
  run 'agentpost deliveries list --team "$TEAM"'
  run "curl -s \"\$NODE1/v1/messages/$slow/receipt\" -H \"X-API-Key: \$SENDER_KEY\""
  check "and that it is not read yet" jq -e '.receipt.counts == {receivers: 1, read: 0}' <<<"$OUT"
  text "The webhooks of this walk go with it."
  run 'curl -s -X DELETE "$NODE2/v1/messages/webhook" -H "X-API-Key: $RECEIVER_KEY"'
  curl -s -o /dev/null -X DELETE "$NODE2/v1/messages/webhook" -H "X-API-Key: $AUDITOR_KEY"
  SHOWN=.
}

# send_note I: message I of the crash test, repeated under its idempotency key, node after node, until it is acknowledged.
send_note() {
  local urls=("$NODE1" "$NODE2" "$NODE3") try=0 deadline=$(($(now_ms) + 30000)) code
  while :; do
    code=$(curl -s -o /dev/null -w '%{http_code}' --max-time 2 -X POST "${urls[(($1 + try) % 3)]}/v1/messages" \
      -H "X-API-Key: $SENDER_KEY" -H 'Content-Type: application/json' -H "Idempotency-Key: note-$1" \
      -d "{\"toAgentId\": \"agent-alpha\", \"type\": \"note\", \"body\": \"note $1 of $NOTES\"}") || true
    case $code in
      200) return 0 ;;
      4*) [ "$code" = 429 ] || return 1 ;;
    esac
    [ "$(now_ms)" -lt "$deadline" ] || return 1
    try=$((try + 1))
    sleep 0.02
  done
}

# notes_on URL: the numbers of the notes in agent-alpha's inbox there, in inbox order, on one line.
notes_on() {
  curl -s --max-time 10 "$1/v1/messages?limit=200" -H "X-API-Key: $INBOX_KEY" |
    jq -r '[.messages[] | select(.type == "note") | .body.text | capture("note (?<n>[0-9]+) ").n] | join(" ")'
}

kill_the_leader() {
  local i first before longest=0 took killed expected n
  heading "7. kill -9 for the leader while mail is being sent"
  NOTES=30
  killed=1
  text "Alpha listens at node $killed. That node shall lead, so that the listener loses its node and the cluster its leader."
  [ "$(leader)" = "$killed" ] || run 'curl -s -X POST "$NODE2/admin/v1/cluster/transfer" -H "Authorization: Bearer $AGENTPOST_ADMIN_KEY" \
    -H "Content-Type: application/json" -d '"'"'{"node": 1}'"'"
  check "node $killed leads" eventually 10 leads "$killed"
  text "$NOTES notes go to agent-alpha, one after the other over all nodes, each under its own idempotency key. After the tenth, node $killed gets SIGKILL."
  printf '\n  '
  for i in $(seq "$NOTES"); do
    first=$(now_ms)
    if ! send_note "$i"; then printf '%s!%s ' "$RED" "$PLAIN"; check "note $i was acknowledged" false; return; fi
    took=$(($(now_ms) - first))
    [ "$took" -le "$longest" ] || longest=$took
    printf '%d ' "$i"
    if [ "$i" -eq 10 ]; then
      cluster kill "$killed" 2>/dev/null
      printf '%s[node %s killed]%s ' "$RED" "$killed" "$PLAIN"
    fi
  done
  printf '\n\n'
  expected=$(seq -s ' ' "$NOTES")
  check "all $NOTES were acknowledged; the longest wait was $longest ms" true
  check "another node leads" eventually 10 another_leads "$killed"
  for n in 1 2 3; do
    [ "$n" -ne "$killed" ] || continue
    check "node $n has all $NOTES, once each, in order" test "$(notes_on "$(node_url "$n")")" = "$expected"
  done
  check "the listener heard them all, through the loss of the node" heard_all

  before=$(now_ms)
  printf '\n%s$ scripts/cluster.sh start %s%s\n' "$BOLD" "$killed" "$PLAIN"
  cluster start "$killed" 2>/dev/null || die "node $killed did not come back"
  check "node $killed is back after $(($(now_ms) - before)) ms" true
  check "and has all $NOTES, once each, in order" test "$(notes_on "$(node_url "$killed")")" = "$expected"
  check "the three nodes hold the same state, byte for byte" eventually 20 same_state
  run 'agentpost cluster status'
}
leads() { [ "$(leader)" = "$1" ]; }
another_leads() { local now; now=$(leader); [ -n "$now" ] && [ "$now" != "$1" ]; }
heard_all() {
  local i
  for i in $(seq "$NOTES"); do heard plain "agt_sender_042 → agent-alpha: note $i of $NOTES" || return 1; done
}
# same_state: equal hash of everything stored, at equal index, on three nodes.
same_state() {
  api GET "$NODE1/admin/v1/cluster" "$AGENTPOST_ADMIN_KEY"
  jq -e '[.nodes[] | [.state_hash_index, .state_hash]] | length == 3 and (unique | length == 1) and .[0][1] != null' <<<"$REPLY"
}

farewell() {
  local where=''
  heading "$([ "$FAILURES" -eq 0 ] && echo 'Nothing was lost.' || echo "$FAILURES checks failed.")"
  # What the listeners went through helps to see why.
  [ "$FAILURES" -eq 0 ] || tail -n 20 "$WORK/plain.err" "$WORK/plain" | sed 's/^/  /'
  if [ "$EXIT" = yes ]; then text "The cluster is being stopped (--exit)."; return; fi
  text "The cluster goes on: $AGENTPOST_URLS"
  text "In your shell, for the team \`default\`:"
  printf '  . %s/env\n  export PATH=$AGENTPOST_BIN:$PATH\n  kite agent register --name my-agent\n  kite agent listen &\n  kite agent send --to my-agent hello\n' "$DIR"
  text "As agent agt_receiver_001 of the team of this walk:"
  printf '  curl -s %s/v1/messages -H "X-API-Key: %s"\n' "$NODE1" "$RECEIVER_KEY"
  [ "$DIR" = "$AGENTPOST_CACHE/cluster" ] || where=" --dir $DIR"
  text "scripts/cluster.sh status$where shows it, scripts/cluster.sh down$where stops it."
}

start_cluster
make_team
kite_login
kite_guide
kite_mistakes
abbababa_examples
topics_and_webhooks
kill_the_leader
farewell
[ "$FAILURES" -eq 0 ]
