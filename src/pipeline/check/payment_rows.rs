//! Setting the rows of payments: to paid, because a notification proves it; to closed, because the checks are used up.
//! Both updates are guarded: a row that is no longer pending stays unchanged, and its status counts.

use super::look_up::{REPEATED_LOOK_UP_TIME, distinct_payment_ids, look_up_once};
use crate::{
    domain::{
        check_outcome::CheckOutcome,
        dead_letter::Reason,
        failure::{BatchError, Outage},
        ids::PaymentId,
        notification_source::NotificationKind,
        status::PaymentStatus,
    },
    pipeline::{
        batch::run_bisecting,
        check::{
            group::{Candidate, Group},
            pipeline::CheckPipeline,
        },
        ports::{PaymentSource, RowStatus},
        work::{BatchContext, ItemResult, Work},
    },
};
use async_trait::async_trait;
use std::{sync::Arc, time::Instant};

/// Sets the rows of those payments to paid whose notifications prove that they are paid. The later look-up finds
/// whether a row exists, and its status. Returns `false` if there was no time for all payments.
pub(super) async fn mark_paid(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    context: &BatchContext<'_>,
) -> Result<bool, Outage> {
    let paid = group.open_entries().filter(|entry| entry.kind() == Some(NotificationKind::Paid));
    let payments = distinct_payment_ids(paid);
    if payments.is_empty() {
        return Ok(true);
    }
    let (results, outage) = set_rows(pipeline, &payments, RowStatus::Paid, context).await;
    decide_failed_entries(pipeline, group, &payments, &results);
    outage.map_or(Ok(!results.contains(&ItemResult::Undecided)), Err)
}

/// Closes payments that are still pending when their checks are used up, and looks them up again: a payment that has
/// become paid at that moment stays paid. Returns the outage that interrupted it.
pub(super) async fn close_unpaid(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    to_be_closed: Vec<usize>,
    candidates: &mut Vec<Candidate>,
    context: &BatchContext<'_>,
) -> Option<Outage> {
    let payments = distinct_payment_ids(to_be_closed.iter().map(|entry| &group.entries[*entry]));
    let (results, outage) = set_rows(pipeline, &payments, RowStatus::Closed, context).await;
    decide_failed_entries(pipeline, group, &payments, &results);
    if outage.is_some() {
        return outage;
    }
    context.heartbeat.beat();
    let until = Instant::now() + REPEATED_LOOK_UP_TIME;
    // Entries without an answer stay open: the next pass finds their payments closed.
    let answers = match look_up_once(&*pipeline.source, &payments, until).await {
        Ok(answers) => answers,
        Err(outage) => return Some(outage),
    };
    for entry in to_be_closed {
        let check = group.entries[entry].check();
        let index = check.and_then(|check| payments.binary_search(&check.payment_id).ok());
        let answer = index.and_then(|index| answers.get(index)?.clone());
        let (Some((payment, at)), None) = (answer, &group.outcomes[entry]) else { continue };
        let mut still_pending = Vec::new();
        group.classify_answer(entry, payment, at, candidates, &mut still_pending);
        for entry in still_pending {
            let error = "the payment was not paid in time, but its record cannot be set to closed".to_owned();
            let outcome = CheckOutcome::Parked { status: PaymentStatus::Pending, reason: Reason::Expired, error };
            group.outcomes[entry] = Some(outcome);
        }
    }
    None
}

/// Sets the rows of these payments to a status. Returns the result of each payment.
async fn set_rows(
    pipeline: &CheckPipeline,
    payments: &Arc<[PaymentId]>,
    to: RowStatus,
    context: &BatchContext<'_>,
) -> (Vec<ItemResult<()>>, Option<Outage>) {
    let work = RowUpdate { source: &*pipeline.source, to };
    run_bisecting(&work, payments, pipeline.immediate_attempts, context).await
}

/// Decides the entries of payments whose rows could not be set.
fn decide_failed_entries(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    payments: &[PaymentId],
    results: &[ItemResult<()>],
) {
    for (payment, result) in payments.iter().zip(results) {
        let (ItemResult::Failed(error) | ItemResult::Rejected(error)) = result else { continue };
        for entry in group.open_entries_of(payment) {
            let retries_taken = group.entries[entry].retries_taken;
            let error = format!("the payment's row could not be set: {error}");
            group.outcomes[entry] = Some(CheckOutcome::after_failure(error, retries_taken, &pipeline.retry));
        }
    }
}

/// Work that sets pending rows of payments to a status.
struct RowUpdate<'a> {
    source: &'a dyn PaymentSource,
    to: RowStatus,
}

#[async_trait]
impl Work for RowUpdate<'_> {
    type Item = PaymentId;
    type Done = ();

    async fn attempt(&self, batch: Arc<[PaymentId]>) -> Result<Vec<()>, BatchError> {
        let each = vec![(); batch.len()];
        self.source.set(batch, self.to).await.map(|()| each)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.source.probe_set().await
    }
}
