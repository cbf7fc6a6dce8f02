# Shows how far a long command is and how much time it will still take. Sourced after common.sh.
# shellcheck shell=bash
#
# On a terminal, one line is rewritten every second. A pipe or a file gets a new line every 20 seconds.

# minutes SECONDS: prints them as 2:05.
minutes() { printf '%d:%02d' $(($1 / 60)) $(($1 % 60)); }

# with_progress LABEL STATE COMMAND...: runs the command and returns its exit status. STATE is a function that prints how much of
# the work is done, in thousandths, and a few words about it, such as "333 7 of 21 units".
with_progress() {
  local label=$1 state=$2 reporter status=0
  shift 2
  report_progress "$label" "$state" &
  reporter=$!
  "$@" || status=$?
  kill "$reporter" 2>/dev/null || true
  wait "$reporter" 2>/dev/null || true
  [ ! -t 2 ] || printf '\r\e[K' >&2
  return "$status"
}

# report_progress LABEL STATE: reports until it is killed or the script has ended.
report_progress() {
  local label=$1 state=$2 started=$SECONDS interval=20 told=$SECONDS elapsed thousandths what line
  [ ! -t 2 ] || interval=1
  # The sleep may outlive this process by a second, so it must not keep a pipe or a lock open.
  while sleep 1 >/dev/null 2>&1 6<&- 8<&- 9<&-; do
    kill -0 $$ 2>/dev/null || return 0
    [ $((SECONDS - told)) -ge "$interval" ] || continue
    told=$SECONDS elapsed=$((SECONDS - started)) thousandths=0 what=''
    read -r thousandths what < <("$state") || true
    line="  $label: ${what:-starting}, $(minutes "$elapsed") so far"
    if [ "${thousandths:-0}" -ge 30 ] && [ "$elapsed" -ge 5 ]; then
      line+=", about $(minutes $((elapsed * (1000 - thousandths) / thousandths))) left"
    fi
    if [ -t 2 ]; then printf '\r\e[K%.*s' "$((${COLUMNS:-80} - 1))" "$line" >&2; else say "$line"; fi
  done
}
