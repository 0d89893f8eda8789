use super::*;
use std::collections::BTreeMap;

fn call(env: &[(&str, &str)], stdin: &str) -> Result<Request, CniError> {
    let env: BTreeMap<_, _> = env.iter().copied().collect();
    Request::parse(|name| env.get(name).map(|value| (*value).to_owned()), stdin.as_bytes())
}

const CONF: &str = r#"{"type":"nodelet-cni","cniVersion":"1.1.0","name":"pods","podCIDRs":["10.244.1.0/24"]}"#;

#[test]
fn each_verb_requires_exactly_its_own_variables() {
    let id = [("CNI_CONTAINERID", "c1"), ("CNI_IFNAME", "eth0")];
    let with = |command, netns: &'static str| [("CNI_COMMAND", command), id[0], id[1], ("CNI_NETNS", netns)];
    assert!(matches!(call(&with("ADD", "/run/netns/x"), CONF), Ok(Request::Add(..))));
    assert!(matches!(call(&with("DEL", ""), CONF), Ok(Request::Del(..))));
    assert!(matches!(call(&[("CNI_COMMAND", "STATUS")], CONF), Ok(Request::Status(_))));
    assert_eq!(call(&[("CNI_COMMAND", "VERSION")], ""), Ok(Request::Version));
    for (command, missing) in [("ADD", "CNI_NETNS"), ("CHECK", "CNI_NETNS")] {
        let error = call(&with(command, ""), CONF).unwrap_err();
        assert_eq!(error.code, Code::InvalidEnvironment);
        assert!(error.msg.contains(missing), "{error}");
    }
    let error = call(&[("CNI_COMMAND", "DEL"), id[1]], CONF).unwrap_err();
    assert!(error.msg.contains("CNI_CONTAINERID"), "{error}");
}

#[test]
fn names_that_could_leave_a_directory_or_the_kernel_rules_are_refused() {
    for (id, ifname) in [("../x", "eth0"), ("-x", "eth0"), ("c1", "a/b"), ("c1", "0123456789abcdef"), ("c1", "..")] {
        let env = [("CNI_COMMAND", "DEL"), ("CNI_CONTAINERID", id), ("CNI_IFNAME", ifname)];
        assert_eq!(call(&env, CONF).unwrap_err().code, Code::InvalidEnvironment, "{id} {ifname}");
    }
    let conf = CONF.replace("\"pods\"", "\"../pods\"");
    assert_eq!(call(&[("CNI_COMMAND", "STATUS")], &conf).unwrap_err().code, Code::InvalidConfig);
}

#[test]
fn a_version_that_is_not_spoken_is_code_1_and_says_which_are() {
    for version in ["0.1.0", "0.2.0", "2.0.0", "latest"] {
        let error = call(&[("CNI_COMMAND", "STATUS")], &CONF.replace("1.1.0", version)).unwrap_err();
        assert_eq!(error.code, Code::IncompatibleVersion);
        assert!(error.msg.contains(version) && error.msg.contains("1.1.0"), "{error}");
    }
    let error = call(&[("CNI_COMMAND", "GC")], &CONF.replace("1.1.0", "1.0.0")).unwrap_err();
    assert_eq!(error.code, Code::IncompatibleVersion);
}

#[test]
fn gc_without_a_list_releases_nothing() {
    assert_eq!(call(&[("CNI_COMMAND", "GC")], CONF).unwrap_err().code, Code::InvalidConfig);
    let null = CONF.replace("\"name\"", "\"cni.dev/valid-attachments\":null,\"name\"");
    assert!(matches!(call(&[("CNI_COMMAND", "GC")], &null), Ok(Request::Gc(_, valid)) if valid.is_empty()));
    let list = r#"[{"containerID":"c1","ifname":"eth0"}]"#;
    // libcni sends both spellings.
    let both = CONF
        .replace("\"name\"", &format!("\"cni.dev/valid-attachments\":{list},\"cni.dev/attachments\":{list},\"name\""));
    let Request::Gc(_, valid) = call(&[("CNI_COMMAND", "GC")], &both).unwrap() else { panic!("not GC") };
    assert_eq!(valid, [AttachmentId { container_id: "c1".into(), ifname: "eth0".into() }]);
}

fn result() -> AddResult {
    serde_json::from_str(
        r#"{"interfaces":[{"name":"veth1","mac":"02:00:00:00:00:01","mtu":1400},
                          {"name":"eth0","mtu":1400,"sandbox":"/run/netns/x","pciID":"0000:00:1f.6"}],
            "ips":[{"interface":1,"address":"10.0.0.2/32","gateway":"10.0.0.1"},{"interface":1,"address":"fd00::2/128"}],
            "routes":[{"dst":"0.0.0.0/0","gw":"10.0.0.1","priority":7}]}"#,
    )
    .unwrap()
}

#[test]
fn results_of_every_version_have_the_fields_of_that_version_and_read_back() {
    for version in SUPPORTED {
        let json = result().to_json(version);
        assert_eq!(json["cniVersion"], version.to_string());
        assert_eq!(json["ips"][0].get("version").is_some(), version < Version::V1_0_0, "{json}");
        assert_eq!(json["interfaces"][1].get("mtu").is_some(), version == Version::V1_1_0, "{json}");
        assert_eq!(json["interfaces"][1].get("pciID").is_some(), version == Version::V1_1_0, "{json}");
        assert_eq!(json["routes"][0].get("priority").is_some(), version == Version::V1_1_0, "{json}");
        let back: AddResult = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(back.to_json(version), json);
    }
    assert_eq!(result().to_json(Version::V0_4_0)["ips"][1]["version"], "6");
}

#[test]
fn null_lists_of_go_plugins_are_empty_lists() {
    let parsed: AddResult = serde_json::from_str(r#"{"cniVersion":"0.4.0","ips":null,"dns":{}}"#).unwrap();
    assert!(parsed.ips.is_empty() && parsed.interfaces.is_empty());
}

#[test]
fn extending_a_result_moves_the_interface_indexes() {
    let mut first = result();
    first.extend(result());
    assert_eq!(first.interfaces.len(), 4);
    assert_eq!(first.ips[2].interface, Some(3));
}
