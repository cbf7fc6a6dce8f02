//! Files that are replaced in one step.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::path::Path;

use tempfile::NamedTempFile;

/// Replaces the content of a file, or creates it. A crash leaves the old content or the new one. The new file has these
/// permissions; with `None` only its owner may read and write it. A symbolic link stays one: its target is replaced.
pub fn replace_file(path: &Path, content: &[u8], permissions: Option<Permissions>) -> io::Result<()> {
    let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let mut draft = NamedTempFile::new_in(folder)?;
    draft.write_all(content)?;
    if let Some(permissions) = permissions {
        draft.as_file().set_permissions(permissions)?;
    }
    draft.as_file().sync_all()?;
    draft.persist(&path)?;
    // The rename is durable only when the folder is.
    File::open(folder)?.sync_all()
}
