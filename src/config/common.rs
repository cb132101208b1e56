//! Rules that several sections share: durations, bounded numbers, names, delays, URLs without their secrets.

use super::reader::Reader;
use crate::domain::retry::{Delay, MAX_DELAY_MILLISECONDS, MAX_STEPS};
use std::time::Duration;

/// A duration within a second and an hour.
pub(super) fn duration(reader: &mut Reader, key: &str, default_seconds: u64) -> Duration {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    reader.checked(key, Duration::from_secs(default_seconds), "a duration from 1s to 1h, as in \"25s\"", |value| {
        bounds.contains(value)
    })
}

/// A whole number within a range.
pub(super) fn number<T>(reader: &mut Reader, key: &str, default: i64, range: std::ops::RangeInclusive<i64>) -> T
where
    T: TryFrom<i64> + Default,
{
    let wanted = format!("a whole number from {} to {}", range.start(), range.end());
    // The range is within the type's, for every caller.
    T::try_from(reader.checked(key, default, &wanted, |value| range.contains(value))).unwrap_or_default()
}

/// A name of an exchange, a queue or a key: AMQP's short strings have at most 255 bytes.
pub(super) fn name(reader: &mut Reader, key: &str, default: &str) -> String {
    let wanted = "1 to 255 bytes, not beginning with \"amq.\" (reserved by the broker)";
    reader.checked(key, default.to_owned(), wanted, |value| {
        (1..=255).contains(&value.len()) && !value.starts_with("amq.") && !value.contains(char::is_control)
    })
}

/// Each delay is the name of a queue, and its time to live.
pub(super) fn delays(reader: &mut Reader, key: &str, default: &[&str]) -> Vec<Delay> {
    let wanted = format!(
        "a list of at most {MAX_STEPS} delays, each a whole number and ms, s, m or h, up to {}h, as in [\"1s\", \"5m\"]",
        MAX_DELAY_MILLISECONDS / 3_600_000
    );
    let default: Vec<String> = default.iter().map(|text| (*text).to_owned()).collect();
    let texts = reader.checked(key, default, &wanted, |texts| {
        texts.len() <= MAX_STEPS && texts.iter().all(|text| Delay::parse(text).is_some())
    });
    texts.iter().filter_map(|text| Delay::parse(text)).collect()
}

/// Parameters of URLs that hold no secret. Whatever else stands in a query may.
const PLAIN_PARAMETERS: [&str; 16] = [
    "application_name",
    "auth_mechanism",
    "channel_max",
    "connect_timeout",
    "connection_timeout",
    "dbname",
    "frame_max",
    "heartbeat",
    "host",
    "keepalives",
    "keepalives_idle",
    "port",
    "sslmode",
    "target_session_attrs",
    "tcp_user_timeout",
    "user",
];

/// A URL with its password made unreadable, also one whose special characters were not encoded: everything from the
/// first colon to the last `@` is hidden, every parameter that is not known to be harmless, and a fragment.
pub(super) fn masked(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = match rest.rsplit_once('@') {
        Some((user, host)) => match user.split_once(':') {
            Some((user, _)) => format!("{user}:***@{host}"),
            None => format!("{user}@{host}"),
        },
        None => rest.to_owned(),
    };
    let (rest, fragment) = rest.split_once('#').map_or((rest.as_str(), ""), |(rest, _)| (rest, "#***"));
    let (place, query) = rest.split_once('?').unwrap_or((rest, ""));
    let parameters = query.split('&').filter(|parameter| !parameter.is_empty());
    let parameters: Vec<String> = parameters
        .map(|parameter| match parameter.split_once('=') {
            Some((name, _)) if PLAIN_PARAMETERS.contains(&name) => parameter.to_owned(),
            Some((name, _)) => format!("{name}=***"),
            None => "***".to_owned(),
        })
        .collect();
    let mark = if parameters.is_empty() { "" } else { "?" };
    format!("{scheme}://{place}{mark}{}{fragment}", parameters.join("&"))
}
