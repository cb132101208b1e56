//! Looking up payments, and interpreting the answers for the entries.

use super::parse::{CheckRequest, Entry};
use crate::{
    domain::{
        check::Resolution,
        check_message::{About, ScheduledCheck},
        check_outcome::CheckOutcome,
        dead_letter::Reason,
        failure::{BatchError, Outage},
        ids::PaymentId,
        notification_source::NotificationKind,
        status::PaymentStatus,
    },
    pauses,
    pipeline::{
        batch::run_bisecting,
        check::pipeline::CheckPipeline,
        ports::{Lookup, Payment, PaymentSource},
        work::{BatchContext, ItemResult, Work},
    },
};
use async_trait::async_trait;
use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};
use tokio::sync::mpsc::UnboundedSender;

/// The answer of the payment source for one payment.
pub(super) struct PaymentAnswer {
    /// Index of the payment in the look-up.
    pub(super) index: usize,
    pub(super) payment: Payment,
    /// Time at which the answer arrived.
    pub(super) at: Instant,
}

/// The payments of a look-up without an answer.
#[derive(Default)]
pub(super) struct Unanswered {
    /// Indices of the payments that failed, with their error texts.
    pub(super) failed: Vec<(usize, String)>,
    pub(super) outage: Option<Outage>,
}

/// Returns the payments of entries, sorted and without duplicates.
pub(super) fn distinct_payment_ids<'a>(entries: impl Iterator<Item = &'a Entry>) -> Arc<[PaymentId]> {
    let mut payments: Vec<PaymentId> = entries.filter_map(|entry| Some(entry.check()?.payment_id.clone())).collect();
    payments.sort_unstable();
    payments.dedup();
    payments.into()
}

/// Looks up payments (sorted, without duplicates) and hands over every answer as it arrives. The immediate attempts are
/// made for the batch as a whole, and then for the payments that failed.
pub(super) async fn look_up_payments(
    pipeline: &CheckPipeline,
    payments: &Arc<[PaymentId]>,
    until: Instant,
    answers: UnboundedSender<PaymentAnswer>,
    context: &BatchContext<'_>,
) -> Unanswered {
    let work = LookUp { pipeline, payments, until, answers };
    let (results, outage) = run_bisecting(&work, payments, pipeline.immediate_attempts, context).await;
    let failed = results.into_iter().enumerate().filter_map(|(index, result)| Some((index, failure_text(result)?)));
    let mut unanswered = Unanswered { failed: failed.collect(), outage };
    for pause in pauses::immediate(pipeline.immediate_attempts) {
        if unanswered.failed.is_empty()
            || unanswered.outage.is_some()
            || context.stop.is_cancelled()
            || Instant::now() > until
        {
            break;
        }
        tokio::time::sleep(pause).await;
        let again: Arc<[PaymentId]> = unanswered.failed.iter().map(|(index, _)| payments[*index].clone()).collect();
        let (results, outage) = run_bisecting(&work, &again, 1, context).await;
        unanswered.outage = outage;
        let retried = unanswered.failed.into_iter().zip(results);
        unanswered.failed = retried.filter_map(|((index, _), result)| Some((index, failure_text(result)?))).collect();
    }
    // The worker is stopping: a message that has not had all of its attempts is not charged for one.
    if context.stop.is_cancelled() || unanswered.outage.is_some() {
        unanswered.failed.clear();
    }
    unanswered
}

/// Time limit of a repeated look-up: before a commit, after a commit and after payments were closed.
pub(super) const REPEATED_LOOK_UP_TIME: Duration = Duration::from_secs(5);

/// The payments of a look-up with the times of their answers; `None` for a payment without an answer.
pub(super) type TimedPayments = Vec<Option<(Payment, Instant)>>;

/// Looks up payments once, without further attempts. Only an outage is an error; a payment that fails otherwise has no
/// answer.
pub(super) async fn look_up_once(
    source: &dyn PaymentSource,
    payments: &Arc<[PaymentId]>,
    until: Instant,
) -> Result<TimedPayments, Outage> {
    let mut answers: TimedPayments = vec![None; payments.len()];
    let mut take = |index: usize, lookup| {
        if let (Some(answer), Lookup::Known(payment)) = (answers.get_mut(index), lookup) {
            *answer = Some((payment, Instant::now()));
        }
    };
    match source.look_up(Arc::clone(payments), until, &mut take).await {
        Err(BatchError::Outage(outage)) => Err(outage),
        Ok(()) | Err(BatchError::Refused(_) | BatchError::Locked(_) | BatchError::Transient(_)) => Ok(answers),
    }
}

/// Interprets the answer of the source for an entry.
pub(super) fn interpret_answer(entry: &Entry, mut payment: Payment) -> Interpretation {
    let CheckRequest::Check(check) = &entry.request else {
        return Interpretation::Decided(CheckOutcome::Rejected("the entry has no payment to look up".into()));
    };
    let used_up = entry.attempt.used_up;
    let kind = match &check.about {
        About::Claim(claim) => {
            if let Some(id) = payment.id.as_deref().filter(|id| *id != check.payment_id.as_str()) {
                let spelling = printable(id);
                return Interpretation::Resolved(Resolution::Misspelt, Payment { id: Some(spelling), ..payment });
            }
            let user = payment.user.as_deref();
            if let Some(user) = user.filter(|user| *user != claim.user_id.as_str()) {
                let error = format!("the payment's own record has another user: {}", printable(user));
                return Interpretation::Decided(CheckOutcome::Conflict { error, decision: None });
            }
            return interpret_status(payment, used_up);
        }
        About::Notification { kind, .. } => *kind,
        About::Record => None,
    };
    // A gateway may know the payment before the row is committed from which it is credited.
    if payment.status == PaymentStatus::Paid && payment.value.is_none() {
        if used_up {
            let error = "the payment is paid at the gateway, but it has no record".into();
            let reason = Reason::Expired;
            return Interpretation::Decided(CheckOutcome::Parked { status: payment.status, reason, error });
        }
        payment.status = PaymentStatus::Unknown;
    }
    let status = payment.status;
    match (kind, status, used_up) {
        // The notification proves that it was paid, but its record does not show it.
        (Some(NotificationKind::Paid), PaymentStatus::Pending | PaymentStatus::Unknown, true) => {
            let error = match status {
                PaymentStatus::Unknown => "the notification reports the payment as paid, but the payment has no record",
                _ => "the notification reports the payment as paid, but its record cannot be set to paid",
            };
            Interpretation::Decided(CheckOutcome::Parked { status, reason: Reason::Expired, error: error.into() })
        }
        (Some(NotificationKind::OrderCreated), PaymentStatus::Pending, true) => Interpretation::ToBeClosed,
        _ => interpret_status(payment, used_up),
    }
}

/// The meaning of an answer for an entry.
pub(super) enum Interpretation {
    /// The resolution must be applied to the ledger.
    Resolved(Resolution, Payment),
    /// The status is not final: the payment is checked again.
    Recheck(PaymentStatus),
    /// The checks are used up, and the row of the payment must be set to closed.
    ToBeClosed,
    /// The entry is decided without the ledger.
    Decided(CheckOutcome),
}

fn interpret_status(payment: Payment, used_up: bool) -> Interpretation {
    match Resolution::of(payment.status, used_up) {
        Some(resolution) => Interpretation::Resolved(resolution, payment),
        None => Interpretation::Recheck(payment.status),
    }
}

/// Makes a text of the source printable in one line, with at most 128 characters.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(128).collect()
}

/// Returns the payment ID in the ledger: the spelling of the record if the payment is credited from its record,
/// otherwise that of the check.
pub(super) fn ledger_payment_id(check: &ScheduledCheck, payment: &Payment) -> PaymentId {
    let own = || check.payment_id.clone();
    match (&check.about, &payment.id) {
        (About::Claim(_), _) | (_, None) => own(),
        (About::Notification { .. } | About::Record, Some(id)) => PaymentId::new(id).unwrap_or_else(|_| own()),
    }
}

/// Returns the error text of a payment for which the source has no answer.
fn failure_text(result: ItemResult<Answer>) -> Option<String> {
    match result {
        ItemResult::Done(Answer::Failed(error)) | ItemResult::Failed(error) | ItemResult::Rejected(error) => {
            Some(error)
        }
        ItemResult::Done(Answer::Given | Answer::Missing) | ItemResult::Undecided => None,
    }
}

/// The state of one payment in a look-up.
#[derive(Debug, Clone)]
enum Answer {
    /// The answer has been handed over.
    Given,
    /// The look-up of this payment failed.
    Failed(String),
    /// The source has returned no answer.
    Missing,
}

/// Work that looks up payments and hands over their answers.
struct LookUp<'a> {
    pipeline: &'a CheckPipeline,
    payments: &'a [PaymentId],
    until: Instant,
    answers: UnboundedSender<PaymentAnswer>,
}

#[async_trait]
impl Work for LookUp<'_> {
    type Item = PaymentId;
    type Done = Answer;

    async fn attempt(&self, batch: Arc<[PaymentId]>) -> Result<Vec<Answer>, BatchError> {
        let mut given = vec![Answer::Missing; batch.len()];
        let source: &dyn PaymentSource = &*self.pipeline.source;
        let request = source
            .look_up(Arc::clone(&batch), self.until, &mut |index, lookup| {
                let Some(answer) = given.get_mut(index) else { return };
                *answer = match lookup {
                    Lookup::Failed(error) => Answer::Failed(error),
                    Lookup::Known(payment) => {
                        self.pipeline.answered.store(true, Ordering::Relaxed);
                        if let Ok(index) = self.payments.binary_search(&batch[index]) {
                            // A closed receiver means that an outage has stopped the check.
                            let _ = self.answers.send(PaymentAnswer { index, payment, at: Instant::now() });
                        }
                        Answer::Given
                    }
                };
            })
            .await;
        request.map(|()| given)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.pipeline.source.probe().await
    }
}
