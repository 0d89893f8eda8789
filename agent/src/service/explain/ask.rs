//! What `nodelet explain service` is asked: read from the command line and from the control socket. Pure.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use crate::ids::ObjectKey;
use crate::service::Protocol;

/// A port of a Service, as people name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortAsked {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl fmt::Display for PortAsked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => write!(f, "{number}"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A Service, and maybe one of its ports: `[NAMESPACE/]NAME[:PORT]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The namespace, where one is named.
    pub namespace: Option<String>,
    /// The name.
    pub name: String,
    /// The port; all of them when absent.
    pub port: Option<PortAsked>,
}

/// A name as objects have them: anything else is no name, and needs no escaping in a URL.
fn is_name(text: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    !text.is_empty() && text.len() <= 253 && text.bytes().all(is_fine)
}

fn name(text: &str, what: &str) -> Result<String, String> {
    let wrong = || format!("{text:?} is no {what}: expected lower-case letters, digits, - and .");
    if is_name(text) { Ok(text.to_owned()) } else { Err(wrong()) }
}

/// Reads a namespace.
pub fn namespace(text: &str) -> Result<String, String> {
    name(text, "namespace")
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (object, port) = text.split_once(':').map_or((text, None), |(object, port)| (object, Some(port)));
        let (namespace, object) = object.split_once('/').map_or((None, object), |(ns, name)| (Some(ns), name));
        let port = port.map(|port| match port.parse() {
            Ok(0) => {
                Err("port 0 is no port; expected NAMESPACE/NAME:PORT with a number from 1 to 65535 or a name".into())
            }
            Ok(number) => Ok(PortAsked::Number(number)),
            Err(_) => name(port, "number or name of a port").map(PortAsked::Name),
        });
        Ok(Self {
            namespace: namespace.map(self::namespace).transpose()?,
            name: name(object, "name of a Service")?,
            port: port.transpose()?,
        })
    }
}

/// Who would connect.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Sender {
    /// A pod of this node, and somebody outside where that is possible.
    #[default]
    Anybody,
    /// A process of this node.
    Node,
    /// A pod of this node; without a namespace one in that of the Service.
    Pod(Option<String>, String),
    /// Whoever has this address.
    Address(IpAddr),
}

impl FromStr for Sender {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "node" {
            return Ok(Self::Node);
        }
        if let Some(pod) = text.strip_prefix("pod/") {
            let (namespace, pod) = pod.split_once('/').map_or((None, pod), |(namespace, pod)| (Some(namespace), pod));
            let namespace = namespace.map(self::namespace).transpose()?;
            return Ok(Self::Pod(namespace, name(pod, "name of a pod")?));
        }
        let address = text.parse().map(Self::Address);
        address.map_err(|_| format!("{text:?} is nobody: expected pod/NAMESPACE/NAME, pod/NAME, node or an IP address"))
    }
}

impl fmt::Display for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Anybody => Ok(()),
            Self::Node => f.write_str("node"),
            Self::Pod(None, name) => write!(f, "pod/{name}"),
            Self::Pod(Some(namespace), name) => write!(f, "pod/{namespace}/{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

/// Reads the word for a protocol.
pub fn protocol(text: &str) -> Result<Protocol, String> {
    let protocol = Some(text.to_ascii_uppercase()).filter(|word| !word.is_empty());
    let protocol = protocol.and_then(|word| Protocol::from_api(Some(&word)));
    protocol.ok_or_else(|| format!("{text:?} is no protocol: expected tcp, udp or sctp"))
}

/// The whole question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The Service.
    pub service: ObjectKey,
    /// Its port; all when absent.
    pub port: Option<PortAsked>,
    /// Only ports of this protocol.
    pub protocol: Option<Protocol>,
    /// Who would connect.
    pub from: Sender,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_service_is_named_with_or_without_namespace_and_port() {
        let target = |namespace: Option<&str>, name: &str, port| Target {
            namespace: namespace.map(str::to_owned),
            name: name.to_owned(),
            port,
        };
        for (text, expected) in [
            ("web", target(None, "web", None)),
            ("shop/web", target(Some("shop"), "web", None)),
            ("shop/web:80", target(Some("shop"), "web", Some(PortAsked::Number(80)))),
            ("web:http", target(None, "web", Some(PortAsked::Name("http".into())))),
        ] {
            assert_eq!(text.parse(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("", "\"\" is no name of a Service: expected lower-case letters, digits, - and ."),
            ("a/b/c", "\"b/c\" is no name of a Service: expected lower-case letters, digits, - and ."),
            ("/web", "\"\" is no namespace: expected lower-case letters, digits, - and ."),
            ("web:", "\"\" is no number or name of a port: expected lower-case letters, digits, - and ."),
            ("web&x=1", "\"web&x=1\" is no name of a Service: expected lower-case letters, digits, - and ."),
        ] {
            assert_eq!(text.parse::<Target>(), Err(expected.to_owned()), "{text}");
        }
        assert!("web:0".parse::<Target>().unwrap_err().starts_with("port 0 is no port"));
    }

    #[test]
    fn who_connects_is_written_as_it_is_read() {
        for (text, expected) in [
            ("node", Sender::Node),
            ("pod/client", Sender::Pod(None, "client".into())),
            ("pod/shop/client", Sender::Pod(Some("shop".into()), "client".into())),
            ("192.0.2.1", Sender::Address([192, 0, 2, 1].into())),
            ("2001:db8::1", Sender::Address("2001:db8::1".parse().unwrap())),
        ] {
            let from: Sender = text.parse().unwrap();
            assert_eq!((from.to_string(), from), (text.to_owned(), expected));
        }
        let refused = "client".parse::<Sender>().unwrap_err();
        assert_eq!(refused, "\"client\" is nobody: expected pod/NAMESPACE/NAME, pod/NAME, node or an IP address");
        assert_eq!([protocol("udp"), protocol("TCP")], [Ok(Protocol::Udp), Ok(Protocol::Tcp)]);
        assert!(protocol("icmp").unwrap_err().contains("expected tcp, udp or sctp") && protocol("").is_err());
    }
}
