use super::*;
use proptest::prelude::*;

const HOUR: i64 = 3600;

fn key(byte: u8) -> Arc<[u8]> {
    Arc::from([byte])
}

fn issued(chain: &str, begin_refresh_at: i64) -> Answer {
    Answer::Issued { chain: chain.into(), begin_refresh_at, not_after: begin_refresh_at + HOUR }
}

fn denied() -> Answer {
    Answer::Denied { reason: "No".to_owned(), message: "not you".to_owned() }
}

fn shown(state: &State) -> Option<(u8, String)> {
    state.credential().map(|held| (held.key[0], held.chain.to_string()))
}

fn reasons(notes: Vec<Note>) -> Vec<&'static str> {
    notes.into_iter().map(|note| note.reason).collect()
}

/// One that was asked for at second 0 with key 1, and issued.
fn held(begin_refresh_at: i64, chance: f64) -> State {
    let state = State::Initial.requested("req-1".to_owned(), key(1), 0, 0.0);
    state.heard(issued("first", begin_refresh_at), "ns", 1, chance).0
}

#[test]
fn a_certificate_is_there_once_it_is_issued_and_with_its_key() {
    assert!(State::Initial.wants_request(0));
    let state = State::Initial.requested("req-1".to_owned(), key(1), 0, 0.5);
    assert!(!state.wants_request(i64::MAX) && state.credential().is_none());
    let (state, note) = state.heard(Answer::Pending, "ns", 5, 0.5);
    assert!(note.is_none() && state.credential().is_none());
    let (state, note) = state.heard(issued("chain", HOUR), "ns", 5, 0.5);
    assert_eq!((shown(&state), note), (Some((1, "chain".to_owned())), None));
    assert_eq!(state.next_look(6), Some(HOUR + 150), "up to five minutes after the signer's time");
}

#[test]
fn a_refresh_serves_the_old_certificate_until_there_is_the_new_one() {
    let state = held(HOUR, 0.0);
    assert!(!state.wants_request(HOUR - 1) && state.wants_request(HOUR));
    let state = state.requested("req-2".to_owned(), key(2), HOUR, 0.0);
    assert_eq!(shown(&state), Some((1, "first".to_owned())));
    let (state, _) = state.heard(issued("second", 3 * HOUR), "ns", HOUR + 1, 0.0);
    assert_eq!(shown(&state), Some((2, "second".to_owned())));
    assert!(!state.wants_request(3 * HOUR - 1));
}

#[test]
fn a_refusal_is_for_good_and_told_in_kubelets_words() {
    for state in [State::Initial, held(0, 0.0)] {
        let state = state.requested("req-2".to_owned(), key(2), 0, 0.0);
        let (state, note) = state.heard(denied(), "ns", 1, 0.0);
        let message = r#"PodCertificateRequest ns/req-2 was denied, reason="No", message="not you""#.to_owned();
        assert_eq!(note, Some(Note { reason: "Denied", message }));
        assert!(!state.wants_request(i64::MAX) && state.credential().is_none() && state.next_look(1).is_none());
        let State::Refused(text) = &state else { panic!("not refused") };
        assert_eq!(text, r#"PodCertificateRequest was permanently denied: reason="No" message="not you""#);
    }
}

#[test]
fn a_deleted_request_is_replaced_but_not_at_once() {
    let state = State::Initial.requested("req-1".to_owned(), key(1), 100, 0.5);
    let (state, _) = state.heard(Answer::Deleted, "ns", 101, 0.0);
    assert!(!state.wants_request(101));
    assert_eq!(state.next_look(101), Some(190));
    let (state, _) = state.heard(Answer::Deleted, "ns", 190, 0.0);
    assert!(state.wants_request(190));

    let refreshed = held(HOUR, 0.0).requested("req-2".to_owned(), key(2), HOUR, 0.0);
    let (state, _) = refreshed.heard(Answer::Deleted, "ns", 2 * HOUR, 0.0);
    assert_eq!((shown(&state), state.wants_request(2 * HOUR)), (Some((1, "first".to_owned())), true));
}

#[test]
fn a_request_that_nobody_answers_is_looked_at_no_more_than_it_must_be() {
    let state = State::Initial.requested("req-1".to_owned(), key(1), 0, 0.0);
    assert_eq!((state.next_look(10), state.next_look(60)), (Some(60), None));
}

#[test]
fn people_hear_once_that_a_refresh_is_late_and_once_that_the_certificate_is_over() {
    let mut state = held(HOUR, 0.0).requested("req-2".to_owned(), key(2), HOUR, 0.0);
    assert!(state.reminders(HOUR + OVERDUE - 1).is_empty());
    assert_eq!(state.next_look(2 * HOUR - 1), Some(HOUR + OVERDUE));
    assert_eq!(reasons(state.reminders(HOUR + OVERDUE)), ["CertificateOverdueForRefresh"]);
    assert_eq!(state.next_look(2 * HOUR - 1), Some(2 * HOUR));
    assert_eq!(reasons(state.reminders(2 * HOUR)), ["CertificateExpired"]);
    assert!(state.reminders(9 * HOUR).is_empty() && state.next_look(9 * HOUR).is_none());
    assert!(shown(&state).is_some(), "an old certificate is better than none");
}

fn any_answer() -> impl Strategy<Value = Answer> {
    prop_oneof![
        4 => Just(Answer::Pending),
        2 => Just(Answer::Deleted),
        3 => (0..10 * HOUR).prop_map(|at| issued("c", at)),
        1 => Just(denied()),
    ]
}

proptest! {
    #[test]
    fn a_certificate_never_goes_but_by_a_refusal_and_looks_end(
        steps in proptest::collection::vec((any_answer(), 1..2 * HOUR, 0.0..1.0f64), 1..40),
    ) {
        let (mut state, mut now, mut last_key, mut had) = (State::Initial, 0, 0u8, false);
        for (answer, passed, chance) in steps {
            now += passed;
            if state.wants_request(now) {
                last_key += 1;
                state = state.requested(format!("req-{last_key}"), key(last_key), now, chance);
            }
            let waited = matches!(state, State::Waiting { .. });
            let is_refusal = waited && matches!(answer, Answer::Denied { .. });
            let is_issued = waited && matches!(answer, Answer::Issued { .. });
            state = state.heard(answer, "ns", now, chance).0;
            state.reminders(now);
            match &state {
                State::Refused(_) => prop_assert!(is_refusal || !waited),
                State::Initial => prop_assert!(!had),
                State::Waiting { .. } | State::Held(_) => prop_assert!(!had || shown(&state).is_some()),
            }
            if is_issued {
                prop_assert_eq!(shown(&state).unwrap().0, last_key, "a chain goes with the key that it was issued to");
            }
            had |= shown(&state).is_some();
            // What waits looks again in the future or not at all, so that nothing spins.
            if let (State::Waiting { .. }, Some(at)) = (&state, state.next_look(now)) {
                prop_assert!(at > now);
            }
        }
    }
}
