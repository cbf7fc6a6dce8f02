//! Tests of the power switch. On a machine without loop images they print why they are skipped.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;

use super::images::Images;
use super::*;

const BYTES: u64 = 16 << 20;

fn skipped() -> bool {
    let lack = Disk::why_no_images();
    if let Some(why) = &lack {
        eprintln!("skipped: {why}");
    }
    lack.is_some()
}

#[test]
fn flushed_bytes_survive_a_power_cut_and_unflushed_ones_do_not() {
    if skipped() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    for below in [None, Some(dir.path())] {
        let images = Images::create(BYTES, below, 2).unwrap();
        for node in [1, 2] {
            let mountpoint = images.mountpoint(node);
            let mut kept = File::create(mountpoint.join("kept")).unwrap();
            kept.write_all(b"flushed").unwrap();
            kept.sync_all().unwrap();
            File::open(&mountpoint).unwrap().sync_all().unwrap();
            kept.write_all(b", and more").unwrap();
            fs::write(mountpoint.join("gone"), b"never flushed").unwrap();
        }
        images.cut(&[1, 2], || Ok(())).unwrap();
        for node in [1, 2] {
            let mountpoint = images.mountpoint(node);
            assert_eq!(fs::read(mountpoint.join("kept")).unwrap(), b"flushed", "node {node}");
            assert!(!mountpoint.join("gone").exists(), "node {node}");
            fs::write(mountpoint.join("again"), b"the disk is back").unwrap();
        }
    }
}

#[test]
fn the_disk_is_gone_before_the_process_ends() {
    if skipped() {
        return;
    }
    let images = Images::create(BYTES, None, 2).unwrap();
    let mut file = Some(File::create(images.mountpoint(1).join("file")).unwrap());
    let other = File::create(images.mountpoint(2).join("file")).unwrap();
    images
        .cut(&[1], || {
            // The process still has its files open, and every write fails now.
            let file = file.take().context("once")?;
            assert!(file.write_at(b"late", 0).and_then(|_| file.sync_all()).is_err());
            other.sync_all().context("the other disk has power")
        })
        .unwrap();
}

#[test]
fn nothing_stays_mounted_after_a_panic() {
    if skipped() {
        return;
    }
    let (send, receive) = std::sync::mpsc::sync_channel(1);
    let panicked = std::thread::spawn(move || {
        let images = Images::create(BYTES, None, 1).unwrap();
        send.send(images.mountpoint(1)).unwrap();
        panic!("on purpose");
    });
    assert!(panicked.join().is_err());
    let mountpoint = receive.recv().unwrap();
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(mountpoint.to_str().unwrap()), "{mounts}");
    assert!(!mountpoint.parent().unwrap().exists());
    let loops = Command::new("losetup").arg("-a").output().unwrap();
    let loops = String::from_utf8_lossy(&loops.stdout).into_owned();
    assert!(
        !loops.contains(mountpoint.parent().unwrap().to_str().unwrap()),
        "{loops}"
    );
}
