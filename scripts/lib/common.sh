# Words and habits that every script shares. Sourced, never run.
# shellcheck shell=bash

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
# Whatever is built once and used by many runs: compiler output, the RocksDB archive, tools, local clusters.
AGENTPOST_CACHE=${AGENTPOST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/agentpost}
export ROOT AGENTPOST_CACHE

if [ -t 2 ] && [ -z "${NO_COLOR:-}" ]; then
  BOLD=$'\e[1m' DIM=$'\e[2m' RED=$'\e[31m' GREEN=$'\e[32m' YELLOW=$'\e[33m' CYAN=$'\e[36m' PLAIN=$'\e[0m'
else
  BOLD='' DIM='' RED='' GREEN='' YELLOW='' CYAN='' PLAIN=''
fi
export BOLD DIM RED GREEN YELLOW CYAN PLAIN

# Progress goes to stderr, so that stdout holds what was asked for.
say() { printf '%s\n' "$*" >&2; }
warn() { printf '%swarning:%s %s\n' "$YELLOW" "$PLAIN" "$*" >&2; }
die() { printf '%serror:%s %s\n' "$RED" "$PLAIN" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# usage FILE: the comment at the head of FILE, from its second line to the first line that is no comment.
usage() { awk 'NR > 1 { if ($0 !~ /^#/) exit; sub(/^# ?/, ""); print }' "$1"; }

# need_value OPTION ARGS-LEFT: an option that takes a value must have one.
need_value() { [ "$2" -ge 2 ] || die "$1 needs a value; see --help"; }
# need_count OPTION VALUE: a whole number from 1.
need_count() { [[ $2 =~ ^[1-9][0-9]{0,8}$ ]] || die "$1 takes a number from 1, not '$2'"; }

now_ms() { date +%s%3N; }

# is_root_or_sudo CMD...: the command as root.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"
  elif have sudo; then sudo "$@"
  else die "this needs root and there is no sudo; run as root: $*"
  fi
}

# install_packages PACKAGE...: those that are missing, on Debian and its relatives.
install_packages() {
  local p missing=()
  have dpkg-query || { warn "not a Debian system: please see to it that these are installed: $*"; return 0; }
  for p in "$@"; do
    [ "$(dpkg-query -W -f='${db:Status-Status}' "$p" 2>/dev/null)" = installed ] || missing+=("$p")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "installing ${missing[*]} (apt-get)"
  if ! apt_install "${missing[@]}"; then
    # A fresh image has no package list, an old one a stale list.
    as_root apt-get update -qq >&2
    apt_install "${missing[@]}" || die "apt-get could not install: ${missing[*]}"
  fi
}
apt_install() {
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" >/dev/null 2>&1
}

# is_process PID WORD...: the process lives and its command line holds every word (pids are used again).
is_process() {
  local pid=$1 line word; shift
  [ -n "$pid" ] && [ -r "/proc/$pid/cmdline" ] || return 1
  line=$(tr '\0' ' ' <"/proc/$pid/cmdline" 2>/dev/null) || return 1
  [ -n "$line" ] || return 1 # a zombie
  for word in "$@"; do [[ $line == *"$word"* ]] || return 1; done
}

# port_free PORT: nothing listens there on loopback.
port_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
