//! Running credential providers. The edge of `provider`.
//!
//! One process for each image that is asked about at a time, however many pods wait for it; it has a minute, and what it
//! writes is read to a limit. A provider that fails is logged, and the pull goes on without its credentials, as under
//! kubelet: the image may not need them. Its standard error goes to the log only, because events are read by tenants.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::sync::OnceCell;

use super::{Answer, Cache, Provider, parse_answer};
use crate::pod::images::keyring::DockerConfig;

/// How long a provider may take; kubelet's limit.
const DEADLINE: Duration = Duration::from_secs(60);
/// Most of its answer that is read. Tokens of clouds have a few KiB.
const MAX_ANSWER: u64 = 1 << 20;
/// Most of its standard error that is logged.
const MAX_STDERR: u64 = 4 << 10;

type Flight = Arc<OnceCell<DockerConfig>>;

/// A provider with what it answered before.
struct Known {
    provider: Provider,
    cache: Mutex<Cache>,
    /// Questions under way, by repository.
    flights: Mutex<BTreeMap<String, Flight>>,
}

/// All providers of the node.
pub struct Providers {
    directory: PathBuf,
    known: Vec<Known>,
    began: Instant,
}

impl std::fmt::Debug for Providers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let names: Vec<&str> = self.known.iter().map(|k| k.provider.name.as_str()).collect();
        f.debug_struct("Providers").field("names", &names).finish_non_exhaustive()
    }
}

impl Providers {
    /// Providers whose programs are in `directory`.
    pub fn new(directory: PathBuf, providers: Vec<Provider>) -> Self {
        let known = |provider| Known { provider, cache: Mutex::default(), flights: Mutex::default() };
        Self { directory, known: providers.into_iter().map(known).collect(), began: Instant::now() }
    }

    /// What each provider has for a repository.
    pub async fn lookup(&self, repository: &str) -> Vec<DockerConfig> {
        let mut all = Vec::new();
        for known in self.known.iter().filter(|known| known.provider.is_for(repository)) {
            all.push(self.ask(known, repository).await);
        }
        all
    }

    async fn ask(&self, known: &Known, repository: &str) -> DockerConfig {
        if let Some(config) = lock(&known.cache).get(repository, self.began.elapsed()) {
            return config;
        }
        let flight = lock(&known.flights).entry(repository.to_owned()).or_default().clone();
        // When the asking pod is deleted meanwhile, the next that waits asks again.
        let config = flight.get_or_init(|| self.run(known, repository)).await.clone();
        lock(&known.flights).retain(|_, other| !Arc::ptr_eq(other, &flight));
        config
    }

    async fn run(&self, known: &Known, repository: &str) -> DockerConfig {
        let provider = &known.provider;
        let answer = tokio::time::timeout(DEADLINE, self.exec(provider, repository)).await;
        match answer.unwrap_or_else(|_| Err(format!("no answer after {DEADLINE:?}; it was ended"))) {
            Ok(answer) => {
                let now = self.began.elapsed();
                lock(&known.cache).put(repository, &answer, provider.default_cache, now);
                answer.config
            }
            Err(error) => {
                let name = &provider.name;
                tracing::error!(provider = %name, image = repository, %error, "a credential provider failed; pulling without it");
                DockerConfig::default()
            }
        }
    }

    async fn exec(&self, provider: &Provider, repository: &str) -> Result<Answer, String> {
        let program = self.directory.join(&provider.name);
        let mut child = Command::new(&program)
            .args(&provider.args)
            .envs(provider.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| format!("run {}: {error}", program.display()))?;
        let (stdout, stderr) = talk(&mut child, provider.request(repository)).await?;
        if stdout.len() as u64 > MAX_ANSWER {
            return Err(format!("its answer is longer than {MAX_ANSWER} bytes"));
        }
        let status = child.wait().await.map_err(|error| format!("wait for it: {error}"))?;
        if !status.success() {
            return Err(format!("it ended with {status}: {}", String::from_utf8_lossy(&stderr).trim()));
        }
        parse_answer(&stdout, &provider.api_version).map_err(|error| error.to_string())
    }
}

/// Writes the request and reads both streams, all at once: a program may write before it has read.
async fn talk(child: &mut Child, request: Vec<u8>) -> Result<(Vec<u8>, Vec<u8>), String> {
    let (input, output, error) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let write = async {
        if let Some(mut input) = input {
            // A provider that does not care for the request closes its end; its answer is what counts.
            let _ = input.write_all(&request).await;
        }
    };
    let ((), stdout, stderr) = tokio::join!(write, read(output, MAX_ANSWER + 1), read(error, MAX_STDERR));
    Ok((stdout?, stderr?))
}

/// Reads to a limit. What is beyond it is read by nobody, and the pipe closes.
async fn read(stream: Option<impl AsyncRead + Unpin>, limit: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    if let Some(stream) = stream {
        stream.take(limit).read_to_end(&mut bytes).await.map_err(|error| format!("read its output: {error}"))?;
    }
    Ok(bytes)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is whole between any two statements.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const V1: &str = "credentialprovider.kubelet.k8s.io/v1";

    struct Rig {
        dir: tempfile::TempDir,
        providers: Providers,
    }

    /// A provider that is a shell script; it appends a line to `runs` each time.
    fn make_rig(script: &str, default_cache: Duration) -> Rig {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("provider");
        let runs = dir.path().join("runs");
        std::fs::write(&program, format!("#!/bin/sh\necho run >> {}\n{script}\n", runs.display())).unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let provider = Provider {
            name: "provider".into(),
            api_version: V1.into(),
            match_images: vec!["reg.io".into()],
            default_cache,
            args: vec!["get".into()],
            env: vec![("WHO".into(), "me".into())],
        };
        let providers = Providers::new(dir.path().into(), vec![provider]);
        Rig { dir, providers }
    }

    fn answer(key_type: &str) -> String {
        format!(
            "echo '{{\"kind\":\"CredentialProviderResponse\",\"apiVersion\":\"{V1}\",\"cacheKeyType\":\"{key_type}\",\
             \"auth\":{{\"reg.io\":{{\"username\":\"'$WHO-$1'\",\"password\":\"'$image'\"}}}}}}'"
        )
    }

    const READ_IMAGE: &str = "image=$(sed 's/.*\"image\":\"\\([^\"]*\\)\".*/\\1/')";

    impl Rig {
        fn runs(&self) -> usize {
            std::fs::read_to_string(self.dir.path().join("runs")).unwrap_or_default().lines().count()
        }

        async fn users(&self, repository: &str) -> Vec<String> {
            let all = self.providers.lookup(repository).await;
            let credentials = all.into_iter().flat_map(DockerConfig::into_values);
            credentials.map(|c| format!("{}:{}", c.username, c.password)).collect()
        }
    }

    #[tokio::test]
    async fn a_provider_gets_request_arguments_and_environment_and_its_answer_is_used() {
        let rig = make_rig(&format!("{READ_IMAGE}\n{}", answer("Image")), Duration::ZERO);
        assert_eq!(rig.users("reg.io/a").await, ["me-get:reg.io/a"]);
        assert_eq!(rig.users("other.io/a").await, [""; 0]);
        assert_eq!(rig.runs(), 1, "not asked about images of others");
    }

    #[tokio::test]
    async fn an_answer_for_a_registry_is_asked_for_once() {
        let rig = make_rig(&format!("{READ_IMAGE}\n{}", answer("Registry")), Duration::from_secs(600));
        rig.users("reg.io/a").await;
        assert_eq!(rig.users("reg.io/b").await, ["me-get:reg.io/a"]);
        assert_eq!(rig.runs(), 1);
    }

    #[tokio::test]
    async fn pods_that_wait_for_one_image_share_one_process() {
        let rig = make_rig(&format!("{READ_IMAGE}\nsleep 0.2\n{}", answer("Image")), Duration::ZERO);
        let all = futures_util::future::join_all((0..20).map(|_| rig.users("reg.io/a"))).await;
        assert!(all.iter().all(|users| users == &["me-get:reg.io/a"]));
        assert_eq!(rig.runs(), 1);
        rig.users("reg.io/a").await;
        assert_eq!(rig.runs(), 2, "what is not kept is asked for again");
    }

    #[tokio::test]
    async fn a_provider_that_fails_or_floods_gives_no_credentials() {
        for script in [
            "echo no >&2; exit 3".to_owned(),
            "yes".to_owned(),
            "echo nonsense".to_owned(),
            format!("{}; exit 1", answer("Image")),
        ] {
            let rig = make_rig(&script, Duration::from_secs(600));
            assert_eq!(rig.users("reg.io/a").await, [""; 0], "{script}");
            rig.users("reg.io/a").await;
            assert_eq!(rig.runs(), 2, "a failure is not kept");
        }
        let missing = make_rig("", Duration::ZERO);
        std::fs::remove_file(missing.dir.path().join("provider")).unwrap();
        assert_eq!(missing.users("reg.io/a").await, [""; 0]);
    }
}
