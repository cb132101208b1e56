//! Asking the payment source, and what its answer means for an entry.

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
    time::Instant,
};
use tokio::sync::mpsc::UnboundedSender;

/// An answer of the source.
pub(super) struct LookedUp {
    /// Which of the payments that were request for.
    pub(super) index: usize,
    pub(super) payment: Payment,
    /// When it came.
    pub(super) at: Instant,
}

/// What a look-up has left open.
#[derive(Default)]
pub(super) struct Unanswered {
    /// Payments about which the source could say nothing, and why: by index.
    pub(super) failed: Vec<(usize, String)>,
    pub(super) outage: Option<Outage>,
}

/// The payments of some entries, in order, each once.
pub(super) fn distinct_payment_ids<'a>(entries: impl Iterator<Item = &'a Entry>) -> Arc<[PaymentId]> {
    let mut payments: Vec<PaymentId> = entries.filter_map(|entry| Some(entry.check()?.payment_id.clone())).collect();
    payments.sort_unstable();
    payments.dedup();
    payments.into()
}

/// Asks for payments (in order, each once) and hands every answer over as it comes. The immediate stage: the batch
/// as a whole, then those about which the source could say nothing.
pub(super) async fn ask(
    pipeline: &CheckPipeline,
    payments: &Arc<[PaymentId]>,
    until: Instant,
    answers: UnboundedSender<LookedUp>,
    context: &BatchContext<'_>,
) -> Unanswered {
    let work = Ask { pipeline: pipeline, payments, until, answers };
    let (results, outage) = run_bisecting(&work, payments, pipeline.immediate_attempts, context).await;
    let failed = results.into_iter().enumerate().filter_map(|(index, result)| Some((index, failure(result)?)));
    let mut left = Unanswered { failed: failed.collect(), outage };
    for pause in pauses::immediate(pipeline.immediate_attempts) {
        if left.failed.is_empty() || left.outage.is_some() || context.stop.is_cancelled() || Instant::now() > until {
            break;
        }
        tokio::time::sleep(pause).await;
        let again: Arc<[PaymentId]> = left.failed.iter().map(|(index, _)| payments[*index].clone()).collect();
        let (results, outage) = run_bisecting(&work, &again, 1, context).await;
        left.outage = outage;
        let retried = left.failed.into_iter().zip(results);
        left.failed = retried.filter_map(|((index, _), result)| Some((index, failure(result)?))).collect();
    }
    // Told to stop: no attempt is spent on a message that has not had all of its own.
    if context.stop.is_cancelled() || left.outage.is_some() {
        left.failed.clear();
    }
    left
}

/// Payments with the time of each answer; `None` where the source has said nothing about one.
pub(super) type Stamped = Vec<Option<(Payment, Instant)>>;

/// Looks payments up once, without further attempts. An outage is an error; what else fails is not answered.
pub(super) async fn look_up_once(
    source: &dyn PaymentSource,
    payments: &Arc<[PaymentId]>,
    until: Instant,
) -> Result<Stamped, Outage> {
    let mut answers: Stamped = vec![None; payments.len()];
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

/// What the source's answer means for an entry.
pub(super) fn validate(entry: &Entry, mut payment: Payment) -> Judged {
    let CheckRequest::Check(check) = &entry.request else {
        return Judged::Outcome(CheckOutcome::Rejected("nothing to look up".into()));
    };
    let used_up = entry.attempt.used_up;
    let kind = match &check.about {
        About::Claim(claim) => {
            if let Some(id) = payment.id.as_deref().filter(|id| *id != check.payment_id.as_str()) {
                let spelling = printable(id);
                return Judged::Resolution(Resolution::Misspelt, Payment { id: Some(spelling), ..payment });
            }
            let user = payment.user.as_deref();
            if let Some(user) = user.filter(|user| *user != claim.user_id.as_str()) {
                let error = format!("the payment's own record has another user: {}", printable(user));
                return Judged::Outcome(CheckOutcome::Conflict { error, decision: None });
            }
            return of_status(payment, used_up);
        }
        About::Notification { kind, .. } => *kind,
        About::Record => None,
    };
    // A gateway may have heard of it before the row was committed from which it is credited.
    if payment.status == PaymentStatus::Paid && payment.value.is_none() {
        if used_up {
            let error = "it is paid at the gateway, but no record of it has come".into();
            let reason = Reason::Expired;
            return Judged::Outcome(CheckOutcome::Parked { status: payment.status, reason, error });
        }
        payment.status = PaymentStatus::Unknown;
    }
    let status = payment.status;
    match (kind, status, used_up) {
        // It was paid, and nothing shows it.
        (Some(NotificationKind::Paid), PaymentStatus::Pending | PaymentStatus::Unknown, true) => {
            let error = match status {
                PaymentStatus::Unknown => "the notification says that it is paid, but no record of it has come",
                _ => "the notification says that it is paid, but its record cannot be set to that",
            };
            Judged::Outcome(CheckOutcome::Parked { status, reason: Reason::Expired, error: error.into() })
        }
        (Some(NotificationKind::OrderCreated), PaymentStatus::Pending, true) => Judged::ToBeClosed,
        _ => of_status(payment, used_up),
    }
}

/// What an answer means for an entry.
pub(super) enum Judged {
    /// The ledger must know.
    Resolution(Resolution, Payment),
    /// Nothing is certain: checked again.
    Again(PaymentStatus),
    /// Its time is up, and its row must say so.
    ToBeClosed,
    /// Decided without the ledger.
    Outcome(CheckOutcome),
}

fn of_status(payment: Payment, used_up: bool) -> Judged {
    match Resolution::of(payment.status, used_up) {
        Some(resolution) => Judged::Resolution(resolution, payment),
        None => Judged::Again(payment.status),
    }
}

/// A source's text for a line.
fn printable(text: &str) -> String {
    text.chars().filter(|character| !character.is_control()).take(128).collect()
}

/// The id under which the ledger has, or gets, the payment: its record's spelling where the payment is credited from that
/// record.
pub(super) fn ledger_id(check: &ScheduledCheck, payment: &Payment) -> PaymentId {
    let own = || check.payment_id.clone();
    match (&check.about, &payment.id) {
        (About::Claim(_), _) | (_, None) => own(),
        (About::Notification { .. } | About::Record, Some(id)) => PaymentId::new(id).unwrap_or_else(|_| own()),
    }
}

/// Why the source could say nothing about a payment.
fn failure(result: ItemResult<Answer>) -> Option<String> {
    match result {
        ItemResult::Done(Answer::Failed(error)) | ItemResult::Failed(error) | ItemResult::Rejected(error) => {
            Some(error)
        }
        ItemResult::Done(Answer::Given | Answer::NotAsked) | ItemResult::Undecided => None,
    }
}

/// Whether a payment was answered for.
#[derive(Debug, Clone)]
enum Answer {
    /// It was, and the answer is handed over.
    Given,
    Failed(String),
    NotAsked,
}

/// A look-up.
struct Ask<'a> {
    pipeline: &'a CheckPipeline,
    payments: &'a [PaymentId],
    until: Instant,
    answers: UnboundedSender<LookedUp>,
}

#[async_trait]
impl Work for Ask<'_> {
    type Item = PaymentId;
    type Done = Answer;

    async fn attempt(&self, batch: Arc<[PaymentId]>) -> Result<Vec<Answer>, BatchError> {
        let mut given = vec![Answer::NotAsked; batch.len()];
        let source: &dyn PaymentSource = &*self.pipeline.source;
        let request = source
            .look_up(Arc::clone(&batch), self.until, &mut |index, lookup| {
                let Some(answer) = given.get_mut(index) else { return };
                *answer = match lookup {
                    Lookup::Failed(error) => Answer::Failed(error),
                    Lookup::Known(payment) => {
                        self.pipeline.answered.store(true, Ordering::Relaxed);
                        if let Ok(index) = self.payments.binary_search(&batch[index]) {
                            // Whoever takes the answers has stopped at an outage.
                            let _ = self.answers.send(LookedUp { index, payment, at: Instant::now() });
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
