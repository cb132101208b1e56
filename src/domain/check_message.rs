//! The check message, by which the daemon schedules its own checks (`docs/concepts/checks.md`).
//!
//! ```json
//! {"version": 1, "checks": [{"payment_id": "7", "user_id": "u", "points": 100},
//!                           {"payment_id": "8", "source": "trade", "kind": "changed"}]}
//! ```

use super::{
    check::Claim,
    credit::{MAX_POINTS_LIMIT, Points},
    ids::{PaymentId, UserId},
    message::BYTE_ORDER_MARK,
};
use crate::domain::{field_paths::FieldPaths, notification_source::NotificationKind};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::fmt::Write as _;

/// The content type of a check message.
pub const CONTENT_TYPE: &str = "application/vnd.pointsd.checks+json";

/// The largest check message that is parsed, in bytes. A larger message is parked whole.
pub const MAX_BYTES: usize = 16 * 1024 * 1024;

/// The largest number of entries that are parsed. A message with more entries is parked whole.
pub const MAX_ENTRIES: usize = 100_000;

/// The only supported version.
const VERSION: u64 = 1;

/// One check of a check message: a payment and the information about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduledCheck {
    /// The payment.
    pub payment_id: PaymentId,
    /// The information about the payment besides its ID.
    pub about: About,
}

/// The information that a check has about its payment besides the ID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// The user and the points, from a points message.
    Claim(Claim),
    /// The source and the kind of a notification. `kind` is `None` in messages of earlier builds, which did not write
    /// it.
    Notification {
        /// The source's name.
        source: String,
        /// The kind of the notification.
        kind: Option<NotificationKind>,
    },
    /// No information: the user and the points are in the payment's own record.
    Record,
}

/// An entry of a check message that cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadCheck {
    /// The entry's JSON text.
    pub json: String,
    /// The payment's ID, where it can be read.
    pub payment_id: Option<PaymentId>,
    /// The error. It quotes no value of the entry.
    pub error: String,
}

/// Why a check message as a whole cannot be parsed. The error text quotes nothing of the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// The body has more bytes than [`MAX_BYTES`].
    #[error("check message: has {0} bytes; at most {MAX_BYTES} are accepted")]
    TooLarge(usize),
    /// The body is not JSON, or not an object with `version` and `checks`.
    #[error("check message: {0}; must be {{\"version\": 1, \"checks\": […]}}")]
    NotReadable(String),
    /// The message has another version.
    #[error("check message: version is {0}; must be 1")]
    Version(u64),
    /// The message has more entries than [`MAX_ENTRIES`].
    #[error("check message: has {0} checks; at most {MAX_ENTRIES} are accepted")]
    TooMany(usize),
    /// The message has no entry.
    #[error("check message: checks is empty; must have at least one entry")]
    Empty,
}

#[derive(Deserialize)]
struct MessageJson<'b> {
    #[serde(borrow)]
    checks: Vec<&'b RawValue>,
}

#[derive(Deserialize)]
struct VersionJson {
    version: u64,
}

#[derive(Deserialize)]
struct CheckJson {
    payment_id: String,
    user_id: Option<String>,
    points: Option<i64>,
    source: Option<String>,
    kind: Option<String>,
}

/// Parses a check message. Returns each entry, or the error of the entry, in the order of the message.
pub fn parse(body: &[u8]) -> Result<Vec<Result<ScheduledCheck, BadCheck>>, BadMessage> {
    if body.len() > MAX_BYTES {
        return Err(BadMessage::TooLarge(body.len()));
    }
    let body = body.strip_prefix(BYTE_ORDER_MARK.encode_utf8(&mut [0; 4]).as_bytes()).unwrap_or(body);
    // The version is parsed first, because another version may have another structure. The parser's error contains a
    // position and nothing of the body.
    let unreadable = |error: serde_json::Error| BadMessage::NotReadable(without_values(&error));
    let VersionJson { version } = serde_json::from_slice(body).map_err(unreadable)?;
    if version != VERSION {
        return Err(BadMessage::Version(version));
    }
    let MessageJson { checks } = serde_json::from_slice(body).map_err(unreadable)?;
    if checks.is_empty() {
        return Err(BadMessage::Empty);
    }
    if checks.len() > MAX_ENTRIES {
        return Err(BadMessage::TooMany(checks.len()));
    }
    Ok(checks.into_iter().map(|json| parse_entry(json.get())).collect())
}

fn parse_entry(json: &str) -> Result<ScheduledCheck, BadCheck> {
    let bad = |error: String| BadCheck {
        json: json.to_owned(),
        payment_id: FieldPaths::default().readable_payment_id(json),
        error: format!("check: {error}"),
    };
    let CheckJson { payment_id, user_id, points, source, kind } =
        serde_json::from_str(json).map_err(|error| bad(without_values(&error)))?;
    let payment_id = PaymentId::new(&payment_id).map_err(|error| bad(format!("payment_id {error}")))?;
    let about = match (user_id, points, source, kind) {
        (Some(user_id), Some(points), None, None) => {
            let user_id = UserId::new(&user_id).map_err(|error| bad(format!("user_id {error}")))?;
            let points = Points::new(points, MAX_POINTS_LIMIT)
                .ok_or_else(|| bad(format!("points is out of range; must be 1 to {MAX_POINTS_LIMIT}")))?;
            About::Claim(Claim { user_id, points })
        }
        (None, None, Some(source), kind) => {
            let kind = kind.map(|kind| {
                NotificationKind::of_label(&kind)
                    .ok_or_else(|| bad("kind must be \"changed\", \"paid\" or \"created\"".into()))
            });
            About::Notification { source, kind: kind.transpose()? }
        }
        (None, None, None, None) => About::Record,
        _ => return Err(bad("must have user_id and points, or source and kind, or none of them".into())),
    };
    Ok(ScheduledCheck { payment_id, about })
}

/// Returns the parser's error without the value that it quotes: only the kind of error and its position.
fn without_values(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let quotes_a_value = text.contains("invalid type") || text.contains("invalid value") || text.contains("unknown");
    if quotes_a_value {
        return format!("a member has the wrong type (line {}, column {})", error.line(), error.column());
    }
    text
}

/// The limits on the size of one check message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of entries, at least 1 (`ledger.batch_max`).
    pub entries: usize,
    /// The largest size of a body in bytes (`message.max_body_bytes`). A single entry that exceeds it is written
    /// nevertheless.
    pub bytes: usize,
}

const BEGIN: &str = r#"{"version":1,"checks":["#;
const END: &str = "]}";

/// Writes check messages: one body after another, each within the limits, in the order of the entries.
#[derive(Debug)]
pub struct Writer {
    limits: Limits,
    done: Vec<Vec<u8>>,
    body: String,
    entries: usize,
}

/// An entry in its JSON form.
#[derive(Serialize)]
struct Entry<'a> {
    payment_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_id: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    points: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
}

impl Writer {
    /// Creates a writer without entries.
    pub fn new(limits: Limits) -> Self {
        Self { limits, done: Vec::new(), body: String::new(), entries: 0 }
    }

    /// Adds an entry.
    pub fn push(&mut self, check: &ScheduledCheck) {
        match &check.about {
            About::Claim(Claim { user_id, points }) => self.push_claim(&check.payment_id, user_id, *points),
            About::Notification { source, kind } => self.push_entry(&Entry {
                payment_id: check.payment_id.as_str(),
                user_id: None,
                points: None,
                source: Some(source),
                kind: kind.map(NotificationKind::label),
            }),
            About::Record => self.push_entry(&Entry {
                payment_id: check.payment_id.as_str(),
                user_id: None,
                points: None,
                source: None,
                kind: None,
            }),
        }
    }

    /// Adds an entry about a points message.
    pub fn push_claim(&mut self, payment_id: &PaymentId, user_id: &UserId, points: Points) {
        self.push_entry(&Entry {
            payment_id: payment_id.as_str(),
            user_id: Some(user_id.as_str()),
            points: Some(points.get()),
            source: None,
            kind: None,
        });
    }

    fn push_entry(&mut self, entry: &Entry<'_>) {
        // Serialization cannot fail: all values are texts and numbers, and no map has keys of another type.
        let json = serde_json::to_string(entry).unwrap_or_default();
        self.push_json(&json);
    }

    /// Adds an entry as JSON text, unchanged.
    pub fn push_json(&mut self, json: &str) {
        let full =
            self.entries >= self.limits.entries || self.body.len() + json.len() + END.len() + 1 > self.limits.bytes;
        if self.entries > 0 && full {
            self.close();
        }
        let before = if self.entries == 0 { BEGIN } else { "," };
        // Writing to a string cannot fail.
        let _ = write!(self.body, "{before}{json}");
        self.entries += 1;
    }

    fn close(&mut self) {
        self.body.push_str(END);
        self.done.push(std::mem::take(&mut self.body).into_bytes());
        self.entries = 0;
    }

    /// Returns the number of bodies that have been started.
    pub fn begun(&self) -> usize {
        self.done.len() + usize::from(self.entries > 0)
    }

    /// Returns the bodies; none when there are no entries.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        if self.entries > 0 {
            self.close();
        }
        self.done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMITS: Limits = Limits { entries: 500, bytes: 65_536 };

    fn id(text: &str) -> PaymentId {
        PaymentId::new(text).unwrap()
    }

    fn claim(payment: &str, user: &str, points: i64) -> ScheduledCheck {
        let (user_id, points) = (UserId::new(user).unwrap(), Points::new(points, MAX_POINTS_LIMIT).unwrap());
        ScheduledCheck { payment_id: id(payment), about: About::Claim(Claim { user_id, points }) }
    }

    fn notification(payment: &str, kind: Option<NotificationKind>) -> ScheduledCheck {
        ScheduledCheck { payment_id: id(payment), about: About::Notification { source: "trade".into(), kind } }
    }

    fn bodies(checks: &[ScheduledCheck], limits: Limits) -> Vec<Vec<u8>> {
        let mut writer = Writer::new(limits);
        for check in checks {
            writer.push(check);
        }
        writer.finish()
    }

    #[test]
    fn the_body_is_as_documented() {
        let checks = [
            claim("202002201101", "1101", 100),
            notification("P-7", Some(NotificationKind::StatusChanged)),
            ScheduledCheck { payment_id: id("8"), about: About::Record },
        ];
        let text = r#"{"version":1,"checks":[{"payment_id":"202002201101","user_id":"1101","points":100},{"payment_id":"P-7","source":"trade","kind":"changed"},{"payment_id":"8"}]}"#;
        assert_eq!(bodies(&checks, LIMITS), [text.as_bytes()]);
        let read: Vec<_> = parse(text.as_bytes()).unwrap().into_iter().map(Result::unwrap).collect();
        assert_eq!(read, checks);
        assert_eq!(bodies(&[], LIMITS), Vec::<Vec<u8>>::new());
    }

    #[test]
    fn a_bad_entry_hinders_no_other_and_is_told_without_its_values() {
        let body = r#"{"version": 1, "more": 2, "checks": [
            {"payment_id": "1", "user_id": "u", "points": 1, "more": []},
            {"payment_id": " S3CRET", "user_id": "u", "points": 1},
            {"payment_id": "2", "user_id": "u", "points": 0},
            {"payment_id": "3", "user_id": "u"},
            {"payment_id": "4", "source": "trade", "kind": "S3CRET"},
            {"payment_id": "5", "source": "trade"},
            {"payment_id": 6}, 7, {}, {"payment_id": "8", "payment_id": "8"}]}"#;
        let read = parse(body.as_bytes()).unwrap();
        let good: Vec<_> = read.iter().filter_map(|entry| entry.as_ref().ok()).cloned().collect();
        assert_eq!(good, [claim("1", "u", 1), notification("5", None)]);
        let bad: Vec<_> = read.into_iter().filter_map(Result::err).collect();
        assert_eq!(bad.len(), 8);
        let ids: Vec<Option<&str>> = bad.iter().map(|bad| bad.payment_id.as_ref().map(PaymentId::as_str)).collect();
        assert_eq!(ids, [None, Some("2"), Some("3"), Some("4"), Some("6"), None, None, None]);
        assert_eq!(bad[1].json, r#"{"payment_id": "2", "user_id": "u", "points": 0}"#);
        assert_eq!(bad[1].error, "check: points is out of range; must be 1 to 1000000000000");
        assert!(bad.iter().all(|bad| !bad.error.contains("S3CRET")), "{bad:?}");
    }

    #[test]
    fn a_message_that_is_none_says_why() {
        for (body, error) in [
            (&b"{"[..], "EOF while parsing an object at line 1 column 1"),
            (b"[]", "invalid length 0"),
            (b"7", "a member has the wrong type"),
            (br#"{"checks": []}"#, "missing field `version`"),
            (br#"{"version": 1}"#, "missing field `checks`"),
            (br#"{"version": 1, "checks": "S3CRET"}"#, "a member has the wrong type"),
            (br#"{"version": 2, "checks": [], "x": {}}"#, "version is 2; must be 1"),
            (br#"{"version": 1, "checks": []}"#, "checks is empty"),
        ] {
            let reported = parse(body).unwrap_err().to_string();
            assert!(reported.contains(error) && !reported.contains("S3CRET"), "{reported}");
        }
        let large = vec![b' '; MAX_BYTES + 1];
        assert_eq!(parse(&large), Err(BadMessage::TooLarge(MAX_BYTES + 1)));
        let many = format!(r#"{{"version": 1, "checks": [{}7]}}"#, "7,".repeat(MAX_ENTRIES));
        assert_eq!(parse(many.as_bytes()), Err(BadMessage::TooMany(MAX_ENTRIES + 1)));
    }

    #[test]
    fn messages_keep_their_limits_and_have_at_least_one_entry() {
        let checks: Vec<_> = (0..7).map(|n| claim(&n.to_string(), "u", 1)).collect();
        let sizes =
            |limits| -> Vec<usize> { bodies(&checks, limits).iter().map(|body| parse(body).unwrap().len()).collect() };
        assert_eq!(sizes(Limits { entries: 3, bytes: 65_536 }), [3, 3, 1]);
        assert_eq!(sizes(Limits { entries: 500, bytes: 1 }), [1; 7]);
        let two = bodies(&checks[..2], LIMITS)[0].len();
        assert_eq!(sizes(Limits { entries: 500, bytes: two }), [2, 2, 2, 1]);
        assert_eq!(sizes(Limits { entries: 500, bytes: two - 1 }), [1; 7]);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(payments in prop::collection::vec(("[ -~]{1,128}", "\\PC{1,20}", 1..1_000_000_i64), 1..40)) {
            let valid = payments.iter().filter(|(payment, user, _)| {
                PaymentId::new(payment).is_ok() && UserId::new(user).is_ok()
            });
            let checks: Vec<_> = valid.map(|(payment, user, points)| claim(payment, user, *points)).collect();
            let limits = Limits { entries: 7, bytes: 300 };
            let read: Vec<_> = bodies(&checks, limits)
                .iter()
                .flat_map(|body| parse(body).unwrap())
                .map(Result::unwrap)
                .collect();
            prop_assert_eq!(read, checks);
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
            let _ = parse(&bytes);
            let _ = parse(format!(r#"{{"version": 1, "checks": [{text}]}}"#).as_bytes());
        }
    }
}
