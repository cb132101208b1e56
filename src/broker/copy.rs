//! The properties of the messages that pointsd publishes to its own queues: copies, requeued dead letters and check
//! messages (`docs/reference/headers.md` has the table).
//!
//! A copy has the properties of the original without the headers that the broker interprets, and pointsd's own headers.

use super::{
    header_frame::HeaderFrame,
    header_names::{
        ATTEMPT, CARRIED, CHECK, ERROR, FIRST_FAILED_AT, LEDGER_POINTS, LEDGER_USER, REASON, REQUEUE_ID, SOURCE,
        SOURCE_QUEUE, TRUNCATED, belongs_to_one_stay, describes_failure, is_broker_header,
    },
    header_values::is_plausible,
    trust::JSON,
};
use crate::{
    domain::{check_message::CONTENT_TYPE, settlement::Destination},
    pipeline::ports::{CopyBody, Forward},
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};

/// The delivery mode of persistent messages (AMQP 0-9-1, basic.delivery-mode), which survive a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// The maximum length of an error text in a header. Bytes.
pub(super) const MAX_ERROR_BYTES: usize = 1024;

/// The maximum length of an error text where room is short, in bytes: all own headers fit into the smallest frame that
/// AMQP allows (4096 bytes).
const SHORT_ERROR_BYTES: usize = 128;

/// The information that the own headers of a copy contain.
pub(super) struct CopyHeaders<'a> {
    pub(super) source_queue: &'a str,
    /// The notification source whose format the body has, as pointsd determined it; never the header of a producer.
    pub(super) source: Option<&'a str>,
    pub(super) to: Destination,
    /// `None` for a copy that only waits for a check.
    pub(super) error: Option<&'a str>,
    /// RFC 3339.
    pub(super) now: &'a str,
    pub(super) ledger: Option<(&'a str, i64)>,
}

impl<'a> CopyHeaders<'a> {
    pub(super) fn new<M>(
        copy: &'a Forward<'a, M>,
        source_queue: &'a str,
        source: Option<&'a str>,
        now: &'a str,
    ) -> Self {
        Self {
            source_queue,
            source,
            to: copy.to,
            error: copy.error.as_deref(),
            now,
            ledger: copy.recorded.map(|recorded| (recorded.user_id.as_str(), recorded.points)),
        }
    }

    /// The own headers of the copy. `carried`: the own headers of the original that the copy keeps.
    fn to_table(&self, carried: &FieldTable, max_error_bytes: usize) -> FieldTable {
        let mut table = FieldTable::default();
        let mut text = |name: &str, value: &str| {
            table.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        text(SOURCE_QUEUE, self.source_queue);
        if let Some(error) = self.error {
            text(ERROR, truncate(error, max_error_bytes));
            text(FIRST_FAILED_AT, self.now);
        }
        if let Destination::Dead(reason) = self.to {
            text(REASON, reason.label());
        }
        if let Some((user, points)) = self.ledger {
            text(LEDGER_USER, user);
            table.insert(LEDGER_POINTS.into(), AMQPValue::LongLongInt(points));
        }
        // A message that only waits for its next check has not failed: the check starts with no attempts charged.
        let waits_for_check = matches!(self.to, Destination::Check(_));
        for (name, value) in carried.inner() {
            if !(waits_for_check && [ATTEMPT, FIRST_FAILED_AT].contains(&name.as_str())) {
                table.insert(name.clone(), value.clone());
            }
        }
        if let Some(source) = self.source {
            table.insert(SOURCE.into(), AMQPValue::LongString(source.into()));
        }
        let counter = match self.to {
            Destination::Retry(step) => Some((ATTEMPT, step.attempt())),
            Destination::Check(wait) => Some((CHECK, wait.checks_done())),
            Destination::Dead(_) | Destination::CheckQueue => None,
        };
        if let Some((name, number)) = counter {
            table.insert(name.into(), AMQPValue::LongLongInt(number.into()));
        }
        table
    }
}

/// The beginning of a text, at most `max_bytes` long and cut at a character boundary.
pub(super) fn truncate(text: &str, max_bytes: usize) -> &str {
    &text[..text.floor_char_boundary(max_bytes)]
}

/// The properties of a copy. To be called after [`super::trust::distrust_producers`].
///
/// If the content header does not fit into the `frame`, foreign headers are left out and [`TRUNCATED`] is set: the
/// broker would close the connection.
pub(super) fn forwarded_properties(
    original: &BasicProperties,
    copy_headers: &CopyHeaders<'_>,
    body: &CopyBody<'_>,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let content_type = match body {
        CopyBody::Original => None,
        CopyBody::Checks(_) => Some(CONTENT_TYPE),
        CopyBody::Points(_) => Some(JSON),
    };
    let properties = add_copy_headers(original, copy_headers, frame);
    let Some(content_type) = content_type else { return properties };
    // A new body makes a new message.
    properties.with_content_type(content_type.into()).with_message_id(new_message_id())
}

/// The properties of a new check message, which is not a copy.
pub(super) fn first_check_properties(source_queue: &str, seconds: u64) -> BasicProperties {
    let mut headers = FieldTable::default();
    headers.insert(SOURCE_QUEUE.into(), AMQPValue::LongString(source_queue.into()));
    BasicProperties::default()
        .with_content_type(CONTENT_TYPE.into())
        .with_delivery_mode(PERSISTENT)
        .with_message_id(new_message_id())
        .with_timestamp(seconds)
        .with_headers(headers)
}

fn new_message_id() -> ShortString {
    // 36 characters.
    uuid::Uuid::new_v4().to_string().as_str().into()
}

fn add_copy_headers(
    original: &BasicProperties,
    copy_headers: &CopyHeaders<'_>,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let given = original.headers().as_ref().map(FieldTable::inner);
    let mut carried = FieldTable::default();
    for (name, value) in given.into_iter().flatten() {
        if CARRIED.contains(&name.as_str()) && is_plausible(name.as_str(), value) {
            carried.insert(name.clone(), value.clone());
        }
    }
    let mut headers = copy_headers.to_table(&carried, MAX_ERROR_BYTES);
    for (name, value) in given.into_iter().flatten() {
        let ours = CARRIED.contains(&name.as_str()) || belongs_to_one_stay(name.as_str()) || name.as_str() == SOURCE;
        if !ours && !is_broker_header(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let whole = copy_with_headers(original, headers);
    if frame.fits(&whole) {
        return whole;
    }
    let mut headers = copy_headers.to_table(&carried, SHORT_ERROR_BYTES);
    headers.insert(TRUNCATED.into(), AMQPValue::Boolean(true));
    copy_with_headers(original, headers)
}

/// The properties of a dead letter that returns to its source queue like a new message: without the headers of its
/// failure, with the ID of the requeue run.
pub(super) fn requeued_properties(
    original: &BasicProperties,
    requeue_id: &str,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let given = original.headers().as_ref().map(FieldTable::inner);
    // Only a copy of pointsd has a genuine source header.
    let source = given.filter(|given| given.contains_key(SOURCE_QUEUE)).and_then(|given| given.get(SOURCE));
    let mut headers = FieldTable::default();
    for (name, value) in given.into_iter().flatten() {
        if !is_broker_header(name.as_str()) && !describes_failure(name.as_str()) && name.as_str() != SOURCE {
            headers.insert(name.clone(), value.clone());
        }
    }
    if let Some(source) = source {
        headers.insert(SOURCE.into(), source.clone());
    }
    let id = AMQPValue::LongString(requeue_id.into());
    headers.insert(REQUEUE_ID.into(), id.clone());
    let whole = copy_with_headers(original, headers);
    if frame.fits(&whole) {
        return whole;
    }
    let mut headers = FieldTable::default();
    if let Some(source) = source {
        headers.insert(SOURCE.into(), source.clone());
    }
    headers.insert(REQUEUE_ID.into(), id);
    headers.insert(TRUNCATED.into(), AMQPValue::Boolean(true));
    copy_with_headers(original, headers)
}

/// The properties of a persistent copy with the given headers. `expiration` and `user_id` are left out: the copy would
/// expire, and the broker compares the user ID with the user of the connection.
pub(super) fn copy_with_headers(original: &BasicProperties, headers: FieldTable) -> BasicProperties {
    let mut copy = BasicProperties::default().with_headers(headers).with_delivery_mode(PERSISTENT);
    macro_rules! keep {
        ($($get:ident => $with:ident),+) => {
            $(if let Some(value) = original.$get() {
                copy = copy.$with(value.clone());
            })+
        };
    }
    keep!(
        content_type => with_content_type, content_encoding => with_content_encoding, priority => with_priority,
        correlation_id => with_correlation_id, reply_to => with_reply_to, message_id => with_message_id,
        timestamp => with_timestamp, kind => with_type, app_id => with_app_id, cluster_id => with_cluster_id
    );
    copy
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::header_values::{read_source, retries_taken};
    use crate::domain::{
        dead_letter::Reason,
        retry::{Delay, RetryPolicy},
    };

    const FRAME_MAX: usize = 131_072;

    fn copy_headers() -> CopyHeaders<'static> {
        CopyHeaders {
            source_queue: "q",
            source: None,
            to: Destination::Dead(Reason::Conflict),
            error: Some("why"),
            now: "2026-01-01T00:00:00Z",
            ledger: Some(("u", 7)),
        }
    }

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    fn table(headers: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    #[test]
    fn what_the_broker_acts_on_is_removed_and_the_rest_is_kept() {
        let original = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_message_id("m".into())
            .with_type("t".into())
            .with_app_id("a".into())
            .with_cluster_id("k".into())
            .with_priority(3)
            .with_timestamp(1_700_000_000)
            .with_expiration("1000".into())
            .with_user_id("guest".into())
            .with_delivery_mode(1)
            .with_headers(table(&[
                ("x-death", AMQPValue::FieldArray(lapin::types::FieldArray::default())),
                ("x-first-death-queue", text("q")),
                ("x-last-death-reason", text("expired")),
                ("x-delivery-count", AMQPValue::LongInt(3)),
                ("CC", text("elsewhere")),
                ("BCC", text("elsewhere")),
                ("x-pointsd-reason", text("malformed")),
                ("x-pointsd-ledger-user", text("stale")),
                ("x-pointsd-requeue-id", text("r-1")),
                ("x-pointsd-first-failed-at", text("2025-01-01T00:00:00Z")),
                ("trace", text("t-1")),
                ("n", AMQPValue::LongLongInt(5)),
            ]));
        let copy =
            forwarded_properties(&original, &copy_headers(), &CopyBody::Original, &mut HeaderFrame::new(FRAME_MAX));
        let expected = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_content_encoding("utf-8".into())
            .with_correlation_id("c".into())
            .with_reply_to("r".into())
            .with_message_id("m".into())
            .with_type("t".into())
            .with_app_id("a".into())
            .with_cluster_id("k".into())
            .with_priority(3)
            .with_timestamp(1_700_000_000)
            .with_delivery_mode(2)
            .with_headers(table(&[
                ("x-pointsd-source-queue", text("q")),
                ("x-pointsd-reason", text("conflict")),
                ("x-pointsd-error", text("why")),
                ("x-pointsd-first-failed-at", text("2025-01-01T00:00:00Z")),
                ("x-pointsd-ledger-user", text("u")),
                ("x-pointsd-ledger-points", AMQPValue::LongLongInt(7)),
                ("x-pointsd-requeue-id", text("r-1")),
                ("trace", text("t-1")),
                ("n", AMQPValue::LongLongInt(5)),
            ]));
        assert_eq!(copy, expected);
    }

    #[test]
    fn a_retry_is_counted_and_a_requeue_begins_anew() {
        let policy = RetryPolicy::new(vec![Delay::parse("1s").unwrap(); 3]);
        let foreign = BasicProperties::default().with_headers(table(&[
            ("trace", text("t-1")),
            ("x-pointsd-source", text("a foreign value")),
            ("x-pointsd-attempt", AMQPValue::LongInt(1)),
            ("x-pointsd-reason", text("malformed")),
            ("x-pointsd-made-up", text("foreign, too")),
        ]));
        assert_eq!(retries_taken(&foreign), 1);
        let step = policy.next(retries_taken(&foreign)).unwrap();
        let headers_of_copy =
            CopyHeaders { to: Destination::Retry(step), source: Some("orders"), ledger: None, ..copy_headers() };
        let copy =
            forwarded_properties(&foreign, &headers_of_copy, &CopyBody::Original, &mut HeaderFrame::new(FRAME_MAX));
        let expected = table(&[
            ("trace", text("t-1")),
            ("x-pointsd-made-up", text("foreign, too")),
            ("x-pointsd-source", text("orders")),
            ("x-pointsd-attempt", AMQPValue::LongLongInt(2)),
            ("x-pointsd-source-queue", text("q")),
            ("x-pointsd-error", text("why")),
            ("x-pointsd-first-failed-at", text("2026-01-01T00:00:00Z")),
        ]);
        assert_eq!(copy.headers().as_ref(), Some(&expected));
        assert_eq!(retries_taken(&copy), 2);

        let again = requeued_properties(
            &copy.with_expiration("5".into()).with_user_id("u".into()),
            "r-2",
            &mut HeaderFrame::new(FRAME_MAX),
        );
        let expected = table(&[
            ("trace", text("t-1")),
            ("x-pointsd-made-up", text("foreign, too")),
            ("x-pointsd-source", text("orders")),
            ("x-pointsd-requeue-id", text("r-2")),
        ]);
        assert_eq!(again, BasicProperties::default().with_headers(expected).with_delivery_mode(2));
        assert_eq!(retries_taken(&again), 0);
        // A message that pointsd has not forwarded has no genuine source.
        let never_ours = requeued_properties(&foreign, "r-3", &mut HeaderFrame::new(FRAME_MAX));
        assert_eq!(read_source(&never_ours), None);
    }

    #[test]
    fn headers_that_do_not_fit_are_dropped_and_the_copy_says_so() {
        let long = "x".repeat(FRAME_MAX);
        let original = BasicProperties::default().with_message_id("m".into()).with_headers(table(&[
            ("trace", text(&long)),
            ("x-pointsd-first-failed-at", text("2025-01-01T00:00:00Z")),
        ]));
        let copy =
            forwarded_properties(&original, &copy_headers(), &CopyBody::Original, &mut HeaderFrame::new(FRAME_MAX));
        let headers = copy.headers().as_ref().unwrap();
        assert!(!headers.contains_key("trace"));
        assert_eq!(headers.inner().get("x-pointsd-truncated"), Some(&AMQPValue::Boolean(true)));
        assert_eq!(headers.inner().get("x-pointsd-first-failed-at"), Some(&text("2025-01-01T00:00:00Z")));
        assert_eq!(copy.message_id().as_ref().map(ShortString::as_str), Some("m"));
        assert!(HeaderFrame::new(4096).fits(&copy), "own headers fit into the smallest frame");
    }

    #[test]
    fn a_time_that_somebody_else_made_up_is_not_kept() {
        for made_up in [text("yesterday"), text(&"9".repeat(FRAME_MAX)), AMQPValue::LongLongInt(5)] {
            let original = BasicProperties::default().with_headers(table(&[("x-pointsd-first-failed-at", made_up)]));
            let copy =
                forwarded_properties(&original, &copy_headers(), &CopyBody::Original, &mut HeaderFrame::new(FRAME_MAX));
            let headers = copy.headers().as_ref().unwrap().inner();
            assert_eq!(headers.get("x-pointsd-first-failed-at"), Some(&text("2026-01-01T00:00:00Z")));
            assert!(!headers.contains_key("x-pointsd-truncated"));
        }
    }

    #[test]
    fn errors_are_cut_at_a_character() {
        let error = "支".repeat(1000);
        let headers_of_copy = CopyHeaders { error: Some(&error), ..copy_headers() };
        let headers = headers_of_copy.to_table(&FieldTable::default(), MAX_ERROR_BYTES);
        let AMQPValue::LongString(text) = &headers.inner()["x-pointsd-error"] else { panic!() };
        assert_eq!(text.to_string(), "支".repeat(341));
    }
}
