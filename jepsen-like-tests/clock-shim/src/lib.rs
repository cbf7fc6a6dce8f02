//! A wall clock that can be set: a library for `LD_PRELOAD` that stands between a program and libc's calls for the time.
//!
//! The file named in `CLOCK_SHIM_FILE` holds one number of 8 bytes in the machine's order: by how many nanoseconds wall time is
//! ahead. It is mapped into the program, so that a new number counts at once. Monotonic time is the machine's.
//!
//! libfaketime does the same and more, but looks for functions when it is first asked, which allocates; jemalloc asks for the
//! time while it gets ready to allocate, and so a node with both never starts. Nothing here allocates.
//!
//! Not seen: programs that make system calls without libc, and a wait for a wall time (`pthread_cond_timedwait`) that a jump
//! meets in the middle: it ends when it would have ended.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicI64, AtomicPtr, Ordering};

use libc::{clockid_t, pthread_cond_t, pthread_mutex_t, time_t, timespec, timeval};

const SECOND_NS: i64 = 1_000_000_000;

/// What a program shows that has no file.
static RIGHT: AtomicI64 = AtomicI64::new(0);
/// The number in the file; null before it was looked for.
static AHEAD_NS: AtomicPtr<AtomicI64> = AtomicPtr::new(ptr::null_mut());

fn ahead_ns() -> i64 {
    let mut place = AHEAD_NS.load(Ordering::Acquire);
    if place.is_null() {
        place = map().unwrap_or(ptr::from_ref(&RIGHT).cast_mut());
        AHEAD_NS.store(place, Ordering::Release);
    }
    // SAFETY: `RIGHT`, or a mapping of 8 bytes and more that is never taken back; pages are aligned.
    unsafe { &*place }.load(Ordering::Relaxed)
}

/// Maps the file. Two threads that are first at a time map it twice, which does no harm.
fn map() -> Option<*mut AtomicI64> {
    let size = size_of::<AtomicI64>();
    // SAFETY: constants with zeros at their ends, a path that libc gave us, and a mapping of a file where the system likes it.
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

/// Moves a moment by so much.
fn shifted(moment: timespec, by_ns: i64) -> timespec {
    let ns = moment.tv_sec * SECOND_NS + moment.tv_nsec + by_ns;
    timespec {
        tv_sec: ns.div_euclid(SECOND_NS),
        tv_nsec: ns.rem_euclid(SECOND_NS),
    }
}

fn wall() -> timespec {
    let mut now = timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is ours. A system call, because libc's function is the one below.
    unsafe { libc::syscall(libc::SYS_clock_gettime, libc::CLOCK_REALTIME, &mut now) };
    shifted(now, ahead_ns())
}

/// libc's.
///
/// # Safety
/// As libc has it: `now` points to room for an answer.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn clock_gettime(clock: clockid_t, now: *mut timespec) -> c_int {
    // SAFETY: the caller's pointer, for what the caller gave it for.
    let result = unsafe { libc::syscall(libc::SYS_clock_gettime, clock, now) };
    if result == 0 && matches!(clock, libc::CLOCK_REALTIME | libc::CLOCK_REALTIME_COARSE) {
        // SAFETY: the system has just written there.
        unsafe { *now = shifted(*now, ahead_ns()) };
    }
    result as c_int
}

/// libc's.
///
/// # Safety
/// As libc has it: `now` points to room for an answer, or to nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn gettimeofday(now: *mut timeval, _zone: *mut c_void) -> c_int {
    let wall = wall();
    if !now.is_null() {
        // SAFETY: the caller's room.
        unsafe {
            *now = timeval {
                tv_sec: wall.tv_sec,
                tv_usec: wall.tv_nsec / 1_000,
            };
        }
    }
    0
}

/// libc's.
///
/// # Safety
/// As libc has it: `now` points to room for an answer, or to nothing.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn time(now: *mut time_t) -> time_t {
    let wall = wall();
    if !now.is_null() {
        // SAFETY: the caller's room.
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

/// libc's, for conditions that wait for wall time, as they do unless told otherwise. Without it RocksDB, which reckons from the
/// wrong clock until when to wait, would wait for an hour or not at all.
///
/// # Safety
/// As libc has it.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn pthread_cond_timedwait(
    condition: *mut pthread_cond_t,
    mutex: *mut pthread_mutex_t,
    until: *const timespec,
) -> c_int {
    // SAFETY: the caller's moment.
    let until = shifted(unsafe { *until }, -ahead_ns());
    // SAFETY: the caller's condition and mutex; `until` is ours.
    unsafe { pthread_cond_clockwait(condition, mutex, libc::CLOCK_REALTIME, &until) }
}
