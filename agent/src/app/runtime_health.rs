//! How the runtime does, for the Node object.
//!
//! CRI has no event for its conditions, so `Status` is asked when there is reason to: at start, when the event stream broke
//! or came back, every two seconds while something is not ready, and every minute otherwise. A question that hangs holds up
//! no event.
//!
//! A node that is not Ready has all of its pods marked unready by the control plane, so one bad answer does not make it so:
//! a runtime that is being restarted has half a minute, as under kubelet, and bad news are asked for a second time.

use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::network::Network;
use crate::cri::{Runtime, RuntimeEvent};
use crate::node::RuntimeHealth;

const READY_CHECK: Duration = Duration::from_secs(60);
const UNREADY_CHECK: Duration = Duration::from_secs(2);
/// How long a runtime may be silent before the node is not ready: kubelet's `maxWaitForContainerRuntime`.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long one question may take.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// Passes runtime events on to `out` and keeps `health` current.
pub async fn run(
    runtime: Runtime,
    network: Network,
    mut events: mpsc::Receiver<RuntimeEvent>,
    out: mpsc::Sender<RuntimeEvent>,
    health: watch::Sender<RuntimeHealth>,
    shutdown: CancellationToken,
) {
    let mut judge = Judge::default();
    let mut next = Box::pin(tokio::time::sleep(Duration::ZERO));
    let mut question: Option<BoxFuture<'static, Result<RuntimeHealth, String>>> = None;
    loop {
        tokio::select! {
            // Cancel-safe: what is not ready stays where it is, in the channel, the sleep or `question`.
            () = shutdown.cancelled() => return,
            event = events.recv() => {
                let Some(event) = event else { return };
                match &event {
                    RuntimeEvent::Lost(_) | RuntimeEvent::Resync => next.as_mut().reset(Instant::now()),
                    RuntimeEvent::Changed { .. } => {}
                }
                if out.send(event).await.is_err() {
                    return;
                }
            }
            () = &mut next, if question.is_none() => {
                question = Some(Box::pin(look(runtime.clone(), network.clone())));
            }
            seen = answer(&mut question), if question.is_some() => {
                question = None;
                let now = Instant::now();
                let verdict = judge.hear(seen, &health.borrow(), now);
                next.as_mut().reset(now + verdict.again);
                health.send_if_modified(|before| match verdict.health {
                    Some(after) if *before != after => {
                        *before = after;
                        true
                    }
                    Some(_) | None => false,
                });
            }
        }
    }
}

async fn answer(
    question: &mut Option<BoxFuture<'static, Result<RuntimeHealth, String>>>,
) -> Result<RuntimeHealth, String> {
    match question {
        Some(question) => question.await,
        None => std::future::pending().await,
    }
}

/// What follows from an answer.
#[derive(Debug, PartialEq, Eq)]
struct Verdict {
    /// The health to tell, unless it stays as it is.
    health: Option<RuntimeHealth>,
    /// Pause before the next question.
    again: Duration,
}

/// What bad answers came since the last good one.
#[derive(Debug, Default)]
struct Judge {
    silent_since: Option<Instant>,
    is_suspect: bool,
}

impl Judge {
    /// Takes an answer in, or the reason why there is none. Pure.
    fn hear(&mut self, seen: Result<RuntimeHealth, String>, told: &RuntimeHealth, now: Instant) -> Verdict {
        let was_ready = told.runtime_ready.is_ok() && told.network_ready.is_ok();
        match seen {
            Ok(health) => {
                self.silent_since = None;
                let ready = health.runtime_ready.is_ok() && health.network_ready.is_ok();
                let first_word = was_ready && !ready && !self.is_suspect;
                self.is_suspect = !ready;
                let again = if ready { READY_CHECK } else { UNREADY_CHECK };
                Verdict { health: (!first_word).then_some(health), again }
            }
            Err(text) => {
                let since = *self.silent_since.get_or_insert(now);
                let waits = was_ready && now - since < PATIENCE;
                let down = || RuntimeHealth::down(format!("container runtime is down: {text}"));
                Verdict { health: (!waits).then(down), again: UNREADY_CHECK }
            }
        }
    }
}

async fn look(runtime: Runtime, network: Network) -> Result<RuntimeHealth, String> {
    let asked = async { tokio::try_join!(runtime.version(), runtime.status()) };
    let answers = tokio::time::timeout(ANSWER_LIMIT, asked).await;
    let (version, status) = match answers {
        Ok(answers) => answers.map_err(|error| format!("{error}, asked at {}", runtime.socket().display()))?,
        Err(_) => return Err(format!("Status: no answer after {ANSWER_LIMIT:?} at {}", runtime.socket().display())),
    };
    let mut health = RuntimeHealth::from_cri(&version, &status);
    if let Err(text) = &mut health.network_ready
        && let Some(trouble) = network.trouble().await
    {
        // The runtime's own words are often no more than "not initialized".
        *text = format!("{text}: {trouble}");
    }
    Ok(health)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ready() -> RuntimeHealth {
        RuntimeHealth { runtime_ready: Ok(()), name: "containerd".into(), ..RuntimeHealth::unknown() }
    }

    fn without_network() -> RuntimeHealth {
        RuntimeHealth { network_ready: Err("cni plugin not initialized".into()), ..ready() }
    }

    #[test]
    fn a_runtime_that_is_restarted_does_not_make_the_node_unready() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        for second in [0, 2, 28] {
            let verdict = judge.hear(Err("no socket".into()), &ready(), start + Duration::from_secs(second));
            assert_eq!(verdict, Verdict { health: None, again: UNREADY_CHECK }, "after {second} s");
        }
        let verdict = judge.hear(Ok(ready()), &ready(), start + Duration::from_secs(29));
        assert_eq!(verdict, Verdict { health: Some(ready()), again: READY_CHECK });
        let later = start + Duration::from_secs(40);
        assert_eq!(judge.hear(Err("no socket".into()), &ready(), later).health, None, "counted anew");
    }

    #[test]
    fn a_runtime_that_stays_away_is_named_with_its_reason() {
        let (mut judge, start) = (Judge::default(), Instant::now());
        judge.hear(Err("no socket".into()), &ready(), start);
        let verdict = judge.hear(Err("no socket".into()), &ready(), start + PATIENCE);
        let told = verdict.health.unwrap();
        assert_eq!(told.runtime_ready, Err("container runtime is down: no socket".to_owned()));
        let verdict = judge.hear(Err("refused".into()), &told, start + 2 * PATIENCE);
        let again = verdict.health.unwrap().runtime_ready;
        assert_eq!(again, Err("container runtime is down: refused".to_owned()), "the newest reason");
    }

    #[test]
    fn bad_news_are_believed_when_they_come_twice() {
        let (mut judge, now) = (Judge::default(), Instant::now());
        assert_eq!(judge.hear(Ok(without_network()), &ready(), now).health, None);
        assert_eq!(judge.hear(Ok(without_network()), &ready(), now).health, Some(without_network()));
        let mut judge = Judge::default();
        let first = judge.hear(Ok(without_network()), &RuntimeHealth::unknown(), now).health;
        assert_eq!(first, Some(without_network()), "a node that is not ready yet has nothing to lose");
    }
}
