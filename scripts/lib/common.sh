# Functions that every script uses: messages, options, packages, processes, ports. This file is sourced, never run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# The cache holds what is built once and used by many runs: target directories, the RocksDB archive, tools, local clusters.
AGENTPOST_CACHE=${AGENTPOST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/agentpost}
export ROOT AGENTPOST_CACHE

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' CYAN=$'\e[36m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' RED='' GREEN='' YELLOW='' CYAN='' PLAIN=''
fi
export BOLD DIM RED GREEN YELLOW CYAN PLAIN

# Messages go to stderr, so that stdout holds only the result.
say() { printf '%s\n' "$*" >&2; }
warn() { printf '%swarning:%s %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }
die() { printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# usage FILE: prints the comment at the head of FILE, from its second line to the first line that is no comment.
usage() { awk 'NR > 1 { if ($0 !~ /^#/) exit; sub(/^# ?/, ""); print }' "$1"; }

# need_value OPTION ARGUMENTS-LEFT: fails unless the option is followed by its value.
need_value() { [ "$2" -ge 2 ] || die "$1 needs a value; see --help"; }
# need_count OPTION VALUE: fails unless the value is a whole number of at least 1.
need_count() { [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1 takes a whole number of at least 1, not '$2'"; }

now_ms() { date +%s%3N; }

# as_root COMMAND...: runs the command as root, with sudo if need be.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif have sudo; then sudo "$@"
  else die "this command needs root, and sudo is not installed; run it as root: $*"
  fi
}

# install_packages PACKAGE...: installs those that are missing, on Debian and systems derived from it.
install_packages() {
  local p missing=()
  have dpkg-query || { warn "this is not a Debian system; make sure that these packages or their equivalents are installed: $*"; return 0; }
  for p in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]} (apt-get)"
  if ! apt_install "${missing[@]}"; then
    # A fresh image has no list of packages, and an old image has an outdated list.
    as_root apt-get update -qq >&2
    apt_install "${missing[@]}" || die "apt-get could not install ${missing[*]}; install them by hand, then run this again"
  fi
}
apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# is_process PID WORD...: the process is alive and its command line contains every word. The words tell it from a later process
# with the same pid.
is_process() {
  local pid=$1 line word; shift
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
  line=$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) || return 1
  [ -n "$line" ] || return 1 # a zombie
  for word in "$@"; do [[ $line == *"$word"* ]] || return 1; done
}

# port_free PORT: no process listens on this port of 127.0.0.1.
port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
