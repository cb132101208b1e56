//! The broker's error for a queue or exchange that exists with another argument.

/// The parsed error of a declaration with an argument that differs: `PRECONDITION_FAILED - inequivalent arg
/// 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current is 'classic'`.
pub(super) struct Inequivalence<'a> {
    pub(super) argument: &'a str,
    pub(super) wanted: String,
    pub(super) found: String,
}

impl<'a> Inequivalence<'a> {
    /// Parses an error text of the broker; `None` for any other error.
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (_, rest) = text.split_once("inequivalent arg '")?;
        let (argument, rest) = rest.split_once('\'')?;
        let (_, rest) = rest.split_once(": received ")?;
        let (wanted, found) = rest.split_once(" but current is ")?;
        let plain = |value: &str| {
            let value = value.trim_start_matches("the value ").split(" of type ").next().unwrap_or(value);
            let value = value.trim_matches('\'');
            if value.trim().is_empty() { "\"\"".to_owned() } else { value.to_owned() }
        };
        Some(Self { argument, wanted: plain(wanted), found: plain(found) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_brokers_refusals_are_understood() {
        for (text, argument, wanted, found) in [
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-queue-type' for queue 'q' in vhost '/': received 'quorum' but current is 'classic'",
                "x-queue-type",
                "quorum",
                "classic",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'x-delivery-limit' for queue 'q' in vhost '/': received the value '1000' of type 'signedint' but current is none",
                "x-delivery-limit",
                "1000",
                "none",
            ),
            (
                "PRECONDITION_FAILED - inequivalent arg 'durable' for queue 'q' in vhost '/': received 'true' but current is 'false'",
                "durable",
                "true",
                "false",
            ),
        ] {
            let parsed = Inequivalence::parse(text).unwrap();
            assert_eq!((parsed.argument, parsed.wanted.as_str(), parsed.found.as_str()), (argument, wanted, found));
        }
        assert!(Inequivalence::parse("NOT_FOUND - no queue 'q' in vhost '/'").is_none());
    }
}
