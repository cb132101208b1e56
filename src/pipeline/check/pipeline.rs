//! What the steps of the checks' way need.

use super::brake::SharedBrake;
use crate::{
    domain::{
        check_message::Limits,
        check_schedule::CheckPolicy,
        component::Component,
        failure::Outage,
        message::Format,
        notification_source::{NotificationKind, NotificationSource},
        retry::RetryPolicy,
    },
    pipeline::{
        locked_rows::LockedRows,
        ports::{CheckLedger, PaymentSource},
    },
};
use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex, atomic::AtomicBool},
};

/// What stands between a delivered check, or a notification, and the ledger.
pub struct CheckPipeline {
    /// Which queue it works on: the check queue, or that of a source.
    pub component: Component,
    /// How bodies look in the credit format.
    pub format: Format,
    /// How those of notifications look, and what they mean.
    pub sources: Arc<[NotificationSource]>,
    /// What knows whether payments are paid.
    pub source: Arc<dyn PaymentSource>,
    /// What is brought to agree with it.
    pub ledger: Arc<dyn CheckLedger>,
    /// Rows of the ledger that are known to be locked.
    pub locked: Arc<LockedRows>,
    /// How often and when a credit is checked, and what is done in the end.
    pub policy: CheckPolicy,
    /// How large check messages may be; also how many payments are looked up and committed together.
    pub limits: Limits,
    /// As in [`super::credit::CreditPipeline`].
    pub immediate_attempts: u32,
    /// As in [`super::credit::CreditPipeline`].
    pub retry: RetryPolicy,
    /// Stops it when too much is reversed.
    pub brake: SharedBrake,
    /// Set whenever the source has answered.
    pub answered: AtomicBool,
    /// Check delay queues that an earlier build bound to an exchange, as far as they were logged.
    pub former: Mutex<BTreeSet<String>>,
}

impl CheckPipeline {
    /// Whether it works on the queue of a source, whose messages have no checks yet.
    pub(super) fn is_arrival(&self) -> bool {
        matches!(self.component, Component::Source(_))
    }

    /// Whether the payment source works for what is asked of it here: where rows are to be set, setting them, too.
    pub async fn probe_source(&self) -> Result<(), Outage> {
        let sets = |source: &NotificationSource| match (self.component, source.kind) {
            (Component::Checks, NotificationKind::Paid | NotificationKind::OrderCreated) => true,
            (Component::Source(name), NotificationKind::Paid) => source.name == name,
            _ => false,
        };
        if self.sources.iter().any(sets) { self.source.probe_set().await } else { self.source.probe().await }
    }
}
