//! Debug output of the messages that carry secrets.

use std::fmt;

use crate::cri::{AuthConfig, KeyValue};

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("server_address", &self.server_address)
            .finish_non_exhaustive()
    }
}

/// Environment variables may come from Secrets.
impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue").field("key", &self.key).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use crate::cri::{AuthConfig, ContainerConfig, KeyValue, PullImageRequest};

    #[test]
    fn credentials_do_not_reach_a_debug_print() {
        let secret = || "s3cret".to_owned();
        let auth = AuthConfig {
            username: "robot".to_owned(),
            password: secret(),
            auth: secret(),
            server_address: "registry.example".to_owned(),
            identity_token: secret(),
            registry_token: secret(),
        };
        let printed = format!("{:?}", PullImageRequest { auth: Some(auth), ..Default::default() });
        assert!(printed.contains("robot") && !printed.contains("s3cret"), "{printed}");
    }

    #[test]
    fn environment_values_do_not_reach_a_debug_print() {
        let envs = vec![KeyValue { key: "TOKEN".to_owned(), value: "s3cret".into() }];
        let printed = format!("{:?}", ContainerConfig { envs, ..Default::default() });
        assert!(printed.contains("TOKEN") && !printed.contains("s3cret"), "{printed}");
    }
}
