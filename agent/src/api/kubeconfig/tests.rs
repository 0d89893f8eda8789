use super::*;

fn config(cluster: &str, user: &str) -> Result<Kubeconfig, KubeconfigError> {
    let text = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: c\ncontexts:\n- name: c\n  context: {{cluster: k, user: u}}\n\
         clusters:\n- name: k\n  cluster: {cluster}\nusers:\n- name: u\n  user: {user}\n"
    );
    parse(Path::new("/etc/kubernetes/kubelet.conf"), &text)
}

fn reason(result: Result<Kubeconfig, KubeconfigError>) -> String {
    match result {
        Ok(_) => panic!("the kubeconfig was accepted"),
        Err(error) => error.to_string(),
    }
}

const SERVER: &str = "{server: 'https://10.0.0.1:6443'}";

#[test]
fn the_file_that_kubeadm_writes_is_understood() {
    let config = config(
        "{server: 'https://10.0.0.1:6443', certificate-authority-data: 'Q0E='}",
        "{client-certificate: /var/lib/kubelet/pki/kubelet-client-current.pem, \
          client-key: /var/lib/kubelet/pki/kubelet-client-current.pem}",
    )
    .expect("valid");
    assert_eq!(config.server.to_string(), "https://10.0.0.1:6443/");
    assert!(config.ca == Some(PemSource::Inline(b"CA".to_vec())));
    let file = PemSource::File("/var/lib/kubelet/pki/kubelet-client-current.pem".into());
    assert!(config.identity == Identity::Certificate { cert: file.clone(), key: file });
    assert_eq!(config.namespace, "default");
}

#[test]
fn relative_files_are_relative_to_the_kubeconfig() {
    let config = config(SERVER, "{tokenFile: pki/token}").expect("valid");
    assert!(config.identity == Identity::TokenFile("/etc/kubernetes/pki/token".into()));
}

#[test]
fn a_program_without_a_slash_is_left_to_the_search_path() {
    let exec = |command: &str| {
        match config(
        SERVER,
        &format!("{{exec: {{apiVersion: client.authentication.k8s.io/v1, command: {command}, env: [{{name: A, value: b}}]}}}}"),
    )
    .expect("valid")
    .identity
    {
        Identity::Exec(plugin) => plugin,
        _ => panic!("not an exec plugin"),
    }
    };
    assert_eq!(exec("aws").command, Path::new("aws"));
    assert_eq!(exec("./bin/aws").command, Path::new("/etc/kubernetes/./bin/aws"));
    assert_eq!(exec("aws").env, [("A".to_owned(), "b".to_owned())]);
}

#[test]
fn errors_name_the_file_and_the_field() {
    let cases = [
        (reason(config("{}", "{}")), "clusters[k].cluster.server: is empty"),
        (reason(config("{server: 'ftp://x'}", "{}")), "clusters[k].cluster.server: \"ftp://x\": expected http"),
        (
            reason(config("{server: 'https://x', certificate-authority-data: '***'}", "{}")),
            "certificate-authority-data: is not base64",
        ),
        (
            reason(config("{server: 'https://x', proxy-url: 'http://p'}", "{}")),
            "clusters[k].cluster.proxy-url: proxies are not supported",
        ),
        (reason(config(SERVER, "{client-key: k.pem}")), "users[u].user.client-certificate: is missing"),
        (reason(config(SERVER, "{client-certificate-data: 'Q0E='}")), "users[u].user.client-key: is missing"),
        (reason(config(SERVER, "{exec: {command: x, apiVersion: v9}}")), "users[u].user.exec.apiVersion: \"v9\""),
        (
            reason(config(SERVER, "{exec: {apiVersion: client.authentication.k8s.io/v1}}")),
            "users[u].user.exec.command: is empty",
        ),
        (
            reason(config(
                SERVER,
                "{exec: {apiVersion: client.authentication.k8s.io/v1, command: x, interactiveMode: Always}}",
            )),
            "users[u].user.exec.interactiveMode: Always needs a terminal",
        ),
    ];
    for (text, expected) in cases {
        assert!(text.starts_with("kubeconfig /etc/kubernetes/kubelet.conf: "), "{text}");
        assert!(text.contains(expected), "{text} does not contain {expected}");
    }
}

#[test]
fn a_missing_context_lists_those_that_exist() {
    let text = "current-context: b\ncontexts: [{name: a, context: {cluster: k}}]\n";
    let text = reason(parse(Path::new("/x"), text));
    assert_eq!(text, r#"kubeconfig /x: contexts: no entry is named "b"; the file has ["a"]"#);
    assert!(reason(parse(Path::new("/x"), "{}")).contains("current-context: is empty"));
    assert!(reason(parse(Path::new("/x"), "[1, 2")).contains("not a kubeconfig"));
    assert!(reason(load(Path::new("/nonexistent/kubeconfig"))).contains("No such file"));
}
