//! Setting the rows of payments: to paid, because a notification says so; to closed, because their time is up. Both are
//! guarded: a row that is not pending any more stays as it is, and what it says then counts.

use super::look_up::{distinct_payment_ids, look_up_once};
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
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long looking up what was closed may take.
const LOOKING_AGAIN: Duration = Duration::from_secs(5);

/// Sets the rows to paid of those payments whose notification says so. Whether a row was there, and what it says, is
/// found by looking it up. `false`: there was no time for all of them.
pub(super) async fn mark_paid(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    context: &BatchContext<'_>,
) -> Result<bool, Outage> {
    let says_paid = group.open().filter(|entry| entry.kind() == Some(NotificationKind::Paid));
    let payments = distinct_payment_ids(says_paid);
    if payments.is_empty() {
        return Ok(true);
    }
    let (results, outage) = set_rows(pipeline, &payments, RowStatus::Paid, context).await;
    note_failures(pipeline, group, &payments, &results);
    outage.map_or(Ok(!results.contains(&ItemResult::Undecided)), Err)
}

/// Closes those payments that are pending when their time is up, and looks at them again: what became paid at that very
/// moment wins.
pub(super) async fn close_unpaid(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    late: Vec<usize>,
    candidates: &mut Vec<Candidate>,
    context: &BatchContext<'_>,
) -> Option<Outage> {
    let payments = distinct_payment_ids(late.iter().map(|entry| &group.entries[*entry]));
    let (results, outage) = set_rows(pipeline, &payments, RowStatus::Closed, context).await;
    note_failures(pipeline, group, &payments, &results);
    if outage.is_some() {
        return outage;
    }
    context.heartbeat.beat();
    let until = Instant::now() + LOOKING_AGAIN;
    // What is not answered stays open: the next turn finds it closed.
    let answers = match look_up_once(&*pipeline.source, &payments, until).await {
        Ok(answers) => answers,
        Err(outage) => return Some(outage),
    };
    for entry in late {
        let check = group.entries[entry].check();
        let index = check.and_then(|check| payments.binary_search(&check.payment_id).ok());
        let answer = index.and_then(|index| answers.get(index)?.clone());
        let (Some((payment, at)), None) = (answer, &group.outcomes[entry]) else { continue };
        let mut still_pending = Vec::new();
        group.sort_in(entry, payment, at, candidates, &mut still_pending);
        for entry in still_pending {
            let error = "it was not paid in time, but its record cannot be set to closed".to_owned();
            let outcome = CheckOutcome::Parked { status: PaymentStatus::Pending, reason: Reason::Expired, error };
            group.outcomes[entry] = Some(outcome);
        }
    }
    None
}

async fn set_rows(
    pipeline: &CheckPipeline,
    payments: &Arc<[PaymentId]>,
    to: RowStatus,
    context: &BatchContext<'_>,
) -> (Vec<ItemResult<()>>, Option<Outage>) {
    let work = Set { source: &*pipeline.source, to };
    run_bisecting(&work, payments, pipeline.immediate_attempts, context).await
}

/// Decides the entries of payments whose rows could not be set.
fn note_failures(pipeline: &CheckPipeline, group: &mut Group<'_>, payments: &[PaymentId], results: &[ItemResult<()>]) {
    for (payment, result) in payments.iter().zip(results) {
        let (ItemResult::Failed(error) | ItemResult::Rejected(error)) = result else { continue };
        for entry in group.open_of(payment) {
            let retries_taken = group.entries[entry].retries_taken;
            let error = format!("the payment's row could not be set: {error}");
            group.outcomes[entry] = Some(CheckOutcome::after_failure(error, retries_taken, &pipeline.retry));
        }
    }
}

/// The guarded update.
struct Set<'a> {
    source: &'a dyn PaymentSource,
    to: RowStatus,
}

#[async_trait]
impl Work for Set<'_> {
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
