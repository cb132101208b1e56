//! Events for other programs: their bodies and routing keys (`docs/guides/events.md`).

use super::check::CheckStep;
use serde::Serialize;

/// The kind of an event: what happened to the points of a payment, or to the payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum EventKind {
    /// The points were credited.
    #[serde(rename = "points.credited")]
    Credited,
    /// The points were reversed.
    #[serde(rename = "points.reversed")]
    Reversed,
    /// The points were reinstated.
    #[serde(rename = "points.reinstated")]
    Reinstated,
    /// The payment was not paid in time, and is closed.
    #[serde(rename = "payments.closed")]
    Closed,
}

impl EventKind {
    /// Returns the routing key, which is also the `type` in the body.
    pub fn routing_key(self) -> &'static str {
        match self {
            Self::Credited => "points.credited",
            Self::Reversed => "points.reversed",
            Self::Reinstated => "points.reinstated",
            Self::Closed => "payments.closed",
        }
    }

    /// Returns the event that a step of a check causes. A step that changes no balance causes none.
    pub fn of_step(step: CheckStep) -> Option<Self> {
        match step {
            CheckStep::LateCredit => Some(Self::Credited),
            CheckStep::Reinstate => Some(Self::Reinstated),
            CheckStep::Expire | CheckStep::Reverse => Some(Self::Reversed),
            CheckStep::Verify | CheckStep::Recheck | CheckStep::Void | CheckStep::None | CheckStep::Dead(_) => None,
        }
    }
}

/// One event, in the form of its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Event<'a> {
    /// The ID of the event, equal in every publication of it.
    pub event_id: &'a str,
    /// The kind of the event.
    #[serde(rename = "type")]
    pub kind: EventKind,
    /// The ID of the payment.
    pub payment_id: &'a str,
    /// The user who owns the points, where known.
    pub user_id: Option<&'a str>,
    /// The number of points given or taken, always positive. `None` where no points were moved.
    pub points: Option<i64>,
    /// The reason, where the cause is not the payment itself.
    pub reason: Option<&'a str>,
    /// The time of the event: RFC 3339, in UTC.
    pub at: &'a str,
}

impl Event<'_> {
    /// Returns the body as JSON.
    #[expect(clippy::missing_panics_doc, reason = "texts and numbers are always valid JSON")]
    pub fn body(&self) -> String {
        #[expect(clippy::expect_used, reason = "texts and numbers are always valid JSON")]
        serde_json::to_string(self).expect("an event is serializable as JSON")
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
            assert_eq!(serde_json::to_value(kind).unwrap(), kind.routing_key(), "the routing key equals the type");
        }
    }
}
