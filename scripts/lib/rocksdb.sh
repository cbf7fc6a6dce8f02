# Compiles RocksDB once into a static archive that every build on this machine links. Sourced after common.sh and progress.sh.
# shellcheck shell=bash
#
# cargo would compile the 340 C++ files of RocksDB anew for every profile and every target directory, and would spend most of that
# time on headers that the files share. Here the compiler gets units instead: generated files that include many sources, so that it
# reads the headers once for all of them. The headers that most sources include are precompiled, so that the units share them, too.
# The sources, their list and the preprocessor flags are those of the locked crate librocksdb-sys. If a unit does not compile as a
# whole, its sources are compiled one by one.

# Each of these sources is a unit of its own, because it defines macros or is large.
ROCKSDB_ALONE='^(db/c|util/xxhash|util/crc32c|util/crc32c_arm64|port/stack_trace)\.cc$'
# Nothing that Agentpost links refers to these sources. The C interface of RocksDB (db/c.cc) refers to them in functions that the
# linker drops. If a later version of Agentpost needs one, the linker names the missing symbols.
ROCKSDB_UNUSED='^(utilities/(agg_merge|backup|blob_db|cassandra|persistent_cache|simulator_cache|secondary_index|sorted_run_builder|option_change_migration|leveldb_options|env_mirror|cache_dump_load|fault_injection|debug)|utilities/transactions/[^s]|tools|test_util/transaction)'
# Headers that most sources include, directly or through others.
ROCKSDB_HEADERS='db/db_impl/db_impl.h logging/logging.h rocksdb/utilities/options_type.h table/block_based/block_based_table_reader.h test_util/sync_point.h'
# Lines of source in a unit. A larger unit compiles faster in all but needs more memory, and fewer units keep fewer cores busy.
ROCKSDB_UNIT=18000

# ensure_rocksdb: makes cargo link the archive of the locked version, and compiles it if it is not in the cache.
ensure_rocksdb() {
  local dir
  if [ -n "${ROCKSDB_LIB_DIR:-}" ] && [ -f "$ROCKSDB_LIB_DIR/librocksdb.a" ]; then
    export ROCKSDB_LIB_DIR ROCKSDB_STATIC=1
    return 0
  fi
  # The list of sources and the flags are those for Linux. Elsewhere the crate compiles RocksDB itself.
  [ "$(uname -s)" = Linux ] || return 0
  dir=$AGENTPOST_CACHE/rocksdb-$(crate_version librocksdb-sys)-$(sha256sum "$LIB/rocksdb.sh" | cut -c 1-8)
  [ -f "$dir/librocksdb.a" ] || build_rocksdb "$dir"
  export ROCKSDB_LIB_DIR=$dir ROCKSDB_STATIC=1
}

# crate_version NAME: prints the version in Cargo.lock.
crate_version() {
  awk -v name="name = \"$1\"" '$0 == name { getline; gsub(/^version = "|"$/, ""); print; exit }' "$ROOT/Cargo.lock"
}

# crate_sources NAME: prints the directory with the sources of a locked crate.
crate_sources() {
  (cd "$ROOT" && cargo metadata --locked --offline --format-version 1 --filter-platform "$(host)") |
    jq -r --arg name "$1" '.packages[] | select(.name == $name) | .manifest_path | rtrimstr("/Cargo.toml")'
}

# build_rocksdb DIR: takes a lock, because two scripts may find the archive missing at the same time.
build_rocksdb() {
  local started=$SECONDS
  mkdir -p "$AGENTPOST_CACHE"
  exec 8>"$AGENTPOST_CACHE/rocksdb.lock"
  flock 8
  if [ ! -f "$1/librocksdb.a" ]; then
    # Builds that were interrupted leave their files behind.
    rm -rf "$AGENTPOST_CACHE"/rocksdb-build.*
    ROCKSDB_WORK=$(mktemp -d "$AGENTPOST_CACHE/rocksdb-build.XXXXXX")
    write_units
    if ! with_progress "compiling RocksDB" rocksdb_state compile_units; then
      tail -n 20 "$ROCKSDB_WORK/log" >&2
      die "RocksDB did not compile; the whole log is $ROCKSDB_WORK/log"
    fi
    # Others look for the archive without the lock, so it must appear complete.
    mkdir -p "$1"
    ar crs "$1/librocksdb.a.new" "$ROCKSDB_WORK"/*.o
    mv "$1/librocksdb.a.new" "$1/librocksdb.a"
    rm -rf "$ROCKSDB_WORK"
    say "RocksDB is compiled: $(minutes $((SECONDS - started)))"
  fi
  exec 8>&-
}

# write_units: writes the units into ROCKSDB_WORK as NAME.cc, their sizes into ROCKSDB_WORK/sizes, the largest first, and
# ROCKSDB_WORK/headers.h. Units of one source have names with `alone`.
write_units() {
  local crate lz4
  crate=$(crate_sources librocksdb-sys) lz4=$(crate_sources lz4-sys)
  if [ ! -f "$crate/rocksdb_lib_sources.txt" ] || [ ! -f "$lz4/liblz4/lib/lz4.h" ]; then
    die "the crates librocksdb-sys and lz4-sys do not have the expected files; their versions in Cargo.lock may be too new for $LIB/rocksdb.sh"
  fi
  rocksdb_flags "$crate" "$lz4" >"$ROCKSDB_WORK/flags"
  # shellcheck disable=SC2086
  { echo '#include <cstdint>' && printf '#include "%s"\n' $ROCKSDB_HEADERS; } >"$ROCKSDB_WORK/headers.h"
  # The crate brings its own build_version.cc.
  (cd "$crate/rocksdb" && grep -vE "^util/build_version\.cc$|$ROCKSDB_UNUSED" "$crate/rocksdb_lib_sources.txt" | xargs wc -l) |
    awk -v alone="$ROCKSDB_ALONE" -v limit="$ROCKSDB_UNIT" -v work="$ROCKSDB_WORK" -v crate="$crate" -v root="$crate/rocksdb" '
      function add(file, lines) { print "#include \"" root "/" file "\"" > (work "/" unit ".cc"); size[unit] += lines }
      $2 == "total" { next }
      $2 ~ alone || $1 >= limit { unit = "alone" ++alones; add($2, $1); next }
      { if (shared == 0 || size["shared" shared] + $1 > limit) shared++
        unit = "shared" shared; add($2, $1) }
      END {
        unit = "alone" ++alones; root = crate; add("build_version.cc", 100)
        for (u in size) print size[u], u
      }' | sort -rn >"$ROCKSDB_WORK/sizes"
}

# rocksdb_flags CRATE LZ4: prints the flags of the compiler, one a line. The preprocessor flags are those that the build script of
# the crate sets on Linux.
rocksdb_flags() {
  printf '%s\n' -O2 -std=c++20 -fPIC -ffunction-sections -fdata-sections -w \
    -I "$1/rocksdb/include" -I "$1/rocksdb" -I "$1" -I "$2/liblz4/lib" \
    -DNDEBUG=1 -DLZ4=1 -DHAVE_ALIGNED_NEW -DHAVE_UINT128_EXTENSION -DOS_LINUX -DROCKSDB_PLATFORM_POSIX -DROCKSDB_LIB_IO_POSIX \
    -DROCKSDB_SCHED_GETCPU_PRESENT -DROCKSDB_AUXV_GETAUXVAL_PRESENT -DROCKSDB_FALLOCATE_PRESENT -DROCKSDB_RANGESYNC_PRESENT
}

# cxx: prints the C++ compiler: $CXX, or clang, which compiles RocksDB in two thirds of the time of g++, or the default.
cxx() {
  local clang
  if [ -z "${CXX:-}" ]; then
    for clang in clang++ /usr/lib/llvm-*/bin/clang++; do
      if have "$clang"; then echo "$clang"; return; fi
    done
  fi
  echo "${CXX:-c++}"
}

# compile_units: compiles as many units at a time as there are cores and gigabytes of free memory, the largest first.
compile_units() {
  (
    local jobs memory flags
    cd "$ROCKSDB_WORK" || exit
    memory=$(awk '/^MemAvailable/ { print int($2 / 1048576) }' /proc/meminfo)
    jobs=$(nproc)
    [ "$memory" -ge "$jobs" ] || jobs=$((memory > 0 ? memory : 1))
    export -f compile_unit
    {
      mapfile -t flags <flags
      # Without the precompiled header, the units read the headers themselves.
      "$(cxx)" "${flags[@]}" -x c++-header headers.h -o headers.h.gch || echo '#include <cstdint>' >headers.h
      cut -d ' ' -f 2 sizes | xargs -P "$jobs" -I '{}' bash -c "compile_unit '$(cxx)' {}"
    } >log 2>&1
  )
}

# compile_unit COMPILER NAME: runs in ROCKSDB_WORK. Status 255 makes xargs stop.
compile_unit() {
  local flags include n=0 common=headers.h
  mapfile -t flags <flags
  case $2 in alone*) common=cstdint ;; esac
  if ! "$1" "${flags[@]}" -include "$common" -c "$2.cc" -o "$2.o"; then
    echo "unit $2 does not compile as a whole; its sources are compiled one by one"
    while read -r include; do
      n=$((n + 1))
      printf '%s\n' "$include" >"$2-$n.cc"
      "$1" "${flags[@]}" -include cstdint -c "$2-$n.cc" -o "$2-$n.o" || return 255
    done <"$2.cc"
  fi
  touch "$2.done"
}

# rocksdb_state: reports the units that are done, measured in lines of source. See with_progress.
rocksdb_state() {
  local size unit lines=0 total=0 finished=0 units=0
  while read -r size unit; do
    total=$((total + size)) units=$((units + 1))
    if [ -f "$ROCKSDB_WORK/$unit.done" ]; then lines=$((lines + size)) finished=$((finished + 1)); fi
  done <"$ROCKSDB_WORK/sizes"
  echo "$((lines * 1000 / total)) $finished of $units units"
}
