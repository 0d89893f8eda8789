use proptest::prelude::*;

use super::*;

const SECOND: Nanos = 1_000_000_000;
const POLICY: Policy = Policy { high: 85, low: 80, min_age: 120 * SECOND, max_age: 0 };

fn image(id: &str, size: u64) -> ListedImage {
    let tags = vec![format!("docker.io/library/{id}:1")];
    ListedImage { id: format!("sha256:{id}"), tags, digests: Vec::new(), size, is_pinned: false }
}

fn names(all: &[&str]) -> Names {
    let mut names = Names::default();
    all.iter().for_each(|name| names.add(name));
    names
}

fn ids(removals: &[Removal]) -> Vec<&str> {
    removals.iter().map(|removal| removal.id.trim_start_matches("sha256:")).collect()
}

#[test]
fn the_longest_unused_goes_first_and_what_is_held_or_new_stays() {
    let mut records = Records::default();
    let mut all = vec![image("a", 10), image("b", 10), image("c", 10), image("pinned", 10), image("pause", 10)];
    all[3].is_pinned = true;
    let pause = names(&["pause:1"]);
    records.observe(&all, &names(&["a:1", "b:1", "c:1"]), &pause, 1000 * SECOND);
    records.observe(&all, &names(&["b:1", "c:1"]), &pause, 2000 * SECOND);
    all.push(image("new", 10));
    records.observe(&all, &names(&["c:1"]), &pause, 3000 * SECOND);
    assert_eq!(ids(&candidates(&records, &POLICY, 3000 * SECOND)), ["a", "b"]);
    records.observe(&all, &names(&["c:1"]), &pause, 3200 * SECOND);
    assert_eq!(ids(&candidates(&records, &POLICY, 3200 * SECOND)), ["new", "a", "b"], "never used is used longest ago");
    let held = |id: &str| records.0[id].held;
    assert_eq!(
        ["sha256:c", "sha256:pinned", "sha256:pause"].map(held),
        [Hold::InUse, Hold::Pinned, Hold::Pinned].map(Some)
    );
    all.remove(0);
    records.observe(&all, &names(&[]), &pause, 3300 * SECOND);
    assert!(!records.0.contains_key("sha256:a"), "gone is forgotten");
}

#[test]
fn an_image_is_in_use_by_each_of_its_names() {
    let digest = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    let image = ListedImage {
        id: "sha256:0123".into(),
        tags: vec!["docker.io/library/web:latest".into(), "reg.io/web:2".into()],
        digests: vec![format!("docker.io/library/web@{digest}")],
        ..ListedImage::default()
    };
    let by_digest = format!("web@{digest}");
    let by_both = format!("web:old@{digest}");
    for name in ["web", "docker.io/library/web", "reg.io/web:2", &by_digest, &by_both, "sha256:0123", "0123"] {
        assert!(names(&[name]).has(&image), "{name}");
    }
    for name in ["web:1", "reg.io/web", "other/web", "", "sha256:0", "Not A Name"] {
        assert!(!names(&[name]).has(&image), "{name}");
    }
}

#[test]
fn an_agent_that_is_younger_than_the_age_removes_nothing_by_age() {
    let policy = Policy { max_age: 100 * SECOND, ..POLICY };
    let mut records = Records::default();
    let all = [image("a", 1), image("b", 1)];
    records.observe(&all, &names(&["b:1"]), &Names::default(), 1000 * SECOND);
    let at = |now| aged(&records, &policy, 1000 * SECOND, now * SECOND).len();
    assert_eq!([at(1100), at(1101)], [0, 1], "the one that nobody has used goes; b is in use");
    records.observe(&all, &Names::default(), &Names::default(), 1050 * SECOND);
    let at = |now| aged(&records, &policy, 1000 * SECOND, now * SECOND).len();
    assert_eq!([at(1050), at(1100), at(1101)], [0, 0, 2]);
    assert!(aged(&records, &POLICY, 0, i64::MAX).is_empty(), "0 is never");
}

#[test]
fn what_is_to_be_freed_brings_the_disk_down_to_the_low_threshold() {
    let disk = |available| Disk { capacity: 1000, available };
    assert_eq!(disk(160).excess(&POLICY), None, "84 %");
    assert_eq!((disk(151).percent(), disk(151).excess(&POLICY)), (Some(85), Some(49)));
    assert_eq!(disk(0).excess(&POLICY), Some(200));
    assert_eq!(disk(5000).percent(), Some(0), "more left than there is");
    assert_eq!(Disk::default().percent(), None);
    let all = vec![image("a", 30), image("b", 30), image("c", 30)];
    let mut records = Records::default();
    records.observe(&all, &Names::default(), &Names::default(), 0);
    let chosen = until(49, candidates(&records, &POLICY, 1000 * SECOND));
    assert_eq!(ids(&chosen), ["a", "b"]);
}

#[test]
fn texts_are_kubelets() {
    assert_eq!(
        too_little(91, 3 << 29, 7),
        "Insufficient free disk space on the node's image filesystem (91% of 1.5 GiB used). Failed to free sufficient space by \
         deleting unused images (freed 7 bytes). Investigate disk usage, as it could be used by active images, logs, volumes, \
         or other data."
    );
    assert_eq!([1023, 1024, 5 << 20, 3 << 40].map(size), ["1023 B", "1.0 KiB", "5.0 MiB", "3.0 TiB"]);
}

#[test]
fn it_is_off_only_without_both_rules() {
    assert!(!Policy { high: 100, ..POLICY }.is_on());
    assert!(Policy { high: 100, max_age: 1, ..POLICY }.is_on() && POLICY.is_on());
}

proptest! {
    /// A node over hours: images come, go, and are used; the disk is full to some degree.
    #[test]
    fn nothing_that_is_used_pinned_or_young_ever_goes(
        steps in prop::collection::vec((prop::collection::vec(any::<(bool, bool)>(), 8), 1i64..400), 1..12),
        pinned in 0usize..8, used_percent in 0u64..=100, high in 1u8..=100, max_age in prop_oneof![Just(0i64), 100i64..1000],
    ) {
        let policy = Policy { high, low: high - 1, min_age: 120 * SECOND, max_age: max_age * SECOND };
        let mut records = Records::default();
        let (mut now, mut came) = (1000 * SECOND, BTreeMap::new());
        for (step, took) in steps {
            now += took * SECOND;
            let here: Vec<usize> = (0..8).filter(|n| step[*n].0).collect();
            let images: Vec<ListedImage> = here.iter().map(|n| ListedImage { is_pinned: *n == pinned, ..image(&n.to_string(), 10) }).collect();
            let used: Vec<String> = here.iter().filter(|n| step[**n].1).map(|n| format!("{n}:1")).collect();
            let used: Vec<&str> = used.iter().map(String::as_str).collect();
            came.retain(|n, _| here.contains(n));
            for n in &here {
                came.entry(*n).or_insert(now);
            }
            records.observe(&images, &names(&used), &Names::default(), now);
            let space = candidates(&records, &policy, now);
            for removal in space.iter().chain(&aged(&records, &policy, 1000 * SECOND, now)) {
                let n: usize = removal.id.trim_start_matches("sha256:").parse().unwrap();
                prop_assert!(n != pinned && !step[n].1 && step[n].0);
                if removal.why == Why::Space {
                    prop_assert!(now - came[&n] >= policy.min_age);
                }
            }
            prop_assert!(space.windows(2).all(|two| two[0].last_used <= two[1].last_used));
        }
        let disk = Disk { capacity: 1000, available: 1000 - used_percent * 10 };
        match disk.excess(&policy) {
            None => prop_assert!(used_percent < u64::from(high)),
            Some(goal) => prop_assert_eq!(disk.available + goal, 1000 * (100 - u64::from(policy.low)) / 100),
        }
    }
}
