# Prints a walk through a running system that a person can read, and checks it. Sourced after common.sh.
# shellcheck shell=bash disable=SC2034
#
# `run` prints a command with its variables as they are written, and then executes exactly that text.

FAILURES=0 OUT='' RC=0

heading() { printf '\n\n%s%s%s\n%s\n' "$BOLD$CYAN" "$1" "$PLAIN" "$DIM$(printf '%*s' "${#1}" '' | tr ' ' '-')$PLAIN"; }
# text SENTENCES...: prints a paragraph.
text() { printf '\n'; printf '%s\n' "$*" | fold -s -w 110 | sed 's/ *$//'; }

# run COMMAND: prints the command and executes it with the variables of this shell. OUT holds its output, RC its exit status. JSON
# is printed through the jq filter SHOWN.
SHOWN=.
run() {
  printf '\n%s$ %s%s\n' "$BOLD" "$1" "$PLAIN"
  RC=0
  OUT=$(eval "$1" 2>&1 </dev/null) || RC=$?
  printf '%s\n' "$OUT" | pretty | head -n 40 | sed 's/^/  /'
}

# run_on MACHINE COMMAND: does the same as the user of machine alpha or beta. Each machine is a home directory here.
run_on() {
  printf '\n%s%s$ %s%s\n' "$BOLD" "$1" "$2" "$PLAIN"
  RC=0
  OUT=$(on "$1" bash -c "$2" 2>&1 </dev/null) || RC=$?
  printf '%s\n' "$OUT" | head -n 40 | sed 's/^/  /'
}

# pretty: prints JSON on several lines and any other text unchanged.
pretty() {
  local all color=-M
  all=$(cat)
  [ -z "$PLAIN" ] || color=-C
  jq "$color" "$SHOWN" <<<"$all" 2>/dev/null || printf '%s\n' "$all"
}

# check SENTENCE COMMAND...: the sentence is true if the command succeeds now; otherwise one more check has failed.
check() {
  local what=$1; shift
  if "$@" >/dev/null 2>&1; then
    printf '  %sok%s   %s\n' "$GREEN" "$PLAIN" "$what"
  else
    printf '  %sFAIL%s %s\n' "$RED" "$PLAIN" "$what"
    FAILURES=$((FAILURES + 1))
  fi
}

# eventually SECONDS COMMAND...: repeats the command until it succeeds, for so many seconds at most.
eventually() {
  local deadline=$(($(now_ms) + $1 * 1000)); shift
  until "$@" >/dev/null 2>&1; do
    [ "$(now_ms)" -lt "$deadline" ] || return 1
    sleep 0.05
  done
}

# field FILTER: prints what the jq filter selects from the output of the last command.
field() { jq -r "$1" <<<"$OUT" 2>/dev/null || true; }
