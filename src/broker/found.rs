//! A dead letter that a dead-queue session holds, and its description from the headers.

use super::{
    copy,
    header_names::{self, RAW},
    header_values, headers,
    lenient::Unreadable,
    outgoing::Outgoing,
    publish::Publisher,
    trust,
};
use crate::domain::dead_letter::{DELIVERY_LIMIT, DeadLetter, LedgerVersion, Reason, UNKNOWN};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use std::collections::BTreeMap;

/// The handle by which a held dead letter is removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Tag {
    pub(super) part: usize,
    pub(super) delivery: u64,
    /// Whether the dead letter may have been in the queue when the session opened.
    pub(super) was_there: bool,
    /// Whether the consumer received it, so that it counts towards the deliveries that the consumer may hold.
    pub(super) consumed: bool,
}

/// A dead letter, held until it is removed or the session closes.
#[derive(Debug, Clone)]
pub struct HeldLetter {
    pub(super) properties: BasicProperties,
    /// Set if lapin cannot decode the message and no daemon has parked it: the broker moved it, or a producer published
    /// it to the dead queue.
    pub(super) unreadable: Option<Unreadable>,
    pub(super) body: Vec<u8>,
    pub(super) tag: Tag,
}

impl HeldLetter {
    /// The handle to remove it.
    pub fn tag(&self) -> Tag {
        self.tag
    }

    /// How often it has returned to the queue, by the count of the broker; a classic queue does not count.
    pub fn times_given_back(&self) -> i64 {
        let headers = self.properties.headers().as_ref().map(FieldTable::inner);
        headers.and_then(|headers| headers.get("x-delivery-count")).and_then(header_values::as_integer).unwrap_or(0)
    }

    /// Its body.
    pub fn body(&self) -> &[u8] {
        &self.body
    }

    /// Its message ID.
    pub fn message_id(&self) -> Option<String> {
        self.properties.message_id().as_ref().map(ToString::to_string)
    }

    /// All its headers as JSON.
    pub fn headers(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut headers = self.properties.headers().as_ref().map(headers::to_json).unwrap_or_default();
        if let Some(unreadable) = &self.unreadable {
            headers.insert(RAW.to_owned(), unreadable.hex().into());
        }
        headers
    }

    /// Its approximate size in memory. Bytes.
    pub fn size(&self) -> usize {
        // Headers are limited by the frame size and rarely larger than this.
        self.body.len() + 2048
    }

    /// The notification source whose format its body has.
    pub fn source(&self) -> Option<String> {
        header_values::read_source(&self.properties)
    }

    /// Whether its body is a check message.
    pub fn is_check_message(&self) -> bool {
        trust::is_check_message(&self.properties)
    }

    /// Its description from the headers, without the payment.
    pub fn dead_letter(&self) -> DeadLetter {
        let letter = describe_headers(&self.properties);
        match &self.unreadable {
            Some(Unreadable { error, .. }) => {
                DeadLetter { reason: Reason::Unreadable.label().to_owned(), error: Some(error.clone()), ..letter }
            }
            None => letter,
        }
    }

    /// The message that requeues it to `queue`, without the headers of its failure.
    pub fn requeued<'a>(&'a self, publisher: &Publisher, queue: &str, requeue_id: &str) -> Outgoing<'a> {
        let mut frame = publisher.header_frame();
        Outgoing::to_queue(queue, &self.body, copy::requeued_properties(&self.properties, requeue_id, &mut frame))
    }
}

/// Describes a dead letter from the headers of `docs/reference/headers.md`, or from `x-death` if the broker moved the
/// message.
fn describe_headers(properties: &BasicProperties) -> DeadLetter {
    let none = BTreeMap::new();
    let headers = properties.headers().as_ref().map_or(&none, FieldTable::inner);
    let text = |name: &str| headers.get(name).and_then(as_text);
    let time = |name: &str| text(name).and_then(|text| text.parse().ok());
    let mut letter = DeadLetter {
        reason: text(header_names::REASON).unwrap_or_else(|| UNKNOWN.to_owned()),
        payment_id: None,
        payment_ids: Vec::new(),
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        first_failed_at: time(header_names::FIRST_FAILED_AT),
        attempts: header_values::retries_taken(properties),
        source_queue: text(header_names::SOURCE_QUEUE),
        error: text(header_names::ERROR),
        ledger: text(header_names::LEDGER_USER)
            .zip(headers.get(header_names::LEDGER_POINTS).and_then(header_values::as_integer))
            .map(|(user_id, points)| LedgerVersion { user_id, points }),
        requeue_id: text(header_names::REQUEUE_ID),
    };
    // A copy of pointsd has no `x-death`: if the header exists, the broker moved the message after our headers were
    // set.
    if let Some(death) = headers.get("x-death").and_then(last_death) {
        if death.reason == DELIVERY_LIMIT {
            DELIVERY_LIMIT.clone_into(&mut letter.reason);
            letter.error = Some(format!("reached the delivery limit of {}", death.queue));
        } else {
            UNKNOWN.clone_into(&mut letter.reason);
            letter.error = Some(format!("dead-lettered by the broker from {} ({})", death.queue, death.reason));
        }
        letter.first_failed_at = letter.first_failed_at.or(death.time);
        letter.source_queue = Some(death.queue);
        letter.ledger = None;
    }
    letter
}

fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// The fields of an entry of `x-death`.
struct Death {
    queue: String,
    reason: String,
    time: Option<jiff::Timestamp>,
}

/// The entry of `x-death` that explains the dead letter: one for a delivery limit, otherwise the latest one, which
/// RabbitMQ puts first ("Dead Letter Exchanges"). The limit takes precedence over messages that expired before.
fn last_death(value: &AMQPValue) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = value else { return None };
    let deaths = deaths.as_slice().iter().filter_map(|death| {
        let AMQPValue::FieldTable(death) = death else { return None };
        let field = |name: &str| death.inner().get(name);
        Some(Death {
            queue: as_text(field("queue")?)?,
            reason: as_text(field("reason")?)?,
            time: field("time").and_then(|time| match time {
                AMQPValue::Timestamp(seconds) => headers::time(*seconds),
                _ => None,
            }),
        })
    });
    let mut deaths: Vec<Death> = deaths.collect();
    let limit = deaths.iter().position(|death| death.reason == DELIVERY_LIMIT);
    (!deaths.is_empty()).then(|| deaths.swap_remove(limit.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{header_frame::HeaderFrame, renewal::renewed_properties};
    use lapin::types::FieldArray;

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn death(queue: &str, reason: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[
            ("queue", text(queue)),
            ("reason", text(reason)),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
        ]))
    }

    #[test]
    fn a_message_tells_why_it_is_there() {
        let ours = [
            ("x-pointsd-reason", text("conflict")),
            ("x-pointsd-error", text("why")),
            ("x-pointsd-source-queue", text("q")),
            ("x-pointsd-first-failed-at", text("2026-01-01T00:00:00Z")),
            ("x-pointsd-ledger-user", text("u")),
            ("x-pointsd-ledger-points", AMQPValue::LongLongInt(7)),
            ("x-pointsd-attempt", AMQPValue::LongLongInt(2)),
            ("x-pointsd-requeue-id", text("r")),
        ];
        let properties = BasicProperties::default().with_message_id("m".into()).with_headers(table(&ours));
        let expected = DeadLetter {
            reason: "conflict".into(),
            payment_id: None,
            payment_ids: Vec::new(),
            message_id: Some("m".into()),
            first_failed_at: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            attempts: 2,
            source_queue: Some("q".into()),
            error: Some("why".into()),
            ledger: Some(LedgerVersion { user_id: "u".into(), points: 7 }),
            requeue_id: Some("r".into()),
        };
        assert_eq!(describe_headers(&properties), expected);
        assert_eq!(describe_headers(&BasicProperties::default()).reason, UNKNOWN);
    }

    #[test]
    fn what_the_broker_moved_is_known_by_its_own_header() {
        for (deaths, reason, queue) in [
            (
                vec![death("points.credit", "delivery_limit"), death("points.credit.retry.1s", "expired")],
                DELIVERY_LIMIT,
                "points.credit",
            ),
            (
                vec![death("points.credit.retry.1s", "expired"), death("points.credit", "delivery_limit")],
                DELIVERY_LIMIT,
                "points.credit",
            ),
            (vec![death("theirs", "rejected")], UNKNOWN, "theirs"),
        ] {
            let properties = BasicProperties::default().with_headers(table(&[
                ("x-death", AMQPValue::FieldArray(FieldArray::from(deaths))),
                ("x-pointsd-source-queue", text("made up")),
            ]));
            let letter = describe_headers(&properties);
            assert_eq!((letter.reason.as_str(), letter.source_queue.as_deref()), (reason, Some(queue)));
            assert_eq!(letter.first_failed_at, headers::time(1_700_000_000));
        }
    }

    /// A copy has no `x-death`: its own headers must give the same description, also when it is copied again.
    #[test]
    fn a_renewed_message_says_what_the_broker_said_of_it() {
        let death = AMQPValue::FieldArray(FieldArray::from(vec![death("points.credit", "delivery_limit")]));
        let moved = [
            ("x-death", death),
            ("x-delivery-count", AMQPValue::LongLongInt(3)),
            ("x-first-death-queue", text("points.credit")),
            ("x-pointsd-source-queue", text("an earlier stay")),
            ("x-pointsd-attempt", AMQPValue::LongLongInt(2)),
            ("trace", text("t-1")),
        ];
        let ours = [("x-pointsd-reason", text("conflict")), ("x-pointsd-error", text("why")), ("trace", text("t-1"))];
        for entries in [&moved[..], &ours[..]] {
            let original = BasicProperties::default().with_message_id("m".into()).with_headers(table(entries));
            let mut frame = HeaderFrame::new(131_072);
            let copied = renewed_properties("look", &original, None, &describe_headers(&original), &mut frame);
            assert_eq!(describe_headers(&copied), describe_headers(&original));
            let headers = copied.headers().as_ref().unwrap().inner();
            assert!(headers.keys().all(|name| !header_names::is_broker_header(name.as_str())), "{headers:?}");
            assert_eq!(headers.get("trace"), Some(&text("t-1")));
            assert_eq!(renewed_properties("look", &copied, None, &describe_headers(&copied), &mut frame), copied);
        }
    }

    /// The broker moved a message that lapin cannot decode: its copy is `unreadable` and contains the raw properties.
    #[test]
    fn a_renewed_message_that_cannot_be_decoded_is_parked_as_unreadable() {
        let unreadable = Unreadable { error: "message id: not UTF-8".into(), raw: vec![0, 255] };
        let found = HeldLetter {
            properties: BasicProperties::default(),
            unreadable: Some(unreadable),
            body: b"b".to_vec(),
            tag: Tag::default(),
        };
        let mut frame = HeaderFrame::new(131_072);
        let copied =
            renewed_properties("look", &found.properties, found.unreadable.as_ref(), &found.dead_letter(), &mut frame);
        let letter = describe_headers(&copied);
        assert_eq!((letter.reason.as_str(), letter.error.as_deref()), ("unreadable", Some("message id: not UTF-8")));
        assert_eq!(copied.headers().as_ref().unwrap().inner().get(RAW), Some(&text("00ff")));
        assert_eq!(renewed_properties("look", &copied, None, &letter, &mut frame), copied);
    }
}
