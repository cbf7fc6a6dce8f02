#!/usr/bin/env bash
# Runs every check that a change must pass before it lands: format, lints, tests, documentation, supply chain, scripts.
#
# usage: scripts/test.sh [SECTION...]
#
#   SECTION     format lints tests doctests docs deny scripts house smoke documents faults; all of them if none is named
#   --help      print this text
#
# First it installs what is missing (with apt-get: compiler, libraries and a browser; with cargo: cargo-deny; with npm: packages
# that tests use) and compiles RocksDB unless that was done before. A section runs even if an earlier one has failed. The last line
# counts the tests. The exit status is 0 only if every section has passed.

# shellcheck source-path=SCRIPTDIR
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/build.sh
. "$HERE/lib/build.sh"

CARGO_DENY_VERSION=0.20.2
TOOLS=$AGENTPOST_CACHE/tools
# With this feature a test can make a node exit at a certain place. No release has it.
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

# section NAME: runs check_NAME and records its duration and its result.
section() {
  local name=$1 started=$SECONDS state=ok
  printf '\n%s== %s%s\n' "$BOLD" "$name" "$PLAIN"
  # In the condition of an `if`, the shell would ignore a failing command inside the function.
  set +e
  (set -euo pipefail; "check_$name") 2>&1 | tee "$OUTPUT/$name"
  [ "${PIPESTATUS[0]}" -eq 0 ] || { state=FAILED; BROKEN=$((BROKEN + 1)); }
  set -e
  REPORT+=("$(printf '%-10s %-7s %5d s' "$name" "$state" "$((SECONDS - started))")")
}

# count SECTION: adds the summaries of nextest and of cargo test to the totals.
count() {
  local p f s
  read -r p f s < <(sed 's/\x1b\[[0-9;]*m//g' "$OUTPUT/$1" | awk '
    # Each number precedes its word: "12 passed", "1 failed;", "3 skipped".
    function before(word,   i) { for (i = 2; i <= NF; i++) if ($i ~ "^" word) return $(i - 1) + 0; return 0 }
    /^ *Summary \[/ { p += before("passed"); f += before("failed") + before("timed"); s += before("skipped") }
    /^test result:/ { p += before("passed"); f += before("failed"); s += before("ignored") }
    END { print p + 0, f + 0, s + 0 }')
  PASSED=$((PASSED + p)) FAILED=$((FAILED + f)) SKIPPED=$((SKIPPED + s))
}

check_format() { cargo fmt --all --check; }
# A release has no failpoints, so what only they use must not be a warning without them.
check_lints() {
  cargo clippy --workspace --all-targets --features "$FAILPOINTS" --locked --quiet -- -D warnings &&
    cargo clippy --workspace --lib --bins --locked --quiet -- -D warnings
}

check_tests() {
  ensure_vendor
  have chromium || install_packages chromium
  # Tests that start processes take the binaries, and the libraries that are preloaded into them, from AGENTPOST_BIN.
  cargo_build --workspace --features "$FAILPOINTS"
  export AGENTPOST_BIN=$CARGO_TARGET_DIR/debug
  if have cargo-nextest; then
    cargo nextest run --workspace --locked --no-fail-fast --cargo-quiet --features "$FAILPOINTS"
  else
    cargo test --workspace --lib --bins --tests --locked --no-fail-fast --quiet --features "$FAILPOINTS"
  fi
}

# ensure_vendor: installs the npm packages of node/tests/vendor: the vendors' libraries that verify webhooks, and the driver of the
# browser. They are kept in the cache under a name made of the lock file, where the tests look for them.
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
  # Another run may have installed them in the meantime.
  mv -T "$work" "$dir" 2>/dev/null || rm -rf "$work"
}

check_doctests() { cargo test --workspace --doc --locked --quiet; }
check_docs() { RUSTDOCFLAGS='-D warnings' cargo doc --workspace --no-deps --locked --quiet; }

# check_deny: checks licences, bans and sources, and advisories if their database can be fetched.
check_deny() {
  local deny=$TOOLS/bin/cargo-deny status=0
  if ! [[ $("$deny" --version 2>/dev/null) == *" $CARGO_DENY_VERSION" ]]; then
    install_cargo_deny
  fi
  "$deny" --locked --workspace check --hide-inclusion-graph bans licenses sources >"$OUTPUT/deny.log" 2>&1 || status=$?
  if [ "$status" -ne 0 ]; then cat "$OUTPUT/deny.log"; return 1; fi
  grep -v '^warning\[duplicate\]' "$OUTPUT/deny.log" | grep -A4 '^warning' || true
  echo "$(grep -c '^warning\[duplicate\]' "$OUTPUT/deny.log" || true) crates are in the dependency graph in more than one version (a warning)"
  tail -n 1 "$OUTPUT/deny.log"
  if timeout 120 "$deny" fetch db >/dev/null 2>&1; then
    "$deny" --locked --workspace check --disable-fetch --hide-inclusion-graph advisories
  else
    echo "advisories were not checked, because their database cannot be fetched from here"
  fi
}

# install_cargo_deny: compiles it once, with little optimisation, because it runs for half a second.
install_cargo_deny() {
  local work
  work=$(mktemp -d)
  say "installing cargo-deny $CARGO_DENY_VERSION into $TOOLS (once, some minutes)"
  CARGO_PROFILE_RELEASE_OPT_LEVEL=1 CARGO_PROFILE_RELEASE_LTO=off CARGO_PROFILE_RELEASE_CODEGEN_UNITS=16 \
    cargo install cargo-deny --locked --quiet --no-track --force --version "$CARGO_DENY_VERSION" --root "$TOOLS" --target-dir "$work"
  rm -rf "$work"
}

# check_scripts: every script parses, has --help, and passes shellcheck; two checkouts do not share binaries.
check_scripts() {
  local f files=("$ROOT"/scripts/*.sh "$ROOT"/scripts/lib/*.sh "$ROOT/.ci/run")
  for f in "${files[@]}"; do bash -n "$f"; done
  for f in "$ROOT"/scripts/*.sh; do
    [ -x "$f" ] || { echo "$f is not executable"; return 1; }
    "$f" --help </dev/null | grep -q '^usage: ' || { echo "$f --help prints no usage"; return 1; }
  done
  shellcheck --external-sources "${files[@]}"
  echo "${#files[@]} scripts: syntax, --help and shellcheck"
  "$HERE/lib/target_test.sh"
}

# check_house: no Rust file has more than 600 lines, and every crate version is in [workspace.dependencies].
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

# check_smoke: runs the quickstart on ports of its own, because a developer's cluster may be running.
check_smoke() { "$HERE/quickstart.sh" --exit --dir "$OUTPUT/cluster" --port 17600 --peer-port 17650 </dev/null; }

# check_documents: runs the command blocks of the documents, with the binaries that the tests used.
check_documents() {
  cargo_build --workspace --features "$FAILPOINTS"
  "$HERE/documents.sh" --bin "$CARGO_TARGET_DIR/debug"
}

# check_faults: runs some scenarios for some seconds each, with the binaries that the tests used.
check_faults() {
  cargo_build --workspace --features "$FAILPOINTS"
  # The results stay until the next run, so that a failure can be examined.
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
