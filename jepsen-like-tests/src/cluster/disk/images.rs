//! An ext4 file system in a loop image per node, with a power switch.
//!
//! ```text
//! agentpost-disks-<pid>-<n>/            a file system of its own: in memory, or this directory bound to itself
//!     node1.img    mounted on node1/    the data of node 1 is in node1/data
//! ```
//!
//! The power switch is ext4's shutdown ioctl without a flush of the journal: from that instant nothing reaches the
//! image, whatever the process does. After the next mount everything that was flushed is there; everything else is
//! gone, except what the kernel had already written back.
//!
//! The directory is mounted *shared*. A node in a network namespace has a copy of all mounts, and without sharing, an
//! image that is unmounted here would stay mounted there for ever.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::run;

/// The prefix of all directories of images.
const PREFIX: &str = "agentpost-disks-";
/// Calls `EXT4_IOC_SHUTDOWN` without flushing the log on all given mountpoints. All are opened first, so that the
/// cuts are microseconds apart. It is written in Perl, which every Debian has, because calling ioctl directly takes
/// unsafe code.
const SHUTDOWN: &str = r#"
my $how = pack("L", 2);
my @disks = map { open(my $disk, "<", $_) or die "$_: $!\n"; $disk } @ARGV;
for (@disks) { ioctl($_, 0x8004587d, $how) or die "shutdown: $!\n" }
"#;
/// The number of attempts to unmount and the time between them: a process that was just killed may hold on for a
/// moment.
const UNMOUNTS: (u32, Duration) = (100, Duration::from_millis(10));

/// The images of nodes 1 to n. Dropping the value unmounts them; images on disk are kept as files.
pub(in crate::cluster) struct Images {
    /// Absolute, as in the kernel's list of mounts.
    base: PathBuf,
}

impl Images {
    /// Creates the images in memory, or as files below a directory.
    pub(super) fn create(bytes: u64, below: Option<&Path>, nodes: usize) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        release_leftovers();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let above = below.map_or_else(std::env::temp_dir, Path::to_owned).canonicalize()?;
        let base = above.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&base).with_context(|| base.display().to_string())?;
        let images = Images { base };
        let base = text(&images.base);
        match below {
            None => run("mount", &["-t", "tmpfs", "-o", "size=90%", "tmpfs", &base])?,
            Some(_) => run("mount", &["--bind", &base, &base])?,
        }
        run("mount", &["--make-shared", &base])?;
        (1..=nodes).try_for_each(|node| images.make(node, bytes))?;
        Ok(images)
    }

    pub(super) fn mountpoint(&self, node: usize) -> PathBuf {
        self.base.join(format!("node{node}"))
    }

    fn image(&self, node: usize) -> PathBuf {
        self.base.join(format!("node{node}.img"))
    }

    fn make(&self, node: usize, bytes: u64) -> Result<()> {
        let image = self.image(node);
        File::create_new(&image)
            .and_then(|file| file.set_len(bytes))
            .with_context(|| image.display().to_string())?;
        // Initializes all tables at once; otherwise an idle file system would write them for minutes.
        let tables = "lazy_itable_init=0,lazy_journal_init=0";
        run("mkfs.ext4", &["-q", "-F", "-E", tables, &text(&image)])?;
        fs::create_dir(self.mountpoint(node))?;
        self.mount(node)
    }

    fn mount(&self, node: usize) -> Result<()> {
        let (image, mountpoint) = (self.image(node), self.mountpoint(node));
        run(
            "mount",
            &["-t", "ext4", "-o", "loop,noatime", &text(&image), &text(&mountpoint)],
        )
    }

    /// Cuts the power of these nodes at one instant, calls `end`, which kills their processes, and mounts the disks
    /// again.
    pub(in crate::cluster) fn cut(&self, nodes: &[usize], end: impl FnOnce() -> Result<()>) -> Result<()> {
        let mountpoints: Vec<String> = nodes.iter().map(|node| text(&self.mountpoint(*node))).collect();
        let mut arguments = vec!["-e", SHUTDOWN];
        arguments.extend(mountpoints.iter().map(String::as_str));
        run("perl", &arguments)?;
        end()?;
        for node in nodes {
            unmount(&self.mountpoint(*node))?;
            self.mount(*node)?;
        }
        Ok(())
    }
}

impl Drop for Images {
    fn drop(&mut self) {
        release(&self.base);
    }
}

/// Unmounts; retries while a process that was just killed still uses the mount.
fn unmount(mountpoint: &Path) -> Result<()> {
    let (tries, gap) = UNMOUNTS;
    let mut result = Ok(());
    for _ in 0..tries {
        result = run("umount", &[&text(mountpoint)]);
        if result.is_ok() {
            break;
        }
        std::thread::sleep(gap);
    }
    result
}

/// Unmounts everything below a directory of images, and removes the directory if it is empty. Nobody can act on a
/// failure here; a mount in use is detached and goes away with its last user.
fn release(base: &Path) {
    let mut below: Vec<PathBuf> = mounted().filter(|place| place.starts_with(base)).collect();
    below.reverse();
    for place in below {
        if unmount(&place).is_err() {
            let _ = run("umount", &["-l", &text(&place)]);
        }
    }
    let _ = fs::remove_dir(base);
}

/// Unmounts the images of processes that were killed before they could do it.
fn release_leftovers() {
    for place in mounted() {
        let Some(name) = place.file_name().and_then(|name| name.to_str()) else {
            continue;
        };
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            release(&place);
        }
    }
}

/// All mountpoints, in the order in which they were mounted.
fn mounted() -> impl Iterator<Item = PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places: Vec<PathBuf> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .map(PathBuf::from)
        .collect();
    places.into_iter()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
