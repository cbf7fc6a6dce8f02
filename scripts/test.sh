#!/usr/bin/env bash
# Checks everything that must hold before a change lands: format, lints, tests, documentation, supply chain, scripts.
#
# usage: scripts/test.sh [SECTION...]
#
#   SECTION     format lints tests doctests docs deny scripts house smoke documents faults; all when none is named
#   --help      this text
#
# It first installs what is missing (compiler, libraries and a browser by apt-get, cargo-deny by cargo, what tests have from npm),
# and compiles RocksDB once.
# Every section runs even if an earlier one failed; the last line counts the tests; the exit status is 0 only if all is well.

# shellcheck source-path=SCRIPTDIR
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/build.sh
. "$HERE/lib/build.sh"

CARGO_DENY_VERSION=0.20.2
TOOLS=$AGENTPOST_CACHE/tools
# Tests may have a node die where they choose; nothing that is released can.
FAILPOINTS=agentpost-node/failpoints

ALL=(format lints tests doctests docs deny scripts house smoke documents faults)
CHOSEN=()
while [ $# -gt 0 ]; do
  case $1 in
    -h | --help) usage "$0"; exit 0 ;;
    *) [[ " ${ALL[*]} " == *" $1 "* ]] || die "unknown argument '$1'; see --help"; CHOSEN+=("$1") ;;
  esac
  shift
done
[ ${#CHOSEN[@]} -gt 0 ] || CHOSEN=("${ALL[@]}")

cd "$ROOT"
OUTPUT=$(mktemp -d)
trap 'rm -rf "$OUTPUT"' EXIT
REPORT=() PASSED=0 FAILED=0 SKIPPED=0 BROKEN=0

# section NAME: runs check_NAME, times it, remembers how it ended.
section() {
  local name=$1 started=$SECONDS state=ok
  printf '\n%s== %s%s\n' "$BOLD" "$name" "$PLAIN"
  # Not `if check`: there the shell would ignore a failing command inside the function.
  set +e
  (set -euo pipefail; "check_$name") 2>&1 | tee "$OUTPUT/$name"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { state=FAILED; BROKEN=$((BROKEN + 1)); }
  set -e
  REPORT+=("$(printf '%-10s %-7s %5d s' "$name" "$state" "$((SECONDS - started))")")
}

# count SECTION: adds the closing lines of nextest and of cargo test to the totals.
count() {
  local p f s
  read -r p f s < <(sed 's/\x1b\[[0-9;]*m//g' "$OUTPUT/$1" | awk '
    # A number stands before its word: "12 passed", "1 failed;", "3 skipped".
    function before(word,   i) { for (i = 2; i <= NF; i++) if ($i ~ "^" word) return $(i - 1) + 0; return 0 }
    /^ *Summary \[/ { p += before("passed"); f += before("failed") + before("timed"); s += before("skipped") }
    /^test result:/ { p += before("passed"); f += before("failed"); s += before("ignored") }
    END { print p + 0, f + 0, s + 0 }')
  PASSED=$((PASSED + p)) FAILED=$((FAILED + f)) SKIPPED=$((SKIPPED + s))
}

check_format() { cargo fmt --all --check; }
check_lints() { cargo clippy --workspace --all-targets --features "$FAILPOINTS" --locked --quiet -- -D warnings; }

check_tests() {
  ensure_vendor
  have chromium || install_packages chromium
  # Tests that drive processes take the binaries, and the libraries that are loaded into them, from here.
  cargo build --workspace --locked --quiet --features "$FAILPOINTS"
  export AGENTPOST_BIN=$CARGO_TARGET_DIR/debug
  if have cargo-nextest; then
    cargo nextest run --workspace --locked --no-fail-fast --cargo-quiet --features "$FAILPOINTS"
  else
    cargo test --workspace --lib --bins --tests --locked --no-fail-fast --quiet --features "$FAILPOINTS"
  fi
}

# What tests have from npm (node/tests/vendor): the receivers' own libraries, which are shown our deliveries, and the driver
# of the browser. Into the cache, once per lock file; the tests look for it under the same name.
ensure_vendor() {
  local vendor=$ROOT/node/tests/vendor dir work
  dir=$AGENTPOST_CACHE/vendor-$(sha256sum "$vendor/package-lock.json" | cut -c 1-12)
  [ ! -d "$dir" ] || return 0
  have npm || install_packages nodejs npm
  say "installing the packages of node/tests/vendor into $dir (npm ci)"
  mkdir -p "$AGENTPOST_CACHE"
  work=$(mktemp -d "$AGENTPOST_CACHE/vendor.XXXXXX")
  cp "$vendor"/package.json "$vendor"/package-lock.json "$work"
  if ! npm ci --prefix "$work" --ignore-scripts --no-audit --no-fund --loglevel error >&2; then
    rm -rf "$work"
    die "npm could not install the packages of $vendor"
  fi
  # Another run may have been faster.
  mv -T "$work" "$dir" 2>/dev/null || rm -rf "$work"
}

check_doctests() { cargo test --workspace --doc --locked --quiet; }
check_docs() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet; }

# Licences, bans and sources always; advisories where their database can be had.
check_deny() {
  local deny=$TOOLS/bin/cargo-deny status=0
  if ! [[ $("$deny" --version 2>/dev/null) == *" $CARGO_DENY_VERSION" ]]; then
    install_cargo_deny
  fi
  "$deny" --locked --workspace check --hide-inclusion-graph bans licenses sources >"$OUTPUT/deny.log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then cat "$OUTPUT/deny.log"; return 1; fi
  grep -v '^warning\[duplicate\]' "$OUTPUT/deny.log" | grep -A4 '^warning' || true
  echo "$(grep -c '^warning\[duplicate\]' "$OUTPUT/deny.log" || true) crates stand in the graph in more than one version (a warning)"
  tail -n 1 "$OUTPUT/deny.log"
  if timeout 120 "$deny" fetch db >/dev/null 2>&1; then
    "$deny" --locked --workspace check --disable-fetch --hide-inclusion-graph advisories
  else
    echo "advisories skipped (their database cannot be fetched here)"
  fi
}

# Once, in minutes; little optimisation, because it runs for half a second.
install_cargo_deny() {
  local work
  work=$(mktemp -d)
  say "installing cargo-deny $CARGO_DENY_VERSION into $TOOLS (some minutes, once)"
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install cargo-deny --locked --quiet --no-track --force --version "$CARGO_DENY_VERSION" --root "$TOOLS" --target-dir "$work"
  rm -rf "$work"
}

# Scripts parse, explain themselves, and are clean of the usual mistakes.
check_scripts() {
  local f files=("$ROOT"/scripts/*.sh "$ROOT"/scripts/lib/*.sh "$ROOT/.ci/run")
  for f in "${files[@]}"; do bash -n "$f"; done
  for f in "$ROOT"/scripts/*.sh; do
    [ -x "$f" ] || { echo "$f is not executable"; return 1; }
    "$f" --help </dev/null | grep -q '^usage: ' || { echo "$f --help says no usage"; return 1; }
  done
  shellcheck --external-sources "${files[@]}"
  echo "${#files[@]} scripts: syntax, --help and shellcheck"
  "$HERE/lib/target_test.sh"
}

# No file over 600 lines, no crate version outside the workspace's table.
check_house() {
  local long loose
  long=$(git ls-files -z '*.rs' | xargs -0r wc -l | awk '$2 != "total" && $1 > 600')
  [ -z "$long" ] || { echo "files over 600 lines:"; echo "$long"; return 1; }
  # shellcheck disable=SC2016
  loose=$(git ls-files -z '*/Cargo.toml' | xargs -0r awk '
    FNR == 1 { inside = 0 }
    /^\[/ { inside = /dependencies\]$/ }
    inside && /version *=|^[a-z0-9_-]+ *= *"/ { print FILENAME ": " $0 }')
  [ -z "$loose" ] || { echo "versions belong in [workspace.dependencies]:"; echo "$loose"; return 1; }
  echo "file lengths and dependency versions"
}

# On ports and in a directory of its own: a developer's cluster may be running.
check_smoke() { "$HERE/quickstart.sh" --exit --dir "$OUTPUT/cluster" --port 17600 --peer-port 17650 </dev/null; }

# The command blocks of the documents, against the binaries that the tests ran.
check_documents() {
  cargo build --workspace --locked --quiet --features "$FAILPOINTS"
  "$HERE/documents.sh" --bin "$CARGO_TARGET_DIR/debug"
}

# Some scenarios for some seconds each, on the binaries that the tests ran. What this machine cannot do says skipped.
check_faults() {
  cargo build --workspace --locked --quiet --features "$FAILPOINTS"
  # They stay until the next time: whoever sees a failure wants to look at it.
  rm -rf "$AGENTPOST_CACHE/faults/smoke"
  "$HERE/faults.sh" smoke --bin "$CARGO_TARGET_DIR/debug" --dir "$AGENTPOST_CACHE/faults/smoke" --beside 2
}

ensure_build
have shellcheck || install_packages shellcheck
say "$(rustc --version), target directory $CARGO_TARGET_DIR"

for name in "${CHOSEN[@]}"; do
  section "$name"
  case $name in tests | doctests) count "$name" ;; esac
done

printf '\n%s== summary%s\n' "$BOLD" "$PLAIN"
printf '%s\n' "${REPORT[@]}"
[ "$BROKEN" -eq 0 ] || printf '%s%d of %d sections failed%s\n' "$RED" "$BROKEN" "${#REPORT[@]}" "$PLAIN"
[[ " ${CHOSEN[*]} " == *tests* ]] || exit "$((BROKEN > 0))"
printf 'tests: %d passed, %d failed, %d skipped\n' "$PASSED" "$FAILED" "$SKIPPED"
[ "$BROKEN" -eq 0 ] && [ "$FAILED" -eq 0 ] && [ "$PASSED" -gt 0 ]
