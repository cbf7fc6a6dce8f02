#!/usr/bin/env bash
# Builds Agentpost, starts a cluster of three nodes on this machine, and shows what it does: agents exchange mail while the leader
# is killed, and nothing is lost.
#
# usage: scripts/quickstart.sh [--exit] [--dir DIR] [--port 7700] [--peer-port 7800] [--bin DIR]
#
#   --exit            stop the cluster at the end; without --exit it goes on running, and its URLs and keys are printed
#   --dir DIR         directory of the cluster (~/.cache/agentpost/cluster)
#   --port PORT       first client port (7700)
#   --peer-port PORT  first port between the nodes (7800)
#   --bin DIR         take agentpostd, kite and agentpost from DIR instead of building them
#   --help            print this text
#
# The script installs missing packages with apt-get and builds the binaries, which takes some minutes the first time. Then it
#   1. starts three nodes,
#   2. creates a team and its keys,
#   3. logs a machine in with `kite login`,
#   4. sends and receives mail with the Kite command line,
#   5. sends and reads mail with the REST interface, on different nodes,
#   6. publishes to a topic, and delivers to a webhook that fails at first,
#   7. kills the leader with `kill -9` while mail is being sent, and checks that nothing was lost.
# Every command is printed before its output. Your own Kite configuration is not touched. The exit status is 0 only if every check
# succeeded.

# Commands are printed with their variables, which are expanded when the command is run:
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

# The user's own settings must have no effect here.
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

# on MACHINE COMMAND...: runs the command as the user of machine alpha or beta. Each machine is a home directory with the
# configuration that `kite login` and `kite agent register` write. The command replaces the calling subshell, so that its pid is
# that of the subshell.
on() {
  local machine=$1; shift
  cd "$WORK/$machine"
  exec env -u XDG_CONFIG_HOME -u XDG_DATA_HOME -u AGENTPOST_URLS -u KITE_API_KEY -u KITE_TEAM_ID -u KITE_WS_URL \
    HOME="$WORK/$machine" PATH="$AGENTPOST_BIN:$PATH" "$@"
}

# background NAME MACHINE COMMAND...: runs the command in the background, with its output in WORK/NAME and WORK/NAME.err.
background() {
  local name=$1 machine=$2; shift 2
  printf '\n%s%s$ %s &%s\n' "$BOLD" "$machine" "$*" "$PLAIN"
  on "$machine" env AGENTPOST_URLS="$AGENTPOST_URLS" "$@" >"$WORK/$name" 2>"$WORK/$name.err" </dev/null &
  LISTENERS+=($!)
}

# listen NAME MACHINE ARGS...: starts a listener in the background.
listen() {
  background "$1" "$2" kite agent listen "${@:3}"
  check "the listener is connected" eventually 20 grep -q '^Connected' "$WORK/$1.err"
  sed 's/^/  /' "$WORK/$1.err"
}
# heard NAME TEXT: the listener or webhook NAME prints the text within 10 s.
heard() { eventually 10 grep -qF -- "$2" "$WORK/$1"; }
last_heard() { tail -n 1 "$WORK/$1" | sed 's/^/  alpha receives: /'; }

# leader: prints the number of the leader according to the first node that answers, or nothing.
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
  text "A client may send any request to any node. A message is acknowledged when a majority of the nodes has it on disk."
  printf '\n%s$ scripts/cluster.sh up%s\n' "$BOLD" "$PLAIN"
  cluster up --nodes 3 "${UP[@]}"
  load_settings || die "scripts/cluster.sh up wrote no settings to $DIR"
  # shellcheck disable=SC1091
  . "$DIR/env"
  read -r NODE1 NODE2 NODE3 <<<"$AGENTPOST_URLS"
  export AGENTPOST_URLS AGENTPOST_ADMIN_KEY
  PATH=$AGENTPOST_BIN:$PATH
  run 'agentpost cluster status'
  check "a leader is known" test -n "$(leader)"
}

# new_key VARIABLE JSON: creates a key of the team and stores it in the variable.
new_key() {
  admin POST "/teams/$TEAM/keys" "$2"
  [ "$STATUS" = 200 ] || die "cannot create a key: $STATUS $REPLY"
  printf -v "$1" '%s' "$(jq -r .api_key <<<"$REPLY")"
}

make_team() {
  heading "2. A team and its keys"
  text "A team cannot see the mail of another team. A key may be bound to one agent: here, one key for the receiver, one for the sender and one for agent-alpha."
  TEAM_NAME=quickstart-$(date +%Y%m%d-%H%M%S)-$$
  run 'curl -s -X POST "$NODE1/admin/v1/teams" -H "Authorization: Bearer $AGENTPOST_ADMIN_KEY" \
    -H "Content-Type: application/json" -d "{\"name\": \"$TEAM_NAME\"}"'
  TEAM=$(field .id)
  check "the team has an id" grep -qE '^team_[0-9a-f]{32}$' <<<"$TEAM"
  [ -n "$TEAM" ] || die "the team was not created, so the rest of the quickstart cannot run"
  run 'curl -s -X POST "$NODE2/admin/v1/teams/$TEAM/keys" -H "Authorization: Bearer $AGENTPOST_ADMIN_KEY" \
    -H "Content-Type: application/json" \
    -d '"'"'{"name": "receiver", "permissions": ["write"], "agent_id": "agt_receiver_001"}'"'"
  RECEIVER_KEY=$(field .api_key)
  new_key SENDER_KEY '{"name":"sender","permissions":["write"],"agent_id":"agt_sender_042"}'
  new_key INBOX_KEY '{"name":"alpha inbox","permissions":["read"],"agent_id":"agent-alpha"}'
}

# key_in TEXT: prints the API key in the output of a command.
key_in() { grep -oE 'kite_[0-9a-f]{8}_[0-9a-f]{32}' <<<"$1" | head -n 1 || true; }
# user_code NAME: prints the code that the login in the background shows to its user.
user_code() { grep -ohE '\b[B-DF-HJ-NP-TV-XZ]{4}-[B-DF-HJ-NP-TV-XZ]{4}\b' "$WORK/$1" "$WORK/$1.err" | head -n 1; }

kite_login() {
  heading "3. Kite: two machines get their keys"
  text "Machine alpha uses node 1 and machine beta uses node 2. Here each machine is a home directory. Alpha asks for a key with kite login. An administrator of the team approves the request, on any node: on the page $NODE2/activate, or with this command."
  mkdir -p "$WORK/alpha" "$WORK/beta"
  background login alpha kite login --server "$NODE1"
  check "the login shows a code" eventually 20 user_code login
  sed 's/^/  /' "$WORK/login.err" "$WORK/login"
  CODE=$(user_code login)
  run 'agentpost login approve "$CODE" --team "$TEAM" --permissions admin --yes'
  check "the login is approved" test "$RC" -eq 0
  check "machine alpha has its key" eventually 20 grep -q '^Logged in' "$WORK/login"
  sed 's/^/  /' "$WORK/login"
  check "the file with the key is readable by its owner only" test "$(stat -c %a "$WORK/alpha/.config/kite/config.toml")" = 600

  text "Alpha creates a key for machine beta. Beta reads it from a .env file."
  run_on alpha 'kite keys create --name "machine beta" --permissions write'
  BETA_KEY=$(key_in "$OUT")
  check "the new key has the form kite_..." test -n "$BETA_KEY"
  printf 'KITE_API_KEY=%s\nKITE_TEAM_ID=%s\nKITE_WS_URL=ws%s/ws\n' "$BETA_KEY" "$TEAM" "${NODE2#http}" >"$WORK/beta/.env"
}

kite_guide() {
  local id
  heading "4. Kite: register, listen, send"
  run_on alpha 'kite agent register --name agent-alpha'
  check "machine alpha is agent-alpha" grep -q 'id: *agent-alpha' <<<"$OUT"
  run_on beta 'kite agent register --name agent-beta'
  listen plain alpha

  run_on beta 'kite agent send --to agent-alpha "Here are the results you asked for."'
  check "the send was acknowledged" test "$RC" -eq 0
  check "alpha receives it" heard plain 'agent-beta → agent-alpha: Here are the results you asked for.'
  last_heard plain
  id=$(sed -n 's/^ *id: *//p' <<<"$OUT")

  run_on beta "kite agent send --to agent-alpha --thread thread-abc123 --reply-to $id \"Re: those results — found one edge case.\""
  check "the reply arrives with its thread" heard plain "thread=thread-abc123 reply_to=$id: Re: those results — found one edge case."
  last_heard plain

  text "The same without the command line, through node 3. A second listener prints the whole event."
  listen json alpha --json
  run 'curl -s -X POST "$NODE3/api/v1/agents/messages?team_id=$TEAM" -H "Authorization: Bearer $BETA_KEY" \
    -H "Content-Type: application/json" \
    -d '"'"'{"from": "agent-beta", "to": "agent-alpha", "body": "Sent with curl.", "thread_id": "thread-abc123"}'"'"
  check "the answer has the id of the event and the usage of the team" jq -e '(.id | length == 36) and .usage.events_used >= 3 and .usage.events_limit > 0' <<<"$OUT"
  check "alpha receives it" heard plain 'agent-beta → agent-alpha thread=thread-abc123: Sent with curl.'
  id=$(field .id)
  check "the second listener receives the whole CloudEvent" heard json "$id"
  grep -F -- "$id" "$WORK/json" | head -n 1 | pretty | sed 's/^/  /'
  check "its type is com.kite.agent.message" jq -e '.type == "com.kite.agent.message" and .data.to == "agent-alpha"' <<<"$(grep -F -- "$id" "$WORK/json" | head -n 1)"

  text "The agents of the team, its latest events, and its usage:"
  run_on beta 'kite agent list'
  check "agent-alpha has two listeners" grep -qE '^agent-alpha .* 2 ' <<<"$OUT"
  run_on beta 'kite logs --limit 3'
  check "the newest event comes first" grep -qF 'Sent with curl.' <<<"$(head -n 1 <<<"$OUT")"
  run_on beta 'kite status'
  check "the status names the team" grep -qF -- "- team_id: $TEAM" <<<"$OUT"
  # The listeners of one agent share its place in the inbox: after a lost connection, one does not get what the other acknowledged.
  kill "${LISTENERS[-1]}"
}

kite_mistakes() {
  local key
  text "Some mistakes, and how they are reported:"
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
  check "the key is revoked" grep -qF "Revoked API key: $key" <<<"$OUT"
}

abbababa_examples() {
  heading "5. REST (Abba Baba): send on node 2, read on node 3"
  text "The output is shortened: keys without a value are left out, and so is \`data\`, which repeats the answer for newer clients."
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
  check "the message has an id" jq -e '.success == true and (.messageId | test("^msg_[0-9a-f]{32}$"))' <<<"$OUT"

  run 'curl -s "$NODE3/api/v1/messages?unreadOnly=true&limit=20" -H "X-API-Key: $RECEIVER_KEY"'
  check "another node has it in the inbox, unread" jq -e --arg m "$MESSAGE" '.messages[-1] | .id == $m and .readAt == null and .fromAgentId == "agt_sender_042"' <<<"$OUT"
  check "the page has a cursor for the next page" jq -e '.cursor | length > 0' <<<"$OUT"

  run 'curl -s "$NODE1/api/v1/messages/$MESSAGE" -H "X-API-Key: $RECEIVER_KEY"'
  check "the third node has the whole message" jq -e '.message.body.payload.repo == "github.com/example/project"' <<<"$OUT"

  run 'curl -s -X PATCH "$NODE2/api/v1/messages/$MESSAGE" -H "X-API-Key: $RECEIVER_KEY" \
    -H "Content-Type: application/json" -d '"'"'{ "read": true }'"'"
  check "it is marked as read" jq -e '.success == true' <<<"$OUT"
  run 'curl -s "$NODE3/api/v1/messages?unreadOnly=true" -H "X-API-Key: $RECEIVER_KEY"'
  check "no node shows it as unread any more" jq -e '.messages == []' <<<"$OUT"

  text "Kite and REST share one inbox: the Kite listener receives mail that was sent with REST."
  run 'curl -s -X POST "$NODE3/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -H "Idempotency-Key: price-1" -d '"'"'{"toAgentId": "agent-alpha", "type": "price.quote", "body": "5 USDC"}'"'"
  MESSAGE=$(field .messageId)
  check "alpha receives it" heard plain 'agt_sender_042 → agent-alpha: 5 USDC'
  last_heard plain
  run 'curl -s -X POST "$NODE1/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -H "Idempotency-Key: price-1" -d '"'"'{"toAgentId": "agent-alpha", "type": "price.quote", "body": "5 USDC"}'"'"
  check "a second send with the same idempotency key is the same message" test "$(field .messageId)" = "$MESSAGE"
  run 'curl -s "$NODE1/v1/messages/$MESSAGE" -H "X-API-Key: no_such_key"'
  check "a wrong key gets an error in JSON" jq -e '.error | type == "string"' <<<"$OUT"
  SHOWN=.
}

# hook NAME ANSWERS: starts a webhook receiver in the background at HOOK_URL, with its output in WORK/NAME. It verifies calls with
# SECRET and the signing keys of the team, which it reads from its environment.
hook() {
  local name=$1 answers=$2 port=${HOOK_URL##*:}
  port=${port%%/*}
  printf '\n%s$ agentpost webhook listen --port %s --answer %s &%s\n' "$BOLD" "$port" "$answers" "$PLAIN"
  AGENTPOST_WEBHOOK_SECRET=$SECRET agentpost webhook listen --port "$port" --answer "$answers" \
    >"$WORK/$name" 2>"$WORK/$name.err" </dev/null &
  LISTENERS+=($!)
  check "the receiver listens" eventually 20 grep -q '^Listening' "$WORK/$name.err"
  sed 's/^/  /' "$WORK/$name.err"
}
# free_port: sets HOOK_PORT to the first free port from 9000, and to the next one at the next call.
free_port() {
  HOOK_PORT=$((${HOOK_PORT:-8999} + 1))
  until port_free "$HOOK_PORT"; do HOOK_PORT=$((HOOK_PORT + 1)); done
}
# notice_of MESSAGE: the newest mail of the sender is the notice that the delivery of this message failed.
notice_of() {
  OUT=$(curl -s "$NODE3/v1/messages?order=desc&limit=1" -H "X-API-Key: $SENDER_KEY")
  jq -e --arg m "$1" '.messages[0] | .fromAgentId == "system" and .type == "delivery.failed" and .body.messageId == $m' <<<"$OUT"
}
# delivered MESSAGE ATTEMPTS: the receipt of the message says that it was delivered after so many attempts.
delivered() {
  OUT=$(curl -s "$NODE1/v1/messages/$1/receipt" -H "X-API-Key: $SENDER_KEY")
  jq -e --argjson n "$2" '.receipt.delivered[0] | .state == "delivered" and .attempts == $n' <<<"$OUT"
}

topics_and_webhooks() {
  local slow lost delivery
  heading "6. A topic, a webhook that fails twice, and a delivery that fails for good"
  SHOWN='del(.data, .pagination) | walk(if type == "object" then with_entries(select(.value != null)) else . end)'
  text "An agent that subscribes to a topic finds its messages in its inbox, in the order in which they were published."
  run 'curl -s -X POST "$NODE1/v1/messages/subscribe" -H "X-API-Key: $RECEIVER_KEY" \
    -H "Content-Type: application/json" -d '"'"'{"topic": "marketplace.updates"}'"'"
  check "the agent is subscribed" jq -e '.subscription.topic == "marketplace.updates"' <<<"$OUT"
  run 'curl -s -X POST "$NODE3/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -d '"'"'{"topic": "marketplace.updates", "type": "price.change", "body": {"service": "audit", "usdc": 4}}'"'"
  MESSAGE=$(field .messageId)
  run 'curl -s "$NODE2/v1/messages?unreadOnly=true" -H "X-API-Key: $RECEIVER_KEY"'
  check "the subscriber finds the message on another node" jq -e --arg m "$MESSAGE" '.messages[-1] | .id == $m and .topic == "marketplace.updates"' <<<"$OUT"

  text "The server calls a webhook when mail arrives. This one fails twice, so the call is repeated after 1 s and after another 10 s. The receiver verifies calls with the secret from the registration, or with the keys from /v2/keys."
  free_port
  HOOK_URL=http://127.0.0.1:$HOOK_PORT/mail
  run 'curl -s -X POST "$NODE2/v1/messages/webhook" -H "X-API-Key: $RECEIVER_KEY" -H "Content-Type: application/json" \
    -d "{\"url\": \"$HOOK_URL\", \"events\": [\"message.received\", \"message.topic\"]}"'
  SECRET=$(field .webhook.secret)
  check "the webhook is registered and has a secret" grep -q '^whsec_' <<<"$SECRET"
  run 'curl -s "$NODE3/v2/keys" -H "X-API-Key: $RECEIVER_KEY"'
  export QSTASH_CURRENT_SIGNING_KEY QSTASH_NEXT_SIGNING_KEY
  QSTASH_CURRENT_SIGNING_KEY=$(field .current) QSTASH_NEXT_SIGNING_KEY=$(field .next)
  hook slow 500,500,200
  run 'curl -s -X POST "$NODE1/v1/messages" -H "X-API-Key: $SENDER_KEY" -H "Content-Type: application/json" \
    -d '"'"'{"toAgentId": "agt_receiver_001", "type": "delivery.request", "body": {"serviceId": "svc_cl_audit_02"}}'"'"
  slow=$(field .messageId)
  check "the first call comes at once, and its signatures are valid" heard slow 'attempt 1, verified, answered 500'

  text "Meanwhile, the webhook of another agent answers 489. That status means that a retry is useless. (410 means the same and disables the webhook. After any other failure there are four attempts within 111 s.)"
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
  check "the webhook is called" heard refusing 'attempt 1, verified, answered 489'
  check "the sender gets a notice that the delivery failed" eventually 10 notice_of "$lost"
  run 'curl -s "$NODE3/v1/messages?order=desc&limit=1" -H "X-API-Key: $SENDER_KEY"'
  delivery=$(field '.messages[0].body.deliveryId')
  run 'agentpost deliveries list --team "$TEAM" --state dead'
  check "the operator sees the failed delivery" grep -q "^$delivery  dead (non_retryable)" <<<"$OUT"

  text "The receiver is repaired, and the operator has the message delivered again."
  kill "${LISTENERS[-1]}"
  check "the old receiver has stopped" eventually 10 port_free "$HOOK_PORT"
  hook repaired 200
  run "agentpost deliveries redrive $delivery --team \"\$TEAM\""
  check "the message is delivered" heard repaired 'attempt 1, verified, answered 200'
  sed 's/^/  /' "$WORK/repaired"

  check "the webhook that failed twice receives its message with the third call" eventually 30 grep -q 'attempt 3, verified, answered 200' "$WORK/slow"
  sed 's/^/  /' "$WORK/slow"
  check "the receipt for the sender shows three attempts" eventually 10 delivered "$slow" 3
  run 'agentpost deliveries list --team "$TEAM"'
  run "curl -s \"\$NODE1/v1/messages/$slow/receipt\" -H \"X-API-Key: \$SENDER_KEY\""
  check "the receipt shows that it is not read yet" jq -e '.receipt.counts == {receivers: 1, read: 0}' <<<"$OUT"
  text "Both webhooks are removed again."
  run 'curl -s -X DELETE "$NODE2/v1/messages/webhook" -H "X-API-Key: $RECEIVER_KEY"'
  curl -s -o /dev/null -X DELETE "$NODE2/v1/messages/webhook" -H "X-API-Key: $AUDITOR_KEY"
  SHOWN=.
}

# send_note I: sends message I of step 7. It repeats the request with the same idempotency key at the next node until the message is
# acknowledged.
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

# notes_on URL: prints the numbers of the notes in the inbox of agent-alpha on that node, in their order there.
notes_on() {
  curl -s --max-time 10 "$1/v1/messages?limit=200" -H "X-API-Key: $INBOX_KEY" |
    jq -r '[.messages[] | select(.type == "note") | .body.text | capture("note (?<n>[0-9]+) ").n] | join(" ")'
}

kill_the_leader() {
  local i first before longest=0 took killed expected n
  heading "7. The leader is killed with kill -9 while mail is being sent"
  NOTES=30
  killed=1
  text "Alpha listens at node $killed. Node $killed becomes the leader first, so that the listener loses its node when the cluster loses its leader."
  [ "$(leader)" = "$killed" ] || run 'curl -s -X POST "$NODE2/admin/v1/cluster/transfer" -H "Authorization: Bearer $AGENTPOST_ADMIN_KEY" \
    -H "Content-Type: application/json" -d '"'"'{"node": 1}'"'"
  check "node $killed is the leader" eventually 10 leads "$killed"
  text "$NOTES notes go to agent-alpha, one after the other and through all nodes in turn, each with its own idempotency key. After the tenth, node $killed is killed with SIGKILL."
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
  check "another node is the leader" eventually 10 another_leads "$killed"
  for n in 1 2 3; do
    [ "$n" -ne "$killed" ] || continue
    check "node $n has all $NOTES, once each, in order" test "$(notes_on "$(node_url "$n")")" = "$expected"
  done
  check "the listener received all of them, although it lost its node" heard_all

  before=$(now_ms)
  printf '\n%s$ scripts/cluster.sh start %s%s\n' "$BOLD" "$killed" "$PLAIN"
  cluster start "$killed" 2>/dev/null || die "node $killed did not come back"
  check "node $killed is ready again after $(($(now_ms) - before)) ms" true
  check "it has all $NOTES, once each, in order" test "$(notes_on "$(node_url "$killed")")" = "$expected"
  check "the three nodes hold the same state, byte for byte" eventually 20 same_state
  run 'agentpost cluster status'
}
leads() { [ "$(leader)" = "$1" ]; }
another_leads() { local now; now=$(leader); [ -n "$now" ] && [ "$now" != "$1" ]; }
heard_all() {
  local i
  for i in $(seq "$NOTES"); do heard plain "agt_sender_042 → agent-alpha: note $i of $NOTES" || return 1; done
}
# same_state: the three nodes report the same hash of all stored data, at the same place in the log.
same_state() {
  api GET "$NODE1/admin/v1/cluster" "$AGENTPOST_ADMIN_KEY"
  jq -e '[.nodes[] | [.state_hash_index, .state_hash]] | length == 3 and (unique | length == 1) and .[0][1] != null' <<<"$REPLY"
}

farewell() {
  local where=''
  heading "$([ "$FAILURES" -eq 0 ] && echo 'Nothing was lost.' || echo "$FAILURES checks failed.")"
  # The output of the listener may show the cause.
  [ "$FAILURES" -eq 0 ] || tail -n 20 "$WORK/plain.err" "$WORK/plain" | sed 's/^/  /'
  if [ "$EXIT" = yes ]; then text "The cluster is being stopped, because of --exit."; return; fi
  text "The cluster is still running: $AGENTPOST_URLS"
  text "To use it in your shell, as the team \`default\`:"
  printf '  . %s/env\n  export PATH=$AGENTPOST_BIN:$PATH\n  kite agent register --name my-agent\n  kite agent listen &\n  kite agent send --to my-agent hello\n' "$DIR"
  text "To read the inbox of agt_receiver_001 above:"
  printf '  curl -s %s/v1/messages -H "X-API-Key: %s"\n' "$NODE1" "$RECEIVER_KEY"
  [ "$DIR" = "$AGENTPOST_CACHE/cluster" ] || where=" --dir $DIR"
  text "To see its state: scripts/cluster.sh status$where. To stop it: scripts/cluster.sh down$where."
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
