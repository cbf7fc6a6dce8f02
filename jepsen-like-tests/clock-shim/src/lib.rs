//! A settable wall clock: a library for `LD_PRELOAD` that intercepts a program's libc calls for the time.
//!
//! The file named in `CLOCK_SHIM_FILE` contains one 8-byte integer in native byte order: how many nanoseconds wall
//! time is ahead. The file is mapped into memory, so a new value takes effect at once. Monotonic time does not
//! change.
//!
//! libfaketime can do the same and more, but it looks up functions on its first call, which allocates. jemalloc reads
//! the time while it initializes, so a node with both never starts. Nothing here allocates.
//!
//! Not intercepted: programs that make system calls without libc. A wait for a wall time (`pthread_cond_timedwait`)
//! that is in progress during a jump ends when it would have ended without the jump.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use libc::{clockid_t, pthread_cond_t, pthread_mutex_t, time_t, timespec, timeval};

const SECOND_NS: i64 = 1_000_000_000;

/// The offset of a program without a file.
static RIGHT: AtomicI64 = AtomicI64::new(0);
/// The offset in the file; null before the file was mapped.
static AHEAD_NS: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());

fn ahead_ns() -> i64 {
    let mut place = AHEAD_NS.load(Ordering::Acquire);
    if place.is_null() {
        place = map().unwrap_or(ptr::from_ref(&RIGHT).cast_mut());
        AHEAD_NS.store(place, Ordering::Release);
    }
    // SAFETY: it points to `RIGHT`, or to a mapping of at least 8 bytes that is never unmapped; pages are aligned.
    unsafe { &*place }.load(Ordering::Relaxed)
}

/// Maps the file. Two threads that do this concurrently map it twice, which is harmless.
fn map() -> Option<*mut AtomicI64> {
    let size = size_of::<AtomicI64>();
    // SAFETY: constants that end with a zero byte, a path from libc, and a mapping at an address that the system chooses.
    unsafe {
        let path = libc::getenv(c"CLOCK_SHIM_FILE".as_ptr());
        if path.is_null() {
            return None;
        }
        let file = libc::open(path, libc::O_RDONLY | libc::O_CLOEXEC);
        if file < 0 {
            return None;
        }
        let mapped = libc::mmap(ptr::null_mut(), size, libc::PROT_READ, libc::MAP_SHARED, file, 0);
        libc::close(file);
        (mapped != libc::MAP_FAILED).then(|| mapped.cast::<AtomicI64>())
    }
}

/// Adds an offset to a time.
fn shifted(moment: timespec, by_ns: i64) -> timespec {
    let ns = moment.tv_sec * SECOND_NS + moment.tv_nsec + by_ns;
    timespec {
        tv_sec: ns.div_euclid(SECOND_NS),
        tv_nsec: ns.rem_euclid(SECOND_NS),
    }
}

fn wall() -> timespec {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a local variable. This is a system call, because libc's function is the one below.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, &mut now) };
    shifted(now, ahead_ns())
}

/// Replaces libc's `clock_gettime`.
///
/// # Safety
/// As for libc's function, `now` must point to a writable `timespec`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int {
    // SAFETY: the caller's pointer, used as the caller intended.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, now) };
    if result == 0 && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        // SAFETY: the system call has just written to it.
        unsafe { *now = shifted(*now, ahead_ns()) };
    }
    result as c_int
}

/// Replaces libc's `gettimeofday`.
///
/// # Safety
/// As for libc's function, `now` must be null or point to a writable `timeval`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(now: *mut timeval, _zone: *mut c_void) -> c_int {
    let wall = wall();
    if !now.is_null() {
        // SAFETY: the caller's pointer is not null.
        unsafe {
            *now = timeval {
                tv_sec: wall.tv_sec,
                tv_usec: wall.tv_nsec / 1_000,
            };
        }
    }
    0
}

/// Replaces libc's `time`.
///
/// # Safety
/// As for libc's function, `now` must be null or point to a writable `time_t`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(now: *mut time_t) -> time_t {
    let wall = wall();
    if !now.is_null() {
        // SAFETY: the caller's pointer is not null.
        unsafe { *now = wall.tv_sec };
    }
    wall.tv_sec
}

unsafe extern "C" {
    fn pthread_cond_clockwait(
        condition: *mut pthread_cond_t,
        mutex: *mut pthread_mutex_t,
        clock: clockid_t,
        until: *const timespec,
    ) -> c_int;
}

/// Replaces libc's `pthread_cond_timedwait` for conditions that wait for wall time, which is the default. RocksDB
/// computes the end of a wait from the intercepted clock; without this function it would wait for an hour or not at
/// all.
///
/// # Safety
/// The requirements are those of libc's function.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_timedwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    until: *const timespec,
) -> c_int {
    // SAFETY: the caller's pointer is valid.
    let until = shifted(unsafe { *until }, -ahead_ns());
    // SAFETY: the caller's condition and mutex are valid; `until` is a local variable.
    unsafe { pthread_cond_clockwait(condition, mutex, libc::CLOCK_REALTIME, &until) }
}
