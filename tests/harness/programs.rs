//! Programs that tests start: the Go programs in `build/`, the image archive, and the agent and plugin that cargo built.
//!
//! Two test processes may ask at once: the scripts hold a lock while they build.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The root of the repository.
pub fn repository() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().unwrap_or(tests).to_path_buf()
}

/// A file of `build/` that `tests/scripts/programs.sh` makes, such as `controlplane` or `v2/ctr`; builds it when the
/// sources are newer. Takes minutes with a cold Go build cache, milliseconds when nothing changed.
pub fn built(name: &str) -> anyhow::Result<PathBuf> {
    made_by("programs.sh", name)
}

/// The archive of all test images, which `tests/scripts/images.sh` assembles.
pub fn images() -> anyhow::Result<PathBuf> {
    made_by("images.sh", "images.tar")
}

fn made_by(script: &str, name: &str) -> anyhow::Result<PathBuf> {
    let path = repository().join("build").join(name);
    let script = repository().join("tests/scripts").join(script);
    let run = Command::new("bash").arg(&script).output().context("bash is needed to run the build scripts")?;
    ensure!(run.status.success(), "{}: {}", script.display(), String::from_utf8_lossy(&run.stderr));
    ensure!(path.exists(), "{} made no {}", script.display(), path.display());
    Ok(path)
}

/// A binary of this workspace: that of the environment variable when it is set (`NODELET_BIN`, `NODELET_CNI_BIN`), else
/// the one beside the test binary in `target/`. Cargo does not build other packages' binaries for a test: run
/// `make build` before, as `make test` does.
pub fn workspace_binary(name: &str) -> anyhow::Result<PathBuf> {
    let variable = format!("{}_BIN", name.to_uppercase().replace('-', "_"));
    if let Some(path) = std::env::var_os(&variable) {
        return Ok(path.into());
    }
    let test = std::env::current_exe()?;
    // target/PROFILE/deps/TEST-HASH, or target/PROFILE/BENCHMARK
    let places = test.ancestors().skip(1).take(2).map(|directory| directory.join(name));
    let path = places.into_iter().find(|path| path.is_file());
    path.with_context(|| format!("no {name} beside {}: run `make build`, or set {variable}", test.display()))
}
