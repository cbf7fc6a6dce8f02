# A walk through a live system that a person reads and a machine checks. Sourced after common.sh.
# shellcheck shell=bash disable=SC2034
#
# What is shown is what is run: `run` prints a command as it stands, with its variables, then executes that very text.

FAILURES=0 OUT='' RC=0

heading() { printf '\n\n%s%s%s\n%s\n' "$BOLD$CYAN" "$1" "$PLAIN" "$DIM$(printf '%*s' "${#1}" '' | tr ' ' '-')$PLAIN"; }
# text SENTENCES...: a paragraph.
text() { printf '\n'; printf '%s\n' "$*" | fold -s -w 110 | sed 's/ *$//'; }

# run COMMAND: shows and executes it in this shell's variables; its output stays in OUT, its exit status in RC. Replies in
# JSON are shown through the jq filter SHOWN.
SHOWN=.
run() {
  printf '\n%s$ %s%s\n' "$BOLD" "$1" "$PLAIN"
  RC=0
  OUT=$(eval "$1" 2>&1 </dev/null) || RC=$?
  printf '%s\n' "$OUT" | pretty | head -n 40 | sed 's/^/  /'
}

# run_on MACHINE COMMAND: the same as the user of one of the two machines, which are two home directories here.
run_on() {
  printf '\n%s%s$ %s%s\n' "$BOLD" "$1" "$2" "$PLAIN"
  RC=0
  OUT=$(on "$1" bash -c "$2" 2>&1 </dev/null) || RC=$?
  printf '%s\n' "$OUT" | head -n 40 | sed 's/^/  /'
}

# pretty: JSON on several lines, everything else as it is.
pretty() {
  local all color=-M
  all=$(cat)
  [ -z "$PLAIN" ] || color=-C
  jq "$color" "$SHOWN" <<<"$all" 2>/dev/null || printf '%s\n' "$all"
}

# check WHAT COMMAND...: a sentence that must be true now.
check() {
  local what=$1; shift
  if "$@" >/dev/null 2>&1; then
    printf '  %sok%s   %s\n' "$GREEN" "$PLAIN" "$what"
  else
    printf '  %sFAIL%s %s\n' "$RED" "$PLAIN" "$what"
    FAILURES=$((FAILURES + 1))
  fi
}

# eventually SECONDS COMMAND...: true as soon as the command is.
eventually() {
  local deadline=$(($(now_ms) + $1 * 1000)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(now_ms)" -lt "$deadline" ] || return 1
    sleep 0.05
  done
}

# field FILTER: from the last output, as jq sees it.
field() { jq -r "$1" <<<"$OUT" 2>/dev/null || true; }
