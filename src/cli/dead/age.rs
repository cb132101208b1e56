//! Ages as a person reads them.

use jiff::Timestamp;
use std::time::Duration;

/// Formats the time from `since` until `now` in two units.
pub(super) fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "?".to_owned() };
    let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
    let words = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    words.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_told_in_two_units() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for (since, words) in
            [(Some(at(0)), "1day 1h"), (Some(at(90_061)), "0s"), (Some(at(99_999)), "0s"), (None, "?")]
        {
            assert_eq!(age(since, at(90_061)), words);
        }
    }
}
