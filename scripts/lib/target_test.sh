#!/usr/bin/env bash
# Tests target.sh with two small checkouts of different commits: neither gets the other's binaries, and a new checkout compiles only
# the packages of its own workspace. `scripts/test.sh scripts` runs it.
#
# usage: scripts/lib/target_test.sh

# shellcheck source-path=SCRIPTDIR
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=common.sh
. "$HERE/common.sh"
WORK=$(mktemp -d)
trap 'rm -rf "$WORK"' EXIT
HEX=$(awk '$0 == "name = \"hex\"" { getline; gsub(/^version = "|"$/, ""); print; exit }' "$ROOT/Cargo.lock")

# checkout NAME TEXT: a checkout of a workspace with one package of its own, which prints TEXT, and one dependency.
checkout() {
  mkdir -p "$WORK/$1/src"
  cat >"$WORK/$1/Cargo.toml" <<END
[package]
name = "own"
edition = "2024"
[dependencies]
hex = "=$HEX"
[workspace]
END
  printf 'fn main() { println!("{}", hex::encode("%s")) }\n' "$2" >"$WORK/$1/src/main.rs"
  # All checkouts have files of the same age, older than any product. Modification times tell nothing about their contents.
  find "$WORK/$1" -exec touch -d 2020-01-01 {} +
}

# build NAME: builds as a script in that checkout would. Sets COMPILED to the crates that were compiled and SAID to what the binary
# prints.
build() {
  local target
  target=$(target_of "$1")
  COMPILED=$(cd "$WORK/$1" && cargo build --offline --quiet --message-format json --target-dir "$target" |
    jq -r 'select(.reason == "compiler-artifact" and .fresh == false) | .target.name' | sort | tr '\n' ' ')
  SAID=$("$target/debug/own")
}
target_of() {
  (
    unset CARGO_TARGET_DIR
    ROOT=$WORK/$1 AGENTPOST_CACHE=$WORK/cache
    # shellcheck source=target.sh
    . "$HERE/target.sh"
    use_target
    echo "$CARGO_TARGET_DIR"
  )
}

# expect WHAT EXPECTED ACTUAL
expect() {
  [ "$2" = "$3" ] || die "$1: expected '$2', got '$3'"
  echo "ok   $1"
}

checkout first one
build first
expect "the first checkout compiles everything" "hex own " "$COMPILED"
checkout second two
build second
expect "the second checkout compiles only its own package" "own " "$COMPILED"
expect "the second checkout has its own binary" "$(printf two | od -An -tx1 | tr -d ' ')" "$SAID"
build first
expect "the first checkout has nothing to compile" "" "$COMPILED"
expect "the first checkout still has its own binary" "$(printf one | od -An -tx1 | tr -d ' ')" "$SAID"

# A third checkout takes the place of the first, with files of the same age.
mv "$WORK/first" "$WORK/moved"
checkout third three
mv "$WORK/third" "$WORK/first"
build first
expect "a checkout in the place of another compiles its own package" "own " "$COMPILED"
expect "a checkout in the place of another has its own binary" "$(printf three | od -An -tx1 | tr -d ' ')" "$SAID"

gone=$(target_of second)
rm -rf "$WORK/second"
build first
expect "the target directory of a checkout that is gone is removed" no "$([ -d "$gone" ] && echo yes || echo no)"
