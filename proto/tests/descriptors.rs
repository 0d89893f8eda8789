//! Compares this crate's CRI description with the published one, in both directions.
//!
//! The published description is `api.proto` of the Go module `k8s.io/cri-api`, fetched by the `go` command and checked by
//! it against the checksum database. Each description is flattened to a map from a path ("field runtime.v1.Mount.image")
//! to everything about it that reaches the wire or the generated code; two such maps must be equal. Comments, file layout
//! and order of declaration are ours and are not compared.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet, ServiceDescriptorProto,
};

/// The module whose description is the truth, at the Kubernetes level that nodelet implements.
const MODULE: &str = "k8s.io/cri-api@v0.37.2";

/// Facts by path.
type Facts = BTreeMap<String, String>;

/// Flattens all files of `set` that declare `package`.
fn facts(set: &FileDescriptorSet, package: &str) -> Facts {
    let mut facts = Facts::new();
    for file in set.file.iter().filter(|file| file.package() == package) {
        for message in &file.message_type {
            message_facts(&mut facts, package, message);
        }
        for declared in &file.enum_type {
            enum_facts(&mut facts, package, declared);
        }
        for service in &file.service {
            service_facts(&mut facts, package, service);
        }
    }
    facts
}

fn message_facts(facts: &mut Facts, scope: &str, message: &DescriptorProto) {
    let path = format!("{scope}.{}", message.name());
    let options = message.options.clone().unwrap_or_default();
    facts.insert(
        format!("message {path}"),
        format!("map_entry={} deprecated={}", options.map_entry(), options.deprecated()),
    );
    for field in &message.field {
        facts.insert(format!("field {path}.{}", field.name()), field_fact(message, field));
    }
    for nested in &message.nested_type {
        message_facts(facts, &path, nested);
    }
    for declared in &message.enum_type {
        enum_facts(facts, &path, declared);
    }
}

fn field_fact(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let label = Label::try_from(field.label.unwrap_or_default()).map_or("none", |label| label.as_str_name());
    let kind = Type::try_from(field.r#type.unwrap_or_default()).map_or("none", |kind| kind.as_str_name());
    let oneof =
        field.oneof_index.and_then(|index| message.oneof_decl.get(index as usize)).map_or("none", |oneof| oneof.name());
    let options = field.options.clone().unwrap_or_default();
    format!(
        "number={} {label} {kind} of={} oneof={oneof} proto3_optional={} packed={:?} deprecated={}",
        field.number(),
        field.type_name(),
        field.proto3_optional(),
        options.packed,
        options.deprecated(),
    )
}

fn enum_facts(facts: &mut Facts, scope: &str, declared: &EnumDescriptorProto) {
    let path = format!("{scope}.{}", declared.name());
    facts.insert(format!("enum {path}"), String::new());
    for value in &declared.value {
        facts.insert(format!("value {path}.{}", value.name()), format!("number={}", value.number()));
    }
}

fn service_facts(facts: &mut Facts, scope: &str, service: &ServiceDescriptorProto) {
    let path = format!("{scope}.{}", service.name());
    facts.insert(format!("service {path}"), String::new());
    for method in &service.method {
        let fact = format!(
            "{}{} -> {}{}",
            if method.client_streaming() { "stream " } else { "" },
            method.input_type(),
            if method.server_streaming() { "stream " } else { "" },
            method.output_type(),
        );
        facts.insert(format!("rpc {path}.{}", method.name()), fact);
    }
}

/// One line per path that is missing on one side or told differently. Empty when both say the same.
fn differences(ours: &Facts, published: &Facts) -> Vec<String> {
    let mut found = Vec::new();
    for (path, theirs) in published {
        match ours.get(path) {
            None => found.push(format!("{path}: published, missing here")),
            Some(here) if here != theirs => {
                found.push(format!("{path}:\n    here      {here}\n    published {theirs}"))
            }
            Some(_) => {}
        }
    }
    for path in ours.keys().filter(|path| !published.contains_key(*path)) {
        found.push(format!("{path}: here, not published"));
    }
    found
}

fn our_description() -> FileDescriptorSet {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    protox::compile(["runtime/v1/services.proto"], [root]).expect("our description compiles")
}

/// Where the `go` command keeps the unpacked module; downloads it when it is not there yet.
fn module_directory() -> PathBuf {
    let scratch = std::env::temp_dir().join(format!("nodelet-descriptors-{}", std::process::id()));
    std::fs::create_dir_all(&scratch).expect("a scratch directory for an empty Go module");
    std::fs::write(scratch.join("go.mod"), "module descriptors\n").expect("an empty go.mod");
    let output = Command::new("go")
        .args(["mod", "download", "-json", MODULE])
        .current_dir(&scratch)
        .output()
        .expect("this test needs the `go` command on PATH to fetch the published description");
    std::fs::remove_dir_all(&scratch).expect("the scratch directory can be removed");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "go mod download {MODULE}: {text}{}", String::from_utf8_lossy(&output.stderr));
    let directory = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("\"Dir\": \"")?.strip_suffix("\","))
        .unwrap_or_else(|| panic!("go mod download printed no Dir: {text}"));
    PathBuf::from(directory)
}

fn published_description() -> FileDescriptorSet {
    let root = module_directory().join("pkg/apis/runtime/v1");
    protox::compile(["api.proto"], [&root]).unwrap_or_else(|error| panic!("{}: {error}", root.display()))
}

#[test]
fn every_cri_name_number_type_and_label_is_the_published_one() {
    let ours = facts(&our_description(), "runtime.v1");
    let published = facts(&published_description(), "runtime.v1");
    assert!(published.len() > 800, "the published description has only {} facts: read wrongly?", published.len());
    let found = differences(&ours, &published);
    assert!(found.is_empty(), "{} differences from {MODULE}:\n{}", found.len(), found.join("\n"));
}

/// Doctors our own description and returns what the comparison says about it.
fn compare_after(doctor: impl FnOnce(&mut FileDescriptorSet)) -> Vec<String> {
    let original = our_description();
    let mut doctored = original.clone();
    doctor(&mut doctored);
    differences(&facts(&doctored, "runtime.v1"), &facts(&original, "runtime.v1"))
}

fn message<'a>(set: &'a mut FileDescriptorSet, name: &str) -> &'a mut DescriptorProto {
    let mut messages = set.file.iter_mut().flat_map(|file| &mut file.message_type);
    messages.find(|message| message.name() == name).expect("the message is in our description")
}

fn field<'a>(set: &'a mut FileDescriptorSet, of: &str, name: &str) -> &'a mut FieldDescriptorProto {
    message(set, of).field.iter_mut().find(|field| field.name() == name).expect("the field is in the message")
}

#[test]
fn an_untouched_description_has_no_differences() {
    assert_eq!(compare_after(|_| {}), Vec::<String>::new());
}

#[test]
fn a_wrong_field_number_is_found() {
    let found = compare_after(|set| field(set, "Mount", "image").number = Some(90));
    assert!(found.len() == 1 && found[0].contains("Mount.image") && found[0].contains("number=90"), "{found:?}");
}

#[test]
fn a_missing_field_is_found() {
    let found = compare_after(|set| message(set, "Mount").field.retain(|field| field.name() != "readonly"));
    assert_eq!(found, ["field runtime.v1.Mount.readonly: published, missing here"]);
}

#[test]
fn a_field_that_is_not_published_is_found() {
    let found = compare_after(|set| field(set, "Mount", "readonly").name = Some("read_only".to_owned()));
    assert_eq!(found.len(), 2, "{found:?}");
    assert!(found.contains(&"field runtime.v1.Mount.read_only: here, not published".to_owned()), "{found:?}");
}

#[test]
fn a_wrong_label_is_found() {
    let found = compare_after(|set| field(set, "ContainerConfig", "args").set_label(Label::Optional));
    assert!(found.len() == 1 && found[0].contains("LABEL_OPTIONAL"), "{found:?}");
}

#[test]
fn a_wrong_type_is_found() {
    let found = compare_after(|set| field(set, "ContainerStatus", "exit_code").set_type(Type::Uint32));
    assert!(found.len() == 1 && found[0].contains("TYPE_UINT32"), "{found:?}");
}

#[test]
fn an_optional_that_is_not_published_is_found() {
    let found = compare_after(|set| field(set, "ContainerStatus", "exit_code").proto3_optional = Some(true));
    assert!(found.len() == 1 && found[0].contains("proto3_optional=true"), "{found:?}");
}

#[test]
fn a_wrong_map_value_is_found() {
    let found = compare_after(|set| {
        let entry = &mut message(set, "ContainerConfig").nested_type[0];
        let value = entry.field.iter_mut().find(|field| field.name() == "value").expect("map entries have a value");
        value.set_type(Type::Bytes);
    });
    assert!(found.len() == 1 && found[0].contains("Entry.value"), "{found:?}");
}

#[test]
fn a_wrong_enum_number_is_found() {
    let found = compare_after(|set| {
        let mut enums = set.file.iter_mut().flat_map(|file| &mut file.enum_type);
        let driver = enums.find(|declared| declared.name() == "CgroupDriver").expect("the enum is in our description");
        driver.value[1].number = Some(7);
    });
    assert!(found.len() == 1 && found[0].contains("CgroupDriver.CGROUPFS"), "{found:?}");
}

#[test]
fn an_rpc_that_forgot_to_stream_is_found() {
    let found = compare_after(|set| {
        let mut methods =
            set.file.iter_mut().flat_map(|file| &mut file.service).flat_map(|service| &mut service.method);
        let events =
            methods.find(|method| method.name() == "GetContainerEvents").expect("the RPC is in our description");
        events.server_streaming = Some(false);
    });
    assert!(found.len() == 1 && found[0].contains("GetContainerEvents"), "{found:?}");
}
