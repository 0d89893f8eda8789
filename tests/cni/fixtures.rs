//! One JSON file per case in `fixtures/`: configuration, environment, and what the answer must contain.

use std::path::Path;

use harness::netns::Netns;
use serde_json::Value;

use crate::bench::Bench;

#[test]
fn every_fixture_gives_the_answer_that_it_describes() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("cni/fixtures");
    let mut files: Vec<_> = std::fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    assert!(files.len() >= 10, "{} fixtures in {}", files.len(), dir.display());
    for file in files {
        let fixture: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
        run(&file.display().to_string(), &fixture);
    }
}

fn run(name: &str, fixture: &Value) {
    let bench = Bench::new();
    let pod = Netns::new().unwrap();
    let mut conf = bench.conf();
    conf.as_object_mut().unwrap().remove("podCIDRs");
    for (key, value) in fixture["conf"].as_object().unwrap() {
        conf[key] = value.clone();
    }
    let netns = match fixture["netns"].as_str() {
        Some(path) => path.into(),
        None => pod.path(),
    };
    let answer = bench.call(fixture["command"].as_str().unwrap(), "c1", &netns, &conf);
    assert_eq!(answer.success, fixture["success"].as_bool().unwrap(), "{name}: {}", answer.json);
    let answer =
        serde_json::from_str(&answer.json.to_string().replace(&*pod.path().to_string_lossy(), "NETNS")).unwrap();
    assert_contains(name, &answer, &fixture["answer"]);
    for absent in fixture["absent"].as_array().into_iter().flatten() {
        let pointer = absent.as_str().unwrap();
        assert!(answer.pointer(pointer).is_none(), "{name}: {pointer} must not be in {answer}");
    }
    if !fixture["success"].as_bool().unwrap() {
        bench.assert_clean(name);
    }
}

/// Objects may have more fields than expected, lists may not have more entries; `msg` needs to contain the text.
fn assert_contains(name: &str, actual: &Value, expected: &Value) {
    match (actual, expected) {
        (Value::Object(actual), Value::Object(expected)) => {
            for (key, expected) in expected {
                let actual = actual.get(key).unwrap_or_else(|| panic!("{name}: no {key} in {actual:?}"));
                match (key.as_str(), actual, expected) {
                    ("msg", Value::String(actual), Value::String(expected)) => {
                        assert!(actual.contains(expected), "{name}: {expected:?} is not in {actual:?}");
                    }
                    _ => assert_contains(name, actual, expected),
                }
            }
        }
        (Value::Array(actual), Value::Array(expected)) => {
            assert_eq!(actual.len(), expected.len(), "{name}: {actual:?}");
            for (actual, expected) in actual.iter().zip(expected) {
                assert_contains(name, actual, expected);
            }
        }
        _ => assert_eq!(actual, expected, "{name}"),
    }
}
