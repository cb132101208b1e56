//! What a transaction of the ledger makes known: rows of the outbox, written with what they tell of. The same for both
//! databases.

use crate::domain::{
    check::{Check, Checked},
    credit::Credit,
    event::{Event, EventKind},
};
use std::borrow::Cow;
use uuid::Uuid;

/// Makes the rows, for one exchange (`events.exchange`).
#[derive(Debug, Clone)]
pub(super) struct EventWriter {
    exchange: String,
}

/// Rows that are about to be written, column by column.
#[derive(Debug, Default)]
pub(super) struct OutboxEvents {
    pub(super) exchange: String,
    pub(super) message_ids: Vec<String>,
    pub(super) routing_keys: Vec<&'static str>,
    pub(super) keys: Vec<String>,
    pub(super) bodies: Vec<String>,
}

/// What an event tells, but its id and its time.
struct News<'a> {
    kind: EventKind,
    payment_id: &'a str,
    user_id: Option<&'a str>,
    points: Option<i64>,
    reason: Option<Cow<'a, str>>,
}

/// The ids of closings are made of the payment's (RFC 9562, version 5): a check that is done again after its daemon died
/// tells of the same closing. Everything else happens in the transaction that tells of it, once.
const CLOSINGS: Uuid = Uuid::from_u128(0x2f6d_0c4e_8b1a_4f6e_9d53_70a4_c1e8_b2f7);

impl EventWriter {
    pub(super) fn new(exchange: &str) -> Self {
        Self { exchange: exchange.to_owned() }
    }

    /// Of these credits, which are new.
    pub(super) fn credited<'a>(&self, credits: impl Iterator<Item = &'a Credit>) -> OutboxEvents {
        self.announce(credits.map(|credit| News {
            kind: EventKind::Credited,
            payment_id: credit.payment_id.as_str(),
            user_id: Some(credit.user_id.as_str()),
            points: Some(credit.points.get()),
            reason: None,
        }))
    }

    /// Of these checks, and what was done about each.
    pub(super) fn checked(&self, checks: &[Check], checked: &[Checked]) -> OutboxEvents {
        let of_points = checks.iter().zip(checked).filter_map(|(check, Checked { step, user_id, points, .. })| {
            Some(News {
                kind: EventKind::of_step(*step)?,
                payment_id: check.payment_id.as_str(),
                user_id: Some(user_id),
                points: Some(*points),
                reason: Some(check.reason(*step)),
            })
        });
        let of_payments = checks.iter().filter_map(|check| {
            Some(News {
                kind: EventKind::Closed,
                payment_id: check.payment_id.as_str(),
                user_id: check.closing.as_ref()?.user_id.as_deref(),
                points: None,
                reason: Some("not paid in time".into()),
            })
        });
        self.announce(of_points.chain(of_payments))
    }

    fn announce<'a>(&self, news: impl Iterator<Item = News<'a>>) -> OutboxEvents {
        let at = jiff::Timestamp::now().to_string();
        let mut rows = OutboxEvents { exchange: self.exchange.clone(), ..OutboxEvents::default() };
        for News { kind, payment_id, user_id, points, reason } in news {
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
