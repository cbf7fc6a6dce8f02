# Gives each checkout its own target directory outside the tree, and fills a new one with what others have compiled already.
# Sourced after common.sh.
# shellcheck shell=bash
#
# cargo names what it compiles by the path inside the checkout and trusts modification times, so two checkouts that share a
# target directory can take each other's binaries for their own. A third-party crate never changes under one version and is safe
# to share. Therefore a new directory starts as a copy of another checkout's, without the packages of the workspace itself.
#
# AGENTPOST_CACHE/targets/HASH/            a target directory; HASH is made of the path of the checkout
# AGENTPOST_CACHE/targets/HASH/CHECKOUT    that path and the inode of the directory there; its modification time tells when a
#                                          script last used the target directory

TARGET_ROOT=$AGENTPOST_CACHE/targets
# Bounds on the disk: how many checkouts keep a directory, and how large one may be before its old builds are removed.
MAX_TARGETS=${AGENTPOST_MAX_TARGETS:-6} MAX_TARGET_GIB=${AGENTPOST_MAX_TARGET_GIB:-25}

# use_target: sets CARGO_TARGET_DIR, unless the caller has chosen one. A lock on file descriptor 6 keeps other scripts from
# removing the directory while this script runs.
use_target() {
  local mine inode
  [ -z "${CARGO_TARGET_DIR:-}" ] || return 0
  mine=$TARGET_ROOT/$(printf '%s' "$ROOT" | sha256sum | cut -c 1-16)
  inode=$(stat -c %i "$ROOT")
  mkdir -p "$TARGET_ROOT"
  exec 7>"$TARGET_ROOT/lock"
  flock 7
  rm -rf "$TARGET_ROOT"/new.*
  if [ ! -f "$mine/CHECKOUT" ]; then
    start_target "$mine"
  elif [ "$(sed -n 2p "$mine/CHECKOUT")" != "$inode" ]; then
    # Another checkout took the place of the first. Its files may be older than what was built.
    renew_target "$mine" || die "another build uses $mine, the target directory of an earlier checkout at $ROOT; try again when it has ended"
  elif [ "$(du -s --block-size=1G "$mine" | cut -f 1)" -gt "$MAX_TARGET_GIB" ]; then
    say "$mine is larger than $MAX_TARGET_GIB GiB: removing what was built of this workspace"
    renew_target "$mine" || true
  fi
  printf '%s\n' "$ROOT" "$inode" >"$mine/CHECKOUT"
  exec 6<"$mine/CHECKOUT"
  flock -s 6
  prune_targets "$mine"
  exec 7>&-
  export CARGO_TARGET_DIR=$mine
}

# start_target DIR: a copy of the target directory that was used last and is not being built in, or an empty one.
start_target() {
  local new other
  new=$(mktemp -d "$TARGET_ROOT/new.XXXXXX")
  for other in $(targets_by_use); do
    if copy_target "$other" "$new"; then
      say "this checkout is new: it starts with the dependencies that $(checkout_of "$other") has compiled"
      break
    fi
    rm -rf "${new:?}"/*
  done
  touch "$new/CHECKOUT"
  rm -rf "$1"
  mv -T "$new" "$1"
}

# renew_target DIR: without the products of the workspace. It fails, and changes nothing, while a script or cargo uses DIR.
renew_target() {
  local new status=0 fd
  exec {fd}<"$1/CHECKOUT"
  if flock -n -x "$fd"; then
    new=$(mktemp -d "$TARGET_ROOT/new.XXXXXX")
    copy_target "$1" "$new" || status=1
    if [ "$status" -eq 0 ]; then
      rm -rf "$1"
      mv -T "$new" "$1"
    fi
  else
    status=1
  fi
  exec {fd}<&-
  return "$status"
}

# checkout_of DIR: the path of the checkout that the target directory belongs to.
checkout_of() { head -n 1 "$1/CHECKOUT"; }

# targets_by_use: those of the other checkouts, the one that was used last first.
targets_by_use() {
  find "$TARGET_ROOT" -mindepth 2 -maxdepth 2 -name CHECKOUT -printf '%T@ %h\n' | sort -rn | cut -d ' ' -f 2
}

# copy_target FROM TO: what belongs to third-party packages. It fails while cargo builds in FROM. Modification times are kept to
# the nanosecond, because cargo compares them.
copy_target() {
  local status=0
  lock_target "$1" -s || return 1
  {
    printf '%s\n' ./CHECKOUT ./doc ./tmp './*/incremental' './*/examples'
    workspace_products "$ROOT"
    # What another commit calls its packages is only ballast here.
    workspace_products "$(checkout_of "$1")" 2>/dev/null || true
  } >"$2/exclude" || status=1
  [ "$status" -ne 0 ] ||
    tar --format=posix -C "$1" --anchored --wildcards --no-wildcards-match-slash -X "$2/exclude" -c . | tar -C "$2" -x || status=1
  rm -f "$2/exclude"
  unlock_target
  return "$status"
}

# lock_target DIR MODE: takes the locks of cargo, one for each profile, without waiting.
lock_target() {
  local file fd
  LOCKS=()
  for file in "$1"/*/.cargo-lock; do
    [ -e "$file" ] || continue
    exec {fd}<"$file"
    LOCKS+=("$fd")
    flock -n "$2" "$fd" || { unlock_target; return 1; }
  done
}
unlock_target() {
  local fd
  for fd in "${LOCKS[@]}"; do exec {fd}<&-; done
}

# workspace_products CHECKOUT: patterns for all that cargo makes of the packages of this checkout, in any profile. A product is
# called after its package or its crate, followed by a hash of 16 digits.
workspace_products() {
  cargo metadata --no-deps --offline --format-version 1 --manifest-path "$1/Cargo.toml" | jq -r '
    ("[0-9a-f]" * 16) as $hash
    | .packages[] | .name as $package
    | "./*/.fingerprint/\($package)-\($hash)", "./*/build/\($package)-\($hash)",
      (.targets[].name | ., gsub("-"; "_") | "./*/\(.)", "./*/\(.).d", "./*/lib\(.).*", "./*/deps/\(.)-\($hash)*", "./*/deps/lib\(.)-\($hash)*")'
}

# prune_targets KEEP: removes the directories of checkouts that are gone, and those used least recently beyond MAX_TARGETS. What a
# script or cargo uses now stays.
prune_targets() {
  local dir rank=0 fd checkout
  for dir in $(targets_by_use); do
    rank=$((rank + 1))
    [ "$dir" != "$1" ] || continue
    checkout=$(checkout_of "$dir")
    [ ! -f "$checkout/Cargo.toml" ] || [ "$rank" -gt "$MAX_TARGETS" ] || continue
    exec {fd}<"$dir/CHECKOUT"
    if flock -n -x "$fd" && lock_target "$dir" -x; then
      say "removing the target directory of $checkout"
      rm -rf "$dir"
      unlock_target
    fi
    exec {fd}<&-
  done
}
