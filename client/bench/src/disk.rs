//! Bytes on disk below a directory.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// The unit of `st_blocks` on Linux.
const BLOCK: u64 = 512;

/// The mebibytes that the directories of the nodes occupy. A directory that cannot be read is left out.
pub async fn used_mib(directories: &[(u64, PathBuf)]) -> Vec<(u64, u64)> {
    let directories = directories.to_vec();
    let walk = move || {
        let of = |(node, dir): &(u64, PathBuf)| Some((*node, used(dir).ok()? >> 20));
        directories.iter().filter_map(of).collect()
    };
    tokio::task::spawn_blocking(walk).await.unwrap_or_default()
}

/// Counts the blocks of all files. A file that another program removes meanwhile counts nothing, and so does the second
/// name of a file.
fn used(dir: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    let mut seen = std::collections::HashSet::new();
    let mut open = vec![dir.to_owned()];
    std::fs::metadata(dir)?;
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.path().symlink_metadata() else {
                continue;
            };
            if metadata.is_dir() {
                open.push(entry.path());
            } else if seen.insert(metadata.ino()) {
                bytes += metadata.blocks() * BLOCK;
            }
        }
    }
    Ok(bytes)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_below_a_directory_are_added_and_links_are_not() {
        let dir = std::env::temp_dir().join(format!("bench-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir_all(dir.join("a/b")).unwrap();
        for (name, bytes) in [("a/1", 1 << 20), ("a/b/2", 2 << 20)] {
            std::fs::write(dir.join(name), vec![7; bytes]).unwrap();
        }
        std::fs::hard_link(dir.join("a/1"), dir.join("link")).unwrap();
        let bytes = used(&dir).unwrap();
        let directories = [(1, dir.clone()), (2, dir.join("missing"))];
        let mib = used_mib(&directories).await;
        std::fs::remove_dir_all(&dir).unwrap();
        assert!((3 << 20..4 << 20).contains(&bytes), "{bytes}");
        assert_eq!(mib, [(1, 3)]);
    }
}
