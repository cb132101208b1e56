//! Values that are derived from the settings.

use super::Settings;
use crate::{
    broker::{Plan, SourceKind},
    domain::{
        check_message::{self, Limits},
        notification::Notification,
        notification_source::{NotificationKind, NotificationSource},
        retry::Delay,
    },
};

impl Settings {
    /// The notification sources.
    pub fn notifications(&self) -> impl Iterator<Item = &NotificationSource> {
        self.sources.iter().filter_map(|source| match &source.kind {
            SourceKind::Credit => None,
            SourceKind::Notification(notification) => Some(notification),
        })
    }

    /// The name of the notification source that consumes a queue; `None` for other queues.
    pub fn source_of_queue(&self, queue: &str) -> Option<&str> {
        let source = self.sources.iter().find(|source| source.queue == queue)?;
        matches!(source.kind, SourceKind::Notification(_)).then_some(&source.name)
    }

    /// The payment IDs in a body, also in a malformed one. A check message can have many; any other message has at most one, in
    /// the format of its source (`x-pointsd-source`) or the credit format.
    pub fn payments_of(&self, is_check_message: bool, source: Option<&str>, body: &[u8]) -> Vec<String> {
        if is_check_message {
            let checks = check_message::parse(body).unwrap_or_default().into_iter();
            let ids =
                checks.filter_map(|check| check.map_or_else(|bad| bad.payment_id, |check| Some(check.payment_id)));
            return ids.map(|id| id.to_string()).collect();
        }
        let payment_id = match source {
            None => match self.message.parse(body) {
                Ok(credit) => Some(credit.payment_id),
                Err(_) => self.message.readable_payment_id(body),
            },
            Some(name) => self.notifications().find(|source| source.name == name).and_then(|source| {
                match source.format.parse(body, &self.message) {
                    Ok(Notification::Payment(id)) => Some(id),
                    Ok(Notification::Ignored) => None,
                    Err(_) => source.format.readable_payment_id(body, &self.message),
                }
            }),
        };
        payment_id.map(|id| id.to_string()).into_iter().collect()
    }

    /// The plan of the queues and exchanges for the broker.
    pub fn plan(&self) -> Plan {
        Plan {
            broker: self.broker.clone(),
            sources: self.sources.clone(),
            retry: self.retry.policy.clone(),
            has_checks: self.pay_status.is_some(),
            check_delays: self.check_delays(),
            events_exchange: self.events.exchange.clone(),
        }
    }

    /// The size limits of the check messages that the daemon writes.
    pub fn check_limits(&self) -> Limits {
        Limits { entries: self.ledger.batch_max, bytes: self.message.max_body_bytes }
    }

    /// Every delay before a check: those of `[compensation]`, then those of each notification source with `expire`.
    /// [`crate::domain::check_schedule::CheckDelay::index`] is an index into this list.
    pub fn check_delays(&self) -> Vec<Delay> {
        let own = self.notifications().filter(|source| source.kind == NotificationKind::OrderCreated);
        let own = own.flat_map(|source| source.policy.delays());
        self.compensation.policy.delays().iter().chain(own).cloned().collect()
    }
}
