//! Reads the imports of a crate's sources, for tests that keep its layers apart.
//!
//! An import is a `use`, or a path in the code (macros included) that begins with `crate`, `super`, `self`, or a name
//! that a `use` declared. A re-exported name counts as an import of the module that defines it. Code under
//! `#[cfg(test)]`, comments and string literals are ignored, because a test may use modules above the one that it
//! tests.
//!
//! A module's file and its folder are one unit. `apply.rs` may call its submodules, and they may use what `apply.rs`
//! defines, so an import between a module and one inside it is not an arrow. All others are.
//!
//! ```
//! # use agentpost_testkit::layers::Imports;
//! let imports = Imports::of([
//!     ("door.rs", "use crate::ground::Clock; fn open() -> crate::ground::Clock { todo!() }"),
//!     ("ground.rs", "pub struct Clock; // crate::door is only a comment here"),
//! ]);
//! assert_eq!(imports.faults(&[&["door"], &["ground"]]), [""; 0]);
//! assert_eq!(imports.faults(&[&["ground"], &["door"]]), ["door.rs:1: door -> ground leads up"]);
//! ```

mod circles;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::Path;

use self::scan::Scan;

/// One import: a module names something of another module.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Import {
    /// The file, relative to the crate's sources.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// The importing module, such as `disk::open`.
    pub from: String,
    /// The module whose item is named.
    pub to: String,
}

/// The imports of a crate.
#[derive(Debug, Default)]
pub struct Imports {
    modules: BTreeSet<String>,
    imports: BTreeSet<Import>,
    /// The foreign names that each module uses: `rocksdb`, `std::fs`.
    foreign: BTreeMap<String, BTreeSet<String>>,
}

impl Imports {
    /// Reads every source file below `src`, the folder of `lib.rs`. `main.rs` and `bin/` are crates of their own and
    /// are left out.
    pub fn read(src: &Path) -> io::Result<Self> {
        let mut files = Vec::new();
        collect(src, "", &mut files)?;
        Ok(Self::of(files))
    }

    /// Reads source files from memory: their paths relative to `lib.rs`, and their texts. Panics if a text is not Rust.
    pub fn of<P: Into<String>, T: AsRef<str>>(files: impl IntoIterator<Item = (P, T)>) -> Self {
        let mut scan = Scan::default();
        for (path, text) in files {
            scan.file(&path.into(), text.as_ref());
        }
        scan.finish()
    }

    /// Every import between two modules of which neither contains the other, sorted by file and line.
    pub fn arrows(&self) -> impl Iterator<Item = &Import> {
        self.imports
            .iter()
            .filter(|i| !contains(&i.from, &i.to) && !contains(&i.to, &i.from))
    }

    /// The violations of the layers. `rows` lists the layers from top to bottom. A name in a row stands for that module
    /// and the modules in it; if several names fit, the longest one counts. An import may lead only to a lower row, or
    /// stay within its name. Every module must be in a row, and every name in a row must be a module.
    pub fn faults(&self, rows: &[&[&str]]) -> Vec<String> {
        let names: BTreeMap<&str, usize> = rows
            .iter()
            .enumerate()
            .flat_map(|(row, names)| names.iter().map(move |name| (*name, row)))
            .collect();
        let place = |module: &str| {
            let fitting = names.iter().filter(|(name, _)| contains(name, module));
            fitting
                .max_by_key(|(name, _)| name.len())
                .map(|(name, row)| (*name, *row))
        };
        let mut faults: Vec<String> = names
            .keys()
            .filter(|name| !self.modules.contains(**name))
            .map(|name| format!("{name} is in a row and is no module"))
            .collect();
        // A module that only contains modules with rows of their own, such as the crate itself, needs no row.
        let only_holds_rows = |module: &str| names.keys().any(|name| contains(module, name));
        for module in &self.modules {
            if place(module).is_none() && !only_holds_rows(module) {
                faults.push(format!("{module} is in no row"));
            }
        }
        for Import { file, line, from, to } in self.arrows() {
            let (Some((from_name, from_row)), Some((to_name, to_row))) = (place(from), place(to)) else {
                continue;
            };
            if from_name == to_name || from_row < to_row {
                continue;
            }
            let leads = if from_row == to_row {
                "stays in its row"
            } else {
                "leads up"
            };
            faults.push(format!("{file}:{line}: {from} -> {to} {leads}"));
        }
        faults
    }

    /// Groups of modules in one folder that import each other in a circle, each group sorted. A circle across folders
    /// is reported in the innermost folder that contains all of its modules.
    pub fn circles(&self) -> Vec<Vec<String>> {
        circles::of(self.arrows().map(|import| (import.from.as_str(), import.to.as_str())))
    }

    /// The foreign names that a module and the modules in it use: `rocksdb` for a crate, `std::fs` for a module of the
    /// standard library. Types before `::` are listed as well.
    pub fn foreign(&self, module: &str) -> BTreeSet<&str> {
        let inside = self.foreign.iter().filter(|(name, _)| contains(module, name));
        inside.flat_map(|(_, names)| names.iter().map(String::as_str)).collect()
    }
}

/// Whether `inner` is `outer` or a module in it. The crate itself is the empty name.
fn contains(outer: &str, inner: &str) -> bool {
    match inner.strip_prefix(outer) {
        Some(rest) => outer.is_empty() || rest.is_empty() || rest.starts_with("::"),
        None => false,
    }
}

fn collect(dir: &Path, prefix: &str, files: &mut Vec<(String, String)>) -> io::Result<()> {
    for item in fs::read_dir(dir)? {
        let item = item?;
        let name = format!("{prefix}{}", item.file_name().to_string_lossy());
        if item.file_type()?.is_dir() {
            if name != "bin" {
                collect(&item.path(), &format!("{name}/"), files)?;
            }
        } else if name.ends_with(".rs") && name != "main.rs" {
            files.push((name, fs::read_to_string(item.path())?));
        }
    }
    files.sort();
    Ok(())
}
