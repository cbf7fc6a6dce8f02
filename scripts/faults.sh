#!/usr/bin/env bash
# Fault tests: injects power loss, kills, pauses, partitions, damaged and full disks and wrong clocks into a cluster of real
# processes while clients use it, and checks afterwards that no guarantee was broken. jepsen-like-tests/README.md says more.
#
# usage: scripts/faults.sh list                            lists the scenarios
#        scripts/faults.sh smoke [OPTION...]               runs ten scenarios in some three minutes
#        scripts/faults.sh run SCENARIO... [OPTION...]     runs chosen scenarios; --seconds, --runs, --rate, --loads
#        scripts/faults.sh soak --hours N [OPTION...]      runs random scenarios with random workloads until one is invalid
#        scripts/faults.sh recheck DIR                     checks a recorded run again
#        scripts/faults.sh totals FILE                     adds up the runs in a file that --append wrote
#        scripts/faults.sh mutants [NAME...]               breaks rules of the node and checks that this is detected
#
#   --seed N          seed of all random choices; each run prints its own
#   --append FILE     append one line per run to FILE
#   --beside N        number of clusters that run concurrently
#   --keep            keep the histories of valid runs, too
#   --dir DIR         directory for the runs; default: faults/ in the cache
#   --bin DIR         take agentpostd, agentpost and faults from DIR instead of building them
#   --help            this text; `COMMAND --help` says more
#
# Each run leaves a directory with report.html. Exit status: 0 valid, 1 a property was violated, 2 unknown (the harness had a
# problem, or too little was tested), 3 skipped (this machine lacks something that the scenario needs). Namespaces, loop devices
# and nftables need root; without it the scenarios that need them are skipped.

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

# Tools that only root can use; the harness skips scenarios whose tools are missing.
[ "$(id -u)" -ne 0 ] || install_packages iproute2 nftables e2fsprogs mount

# build PROFILE FEATURES: builds, and copies the binaries to BIN, so that another build during a long run does not change them.
build() {
  local options=() b
  [ "$1" = debug ] || options=(--release)
  ensure_build
  cargo_build --workspace "${options[@]}" --features "$2"
  BIN=$(mktemp -d "$AGENTPOST_CACHE/faults-bin.XXXXXX")
  trap 'rm -rf "$BIN"' EXIT
  for b in agentpostd agentpost faults; do cp "$CARGO_TARGET_DIR/$1/$b" "$BIN/"; done
  for b in "$CARGO_TARGET_DIR/$1"/lib*_shim.so; do [ ! -f "$b" ] || cp "$b" "$BIN/"; done
}
if [ "${ARGS[0]}" = mutants ]; then
  # Mutants exist in debug builds only.
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
