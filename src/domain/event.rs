//! What listeners are told: the bodies and the routing keys of events (`docs/guides/events.md`).

use super::check::CheckStep;
use serde::Serialize;

/// What has happened to a payment's points, or to the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventKind {
    /// Its points count.
    #[serde(rename = "points.credited")]
    Credited,
    /// They were taken back.
    #[serde(rename = "points.reversed")]
    Reversed,
    /// They count again.
    #[serde(rename = "points.reinstated")]
    Reinstated,
    /// It was not paid in time, and is closed.
    #[serde(rename = "payments.closed")]
    Closed,
}

impl EventKind {
    /// The routing key, and the `type` in the body.
    pub fn routing_key(self) -> &'static str {
        match self {
            Self::Credited => "points.credited",
            Self::Reversed => "points.reversed",
            Self::Reinstated => "points.reinstated",
            Self::Closed => "payments.closed",
        }
    }

    /// What a step of a check makes known. Whatever moves no balance makes nothing known.
    pub fn of_step(step: CheckStep) -> Option<Self> {
        match step {
            CheckStep::LateCredit => Some(Self::Credited),
            CheckStep::Reinstate => Some(Self::Reinstated),
            CheckStep::Expire | CheckStep::Reverse => Some(Self::Reversed),
            CheckStep::Verify | CheckStep::Recheck | CheckStep::Void | CheckStep::None | CheckStep::Dead(_) => None,
        }
    }
}

/// One event, as its body has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event<'a> {
    /// Its own id, the same however often it is published.
    pub event_id: &'a str,
    /// What has happened.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// To which payment.
    pub payment_id: &'a str,
    /// Whose points they are, where that is known.
    pub user_id: Option<&'a str>,
    /// How many points were given or taken: always positive. None where no points have moved.
    pub points: Option<i64>,
    /// Why, where it is not because of the payment itself.
    pub reason: Option<&'a str>,
    /// When: RFC 3339, in UTC.
    pub at: &'a str,
}

impl Event<'_> {
    /// Its body: JSON.
    #[expect(clippy::missing_panics_doc, reason = "texts and numbers are JSON")]
    pub fn body(&self) -> String {
        #[expect(clippy::expect_used, reason = "texts and numbers are JSON")]
        serde_json::to_string(self).expect("an event is JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_told_as_documented() {
        let event = Event {
            event_id: "e",
            kind: EventKind::Reversed,
            payment_id: "支付\"7",
            user_id: Some("u"),
            points: Some(5),
            reason: Some("closed"),
            at: "2026-01-01T00:00:00Z",
        };
        let body = r#"{"event_id":"e","type":"points.reversed","payment_id":"支付\"7","user_id":"u","points":5,"reason":"closed","at":"2026-01-01T00:00:00Z"}"#;
        assert_eq!(event.body(), body);
        for kind in [EventKind::Credited, EventKind::Reversed, EventKind::Reinstated, EventKind::Closed] {
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.routing_key(), "the key is the type");
        }
    }
}
