//! Disk faults on request: a library for `LD_PRELOAD` that intercepts a program's libc calls on files.
//!
//! The file named in `DISK_SHIM_FILE` contains one rule per line and may be replaced at any time:
//! ```text
//! fsync node1/shards/0/log eio-once
//! fsync log/ delay-ms 1500
//! write * enospc
//! * node2/ erofs
//! ```
//! A rule consists of an operation (`open`, `write`, `fsync`, `rename`, `unlink`, `allocate` or `*`), a part of the
//! file's path or `*`, and an action: `eio`, `eio-once`, `enospc`, `erofs`, `delay-ms N`. `eio-once` applies once
//! again when the file is replaced.
//!
//! **Mechanism.** Each function below has the name and the arguments of a libc function. It finds libc's own by
//! `dlsym(RTLD_NEXT)` and calls it unless a rule says otherwise. The paths of descriptors come from `/proc/self/fd`,
//! so the library keeps no state about files. Nothing here allocates, so an allocator may call it; only a failure
//! changes `errno`.
//!
//! Not intercepted: writes through `mmap` and stdio, and programs that make system calls without libc.

mod rules;

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::transmute;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{iovec, mode_t, off_t, size_t, ssize_t};

use crate::rules::{Action, Operation, Rules};

/// The minimum time between two checks of the file of rules.
const LOOK_MS: u64 = 10;
/// Longer paths are truncated before they are matched.
const PATH_BYTES_MAX: usize = 4096;

static RULES: Mutex<Rules> = Mutex::new(Rules::new());
static ACTIVE: AtomicBool = AtomicBool::new(false);
static LOOKED_MS: AtomicU64 = AtomicU64::new(0);
/// Identifies a version of the file: inode, time of change and size.
static VERSION: Mutex<(u64, i64, i64, i64)> = Mutex::new((0, 0, 0, 0));

fn rules() -> MutexGuard<'static, Rules> {
    RULES.lock().unwrap_or_else(PoisonError::into_inner)
}

fn errno() -> c_int {
    // SAFETY: libc returns a valid pointer to this thread's error number.
    unsafe { *libc::__errno_location() }
}

fn set_errno(number: c_int) {
    // SAFETY: as above.
    unsafe { *libc::__errno_location() = number }
}

fn now_ms() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is a local variable of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC_COARSE, &mut now) };
    now.tv_sec as u64 * 1_000 + now.tv_nsec as u64 / 1_000_000
}

/// Reads the rules again if the minimum time has passed and the file has changed.
fn look() {
    let (now, looked) = (now_ms(), LOOKED_MS.load(Ordering::Relaxed));
    if now < looked + LOOK_MS
        || LOOKED_MS
            .compare_exchange(looked, now, Ordering::Relaxed, Ordering::Relaxed)
            .is_err()
    {
        return;
    }
    // SAFETY: a constant that ends with a zero byte; the program does not change its environment while it runs.
    let path = unsafe { libc::getenv(c"DISK_SHIM_FILE".as_ptr()) };
    if path.is_null() {
        return;
    }
    let mut text = [0; 4096];
    // SAFETY: the path ends with a zero byte, and all zeros is a valid `stat`. The file is read by direct system calls, which do not
    // enter this library again.
    let (version, length) = unsafe {
        let mut stat: libc::stat = std::mem::zeroed();
        if libc::stat(path, &mut stat) != 0 {
            ((0, 0, 0, 0), 0)
        } else {
            let version = (stat.st_ino, stat.st_mtime, stat.st_mtime_nsec, stat.st_size);
            if *VERSION.lock().unwrap_or_else(PoisonError::into_inner) == version {
                return;
            }
            let fd = libc::syscall(
                libc::SYS_openat,
                libc::AT_FDCWD,
                path,
                libc::O_RDONLY | libc::O_CLOEXEC,
                0,
            );
            let length = libc::syscall(libc::SYS_read, fd, text.as_mut_ptr(), text.len());
            libc::syscall(libc::SYS_close, fd);
            (version, usize::try_from(length).unwrap_or(0))
        }
    };
    *VERSION.lock().unwrap_or_else(PoisonError::into_inner) = version;
    rules().replace(&text[..length]);
    ACTIVE.store(length > 0, Ordering::Relaxed);
}

/// The file that an operation concerns.
#[derive(Clone, Copy)]
enum Place {
    Descriptor(c_int),
    Path(*const c_char),
}

/// Applies the rules: waits, or returns the error number of a call that must fail. Does not change `errno`.
fn fault(operation: Operation, place: Place) -> Option<c_int> {
    let kept = errno();
    look();
    let fault = ACTIVE.load(Ordering::Relaxed) && rules().concern(operation);
    let fault = if fault { act(operation, place) } else { None };
    set_errno(kept);
    fault
}

fn act(operation: Operation, place: Place) -> Option<c_int> {
    let mut buffer = [0; PATH_BYTES_MAX];
    let path = path_of(place, &mut buffer)?;
    let began = now_ms();
    loop {
        match rules().judge(operation, path)? {
            Action::Fail(number) => return Some(number),
            Action::Delay(ms) if now_ms() >= began + ms => return None,
            Action::Delay(_) => {}
        }
        let nap = libc::timespec {
            tv_sec: 0,
            tv_nsec: 5_000_000,
        };
        // SAFETY: `nap` is a local variable, and a null pointer for the remaining time is allowed.
        unsafe { libc::nanosleep(&nap, std::ptr::null_mut()) };
        look();
    }
}

/// The path of a regular file or directory; `None` for sockets and pipes.
fn path_of(place: Place, buffer: &mut [u8; PATH_BYTES_MAX]) -> Option<&[u8]> {
    let length = match place {
        Place::Path(path) if path.is_null() => return None,
        Place::Path(path) => {
            // SAFETY: the caller passes what libc requires: a string that ends with a zero byte.
            let bytes = unsafe { CStr::from_ptr(path) }.to_bytes();
            let length = bytes.len().min(PATH_BYTES_MAX);
            buffer[..length].copy_from_slice(&bytes[..length]);
            length
        }
        Place::Descriptor(fd) => {
            let mut name = [0; 32];
            describe(fd, &mut name)?;
            // SAFETY: `name` ends with a zero byte, and `buffer` has the given length.
            let length = unsafe { libc::readlink(name.as_ptr().cast(), buffer.as_mut_ptr().cast(), buffer.len()) };
            usize::try_from(length).ok().filter(|_| buffer[0] == b'/')?
        }
    };
    Some(&buffer[..length])
}

/// Writes `/proc/self/fd/<fd>` with a final zero byte.
fn describe(fd: c_int, name: &mut [u8; 32]) -> Option<()> {
    const DIR: &[u8] = b"/proc/self/fd/";
    let mut rest = u32::try_from(fd).ok()?;
    name[..DIR.len()].copy_from_slice(DIR);
    let digits = rest.checked_ilog10().map_or(1, |n| n as usize + 1);
    for place in (DIR.len()..DIR.len() + digits).rev() {
        name[place] = b'0' + (rest % 10) as u8;
        rest /= 10;
    }
    Some(())
}

/// The address of libc's function with this name.
fn next(cache: &AtomicUsize, name: &CStr) -> usize {
    match cache.load(Ordering::Relaxed) {
        0 => {
            // SAFETY: the name ends with a zero byte; nothing is called here.
            let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
            if found == 0 {
                std::process::abort();
            }
            cache.store(found, Ordering::Relaxed);
            found
        }
        found => found,
    }
}

/// Defines a function that replaces libc's function of the same name: it fails if the rules say so, otherwise it
/// calls libc's.
macro_rules! stand_in {
    ($($name:ident($($argument:ident: $type:ty),*) -> $result:ty, $operation:expr, $place:expr $(, if $when:expr)?;)*) => {$(
        #[doc = concat!("Replaces libc's `", stringify!($name), "`.")]
        ///
        /// # Safety
        /// The requirements are those of libc's function.
        #[unsafe(no_mangle)]
        pub unsafe extern "C" fn $name($($argument: $type),*) -> $result {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let concerned = true $(&& $when)?;
            if concerned && let Some(number) = fault($operation, $place) {
                set_errno(number);
                return -1;
            }
            let name = CStr::from_bytes_with_nul(concat!(stringify!($name), "\0").as_bytes()).unwrap_or_default();
            // SAFETY: libc's function of this name has these arguments. `open` takes its mode as a variable argument, which x86-64 and
            // AArch64 pass in the same way as a fixed one.
            let call: unsafe extern "C" fn($($type),*) -> $result = unsafe { transmute(next(&NEXT, name)) };
            // SAFETY: the caller meets the requirements of libc's function.
            unsafe { call($($argument),*) }
        }
    )*};
}

fn writes(flags: c_int) -> bool {
    flags & (libc::O_WRONLY | libc::O_RDWR | libc::O_CREAT | libc::O_TRUNC) != 0
}

stand_in! {
    open(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, Operation::Open, Place::Path(path), if writes(flags);
    open64(path: *const c_char, flags: c_int, mode: mode_t) -> c_int, Operation::Open, Place::Path(path), if writes(flags);
    openat(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        Operation::Open, Place::Path(path), if writes(flags);
    openat64(dir: c_int, path: *const c_char, flags: c_int, mode: mode_t) -> c_int,
        Operation::Open, Place::Path(path), if writes(flags);
    mkdir(path: *const c_char, mode: mode_t) -> c_int, Operation::Open, Place::Path(path);
    link(from: *const c_char, to: *const c_char) -> c_int, Operation::Open, Place::Path(to);
    write(fd: c_int, data: *const c_void, length: size_t) -> ssize_t, Operation::Write, Place::Descriptor(fd);
    writev(fd: c_int, parts: *const iovec, count: c_int) -> ssize_t, Operation::Write, Place::Descriptor(fd);
    pwrite(fd: c_int, data: *const c_void, length: size_t, at: off_t) -> ssize_t, Operation::Write, Place::Descriptor(fd);
    pwrite64(fd: c_int, data: *const c_void, length: size_t, at: off_t) -> ssize_t, Operation::Write, Place::Descriptor(fd);
    fsync(fd: c_int) -> c_int, Operation::Fsync, Place::Descriptor(fd);
    fdatasync(fd: c_int) -> c_int, Operation::Fsync, Place::Descriptor(fd);
    sync_file_range(fd: c_int, from: off_t, length: off_t, flags: u32) -> c_int,
        Operation::Fsync, Place::Descriptor(fd);
    rename(from: *const c_char, to: *const c_char) -> c_int, Operation::Rename, Place::Path(to);
    unlink(path: *const c_char) -> c_int, Operation::Unlink, Place::Path(path);
    unlinkat(dir: c_int, path: *const c_char, flags: c_int) -> c_int, Operation::Unlink, Place::Path(path);
    fallocate(fd: c_int, mode: c_int, from: off_t, length: off_t) -> c_int, Operation::Allocate, Place::Descriptor(fd);
    fallocate64(fd: c_int, mode: c_int, from: off_t, length: off_t) -> c_int, Operation::Allocate, Place::Descriptor(fd);
    ftruncate(fd: c_int, length: off_t) -> c_int, Operation::Allocate, Place::Descriptor(fd);
    ftruncate64(fd: c_int, length: off_t) -> c_int, Operation::Allocate, Place::Descriptor(fd);
}
