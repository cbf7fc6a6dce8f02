//! Whether a thread of this process uses RocksDB.
//!
//! RocksDB has static objects, which the exit of the process destroys. A thread that opens, reads or closes a database
//! meanwhile would end the process by a signal, and the exit status would be lost. So every open database holds an
//! [`InUse`], and the process calls [`end`] before it exits.

use std::convert::Infallible;

use parking_lot::{Condvar, Mutex};

static USES: Uses = Uses::new();

/// A use of RocksDB. In a function, declare it before the database that it covers, and in a type after it, so that it
/// is dropped last.
pub(crate) struct InUse(&'static Uses);

impl InUse {
    /// Begins a use. After [`end`] this never returns, because the process exits.
    pub(crate) fn begin() -> Self {
        USES.begin().unwrap_or_else(|| match stop_here() {})
    }
}

/// Waits until no thread uses RocksDB; no use begins afterwards. Call it right before the process exits. Blocks, for
/// ever if a thread hangs in the disk.
pub fn end() {
    USES.end();
}

fn stop_here() -> Infallible {
    loop {
        std::thread::park();
    }
}

struct Uses {
    /// The number of uses; `None` after the end.
    count: Mutex<Option<usize>>,
    none: Condvar,
}

impl Uses {
    const fn new() -> Self {
        Uses {
            count: Mutex::new(Some(0)),
            none: Condvar::new(),
        }
    }

    fn begin(&'static self) -> Option<InUse> {
        self.count.lock().as_mut().map(|count| {
            *count += 1;
            InUse(self)
        })
    }

    fn end(&self) {
        let mut count = self.count.lock();
        self.none
            .wait_while(&mut count, |count| count.is_some_and(|count| count > 0));
        *count = None;
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        if let Some(count) = &mut *self.0.count.lock() {
            *count -= 1;
            if *count == 0 {
                self.0.none.notify_all();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc;

    use super::*;
    use crate::disk::testing::open;

    #[test]
    fn the_end_waits_for_the_last_use_and_none_begins_after_it() {
        static USES: Uses = Uses::new();
        static ENDED: AtomicBool = AtomicBool::new(false);
        let (first, second) = (USES.begin().unwrap(), USES.begin().unwrap());
        let (go, told) = mpsc::sync_channel::<()>(1);
        let user = std::thread::spawn(move || {
            let _use = second;
            told.recv().unwrap();
            ENDED.store(true, Ordering::SeqCst);
        });
        drop(first);
        go.send(()).unwrap();
        USES.end();
        assert!(ENDED.load(Ordering::SeqCst));
        assert!(USES.begin().is_none());
        user.join().unwrap();
    }

    #[test]
    fn an_open_shard_uses_rocksdb() {
        let dir = tempfile::tempdir().unwrap();
        let stores = open(dir.path());
        // The state; tests that run at the same time may add more.
        assert!(super::USES.count.lock().unwrap() > 0);
        drop(stores);
    }
}
