# From a bare Debian to binaries: packages, compiler, the RocksDB archive, cargo. Sourced after common.sh.
# shellcheck shell=bash
#
# RocksDB is 340 C++ files, about eight minutes on two cores, and cargo would compile it anew for every profile and
# every target directory. So it is compiled once per version into a static archive in the cache, and every build,
# debug or release, links that archive (ROCKSDB_LIB_DIR, ROCKSDB_STATIC).

# One target directory for all checkouts, outside the tree: dependencies are compiled once.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$AGENTPOST_CACHE/target}

# ensure_build_tools: compiler for C++ dependencies, libclang for RocksDB's bindings, curl and jq for the scripts.
ensure_build_tools() {
  local clang=()
  have_libclang || read -r -a clang <<<"$(libclang_packages)"
  install_packages g++ make pkg-config ca-certificates curl jq "${clang[@]}"
}

# have_libclang: some installed LLVM has both the library and the compiler's own headers.
have_libclang() {
  local llvm
  for llvm in /usr/lib/llvm-*; do
    compgen -G "$llvm/lib/libclang*.so*" >/dev/null && compgen -G "$llvm/lib/clang/*/include/stdbool.h" >/dev/null && return 0
  done
  return 1
}

# libclang_packages: the library and its headers, in the version that the distribution takes as its own.
libclang_packages() {
  local v
  have apt-cache || return 0
  apt-cache show libclang-dev >/dev/null 2>&1 || as_root apt-get update -qq >&2
  v=$(apt-cache depends libclang-dev 2>/dev/null | sed -n 's/^ *Depends: libclang-\([0-9]\+\)-dev$/\1/p' | head -n 1)
  echo "libclang1-${v:-14} libclang-common-${v:-14}-dev"
}

# ensure_toolchain: cargo in the version that rust-toolchain.toml names.
ensure_toolchain() {
  local pinned
  [ -x "$HOME/.cargo/bin/cargo" ] && case ":$PATH:" in *":$HOME/.cargo/bin:"*) ;; *) PATH="$HOME/.cargo/bin:$PATH" ;; esac
  have cargo || die "Rust is missing: install it with rustup (https://rustup.rs), then run this again"
  pinned=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")
  (cd "$ROOT" && cargo --version >/dev/null 2>&1) && return 0
  # Where no toolchain can be fetched, the same version may be installed under another name.
  if have rustup && [[ $(rustup run stable rustc --version 2>/dev/null) == "rustc $pinned "* ]]; then
    export RUSTUP_TOOLCHAIN=stable
    return 0
  fi
  say "installing Rust $pinned (rustup)"
  rustup toolchain install "$pinned" --profile minimal --component rustfmt --component clippy >&2 || die "Rust $pinned is needed"
}

rocksdb_version() {
  awk '/^name = "librocksdb-sys"$/ { getline; gsub(/^version = "|"$/, ""); print; exit }' "$ROOT/Cargo.lock"
}

# ensure_rocksdb: the archive of the locked version stands in the cache, and cargo is told so.
ensure_rocksdb() {
  local version dir
  if [ -n "${ROCKSDB_LIB_DIR:-}" ] && [ -f "$ROCKSDB_LIB_DIR/librocksdb.a" ]; then
    export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
    return 0
  fi
  version=$(rocksdb_version)
  [ -n "$version" ] || die "Cargo.lock names no librocksdb-sys"
  dir=$AGENTPOST_CACHE/rocksdb-$version
  [ -f "$dir/librocksdb.a" ] || build_rocksdb "$version" "$dir"
  export ROCKSDB_LIB_DIR=$dir ROCKSDB_STATIC=1
}

# build_rocksdb VERSION DIR: under a lock, because two scripts may find the archive missing at the same time.
build_rocksdb() {
  local version=$1 dir=$2 work archive started status=0
  mkdir -p "$AGENTPOST_CACHE"
  exec 8>"$AGENTPOST_CACHE/rocksdb.lock"
  flock 8
  if [ ! -f "$dir/librocksdb.a" ]; then
    started=$SECONDS
    work=$(mktemp -d "$AGENTPOST_CACHE/rocksdb-build.XXXXXX")
    say "compiling RocksDB $version into $dir: about 8 minutes on two cores, once"
    (
      cd "$ROOT"
      unset ROCKSDB_LIB_DIR ROCKSDB_STATIC
      cargo build --locked --release -p librocksdb-sys --config profile.release.debug=false --target-dir "$work" 8>&-
    ) >"$AGENTPOST_CACHE/rocksdb-build.log" 2>&1 || status=$?
    archive=$(find "$work" -name librocksdb.a -print -quit)
    if [ "$status" -ne 0 ] || [ -z "$archive" ]; then
      rm -rf "$work"
      tail -n 20 "$AGENTPOST_CACHE/rocksdb-build.log" >&2
      die "RocksDB did not compile; the whole log is $AGENTPOST_CACHE/rocksdb-build.log"
    fi
    # Complete or absent: others look for the file without the lock.
    mkdir -p "$dir"
    cp "$archive" "$dir/librocksdb.a.tmp"
    strip --strip-debug "$dir/librocksdb.a.tmp"
    mv "$dir/librocksdb.a.tmp" "$dir/librocksdb.a"
    rm -rf "$work"
    say "RocksDB took $((SECONDS - started)) s"
  fi
  exec 8>&-
}

# claim_target: cargo names what it compiles by the path inside the checkout and judges freshness by file times, so in a
# target directory that several checkouts share, a later build of another checkout passes for this one's. Touching the
# sources whenever another checkout was here last keeps the dependencies shared and the binaries true.
claim_target() {
  local stamp=$CARGO_TARGET_DIR/.checkout
  mkdir -p "$CARGO_TARGET_DIR"
  [ "$(cat "$stamp" 2>/dev/null)" = "$ROOT" ] && return 0
  (cd "$ROOT" && find . -name target -prune -o -name .git -prune -o -type f \( -name '*.rs' -o -name '*.proto' -o -name '*.toml' \) -exec touch {} +)
  echo "$ROOT" >"$stamp"
}

# ensure_build: everything that cargo needs to compile this workspace.
ensure_build() {
  ensure_build_tools
  ensure_toolchain
  ensure_rocksdb
  claim_target
}

# build_release: release binaries; prints nothing when there is nothing to do.
build_release() {
  ensure_build
  say "building the release binaries (cargo; a first build takes some minutes)"
  (cd "$ROOT" && cargo build --locked --release --quiet --bins) >&2 || die "the build failed"
  export BUILT_BIN=$CARGO_TARGET_DIR/release
}
