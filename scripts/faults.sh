#!/usr/bin/env bash
# Puts a cluster of real processes through power loss, kills, pauses, partitions, damaged and full disks and wrong clocks, while
# clients write down what they were told; then says whether anything acknowledged was lost or done twice.
#
# usage: scripts/faults.sh list
#        scripts/faults.sh smoke [OPTION...]              a choice of scenarios, at most three minutes
#        scripts/faults.sh run SCENARIO... [OPTION...]    see `list`; --seconds, --runs, --rate
#        scripts/faults.sh soak --hours N [OPTION...]     any scenario with any clients; stops at the first invalid run
#        scripts/faults.sh recheck DIR                    checks a run again from what it wrote down
#        scripts/faults.sh totals FILE                    adds up the runs of a file that --append wrote
#        scripts/faults.sh mutants [NAME...]              breaks the node on purpose, and sees that it is noticed
#
#   --seed N          where all choices come from; each run tells its own
#   --append FILE     add every run to FILE
#   --beside N        clusters at the same time
#   --keep            keep the histories of valid runs too
#   --dir DIR         where runs are written; default: faults/ in the cache
#   --bin DIR         take agentpostd, agentpost and faults from there instead of building them
#   --help            this text; `COMMAND --help` says more
#
# Each run leaves a directory with report.html, a page that shows it. Exit status: 0 valid, 1 a property was broken, 2 unknown (the
# harness had trouble or too little was tested), 3 skipped: this machine cannot do it. Namespaces, loop devices and nftables
# need root; without it those scenarios say skipped.

# shellcheck source-path=SCRIPTDIR
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/build.sh
. "$HERE/lib/build.sh"

BIN='' ARGS=()
while [ $# -gt 0 ]; do
  case $1 in
    --bin) need_value "$1" $#; BIN=$2; shift ;;
    -h | --help) [ ${#ARGS[@]} -gt 0 ] || { usage "$0"; exit 0; }; ARGS+=("$1") ;;
    *) ARGS+=("$1") ;;
  esac
  shift
done
[ ${#ARGS[@]} -gt 0 ] || { usage "$0" >&2; exit 64; }

# Only what root can use; the harness finds out what is missing.
[ "$(id -u)" -ne 0 ] || install_packages iproute2 nftables e2fsprogs mount

# build PROFILE FEATURES: into BIN, a copy: a build during a long run must not change what runs.
build() {
  local options=() b
  [ "$1" = debug ] || options=(--release)
  ensure_build
  say "building (cargo; a first build takes some minutes)"
  (cd "$ROOT" && cargo build --locked --quiet --workspace "${options[@]}" --features "$2") >&2 || die "the build failed"
  BIN=$(mktemp -d "$AGENTPOST_CACHE/faults-bin.XXXXXX")
  trap 'rm -rf "$BIN"' EXIT
  for b in agentpostd agentpost faults; do cp "$CARGO_TARGET_DIR/$1/$b" "$BIN/"; done
  for b in "$CARGO_TARGET_DIR/$1"/lib*_shim.so; do [ ! -f "$b" ] || cp "$b" "$BIN/"; done
}
if [ "${ARGS[0]}" = mutants ]; then
  # A release refuses to be broken.
  build debug agentpost-node/mutants,agentpost-node/failpoints
  ARGS+=(--sources "$ROOT")
elif [ -z "$BIN" ]; then
  build release agentpost-node/failpoints
fi
export AGENTPOSTD_BIN=$BIN/agentpostd
AGENTPOST_GIT=$(git -C "$ROOT" describe --always --dirty 2>/dev/null || true)
export AGENTPOST_GIT AGENTPOST_FAULTS_DIR=${AGENTPOST_FAULTS_DIR:-$AGENTPOST_CACHE/faults}
mkdir -p "$AGENTPOST_FAULTS_DIR"
"$BIN/faults" "${ARGS[@]}"
