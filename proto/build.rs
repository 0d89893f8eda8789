//! Compiles the `.proto` files of this crate with protox, so that building needs no `protoc`.

use std::path::PathBuf;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    // Cargo scans the directory for changes of any file in it.
    println!("cargo::rerun-if-changed=proto");
    println!("cargo::rerun-if-changed=build.rs");
    let root = PathBuf::from("proto");
    let files = protox::compile(["runtime/v1/services.proto", "health/v1/health.proto"], [&root])?;
    tonic_prost_build::configure()
        .build_client(true)
        .build_server(true)
        .bytes(".")
        // Their Debug is written by hand in src/redact.rs.
        .skip_debug([".runtime.v1.AuthConfig", ".runtime.v1.KeyValue"])
        .compile_fds(files)?;
    Ok(())
}
