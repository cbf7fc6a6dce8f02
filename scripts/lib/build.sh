# Builds the binaries on a bare Debian: installs packages and the compiler, compiles RocksDB, runs cargo. Sourced after common.sh.
# shellcheck shell=bash source-path=SCRIPTDIR

LIB=$(dirname "${BASH_SOURCE[0]}")
# shellcheck source=progress.sh
. "$LIB/progress.sh"
# shellcheck source=target.sh
. "$LIB/target.sh"
# shellcheck source=rocksdb.sh
. "$LIB/rocksdb.sh"

# ensure_build: provides all that cargo needs to compile this workspace.
ensure_build() {
  local fetch
  ensure_toolchain
  # The crates are downloaded while apt-get downloads packages.
  fetch_crates & fetch=$!
  ensure_build_tools
  wait "$fetch" || die "cargo could not download the crates"
  use_target
  ensure_rocksdb
}

# build_binaries PROFILE: builds agentpostd, kite and agentpost, and sets BUILT_BIN to their directory.
build_binaries() {
  ensure_build
  cargo_build --profile "$1" --bin agentpostd --bin kite --bin agentpost
  export BUILT_BIN=$CARGO_TARGET_DIR/$1
}

# ensure_toolchain: finds cargo, and installs the version that rust-toolchain.toml names.
ensure_toolchain() {
  local pinned
  [ -x "$HOME/.cargo/bin/cargo" ] && case ":$PATH:" in *":$HOME/.cargo/bin:"*) ;; *) PATH="$HOME/.cargo/bin:$PATH" ;; esac
  have cargo || die "Rust is missing; install it with rustup (https://rustup.rs), then run this again"
  pinned=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$ROOT/rust-toolchain.toml")
  (cd "$ROOT" && cargo --version >/dev/null 2>&1) && return 0
  # Where no toolchain can be downloaded, the same version may be installed under another name.
  if have rustup && [[ $(rustup run stable rustc --version 2>/dev/null) == "rustc $pinned "* ]]; then
    export RUSTUP_TOOLCHAIN=stable
    return 0
  fi
  say "installing Rust $pinned (rustup)"
  rustup toolchain install "$pinned" --profile minimal --component rustfmt --component clippy >&2 ||
    die "rustup could not install Rust $pinned; install it by hand, then run this again"
}

# host: prints the name that Rust has for this kind of machine.
host() { (cd "$ROOT" && rustc -vV | sed -n 's/^host: //p'); }

# fetch_crates: downloads the locked crates for this kind of machine.
fetch_crates() { (cd "$ROOT" && cargo fetch --locked --quiet --target "$(host)" >&2); }

# ensure_build_tools: installs a C++ compiler, libclang for the bindings of RocksDB, and curl and jq for the scripts.
ensure_build_tools() {
  local clang=()
  have_clang || read -r -a clang <<<"$(clang_packages)"
  install_packages g++ make pkg-config ca-certificates curl jq "${clang[@]}"
}

# have_clang: an installed LLVM has the compiler, the library and the headers that belong to them.
have_clang() {
  local llvm
  for llvm in /usr/lib/llvm-*; do
    [ -x "$llvm/bin/clang++" ] && compgen -G "$llvm/lib/libclang*.so*" >/dev/null &&
      compgen -G "$llvm/lib/clang/*/include/stdbool.h" >/dev/null && return 0
  done
  return 1
}

# clang_packages: prints the packages of the compiler and the library in the default version of the distribution.
clang_packages() {
  local v
  have apt-cache || return 0
  apt-cache show libclang-dev >/dev/null 2>&1 || as_root apt-get update -qq >&2
  v=$(apt-cache depends libclang-dev 2>/dev/null | sed -n 's/^ *Depends: libclang-\([0-9]\+\)-dev$/\1/p' | head -n 1)
  echo "clang-${v:-14} libclang1-${v:-14}"
}

# cargo_build ARGS...: runs cargo build and reports its progress. It prints what the compiler says, and nothing if there is
# nothing to do.
cargo_build() {
  local status=0 started=$SECONDS
  mkdir -p "$CARGO_TARGET_DIR"
  CARGO_LOG=$CARGO_TARGET_DIR/build.log
  with_progress "compiling Rust" cargo_state run_cargo_build "$@" || status=$?
  cargo_messages >&2
  [ "$status" -eq 0 ] || die "the build failed; the whole log is $CARGO_LOG"
  [ $((SECONDS - started)) -lt 10 ] || say "Rust is compiled: $(minutes $((SECONDS - started)))"
}
run_cargo_build() {
  (
    cd "$ROOT" || exit
    # The makefile of tikv-jemalloc-sys 0.7 would compile each file once more without position-independent code, which no binary
    # links, and with debug information of macros, which nobody reads. No other crate of the workspace calls make.
    export MAKEFLAGS="STATIC_LIBS=lib/libjemalloc_pic.a EXTRA_CFLAGS=-g0"
    CARGO_TERM_COLOR=never CARGO_TERM_PROGRESS_WHEN=always CARGO_TERM_PROGRESS_WIDTH=100 cargo build --locked "$@"
  ) >"$CARGO_LOG" 2>&1 </dev/null
}
# cargo_state: reports the crates that cargo has compiled, from its progress bar. See with_progress. The last crates are the largest,
# so the time is estimated with a curve instead of a straight line.
cargo_state() {
  tail -c 1000 "$CARGO_LOG" | tr '\r' '\n' | sed -n 's|^ *Building \[.*\] \([0-9]*\)/\([0-9]*\).*|\1 \2|p' | tail -n 1 |
    awk '$2 > 0 { printf "%d %d of %d steps\n", 1000 * ($1 / $2) ^ 1.5, $1, $2 }'
}
# cargo_messages: prints the output of cargo without its progress.
cargo_messages() {
  tr '\r' '\n' <"$CARGO_LOG" | sed 's/\x1b\[K//g' |
    grep -vE '^ *(Building|Compiling|Checking|Downloading|Downloaded|Locking|Finished|Fresh|Blocking) |^ *$' || true
}
