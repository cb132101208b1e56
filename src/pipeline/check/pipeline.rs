//! The dependencies and settings that the steps of the check pipeline share.

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

/// The pipeline from a delivered check message or notification to the ledger.
pub struct CheckPipeline {
    /// The component whose queue the pipeline processes: the checks or a notification source.
    pub component: Component,
    /// The credit format of bodies.
    pub format: Format,
    /// The notification sources, with the format and the kind of their notifications.
    pub sources: Arc<[NotificationSource]>,
    /// The payment source.
    pub source: Arc<dyn PaymentSource>,
    /// The ledger to which the checks are applied.
    pub ledger: Arc<dyn CheckLedger>,
    /// The rows of the ledger that are known to be locked.
    pub locked: Arc<LockedRows>,
    /// The schedule of the checks, and the action for a credit that is not paid at their end.
    pub policy: CheckPolicy,
    /// The maximum size of check messages; also the number of payments that are looked up and committed together.
    pub limits: Limits,
    /// Number of immediate attempts, as in [`crate::pipeline::credit::CreditPipeline`].
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone, as in [`crate::pipeline::credit::CreditPipeline`].
    pub retry: RetryPolicy,
    /// The brake, which stops the checks after too many reversals.
    pub brake: SharedBrake,
    /// Set when the payment source has answered.
    pub answered: AtomicBool,
    /// The check delay queues with a binding of an earlier build that were already logged.
    pub former: Mutex<BTreeSet<String>>,
}

impl CheckPipeline {
    /// Returns whether the pipeline processes the queue of a notification source, whose messages have no checks yet.
    pub(super) fn is_arrival(&self) -> bool {
        matches!(self.component, Component::Source(_))
    }

    /// Tests whether the payment source works for this pipeline: if the pipeline sets rows, whether rows can be set.
    pub async fn probe_source(&self) -> Result<(), Outage> {
        let sets = |source: &NotificationSource| match (self.component, source.kind) {
            (Component::Checks, NotificationKind::Paid | NotificationKind::OrderCreated) => true,
            (Component::Source(name), NotificationKind::Paid) => source.name == name,
            _ => false,
        };
        if self.sources.iter().any(sets) { self.source.probe_set().await } else { self.source.probe().await }
    }
}
