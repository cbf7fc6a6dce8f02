//! An ext4 file system in a loop image for each node, and a power switch.
//!
//! ```text
//! agentpost-disks-<pid>-<n>/            a file system of its own: in memory, or this directory bound to itself
//!     node1.img    mounted on node1/    what node 1 stores is below node1/data
//! ```
//!
//! Power is cut with ext4's own shutdown, without a flush of its journal: from that instant nothing reaches the image,
//! whatever the process does. What was flushed is there when it is mounted again; what was not flushed is gone, as
//! far as the kernel had not written it back by itself.
//!
//! The directory is mounted *shared*: a node that lives in a network namespace has a copy of all mounts, and without that
//! an image that is unmounted here would stay mounted there, dead for ever.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};

use super::run;

/// The beginning of the names of all directories of images.
const PREFIX: &str = "agentpost-disks-";
/// `EXT4_IOC_SHUTDOWN` without flushing the log, on all mountpoints that are given. All are opened first, so that the
/// cuts are microseconds apart. In Perl, which every Debian has, because calling ioctl oneself takes unsafe code.
const SHUTDOWN: &str = r#"
my $how = pack("L", 2);
my @disks = map { open(my $disk, "<", $_) or die "$_: $!\n"; $disk } @ARGV;
for (@disks) { ioctl($_, 0x8004587d, $how) or die "shutdown: $!\n" }
"#;
/// How often, and how far apart, an unmount is tried: a process that was just killed may hold on for a moment.
const UNMOUNTS: (u32, Duration) = (100, Duration::from_millis(10));

/// Images of nodes 1 to n. All is unmounted with the value; the files of images on disk stay where they are.
pub(super) struct Images {
    /// Absolute, as the kernel lists it.
    base: PathBuf,
    bytes: u64,
    nodes: usize,
}

impl Images {
    /// In memory, or as files below this directory.
    pub(super) fn create(bytes: u64, below: Option<&Path>, nodes: usize) -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        release_leftovers();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let above = below.map_or_else(std::env::temp_dir, Path::to_owned).canonicalize()?;
        let base = above.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&base).with_context(|| base.display().to_string())?;
        let mut images = Images { base, bytes, nodes: 0 };
        let base = text(&images.base);
        match below {
            None => run("mount", &["-t", "tmpfs", "-o", "size=90%", "tmpfs", &base])?,
            Some(_) => run("mount", &["--bind", &base, &base])?,
        }
        run("mount", &["--make-shared", &base])?;
        images.grow(nodes)?;
        Ok(images)
    }

    pub(super) fn mountpoint(&self, node: usize) -> PathBuf {
        self.base.join(format!("node{node}"))
    }

    fn image(&self, node: usize) -> PathBuf {
        self.base.join(format!("node{node}.img"))
    }

    pub(super) fn grow(&mut self, nodes: usize) -> Result<()> {
        while self.nodes < nodes {
            let node = self.nodes + 1;
            let image = self.image(node);
            File::create_new(&image)
                .and_then(|file| file.set_len(self.bytes))
                .with_context(|| image.display().to_string())?;
            // All of its tables at once: an idle file system would go on writing them for minutes.
            let tables = "lazy_itable_init=0,lazy_journal_init=0";
            run("mkfs.ext4", &["-q", "-F", "-E", tables, &text(&image)])?;
            fs::create_dir(self.mountpoint(node))?;
            self.nodes = node;
            self.mount(node)?;
        }
        Ok(())
    }

    fn mount(&self, node: usize) -> Result<()> {
        let (image, mountpoint) = (self.image(node), self.mountpoint(node));
        run(
            "mount",
            &["-t", "ext4", "-o", "loop,noatime", &text(&image), &text(&mountpoint)],
        )
    }

    /// Cuts the power of these nodes at one instant; `end` ends their processes; then their disks are mounted again.
    pub(super) fn cut(&mut self, nodes: &[usize], end: impl FnOnce() -> Result<()>) -> Result<()> {
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

/// Unmounts, when whoever was killed a moment ago has let go.
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

/// Unmounts everything below a directory of images, and removes it if nothing is left there. Nobody can act on a
/// failure here; what is in use is detached now and goes with its last user.
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

/// Unmounts what processes left that were killed before they could.
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

/// Everything that is mounted here, in the order in which it was.
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
