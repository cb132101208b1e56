//! Rules that several sections share: durations, bounded numbers, names, delays and PEM files.

use super::reader::Reader;
use crate::{
    domain::retry::{Delay, MAX_DELAY_MILLISECONDS, MAX_STEPS},
    files::is_pem,
};
use std::{path::PathBuf, time::Duration};

/// The form of a delay, for an error message.
pub(super) const DELAY: &str = "a delay: a whole number and ms, s, m or h, up to 720h";

/// Reads a duration between one second and one hour.
pub(super) fn duration(reader: &mut Reader, key: &str, default_seconds: u64) -> Duration {
    let bounds = Duration::from_secs(1)..=Duration::from_secs(3600);
    reader.checked(key, Duration::from_secs(default_seconds), "a duration from 1s to 1h, as in \"25s\"", |value| {
        bounds.contains(value)
    })
}

/// Reads a whole number in a range.
pub(super) fn number<T>(reader: &mut Reader, key: &str, default: i64, range: std::ops::RangeInclusive<i64>) -> T
where
    T: TryFrom<i64> + Default,
{
    let wanted = format!("a whole number from {} to {}", range.start(), range.end());
    // The range of every caller fits the type.
    T::try_from(reader.checked(key, default, &wanted, |value| range.contains(value))).unwrap_or_default()
}

/// Reads the name of an exchange, a queue or a routing key. AMQP limits them to 255 bytes.
pub(super) fn name(reader: &mut Reader, key: &str, default: &str) -> String {
    let wanted = "1 to 255 bytes, not beginning with \"amq.\" (reserved by the broker)";
    reader.checked(key, default.to_owned(), wanted, |value| {
        (1..=255).contains(&value.len()) && !value.starts_with("amq.") && !value.contains(char::is_control)
    })
}

/// Reads a list of delays. Each of them is part of the name of a queue, and the time to live of its messages.
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

/// Reads the path of a PEM file and returns the contents of the file. A file that cannot be read, or has no PEM section of the
/// right kind, is a fault.
pub(super) fn pem(reader: &mut Reader, key: &str) -> Option<Vec<u8>> {
    let file: PathBuf = reader.optional(key)?;
    match std::fs::read(&file) {
        Ok(bytes) if is_pem(key, &bytes) => Some(bytes),
        Ok(_) => {
            let wanted = if key.ends_with("key_file") { "a private key" } else { "a certificate" };
            reader.fault(key, format!("{} holds no PEM of {wanted}", file.display()));
            None
        }
        Err(error) => {
            reader.fault(key, format!("{} cannot be read: {error}", file.display()));
            None
        }
    }
}
