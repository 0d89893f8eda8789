//! `--image-credential-provider-config` and `--image-credential-provider-bin-dir`.
//!
//! A `CredentialProviderConfig` of `kubelet.config.k8s.io` v1, v1beta1 or v1alpha1, or a directory whose `*.json`, `*.yaml` and
//! `*.yml` are read in the order of their names (KEP-2133). The programs have to be there when the agent starts.
//! Source: `pkg/credentialprovider/plugin/config.go` of k8s.io/kubernetes v1.37.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use super::fields::{Fields, Findings, Problem};
use super::tree::{Kind, Node};
use crate::pod::images::provider::Provider;

const CONFIG_FLAG: &str = "--image-credential-provider-config";
const DIRECTORY_FLAG: &str = "--image-credential-provider-bin-dir";
/// Versions of the file.
const FILE_VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];
/// Versions of requests and answers.
const VERSIONS: [&str; 3] = [
    "credentialprovider.kubelet.k8s.io/v1",
    "credentialprovider.kubelet.k8s.io/v1beta1",
    "credentialprovider.kubelet.k8s.io/v1alpha1",
];

/// Reads the providers and the directory of their programs; nothing without the flags.
pub fn read(config: Option<&Path>, directory: Option<&Path>, f: &mut Findings) -> (PathBuf, Vec<Provider>) {
    let (config, directory) = match (config, directory) {
        (None, None) => return (PathBuf::new(), Vec::new()),
        (Some(config), Some(directory)) => (config, directory),
        (Some(_), None) => {
            f.errors.push(problem("flags", DIRECTORY_FLAG, "is needed beside ", CONFIG_FLAG));
            return (PathBuf::new(), Vec::new());
        }
        (None, Some(_)) => {
            f.errors.push(problem("flags", CONFIG_FLAG, "is needed beside ", DIRECTORY_FLAG));
            return (PathBuf::new(), Vec::new());
        }
    };
    let mut providers: Vec<Provider> = Vec::new();
    for file in files(config, f) {
        for provider in read_file(&file, f) {
            if providers.iter().any(|known| known.name == provider.name) {
                let name = file.display().to_string();
                f.errors.push(problem(&name, "providers", "is the second with the name ", &provider.name));
            } else {
                check_program(&directory.join(&provider.name), f);
                providers.push(provider);
            }
        }
    }
    (directory.to_owned(), providers)
}

fn problem(file: &str, field: &str, text: &str, found: &str) -> Problem {
    Problem { file: file.into(), line: None, field: field.into(), text: format!("{text}{found}") }
}

/// The file, or those of the directory.
fn files(config: &Path, f: &mut Findings) -> Vec<PathBuf> {
    let name = config.display().to_string();
    if !config.is_dir() {
        return vec![config.to_owned()];
    }
    let entries = std::fs::read_dir(config).and_then(|entries| entries.collect::<Result<Vec<_>, _>>());
    let mut files: Vec<PathBuf> = match entries {
        Ok(entries) => entries.into_iter().map(|entry| entry.path()).collect(),
        Err(error) => {
            f.errors.push(problem(&name, CONFIG_FLAG, "cannot be read: ", &error.to_string()));
            return Vec::new();
        }
    };
    let is_config = |file: &PathBuf| file.extension().is_some_and(|e| e == "json" || e == "yaml" || e == "yml");
    files.retain(|file| is_config(file) && !file.is_dir());
    files.sort();
    if files.is_empty() {
        f.errors.push(problem(&name, CONFIG_FLAG, "has no *.json, *.yaml or *.yml", ""));
    }
    files
}

fn read_file(file: &Path, f: &mut Findings) -> Vec<Provider> {
    let name = file.display().to_string();
    let text = match std::fs::read_to_string(file) {
        Ok(text) => text,
        Err(error) => {
            f.errors.push(problem(&name, CONFIG_FLAG, "cannot be read: ", &error.to_string()));
            return Vec::new();
        }
    };
    match Node::parse(&name, &text) {
        Ok(node) => parse(node, f),
        Err(error) => {
            f.errors.push(problem(&name, CONFIG_FLAG, "is not YAML: ", &error));
            Vec::new()
        }
    }
}

/// The providers of one file. Pure.
fn parse(mut node: Node, f: &mut Findings) -> Vec<Provider> {
    let list = match &mut node.kind {
        Kind::Map(map) => map.remove("providers"),
        Kind::Scalar(_) | Kind::List(_) => None,
    };
    let mut all = Fields::new(node, f);
    let kind = all.one_of(f, "kind", &["CredentialProviderConfig"]);
    let version = all.one_of(f, "apiVersion", &FILE_VERSIONS);
    for (field, found) in [("kind", kind), ("apiVersion", version)] {
        if found.is_none() && !all.has(field) && f.errors.is_empty() {
            let expected = format!("is missing; expected CredentialProviderConfig of {}", FILE_VERSIONS[0]);
            f.errors.push(all.problem(field, expected));
        }
    }
    let items = match list.map(|node| node.kind) {
        Some(Kind::List(items)) if !items.is_empty() => items,
        Some(_) | None => {
            f.errors.push(all.problem("providers", "expected a list of at least one provider"));
            Vec::new()
        }
    };
    all.finish(f, &[]);
    items.into_iter().filter_map(|item| provider(Fields::new(item, f), f)).collect()
}

fn provider(mut all: Fields, f: &mut Findings) -> Option<Provider> {
    let before = f.errors.len();
    let name = all.filled(f, "name").unwrap_or_default();
    if name.is_empty() || name.contains(['/', ' ']) || name == "." || name == ".." {
        f.errors.push(all.problem("name", format!("\"{name}\" is not allowed; expected the file name of a program")));
    }
    let match_images = all.strings(f, "matchImages").unwrap_or_default();
    if match_images.is_empty() {
        f.errors.push(all.problem("matchImages", "expected at least one image, such as *.registry.example.com"));
    }
    let default_cache = all.any_duration(f, "defaultCacheDuration");
    if default_cache.is_none() && !all.has("defaultCacheDuration") && f.errors.len() == before {
        f.errors.push(all.problem("defaultCacheDuration", "expected a duration such as 12h"));
    }
    let api_version = all.one_of(f, "apiVersion", &VERSIONS);
    if api_version.is_none() && f.errors.len() == before {
        f.errors.push(all.problem("apiVersion", format!("expected one of {}", VERSIONS.join(", "))));
    }
    let args = all.strings(f, "args").unwrap_or_default();
    let env = environment(&mut all, f);
    if all.has("tokenAttributes") {
        let text = "is not implemented by nodelet yet; without it the provider must know credentials by itself";
        f.errors.push(all.problem("tokenAttributes", text));
        let _ = all.raw("tokenAttributes");
    }
    all.finish(f, &[]);
    let api_version = api_version?.to_owned();
    (f.errors.len() == before).then(|| Provider {
        name,
        api_version,
        match_images,
        default_cache: default_cache.unwrap_or_default(),
        args,
        env,
    })
}

fn environment(all: &mut Fields, f: &mut Findings) -> Vec<(String, String)> {
    let Some(value) = all.raw("env").filter(|value| !value.is_null()) else { return Vec::new() };
    let text = |item: &serde_json::Value, key: &str| Some(item.get(key)?.as_str()?.to_owned());
    let pairs: Option<Vec<_>> = value.as_array().map(Vec::as_slice).and_then(|items| {
        items.iter().map(|item| Some((text(item, "name")?, text(item, "value").unwrap_or_default()))).collect()
    });
    if pairs.is_none() {
        f.errors.push(all.problem("env", "expected a list of name and value"));
    }
    pairs.unwrap_or_default()
}

fn check_program(program: &Path, f: &mut Findings) {
    let name = program.display().to_string();
    match std::fs::metadata(program) {
        Ok(found) if found.is_file() && found.permissions().mode() & 0o111 != 0 => {}
        Ok(_) => f.errors.push(problem(&name, DIRECTORY_FLAG, "is not a program", "")),
        Err(error) => f.errors.push(problem(&name, DIRECTORY_FLAG, "cannot be found: ", &error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const ONE: &str = "apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: ecr
  matchImages: ['*.dkr.ecr.*.amazonaws.com']
  defaultCacheDuration: 12h
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  args: [get-credentials]
  env:
  - {name: AWS_PROFILE, value: node}
";

    fn read_text(text: &str) -> (Vec<Provider>, Findings) {
        let mut findings = Findings::default();
        let providers = parse(Node::parse("c.yaml", text).unwrap(), &mut findings);
        (providers, findings)
    }

    fn make_program(directory: &Path, name: &str) {
        std::fs::write(directory.join(name), "").unwrap();
        std::fs::set_permissions(directory.join(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    #[test]
    fn a_provider_is_read_with_all_its_fields() {
        let (providers, findings) = read_text(ONE);
        assert_eq!(findings, Findings::default());
        let expected = Provider {
            name: "ecr".into(),
            api_version: VERSIONS[0].into(),
            match_images: vec!["*.dkr.ecr.*.amazonaws.com".into()],
            default_cache: Duration::from_secs(12 * 3600),
            args: vec!["get-credentials".into()],
            env: vec![("AWS_PROFILE".into(), "node".into())],
        };
        assert_eq!(providers, [expected]);
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        for (from, to, part) in [
            ("kubelet.config.k8s.io/v1\n", "kubelet.config.k8s.io/v7\n", "c.yaml:1: apiVersion"),
            ("kind: CredentialProviderConfig\n", "", "kind: is missing"),
            ("name: ecr", "name: ../ecr", "c.yaml:4: name: \"../ecr\" is not allowed"),
            ("12h", "soon", "c.yaml:6: defaultCacheDuration"),
            ("  defaultCacheDuration: 12h\n", "", "defaultCacheDuration: expected a duration"),
            ("['*.dkr.ecr.*.amazonaws.com']", "[]", "matchImages: expected at least one"),
            ("credentialprovider.kubelet.k8s.io/v1", "v1", "c.yaml:7: apiVersion: \"v1\" is not allowed"),
            ("  args:", "  tokenAttributes: {}\n  args:", "tokenAttributes: is not implemented"),
            ("{name: AWS_PROFILE, value: node}", "AWS_PROFILE", "env: expected a list of name and value"),
        ] {
            let text = ONE.replace(from, to);
            assert_ne!(text, ONE);
            let (_, findings) = read_text(&text);
            let errors: Vec<String> = findings.errors.iter().map(ToString::to_string).collect();
            assert_eq!(errors.len(), 1, "{errors:?}");
            assert!(errors[0].contains(part), "{errors:?}");
        }
    }

    #[test]
    fn a_directory_is_read_in_the_order_of_names_and_programs_have_to_be_there() {
        let dir = tempfile::tempdir().unwrap();
        let (config, bin) = (dir.path().join("config"), dir.path().join("bin"));
        std::fs::create_dir_all(&config).unwrap();
        std::fs::create_dir_all(&bin).unwrap();
        std::fs::write(config.join("20.yaml"), ONE).unwrap();
        std::fs::write(config.join("10.json"), ONE.replace("name: ecr", "name: gcr")).unwrap();
        std::fs::write(config.join("readme.md"), "not one").unwrap();
        make_program(&bin, "gcr");
        let mut findings = Findings::default();
        let (_, providers) = read(Some(&config), Some(&bin), &mut findings);
        assert_eq!(providers.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(), ["gcr", "ecr"]);
        assert_eq!(findings.errors.len(), 1, "{findings:?}");
        assert!(findings.errors[0].to_string().contains("bin/ecr"), "{findings:?}");
        make_program(&bin, "ecr");
        std::fs::write(config.join("30.yaml"), ONE).unwrap();
        let mut findings = Findings::default();
        read(Some(&config), Some(&bin), &mut findings);
        assert!(findings.errors[0].to_string().contains("30.yaml: providers: is the second with the name ecr"));
    }

    #[test]
    fn one_flag_needs_the_other() {
        for (config, bin) in [(Some(Path::new("/c")), None), (None, Some(Path::new("/b")))] {
            let mut findings = Findings::default();
            assert!(read(config, bin, &mut findings).1.is_empty());
            assert!(findings.errors[0].to_string().contains("is needed beside"), "{findings:?}");
        }
    }
}
