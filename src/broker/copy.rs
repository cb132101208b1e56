//! The properties of a copy for another queue: the original's, less what the broker would act on, plus our own headers
//! (`docs/reference/headers.md` has the table).

use super::lenient::RAW;
use crate::{
    domain::{check_message::CONTENT_TYPE, settlement::Destination},
    pipeline::ports::{CopyBody, Forward},
};
use lapin::{
    BasicProperties,
    protocol::basic::gen_properties,
    types::{AMQPValue, FieldTable, ShortString},
};
use std::collections::BTreeMap;

/// Persistent (AMQP 0-9-1, basic.delivery-mode): a copy survives a restart of the broker.
pub(super) const PERSISTENT: u8 = 2;

/// The most bytes of an error's text in a header.
pub(super) const MAX_ERROR_BYTES: usize = 1024;

/// The same where little room is left: all our headers fit into the smallest frame that AMQP allows (4096 bytes).
const SHORT_ERROR_BYTES: usize = 128;

/// What the broker may add to the headers of what it delivers again or has dead-lettered (`x-delivery-count`, `x-death` and
/// its kin): a header that filled a frame would then be beyond what a client reads.
const HEADROOM: usize = 2048;

/// What surrounds the properties in a content header frame: frame header and end (8), class, weight, body size (12).
const HEADER_FRAME_OVERHEAD: usize = 20;

pub(super) const ATTEMPT: &str = "x-pointsd-attempt";
pub(super) const CHECK: &str = "x-pointsd-check";
pub(super) const SOURCE: &str = "x-pointsd-source";
pub(super) const SOURCE_QUEUE: &str = "x-pointsd-source-queue";
pub(super) const REASON: &str = "x-pointsd-reason";
pub(super) const ERROR: &str = "x-pointsd-error";
pub(super) const FIRST_FAILED_AT: &str = "x-pointsd-first-failed-at";
pub(super) const LEDGER_USER: &str = "x-pointsd-ledger-user";
pub(super) const LEDGER_POINTS: &str = "x-pointsd-ledger-points";
pub(super) const REQUEUE_ID: &str = "x-pointsd-requeue-id";
pub(super) const TRUNCATED: &str = "x-pointsd-truncated";
/// On a copy that a look at the dead queue made, in the place of a message: which look.
pub(super) const LOOK: &str = "x-pointsd-look";

/// Our headers that a message keeps wherever it goes, also where foreign ones do not fit.
const CARRIED: [&str; 5] = [ATTEMPT, CHECK, FIRST_FAILED_AT, REQUEUE_ID, TRUNCATED];

/// Headers that the broker acts on: a kept `x-death` lets it drop the copy as a cycle, `CC` and `BCC` route it again.
pub(super) fn is_brokers(name: &str) -> bool {
    matches!(name, "x-death" | "x-delivery-count" | "x-acquired-count" | "CC" | "BCC")
        || name.starts_with("x-first-death-")
        || name.starts_with("x-last-death-")
}

/// How the names of our headers begin.
pub(super) const OUR_PREFIX: &str = "x-pointsd-";

/// Takes what is ours off a message that does not come from us: headers that begin with `x-pointsd-`, and the content type
/// of a check message.
///
/// A message is ours when it was published to the default exchange, which producers must not write to, and when the broker
/// has moved it since only from queues to which it came in that way (`docs/reference/headers.md`).
pub(super) fn distrust_producers(exchange: &str, properties: &mut BasicProperties) {
    if !is_ours(exchange, properties) {
        strip_ours(properties);
    }
}

/// The same, whatever the exchange.
pub(super) fn strip_ours(properties: &mut BasicProperties) {
    let is_check_message = properties.content_type().as_ref().is_some_and(|it| it.as_str() == CONTENT_TYPE);
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let forged = headers.is_some_and(|headers| headers.keys().any(|name| name.as_str().starts_with(OUR_PREFIX)));
    if forged {
        let mut kept = FieldTable::default();
        for (name, value) in headers.into_iter().flatten().filter(|(name, _)| !name.as_str().starts_with(OUR_PREFIX)) {
            kept.insert(name.clone(), value.clone());
        }
        *properties = std::mem::take(properties).with_headers(kept);
    }
    if is_check_message {
        *properties = std::mem::take(properties).with_content_type(JSON.into());
    }
}

const JSON: &str = "application/json";

/// Ours among these headers.
pub(super) fn own_headers(headers: &FieldTable) -> FieldTable {
    let mut own = FieldTable::default();
    for (name, value) in headers.inner().iter().filter(|(name, _)| name.as_str().starts_with(OUR_PREFIX)) {
        own.insert(name.clone(), value.clone());
    }
    own
}

fn is_ours(exchange: &str, properties: &BasicProperties) -> bool {
    if !exchange.is_empty() {
        return false;
    }
    let Some(deaths) = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death")) else {
        return true;
    };
    let AMQPValue::FieldArray(deaths) = deaths else { return false };
    deaths.as_slice().iter().all(|death| match death {
        AMQPValue::FieldTable(death) => match death.inner().get("exchange") {
            Some(AMQPValue::LongString(exchange)) => exchange.as_bytes().is_empty(),
            _ => false,
        },
        _ => false,
    })
}

/// Whether the body is a check message. After [`distrust_producers`].
pub(super) fn is_check_message(properties: &BasicProperties) -> bool {
    properties.content_type().as_ref().is_some_and(|it| it.as_str() == CONTENT_TYPE)
}

/// Whether a daemon or a requeue has sent it. After [`distrust_producers`].
pub(super) fn is_sent_by_us(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    headers.is_some_and(|headers| headers.contains_key(SOURCE_QUEUE) || headers.contains_key(REQUEUE_ID))
}

/// Headers that tell of a failure: of no meaning on a message that begins anew. [`SOURCE`] says how the body looks, and
/// [`REQUEUE_ID`] who sent it: they stay.
pub(super) fn is_of_a_failure(name: &str) -> bool {
    is_of_one_stay(name) || matches!(name, ATTEMPT | CHECK | FIRST_FAILED_AT | TRUNCATED)
}

/// Our headers that belong to one stay in a queue; those of an earlier stay are out of date.
pub(super) fn is_of_one_stay(name: &str) -> bool {
    matches!(name, SOURCE_QUEUE | REASON | ERROR | LEDGER_USER | LEDGER_POINTS | RAW | LOOK)
}

/// What a copy says of the failure.
pub(super) struct CopyHeaders<'a> {
    pub(super) source_queue: &'a str,
    /// The source of notifications whose format the body has: what we know of it, never what somebody has written.
    pub(super) source: Option<&'a str>,
    pub(super) to: Destination,
    /// `None` for a copy that only waits for a check.
    pub(super) error: Option<&'a str>,
    /// RFC 3339.
    pub(super) now: &'a str,
    pub(super) ledger: Option<(&'a str, i64)>,
}

impl<'a> CopyHeaders<'a> {
    pub(super) fn of<M>(
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

    /// `carried`: what the message brought of its own.
    fn headers(&self, carried: &FieldTable, max_error_bytes: usize) -> FieldTable {
        let mut table = FieldTable::default();
        let mut text = |name: &str, value: &str| {
            table.insert(name.into(), AMQPValue::LongString(value.into()));
        };
        text(SOURCE_QUEUE, self.source_queue);
        if let Some(error) = self.error {
            text(ERROR, at_most(error, max_error_bytes));
            text(FIRST_FAILED_AT, self.now);
        }
        if let Destination::Dead(reason) = self.to {
            text(REASON, reason.label());
        }
        if let Some((user, points)) = self.ledger {
            text(LEDGER_USER, user);
            table.insert(LEDGER_POINTS.into(), AMQPValue::LongLongInt(points));
        }
        // Nothing has failed where a message only waits for its next check: that begins with all its attempts.
        let anew = matches!(self.to, Destination::Check(_));
        for (name, value) in carried.inner() {
            if !(anew && [ATTEMPT, FIRST_FAILED_AT].contains(&name.as_str())) {
                table.insert(name.clone(), value.clone());
            }
        }
        if let Some(source) = self.source {
            table.insert(SOURCE.into(), AMQPValue::LongString(source.into()));
        }
        let counted = match self.to {
            Destination::Retry(step) => Some((ATTEMPT, step.attempt())),
            Destination::Check(wait) => Some((CHECK, wait.checks_done())),
            Destination::Dead(_) | Destination::CheckQueue => None,
        };
        if let Some((name, number)) = counted {
            table.insert(name.into(), AMQPValue::LongLongInt(number.into()));
        }
        table
    }
}

/// Delayed retries that a message has taken, by its header; 0 where that makes no sense.
pub(super) fn retries_taken(properties: &BasicProperties) -> u32 {
    counted(properties, ATTEMPT)
}

/// Checks of a message that are done; the same.
pub(super) fn checks_done(properties: &BasicProperties) -> u32 {
    counted(properties, CHECK)
}

/// What the broker says of the queue that a message was dead-lettered from last. The latest comes first (RabbitMQ, "Dead
/// Letter Exchanges").
fn latest_death(headers: &BTreeMap<ShortString, AMQPValue>) -> Option<&FieldTable> {
    let AMQPValue::FieldArray(deaths) = headers.get("x-death")? else { return None };
    match deaths.as_slice().first()? {
        AMQPValue::FieldTable(death) => Some(death),
        _ => None,
    }
}

/// The source whose format the body has.
pub(super) fn source(properties: &BasicProperties) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(SOURCE)? {
        AMQPValue::LongString(name) => Some(name.to_string()),
        _ => None,
    }
}

/// The queue from which the broker has moved a message last, where it came there from an exchange and not by its name.
pub(super) fn bound_queue(properties: &BasicProperties) -> Option<String> {
    let death = latest_death(properties.headers().as_ref()?.inner())?.inner();
    let text = |name: &str| match death.get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    };
    text("exchange").filter(|exchange| !exchange.is_empty())?;
    text("queue")
}

fn counted(properties: &BasicProperties, name: &str) -> u32 {
    let value = properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    value.and_then(as_integer).map_or(0, |taken| u32::try_from(taken.max(0)).unwrap_or(u32::MAX))
}

/// An integer of whatever width.
pub(super) fn as_integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(number) => Some((*number).into()),
        AMQPValue::ShortShortUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => Some((*number).into()),
        AMQPValue::ShortUInt(number) => Some((*number).into()),
        AMQPValue::LongInt(number) => Some((*number).into()),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}

/// The beginning of a text, cut at a character.
pub(super) fn at_most(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// The properties of a copy. Where its content header would not fit into a `frame` (the broker closes the connection
/// over one), foreign headers are left out and the copy says so. After [`distrust_producers`].
pub(super) fn forwarded_properties(
    original: &BasicProperties,
    marks: &CopyHeaders<'_>,
    body: &CopyBody<'_>,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let content_type = match body {
        CopyBody::Original => None,
        CopyBody::Checks(_) => Some(CONTENT_TYPE),
        CopyBody::Points(_) => Some(JSON),
    };
    let whole = with_marks(original, marks, frame);
    let Some(content_type) = content_type else { return whole };
    // Another body is another message.
    whole.with_content_type(content_type.into()).with_message_id(new_message_id())
}

/// The properties of a check message that is no copy.
pub(super) fn first_checks(source_queue: &str, seconds: u64) -> BasicProperties {
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

fn with_marks(original: &BasicProperties, marks: &CopyHeaders<'_>, frame: &mut HeaderFrame) -> BasicProperties {
    let given = original.headers().as_ref().map(FieldTable::inner);
    let mut carried = FieldTable::default();
    for (name, value) in given.into_iter().flatten() {
        if CARRIED.contains(&name.as_str()) && makes_sense(name.as_str(), value) {
            carried.insert(name.clone(), value.clone());
        }
    }
    let mut headers = marks.headers(&carried, MAX_ERROR_BYTES);
    for (name, value) in given.into_iter().flatten() {
        let ours = CARRIED.contains(&name.as_str()) || is_of_one_stay(name.as_str()) || name.as_str() == SOURCE;
        if !ours && !is_brokers(name.as_str()) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let whole = with_headers(original, headers);
    if frame.fits(&whole) {
        return whole;
    }
    let mut headers = marks.headers(&carried, SHORT_ERROR_BYTES);
    headers.insert(TRUNCATED.into(), AMQPValue::Boolean(true));
    with_headers(original, headers)
}

/// Whether a header of ours is one that we could have written: anybody can send one of that name.
fn makes_sense(name: &str, value: &AMQPValue) -> bool {
    match name {
        FIRST_FAILED_AT => is_time(value),
        TRUNCATED => matches!(value, AMQPValue::Boolean(true)),
        ATTEMPT | CHECK => as_integer(value).is_some_and(|number| number > 0),
        _ => matches!(value, AMQPValue::LongString(text) if text.len() <= 255),
    }
}

/// Whether a header says a time, as ours does; anybody can send one of that name.
fn is_time(value: &AMQPValue) -> bool {
    let AMQPValue::LongString(text) = value else { return false };
    text.len() <= 40 && text.to_string().parse::<jiff::Timestamp>().is_ok()
}

/// The properties of a message that goes back to where it was consumed, as if it had just been sent: without the marks
/// of its failure, with the id of the run that sends it.
pub(super) fn requeued(original: &BasicProperties, requeue_id: &str, frame: &mut HeaderFrame) -> BasicProperties {
    let given = original.headers().as_ref().map(FieldTable::inner);
    // On a message that was never forwarded_properties by us it is not ours.
    let source = given.filter(|given| given.contains_key(SOURCE_QUEUE)).and_then(|given| given.get(SOURCE));
    let mut headers = FieldTable::default();
    for (name, value) in given.into_iter().flatten() {
        if !is_brokers(name.as_str()) && !is_of_a_failure(name.as_str()) && name.as_str() != SOURCE {
            headers.insert(name.clone(), value.clone());
        }
    }
    if let Some(source) = source {
        headers.insert(SOURCE.into(), source.clone());
    }
    let id = AMQPValue::LongString(requeue_id.into());
    headers.insert(REQUEUE_ID.into(), id.clone());
    let whole = with_headers(original, headers);
    if frame.fits(&whole) {
        return whole;
    }
    let mut headers = FieldTable::default();
    if let Some(source) = source {
        headers.insert(SOURCE.into(), source.clone());
    }
    headers.insert(REQUEUE_ID.into(), id);
    headers.insert(TRUNCATED.into(), AMQPValue::Boolean(true));
    with_headers(original, headers)
}

/// Every property but `expiration` (the copy would vanish) and `user_id` (the broker checks it against ours).
pub(super) fn with_headers(original: &BasicProperties, headers: FieldTable) -> BasicProperties {
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

/// Whether content headers stay within the negotiated frame size: tried by writing them into as much room.
pub(super) struct HeaderFrame {
    room: Vec<u8>,
}

impl HeaderFrame {
    /// For frames of at most `frame_max` bytes.
    pub(super) fn of(frame_max: usize) -> Self {
        // More than any header is allowed to have anywhere; a peer without a limit says 4 GiB.
        let frame_max = frame_max.min(16 * 1024 * 1024);
        let headroom = HEADROOM.min(frame_max / 8);
        Self { room: vec![0; frame_max.saturating_sub(HEADER_FRAME_OVERHEAD + headroom)] }
    }

    /// Whether these fit.
    pub(super) fn fits(&mut self, properties: &BasicProperties) -> bool {
        cookie_factory::gen_simple(gen_properties(properties), std::io::Cursor::new(&mut self.room[..])).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{
        dead_letter::Reason,
        retry::{Delay, RetryPolicy},
    };
    use lapin::types::ShortString;

    const FRAME_MAX: usize = 131_072;

    fn marks() -> CopyHeaders<'static> {
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
        let copy = forwarded_properties(&original, &marks(), &CopyBody::Original, &mut HeaderFrame::of(FRAME_MAX));
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
            ("x-pointsd-source", text("somebody else's word")),
            ("x-pointsd-attempt", AMQPValue::LongInt(1)),
            ("x-pointsd-reason", text("malformed")),
            ("x-pointsd-made-up", text("foreign, too")),
        ]));
        assert_eq!(retries_taken(&foreign), 1);
        let step = policy.next(retries_taken(&foreign)).unwrap();
        let marks = CopyHeaders { to: Destination::Retry(step), source: Some("orders"), ledger: None, ..marks() };
        let copy = forwarded_properties(&foreign, &marks, &CopyBody::Original, &mut HeaderFrame::of(FRAME_MAX));
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

        let again = requeued(
            &copy.with_expiration("5".into()).with_user_id("u".into()),
            "r-2",
            &mut HeaderFrame::of(FRAME_MAX),
        );
        let expected = table(&[
            ("trace", text("t-1")),
            ("x-pointsd-made-up", text("foreign, too")),
            ("x-pointsd-source", text("orders")),
            ("x-pointsd-requeue-id", text("r-2")),
        ]);
        assert_eq!(again, BasicProperties::default().with_headers(expected).with_delivery_mode(2));
        assert_eq!(retries_taken(&again), 0);
        // What was never forwarded_properties by us says nothing of its source.
        let never_ours = requeued(&foreign, "r-3", &mut HeaderFrame::of(FRAME_MAX));
        assert_eq!(source(&never_ours), None);
    }

    #[test]
    fn an_attempt_that_somebody_else_made_up_is_not_believed_where_it_makes_no_sense() {
        for (value, taken) in [
            (AMQPValue::LongLongInt(i64::MAX), u32::MAX),
            (AMQPValue::LongLongInt(-1), 0),
            (AMQPValue::ShortShortUInt(3), 3),
            (text("3"), 0),
            (AMQPValue::Void, 0),
        ] {
            let properties = BasicProperties::default().with_headers(table(&[("x-pointsd-attempt", value)]));
            assert_eq!(retries_taken(&properties), taken);
        }
    }

    #[test]
    fn headers_that_do_not_fit_are_dropped_and_the_copy_says_so() {
        let long = "x".repeat(FRAME_MAX);
        let original = BasicProperties::default().with_message_id("m".into()).with_headers(table(&[
            ("trace", text(&long)),
            ("x-pointsd-first-failed-at", text("2025-01-01T00:00:00Z")),
        ]));
        let copy = forwarded_properties(&original, &marks(), &CopyBody::Original, &mut HeaderFrame::of(FRAME_MAX));
        let headers = copy.headers().as_ref().unwrap();
        assert!(!headers.contains_key("trace"));
        assert_eq!(headers.inner().get("x-pointsd-truncated"), Some(&AMQPValue::Boolean(true)));
        assert_eq!(headers.inner().get("x-pointsd-first-failed-at"), Some(&text("2025-01-01T00:00:00Z")));
        assert_eq!(copy.message_id().as_ref().map(ShortString::as_str), Some("m"));
        assert!(HeaderFrame::of(4096).fits(&copy), "our own headers fit into the smallest frame there is");
    }

    #[test]
    fn a_time_that_somebody_else_made_up_is_not_kept() {
        for made_up in [text("yesterday"), text(&"9".repeat(FRAME_MAX)), AMQPValue::LongLongInt(5)] {
            let original = BasicProperties::default().with_headers(table(&[("x-pointsd-first-failed-at", made_up)]));
            let copy = forwarded_properties(&original, &marks(), &CopyBody::Original, &mut HeaderFrame::of(FRAME_MAX));
            let headers = copy.headers().as_ref().unwrap().inner();
            assert_eq!(headers.get("x-pointsd-first-failed-at"), Some(&text("2026-01-01T00:00:00Z")));
            assert!(!headers.contains_key("x-pointsd-truncated"));
        }
    }

    #[test]
    fn a_header_frame_is_measured_to_the_byte() {
        let of = |size: usize| BasicProperties::default().with_headers(table(&[("a", text(&"x".repeat(size)))]));
        // Flags 2, table length 4, name 1 + 1, type 1, text length 4.
        let rest = 2 + 4 + 2 + 1 + 4 + HEADER_FRAME_OVERHEAD + 4096 / 8;
        assert!(HeaderFrame::of(4096).fits(&of(4096 - rest)));
        assert!(!HeaderFrame::of(4096).fits(&of(4097 - rest)));
    }

    #[test]
    fn errors_are_cut_at_a_character() {
        let error = "支".repeat(1000);
        let marks = CopyHeaders { error: Some(&error), ..marks() };
        let headers = marks.headers(&FieldTable::default(), MAX_ERROR_BYTES);
        let AMQPValue::LongString(text) = &headers.inner()["x-pointsd-error"] else { panic!() };
        assert_eq!(text.to_string(), "支".repeat(341));
    }
}
