//! Generates the Rust types of `proto/agentpost/*.proto` with protox, so that no system `protoc` is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = ["command", "record", "peer"].map(|name| format!("proto/agentpost/{name}.proto"));
    let descriptors = protox::compile(&files, ["proto"])?;
    tonic_prost_build::configure()
        // Bodies are cut out of the received buffer instead of being copied.
        .bytes(".")
        .compile_fds(descriptors)?;
    println!("cargo::rerun-if-changed=proto");
    Ok(())
}
