//! Names of images: the grammar of the distribution project, with Docker's defaults spelled out. Pure.
//!
//! `nginx` is `docker.io/library/nginx:latest`. Runtimes know this too; it is parsed here because credentials are chosen by the
//! repository, pull records are kept by it, and a name that no runtime can read is `InvalidImageName` without a call.
//! Source: `ParseNormalizedNamed` of github.com/distribution/reference v0.6, whose texts users see in events.

/// A name that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reference {
    /// Registry host, with a port where there is one.
    pub domain: String,
    /// Repository below the registry.
    pub path: String,
    /// Tag, where one is written.
    pub tag: Option<String>,
    /// Digest, where one is written, such as `sha256:...`.
    pub digest: Option<String>,
}

/// A name that is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// It could be an image id as well.
    #[error("invalid repository name ({0}), cannot specify 64-byte hexadecimal strings")]
    Identifier(String),
    /// The repository has upper-case letters.
    #[error("invalid reference format: repository name ({0}) must be lowercase")]
    UpperCase(String),
    /// It does not follow the grammar.
    #[error("invalid reference format")]
    Format,
    /// The repository is too long.
    #[error("repository name must not be more than 255 characters")]
    TooLong,
    /// The digest's algorithm is not known.
    #[error("unsupported digest algorithm")]
    Algorithm,
    /// The digest does not have its algorithm's length.
    #[error("invalid checksum digest length")]
    DigestLength,
    /// The digest has upper-case letters or others that are not hexadecimal.
    #[error("invalid checksum digest format")]
    DigestFormat,
}

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";

impl Reference {
    /// Reads a name as the spec of a container has it.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            return Err(ReferenceError::Identifier(text.to_owned()));
        }
        let (domain, remainder) = split_domain(text);
        let remote = remainder.split(':').next().unwrap_or_default();
        if remote.chars().any(char::is_uppercase) {
            return Err(ReferenceError::UpperCase(remote.to_owned()));
        }
        let (named, digest) = match remainder.split_once('@') {
            Some((named, digest)) => (named, Some(digest)),
            None => (remainder.as_str(), None),
        };
        let (path, tag) = match named.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (named, None),
        };
        let is_whole = is_domain(&domain)
            && path.split('/').all(is_path_component)
            && tag.is_none_or(is_tag)
            && digest.is_none_or(is_digest);
        if !is_whole {
            return Err(ReferenceError::Format);
        }
        if path.len() > 255 {
            return Err(ReferenceError::TooLong);
        }
        if let Some(digest) = digest {
            check_digest(digest)?;
        }
        Ok(Self { domain, path: path.to_owned(), tag: tag.map(str::to_owned), digest: digest.map(str::to_owned) })
    }

    /// Registry and repository: what credentials are chosen by.
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }
}

/// The name with `:latest` where it has neither tag nor digest; otherwise as it was written.
pub fn with_default_tag(text: &str) -> Result<String, ReferenceError> {
    let reference = Reference::parse(text)?;
    let is_open = reference.tag.is_none() && reference.digest.is_none();
    Ok(if is_open { format!("{text}:latest") } else { text.to_owned() })
}

/// The name as it was written, without tag and digest: the key of pull records.
pub fn without_tag(text: &str) -> Result<String, ReferenceError> {
    let reference = Reference::parse(text)?;
    let mut rest = text;
    if let Some(digest) = &reference.digest {
        rest = rest.strip_suffix(digest.as_str()).and_then(|r| r.strip_suffix('@')).unwrap_or(rest);
    }
    if let Some(tag) = &reference.tag {
        rest = rest.strip_suffix(tag.as_str()).and_then(|r| r.strip_suffix(':')).unwrap_or(rest);
    }
    Ok(rest.to_owned())
}

/// The first part is a host when it looks like one: it has a dot, a port or upper-case letters, or is `localhost`.
fn split_domain(text: &str) -> (String, String) {
    let (domain, remote) = match text.split_once('/') {
        None => return (DEFAULT_DOMAIN.into(), format!("library/{text}")),
        Some((LEGACY_DOMAIN, remote)) => (DEFAULT_DOMAIN, remote),
        Some((first, remote))
            if first == "localhost" || first.contains(['.', ':']) || first.chars().any(char::is_uppercase) =>
        {
            (first, remote)
        }
        Some(_) => (DEFAULT_DOMAIN, text),
    };
    let is_official = domain == DEFAULT_DOMAIN && !remote.contains('/');
    (domain.to_owned(), if is_official { format!("library/{remote}") } else { remote.to_owned() })
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, "")) => (Err(address), None),
            Some((address, rest)) => (Err(address), Some(rest.strip_prefix(':').unwrap_or_default())),
            None => return false,
        },
        None => match domain.split_once(':') {
            Some((host, port)) => (Ok(host), Some(port)),
            None => (Ok(domain), None),
        },
    };
    let is_port = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    let is_label = |label: &str| {
        let edge = |b: Option<&u8>| b.is_some_and(u8::is_ascii_alphanumeric);
        let bytes = label.as_bytes();
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let is_host = match host {
        Ok(name) => name.split('.').all(is_label),
        Err(v6) => !v6.is_empty() && v6.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
    };
    is_host && is_port
}

/// Lower-case letters and digits, with `.`, `_`, `__` or any number of `-` between.
fn is_path_component(text: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(first), Some(last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_plain(*first) || !is_plain(*last) {
        return false;
    }
    text.split(|c: char| c.is_ascii() && is_plain(c as u8))
        .all(|separator| matches!(separator, "" | "." | "_" | "__") || separator.bytes().all(|b| b == b'-'))
}

fn is_tag(text: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|b| is_word(*b))
        && bytes.len() <= 128
        && bytes.iter().all(|b| is_word(*b) || matches!(b, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else { return false };
    let is_part = |part: &str| {
        part.bytes().next().is_some_and(|b| b.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    algorithm.split(['-', '_', '+', '.']).all(is_part) && hex.len() >= 32 && hex.bytes().all(|b| b.is_ascii_hexdigit())
}

fn check_digest(text: &str) -> Result<(), ReferenceError> {
    let (algorithm, hex) = text.split_once(':').unwrap_or((text, ""));
    let length = match algorithm {
        "sha256" => 64,
        "sha384" => 96,
        "sha512" => 128,
        _ => return Err(ReferenceError::Algorithm),
    };
    if hex.len() != length {
        return Err(ReferenceError::DigestLength);
    }
    let is_lower = hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if is_lower { Ok(()) } else { Err(ReferenceError::DigestFormat) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "f24acc752be18b93b0504c86312bbaf482c9efb0c45e925bbccb0a591cebd7af";

    #[test]
    fn dockers_defaults_are_spelled_out() {
        for (text, repository) in [
            ("nginx", "docker.io/library/nginx"),
            ("nginx:1", "docker.io/library/nginx"),
            ("team/app", "docker.io/team/app"),
            ("index.docker.io/nginx", "docker.io/library/nginx"),
            ("docker.io/nginx", "docker.io/library/nginx"),
            ("localhost/app", "localhost/app"),
            ("reg.io/a/b/c:x", "reg.io/a/b/c"),
            ("reg.io:5000/a", "reg.io:5000/a"),
            ("[2001:db8::1]:5000/a", "[2001:db8::1]:5000/a"),
            ("Reg/a", "Reg/a"),
            ("a__b/c--d/e.f_g", "docker.io/a__b/c--d/e.f_g"),
        ] {
            assert_eq!(Reference::parse(text).map(|r| r.repository()), Ok(repository.to_owned()), "{text}");
        }
    }

    #[test]
    fn what_is_not_a_reference_is_refused_in_the_words_of_distribution() {
        for (text, error) in [
            ("", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("reg.io/", "invalid reference format"),
            ("a:", "invalid reference format"),
            ("a:b:c", "invalid reference format"),
            ("a@sha256:12", "invalid reference format"),
            ("-a/b", "invalid reference format"),
            ("a..b", "invalid reference format"),
            ("a___b", "invalid reference format"),
            ("reg.io:port/a", "invalid reference format"),
            ("FooBar", "invalid reference format: repository name (library/FooBar) must be lowercase"),
            ("reg.io/Foo:x", "invalid reference format: repository name (Foo) must be lowercase"),
            (
                HEX,
                "invalid repository name (f24acc752be18b93b0504c86312bbaf482c9efb0c45e925bbccb0a591cebd7af), cannot \
                   specify 64-byte hexadecimal strings",
            ),
            ("a@sha256:0123456789abcdef0123456789abcdef", "invalid checksum digest length"),
            ("a@md5:0123456789abcdef0123456789abcdef", "unsupported digest algorithm"),
        ] {
            let found = Reference::parse(text).map_err(|e| e.to_string());
            assert_eq!(found, Err(error.to_owned()), "{text}");
        }
        assert_eq!(Reference::parse(&format!("a/{}", "b".repeat(254))), Err(ReferenceError::TooLong));
        assert!(Reference::parse(&format!("a:{}", "b".repeat(128))).is_ok());
        assert_eq!(Reference::parse(&format!("a:{}", "b".repeat(129))), Err(ReferenceError::Format));
    }

    #[test]
    fn latest_is_added_only_where_neither_tag_nor_digest_is_written() {
        let digest = format!("a@sha256:{HEX}");
        for (text, full) in
            [("a", "a:latest"), ("a:1", "a:1"), ("reg.io:5000/a", "reg.io:5000/a:latest"), (&digest, &digest)]
        {
            assert_eq!(with_default_tag(text), Ok(full.to_owned()));
        }
    }

    #[test]
    fn the_key_of_a_pull_record_is_the_name_as_written_without_tag_and_digest() {
        for (text, key) in [
            ("hello-world:latest@sha256:", "hello-world"),
            ("hello-world@sha256:", "hello-world"),
            ("reg.io:5000/a/b:5000@sha256:", "reg.io:5000/a/b"),
        ] {
            assert_eq!(without_tag(&format!("{text}{HEX}")), Ok(key.to_owned()));
        }
        assert_eq!(without_tag("reg.io:5000/a/b:5000"), Ok("reg.io:5000/a/b".into()));
        assert_eq!(without_tag("busybox"), Ok("busybox".into()));
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "[a-zA-Z0-9:@/._\\[\\]* -]{0,80}") {
            let _ = Reference::parse(&text);
            let _ = without_tag(&text);
        }
    }
}
