#!/usr/bin/env bash
# Runs the command blocks of the documents, so that what they show is what happens.
#
# usage: scripts/documents.sh [--bin DIR] [--verbose] [DOCUMENT...]
#
#   DOCUMENT    a file such as node/README.md; all documents when none is named
#   --bin DIR   take agentpostd, kite and agentpost from there instead of building them
#   --verbose   print what the commands print, also when all is well
#   --help      this text
#
# How a document is read:
#
#   ```sh                    runs; all blocks of a document run in order, in one shell that ends at the first failure
#   # → TEXT                 in such a block, waits (60 s at most) until the output since the beginning of the block has
#                            TEXT; … in it stands for anything
#   ```python ```js ```toml  whose first line is a comment with a file name is written to that file, for the next commands
#   ```rust                  whose first line is `// client/examples/NAME.rs` must have the very lines of that file
#   ```json                  must be JSON
#   ```text ```console       is not run: another test does it, it takes too long, or it needs more than one machine
#   ```mermaid               is a drawing
#
# Any other fence is an error, and so is a link to a file that does not exist, or a source file in backticks (`NAME.rs`) that
# no folder has. Each document gets an empty home, links to the folders of the checkout, and free ports: in its blocks 77nn,
# 78nn and 90nn become others. `cargo`, `pip` and `npm` do nothing there, because programs and packages are installed before.
# `scripts/cluster.sh up` and `agentpostd dev` get the ports, and `cluster.sh` the programs of --bin.

# Functions that are called by a name in a variable, or by a trap, look unused, and backticks are searched for:
# shellcheck source-path=SCRIPTDIR disable=SC2317,SC2016
set -euo pipefail
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=lib/common.sh
. "$HERE/lib/common.sh"
# shellcheck source=lib/build.sh
. "$HERE/lib/build.sh"

PYTHON_PACKAGES=(flask==3.1.2 requests==2.32.5 standardwebhooks==1.0.0 websockets==15.0.1)
NODE_PACKAGES=(standardwebhooks@1.1.1)
# No document takes a minute on a quiet machine.
DOCUMENT_SECONDS=600

BIN='' VERBOSE=no DOCUMENTS=()
while [ $# -gt 0 ]; do
  case $1 in
    --bin) need_value "$1" $#; BIN=$(realpath -m "$2"); shift ;;
    --verbose) VERBOSE=yes ;;
    -h | --help) usage "$0"; exit 0 ;;
    -*) die "unknown option '$1'; see --help" ;;
    *) DOCUMENTS+=("$1") ;;
  esac
  shift
done
[ ${#DOCUMENTS[@]} -gt 0 ] || DOCUMENTS=(README.md client/README.md node/README.md jepsen-like-tests/README.md
  ARCHITECTURE.md scripts/BENCHMARKS.md)
for document in "${DOCUMENTS[@]}"; do [ -f "$ROOT/$document" ] || die "there is no $document in $ROOT"; done

WORK=$(mktemp -d)
cleanup() {
  local status=$?
  # Nodes that scripts/cluster.sh started outlive the shell of their document.
  for home in "$WORK"/*/home; do
    [ ! -d "$home/.cache/agentpost/cluster" ] || "$HERE/cluster.sh" down --dir "$home/.cache/agentpost/cluster" >/dev/null 2>&1 || true
  done
  rm -rf "$WORK"
  exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT TERM

# ensure_packages: the packages of the documents, for Python as a virtual environment, in the cache, once per list.
ensure_packages() {
  PYTHON=$(package_folder python "${PYTHON_PACKAGES[@]}") NODE=$(package_folder node "${NODE_PACKAGES[@]}")
  [ -d "$PYTHON" ] || { install_packages python3 python3-venv; ensure_folder "$PYTHON" install_python; }
  have node || install_packages nodejs
  [ -d "$NODE" ] || { have npm || install_packages npm; ensure_folder "$NODE" install_node; }
}
package_folder() { echo "$AGENTPOST_CACHE/documents-$1-$(printf '%s\n' "${@:2}" | sha256sum | cut -c 1-12)"; }
install_python() {
  say "installing ${PYTHON_PACKAGES[*]} (pip)"
  python3 -m venv "$1" && "$1/bin/python3" -m pip install --quiet --disable-pip-version-check "${PYTHON_PACKAGES[@]}"
}
install_node() {
  say "installing ${NODE_PACKAGES[*]} (npm)"
  npm install --prefix "$1" --ignore-scripts --no-audit --no-fund --loglevel error "${NODE_PACKAGES[@]}"
}
# ensure_folder FOLDER INSTALL: complete or absent. The scripts of a virtual environment name the folder that it was made in, so only
# its python3 is used.
ensure_folder() {
  local work
  mkdir -p "$AGENTPOST_CACHE"
  work=$(mktemp -d "$AGENTPOST_CACHE/documents.XXXXXX")
  "$2" "$work" >&2 || { rm -rf "$work"; die "the packages of the documents could not be installed"; }
  # Another run may have been faster.
  mv -T "$work" "$1" 2>/dev/null || rm -rf "$work"
}

# split DOCUMENT DIR: the commands of a document into DIR/commands, what is to be compared into DIR/json and DIR/rust.
split() {
  mkdir -p "$2/json" "$2/rust"
  : >"$2/commands"
  awk -v document="$1" -v dir="$2" '
    function quoted(text) { gsub(/\047/, "\047\\\047\047", text); return "\047" text "\047" }
    function problem(text) { print document ":" NR ": " text > "/dev/stderr"; failed = 1; exit 1 }
    !inside && /^```/ {
      inside = 1; kind = substr($0, 4); start = NR; first = 1
      if (kind !~ /^(sh|python|js|toml|json|rust|text|console|mermaid)$/) problem("a fence must be sh, python, js, toml, json, rust, text, console or mermaid, not \"" kind "\"")
      if (kind == "sh") print "at " quoted(document ":" NR) >> (dir "/commands")
      next
    }
    inside && /^```$/ {
      if (file) print "END_OF_FILE" >> (dir "/commands")
      inside = 0; file = ""
      next
    }
    !inside { next }
    kind == "sh" {
      if (match($0, /^ *# → /)) print "expect " quoted(substr($0, RLENGTH + 1)) >> (dir "/commands")
      else print >> (dir "/commands")
      next
    }
    kind == "json" { print > (dir "/json/" start); next }
    kind == "rust" {
      if (first) {
        if ($0 !~ /^\/\/ client\/examples\/[a-z_]+\.rs$/) problem("a block of rust begins with // client/examples/NAME.rs")
        quote = dir "/rust/" substr($0, 20)
      } else print > quote
      first = 0; next
    }
    kind ~ /^(python|js|toml)$/ {
      if (first && $0 ~ /^(#|\/\/) [A-Za-z0-9_.\/-]+\.(py|mjs|toml)$/) {
        file = $2
        print "cat >" file " <<\047END_OF_FILE\047" >> (dir "/commands")
      }
      if (file) print >> (dir "/commands")
      else if (first) problem("a block of " kind " begins with a comment that names its file")
      first = 0
    }
    END { if (!failed && inside) problem("a fence is not closed"); exit failed }
  ' "$ROOT/$1"
}

# check_texts DOCUMENT DIR: examples of JSON are JSON, quotations are the files that they name, links lead somewhere.
check_texts() {
  local f name link status=0
  for f in "$2"/json/*; do
    [ -f "$f" ] || continue
    jq -e . "$f" >/dev/null || { echo "$1:${f##*/}: not JSON"; status=1; }
  done
  for f in "$2"/rust/*; do
    [ -f "$f" ] || continue
    name=client/examples/${f##*/}
    diff -u "$ROOT/$name" "$f" || { echo "$1: the quotation of $name differs from the file"; status=1; }
  done
  while read -r link; do
    case $link in http*://* | '#'*) continue ;; esac
    [ -e "$ROOT/$(dirname "$1")/${link%%#*}" ] || { echo "$1: there is no $link"; status=1; }
  done < <(grep -oE '\]\([^) ]+\)' "$ROOT/$1" | sed 's/^](//; s/)$//')
  while read -r name; do
    grep -qE "(^|/)$name$" <<<"$SOURCES" || { echo "$1: there is no $name"; status=1; }
  done < <(grep -oE '`[A-Za-z0-9_./-]+\.rs`' "$ROOT/$1" | tr -d '`' | sort -u)
  return "$status"
}

# free_ports: a number P so that ports P00 to P09, and those of the next two hundreds, are free.
free_ports() {
  local p h n
  for _ in $(seq 50); do
    p=$((200 + RANDOM % 100))
    for h in 0 1 2; do
      for n in 0 1 2 3 4; do port_free $((100 * (p + h) + n)) || continue 3; done
    done
    echo "$p"
    return
  done
  die "no free ports found"
}

# What the shell of a document begins with.
prelude() {
  cat <<EOF_PRELUDE
set -euo pipefail
export HOME='$2/home' PATH='$BIN:$PYTHON/bin:$PATH' PYTHONUNBUFFERED=1
LOG='$2/output'
EOF_PRELUDE
  # shellcheck disable=SC2016
  printf '%s\n' '
unset AGENTPOST_CACHE AGENTPOST_URLS AGENTPOST_ADMIN_KEY AGENTPOST_BIN KITE_API_KEY KITE_TEAM_ID KITE_WS_URL XDG_CONFIG_HOME XDG_CACHE_HOME
cargo() { :; }
npm() { :; }
pip() { python3 -m pip --disable-pip-version-check show --quiet "${@:2}"; }
AT=start SEEN=0
trap "kill \$(jobs -p) 2>/dev/null || true; wait" EXIT
trap "echo \"\$AT: a command of this block failed\"" ERR
at() { AT=$1; echo "== $AT"; SEEN=$(stat -c %s "$LOG"); }
expect() {
  local text shown=$1 deadline=$((SECONDS + 60)) pattern
  pattern=$(printf %s "$1" | sed "s/[][\\\\*?]/\\\\&/g; s/…/*/g")
  while :; do
    text=$(tail -c +$((SEEN + 1)) "$LOG")
    [[ $text != *$pattern* ]] || return 0
    [ "$SECONDS" -lt "$deadline" ] || { echo "$AT: expected but not seen: $shown"; return 1; }
    sleep 0.05
  done
}'
}

# run_document DOCUMENT: false when something in it does not hold.
run_document() {
  local dir=$WORK/${1//\//-} p entry started=$SECONDS
  mkdir -p "$dir/home" "$dir/checkout"
  for entry in "$ROOT"/*; do ln -s "$entry" "$dir/checkout/"; done
  ln -s "$NODE/node_modules" "$dir/checkout/node_modules"
  split "$1" "$dir" || return 1
  check_texts "$1" "$dir" || return 1
  if [ ! -s "$dir/commands" ]; then
    echo "$1: links and source files exist; it has no blocks to run"
    return 0
  fi
  p=$(free_ports)
  : >"$dir/output"
  {
    prelude "$1" "$dir"
    sed -E "s/\b77([0-9]{2})\b/$p\1/g; s/\b78([0-9]{2})\b/$((p + 1))\1/g; s/\b90([0-9]{2})\b/$((p + 2))\1/g
      s#^( *)agentpostd dev#\1agentpostd dev --port ${p}00#
      s#^( *)scripts/cluster.sh up#\1scripts/cluster.sh up --bin '$BIN' --port ${p}00 --peer-port $((p + 1))00#" "$dir/commands"
  } >"$dir/session"
  if ! (cd "$dir/checkout" && exec timeout --kill-after 30 "$DOCUMENT_SECONDS" bash "$dir/session" >"$dir/output" 2>&1 </dev/null); then
    tail -n 60 "$dir/output"
    echo "$1 FAILED"
    return 1
  fi
  [ "$VERBOSE" = no ] || cat "$dir/output"
  echo "$1: $(grep -c '^at ' "$dir/commands") blocks, $(grep -c '^expect ' "$dir/commands") lines of output as shown, $((SECONDS - started)) s"
}

if [ -n "$BIN" ]; then install_packages curl jq; else build_binaries quickstart; BIN=$BUILT_BIN; fi
for b in agentpostd kite agentpost; do [ -x "$BIN/$b" ] || die "$BIN has no $b"; done
ensure_packages
SOURCES=$(cd "$ROOT" && find . -name target -prune -o -name '*.rs' -print)
failed=0
for document in "${DOCUMENTS[@]}"; do run_document "$document" || failed=1; done
exit "$failed"
