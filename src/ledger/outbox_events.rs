//! The events of a ledger transaction: rows of the outbox, written in the transaction that they report. Both databases
//! use this module.

use crate::domain::{
    check::{Check, Checked},
    credit::Credit,
    event::{Event, EventKind},
};
use std::borrow::Cow;
use uuid::Uuid;

/// Creates the event rows for one exchange (`events.exchange`).
#[derive(Debug, Clone)]
pub(super) struct EventWriter {
    exchange: String,
}

/// Rows to be written, column by column.
#[derive(Debug, Default)]
pub(super) struct OutboxEvents {
    pub(super) exchange: String,
    pub(super) message_ids: Vec<String>,
    pub(super) routing_keys: Vec<&'static str>,
    pub(super) keys: Vec<String>,
    pub(super) bodies: Vec<String>,
}

/// The data of an event, without its ID and its time.
struct EventData<'a> {
    kind: EventKind,
    payment_id: &'a str,
    user_id: Option<&'a str>,
    points: Option<i64>,
    reason: Option<Cow<'a, str>>,
}

/// The namespace of the event IDs of closed payments, which derive from the payment ID (RFC 9562, version 5): a check
/// that is repeated after its daemon died reports the same closing. All other events are written once, in the
/// transaction that they report.
const CLOSINGS: Uuid = Uuid::from_u128(0x2f6d_0c4e_8b1a_4f6e_9d53_70a4_c1e8_b2f7);

impl EventWriter {
    pub(super) fn new(exchange: &str) -> Self {
        Self { exchange: exchange.to_owned() }
    }

    /// Returns the events for these credits, which are new.
    pub(super) fn credited<'a>(&self, credits: impl Iterator<Item = &'a Credit>) -> OutboxEvents {
        self.build_rows(credits.map(|credit| EventData {
            kind: EventKind::Credited,
            payment_id: credit.payment_id.as_str(),
            user_id: Some(credit.user_id.as_str()),
            points: Some(credit.points.get()),
            reason: None,
        }))
    }

    /// Returns the events for these checks and their results.
    pub(super) fn checked(&self, checks: &[Check], checked: &[Checked]) -> OutboxEvents {
        let of_points = checks.iter().zip(checked).filter_map(|(check, Checked { step, user_id, points, .. })| {
            Some(EventData {
                kind: EventKind::of_step(*step)?,
                payment_id: check.payment_id.as_str(),
                user_id: Some(user_id),
                points: Some(*points),
                reason: Some(check.reason(*step)),
            })
        });
        let of_payments = checks.iter().filter_map(|check| {
            Some(EventData {
                kind: EventKind::Closed,
                payment_id: check.payment_id.as_str(),
                user_id: check.closing.as_ref()?.user_id.as_deref(),
                points: None,
                reason: Some("not paid in time".into()),
            })
        });
        self.build_rows(of_points.chain(of_payments))
    }

    fn build_rows<'a>(&self, news: impl Iterator<Item = EventData<'a>>) -> OutboxEvents {
        let at = jiff::Timestamp::now().to_string();
        let mut rows = OutboxEvents { exchange: self.exchange.clone(), ..OutboxEvents::default() };
        for EventData { kind, payment_id, user_id, points, reason } in news {
            let id = match kind {
                EventKind::Closed => Uuid::new_v5(&CLOSINGS, payment_id.as_bytes()),
                EventKind::Credited | EventKind::Reversed | EventKind::Reinstated => Uuid::new_v4(),
            };
            let event_id = id.to_string();
            let event =
                Event { event_id: &event_id, kind, payment_id, user_id, points, reason: reason.as_deref(), at: &at };
            rows.bodies.push(event.body());
            rows.message_ids.push(event_id);
            rows.routing_keys.push(kind.routing_key());
            rows.keys.push(payment_id.to_owned());
        }
        rows
    }
}

impl OutboxEvents {
    pub(super) fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }
}
