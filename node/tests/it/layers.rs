//! The layers that `src/lib.rs` lists are true: an import leads down, and no files import each other in a circle.

use std::fs;
use std::path::{Path, PathBuf};

use agentpost_testkit::layers::Imports;

/// The layers from the roof to the ground, as the table in `lib.rs` names them.
fn table(lib: &str) -> Vec<&str> {
    let rows = lib.lines().filter_map(|line| line.strip_prefix("//! | [`"));
    rows.filter_map(|row| row.split_once("`]").map(|(layer, _)| layer))
        .collect()
}

#[test]
fn imports_lead_down_the_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let lib = fs::read_to_string(src.join("lib.rs")).unwrap();
    let layers = table(&lib);
    assert_eq!(layers.first(), Some(&"node"), "the table of lib.rs was not found");
    // The protocols are built on what the server shares, and do not know each other.
    let protocols = ["server::http", "server::peer", "server::ws"];
    let mut rows: Vec<&[&str]> = layers.iter().map(std::slice::from_ref).collect();
    let server = layers.iter().position(|layer| *layer == "server").unwrap();
    rows.insert(server, &protocols);
    let imports = Imports::read(&src).unwrap();
    assert_eq!(imports.faults(&rows), Vec::<String>::new());
    assert_eq!(imports.circles(), Vec::<Vec<String>>::new());
}

/// Reads of ranges and bodies run on the pool of reads only if nobody else holds the database. `leader.rs` holds it for
/// the webhook dispatcher, which does not use the pool.
#[test]
fn only_the_shard_holds_the_database() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut holders = Vec::new();
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        for item in fs::read_dir(src.join(&folder)).unwrap() {
            let path = folder.join(item.unwrap().file_name());
            if src.join(&path).is_dir() {
                folders.push(path);
            } else if fs::read_to_string(src.join(&path)).unwrap().contains("StateHandle") {
                holders.push(path);
            }
        }
    }
    assert!(holders.len() > 5, "the sources were read");
    holders.retain(|path| !path.starts_with("shard") && !path.starts_with("node") && path != Path::new("node.rs"));
    assert_eq!(holders, [Path::new("leader.rs")]);
}
