//! `/containerLogs`.

use http::StatusCode;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;

use super::answer::{Answer, Refusal, streamed};
use super::handle::Api;
use super::route::Target;
use crate::logs::{self, choose};
use crate::pod::spec;

impl Api {
    pub(super) fn logs(&self, target: &Target, query: &[(String, String)]) -> Answer {
        let missing = |_| Refusal(StatusCode::NOT_FOUND, format!("pod \"{}\" not found", target.pod));
        let pod = self.pod(target).map_err(missing)?;
        let wanted = log_query(query, Timestamp::now()).map_err(|error| Refusal(StatusCode::BAD_REQUEST, error))?;
        let chosen = choose::choose(&pod, Some(&target.container), wanted.previous);
        let chosen = chosen.map_err(|refusal| match refusal {
            choose::Refusal::NoContainer { .. } => Refusal(StatusCode::NOT_FOUND, refusal.to_string()),
            choose::Refusal::Waiting { .. } | choose::Refusal::NoPrevious { .. } => {
                Refusal(StatusCode::BAD_REQUEST, refusal.to_string())
            }
        })?;
        let directory = self.view.log_dir().join(crate::pod::sandbox_config::log_directory_name(&pod));
        let path = directory.join(crate::pod::container_config::log_path(&chosen.container, chosen.attempt));
        let (view, key) = (self.view.clone(), spec::key(&pod));
        let ended = move || {
            let pod = view.pod(&key.namespace, &key.name);
            pod.is_none_or(|pod| !choose::runs(&pod, &chosen.container, chosen.attempt))
        };
        let (tx, rx) = mpsc::channel(1);
        tokio::spawn(logs::read(path, wanted.options, ended, tx));
        Ok(streamed("text/plain", rx))
    }
}

#[derive(Debug, Default, PartialEq, Eq)]
struct LogQuery {
    previous: bool,
    options: logs::Options,
}

/// `PodLogOptions` as a query. Source: `v1.PodLogOptions` of the API reference.
fn log_query(query: &[(String, String)], now: Timestamp) -> Result<LogQuery, String> {
    let mut found = LogQuery::default();
    for (name, value) in query {
        let number = || value.parse::<i64>().map_err(|_| format!("{name}: {value:?} is not a number"));
        let not_negative = || {
            number().and_then(|n| u64::try_from(n).map_err(|_| format!("{name}: {n} is negative; expected 0 or more")))
        };
        let flag = || match value.as_str() {
            "true" | "1" | "" => Ok(true),
            "false" | "0" => Ok(false),
            other => Err(format!("{name}: {other:?} is not true or false")),
        };
        match name.as_str() {
            "follow" => found.options.follow = flag()?,
            "previous" => found.previous = flag()?,
            "timestamps" => found.options.timestamps = flag()?,
            "tailLines" => found.options.tail = Some(usize::try_from(not_negative()?).unwrap_or(usize::MAX)),
            "limitBytes" => found.options.limit = Some(not_negative()?),
            "sinceSeconds" => {
                let seconds = i64::try_from(not_negative()?).unwrap_or(i64::MAX);
                let since = now.checked_sub(SignedDuration::from_secs(seconds));
                found.options.since = since.ok().or(found.options.since);
            }
            "sinceTime" => {
                let since: Timestamp = value
                    .parse()
                    .map_err(|_| format!("{name}: {value:?} is not a time such as 2026-01-31T10:00:00Z"))?;
                found.options.since = Some(since);
            }
            _ => {}
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn log_options_are_read_and_nonsense_is_refused_by_name() {
        let now = Timestamp::from_second(1000).unwrap();
        let query = pairs(&[("follow", "true"), ("tailLines", "5"), ("sinceSeconds", "60"), ("limitBytes", "9")]);
        let found = log_query(&query, now).unwrap().options;
        assert_eq!((found.follow, found.tail, found.limit), (true, Some(5), Some(9)));
        assert_eq!(found.since, Timestamp::from_second(940).ok());
        for (name, value) in
            [("tailLines", "-1"), ("limitBytes", "x"), ("sinceTime", "yesterday"), ("follow", "perhaps")]
        {
            let error = log_query(&pairs(&[(name, value)]), now).unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
