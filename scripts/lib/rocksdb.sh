# Compiles RocksDB once into a static archive that every build on this machine links. Sourced after common.sh and progress.sh.
# shellcheck shell=bash
#
# cargo would compile the 340 C++ files of RocksDB anew for every profile and every target directory.

# ensure_rocksdb: makes cargo link the archive of the locked version, and compiles it if it is not in the cache.
ensure_rocksdb() {
  local version dir
  if [ -n "${ROCKSDB_LIB_DIR:-}" ] && [ -f "$ROCKSDB_LIB_DIR/librocksdb.a" ]; then
    export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
    return 0
  fi
  version=$(crate_version librocksdb-sys)
  [ -n "$version" ] || die "Cargo.lock names no librocksdb-sys"
  dir=$AGENTPOST_CACHE/rocksdb-$version
  [ -f "$dir/librocksdb.a" ] || build_rocksdb "$dir"
  export ROCKSDB_LIB_DIR=$dir ROCKSDB_STATIC=1
}

# crate_version NAME: prints the version in Cargo.lock.
crate_version() {
  awk -v name="name = \"$1\"" '$0 == name { getline; gsub(/^version = "|"$/, ""); print; exit }' "$ROOT/Cargo.lock"
}

# build_rocksdb DIR: takes a lock, because two scripts may find the archive missing at the same time.
build_rocksdb() {
  local started=$SECONDS archive status=0
  mkdir -p "$AGENTPOST_CACHE"
  exec 8>"$AGENTPOST_CACHE/rocksdb.lock"
  flock 8
  if [ ! -f "$1/librocksdb.a" ]; then
    ROCKSDB_WORK=$(mktemp -d "$AGENTPOST_CACHE/rocksdb-build.XXXXXX")
    with_progress "compiling RocksDB" rocksdb_state compile_rocksdb || status=$?
    archive=$(find "$ROCKSDB_WORK" -name librocksdb.a -print -quit)
    if [ "$status" -ne 0 ] || [ -z "$archive" ]; then
      tail -n 20 "$ROCKSDB_WORK/log" >&2
      die "RocksDB did not compile; the whole log is $ROCKSDB_WORK/log"
    fi
    # Others look for the archive without the lock, so it must appear complete.
    mkdir -p "$1"
    cp "$archive" "$1/librocksdb.a.new"
    strip --strip-debug "$1/librocksdb.a.new"
    mv "$1/librocksdb.a.new" "$1/librocksdb.a"
    rm -rf "$ROCKSDB_WORK"
    say "RocksDB is compiled: $(minutes $((SECONDS - started)))"
  fi
  exec 8>&-
}
compile_rocksdb() {
  (
    cd "$ROOT" || exit
    unset ROCKSDB_LIB_DIR ROCKSDB_STATIC
    cargo build --locked --release -p librocksdb-sys --config profile.release.debug=false --target-dir "$ROCKSDB_WORK" 8>&-
  ) >"$ROCKSDB_WORK/log" 2>&1 </dev/null
}

# rocksdb_state: reports how many of its 341 files are compiled. See with_progress.
rocksdb_state() {
  local n
  n=$(find "$ROCKSDB_WORK"/release/build/librocksdb-sys-*/out -name '*.o' 2>/dev/null | wc -l)
  echo "$((n * 1000 / 341)) $n of 341 files"
}
