//! Publishing the copies of check messages, and the first checks and copies of notifications.

use super::{copies, copies::CheckCopy, parse::Batch};
use crate::{
    domain::{
        check_outcome::CheckOutcome,
        failure::Outage,
        retry::RetryPolicy,
        settlement::{Destination, Settlement},
    },
    pipeline::{
        check::pipeline::CheckPipeline,
        forward,
        ports::{CONFIRMING_TIME, Confirmed, CopyBody, Deliveries, Forward, Message},
        work::BatchContext,
    },
};
use std::{borrow::Cow, time::Instant};

/// The deliveries of a batch that may be settled.
pub(super) struct Forwarded {
    /// For each delivery, whether all of its copies are confirmed.
    pub(super) done: Vec<bool>,
    pub(super) outage: Option<Outage>,
}

impl Forwarded {
    /// Marks the deliveries of these copies to be requeued.
    fn mark_undone(&mut self, copies: &[CheckCopy]) {
        for copy in copies {
            self.done[copy.delivery] = false;
        }
    }
}

/// Publishes the copies of deliveries from the check queue: all copies of a delivery, or none.
///
/// If only some copies of a delivery are confirmed, the others are published again, and finally their entries are
/// copied to the end of the check queue. `concluded` has the deliveries that may be settled.
pub(super) async fn forward_copies<D: Deliveries>(
    pipeline: &CheckPipeline,
    deliveries: &D,
    batch: &Batch<D::Message>,
    concluded: &[bool],
    context: &BatchContext<'_>,
) -> Forwarded {
    let mut forwarded = Forwarded { done: concluded.to_vec(), outage: None };
    let mut open = copies::build_copies(pipeline, batch, concluded);
    // For each delivery, whether one of its copies is confirmed.
    let mut has_confirmed = vec![false; batch.deliveries.len()];
    let begun = Instant::now();
    let mut is_replaced = false;
    while !open.is_empty() {
        let confirmed = match publish_open_copies(pipeline, deliveries, batch, &open, context).await {
            Ok(confirmed) => confirmed,
            Err(outage) => {
                // It is unknown which copies have arrived: deliveries with unconfirmed copies are requeued whole.
                forwarded.mark_undone(&open);
                forwarded.outage = Some(outage);
                break;
            }
        };
        for (copy, _) in open.iter().zip(&confirmed).filter(|(_, confirmed)| confirmed.is_ok()) {
            has_confirmed[copy.delivery] = true;
        }
        let (rest, reason) = forward::find_unconfirmed(&confirmed);
        let Some(reason) = reason else { break };
        // Requeueing a delivery without a confirmed copy duplicates nothing.
        let (partly, none): (Vec<_>, Vec<_>) =
            select_copies(open, &rest).into_iter().partition(|copy| has_confirmed[copy.delivery]);
        open = partly;
        if !none.is_empty() {
            forwarded.mark_undone(&none);
            forwarded.outage.get_or_insert_with(|| reason.clone());
        }
        if open.is_empty() {
            break;
        }
        let in_time = begun.elapsed() < CONFIRMING_TIME && forward::pause_before_retry(context).await;
        if !in_time && is_replaced {
            forwarded.mark_undone(&open);
            forwarded.outage.get_or_insert(reason);
            break;
        }
        if !in_time {
            // This also applies while the worker is stopping: otherwise a dead letter that is already confirmed would
            // be parked a second time.
            is_replaced = true;
            open = copies::replace_with_check_queue_copies(pipeline, open, batch);
        }
    }
    forwarded
}

/// Publishes copies once and logs the confirmed ones.
async fn publish_open_copies<D: Deliveries>(
    pipeline: &CheckPipeline,
    deliveries: &D,
    batch: &Batch<D::Message>,
    open: &[CheckCopy],
    context: &BatchContext<'_>,
) -> Result<Confirmed, Outage> {
    let copies: Vec<_> = open.iter().map(|copy| copy.forward(&batch.deliveries[copy.delivery].message)).collect();
    let confirmed = forward::publish_copies(deliveries, &copies, context).await?;
    log_confirmed(&copies, &confirmed, &pipeline.retry);
    Ok(confirmed)
}

/// Publishes the first checks and the copies of notifications.
pub(super) async fn forward_arrivals<D: Deliveries>(
    pipeline: &CheckPipeline,
    deliveries: &D,
    batch: &Batch<D::Message>,
    context: &BatchContext<'_>,
) -> Forwarded {
    let mut forwarded = Forwarded { done: batch.outcomes.iter().map(Option::is_some).collect(), outage: None };
    let first_checks = copies::build_first_checks(pipeline, batch);
    if let Err(outage) = forward::publish_first_checks(deliveries, &first_checks, context).await {
        let is_scheduled = |index: &usize| matches!(destination(batch, *index), Some(Destination::Check(_)));
        for index in (0..batch.outcomes.len()).filter(is_scheduled) {
            forwarded.done[index] = false;
        }
        forwarded.outage = Some(outage);
    }
    let (indices, copies): (Vec<usize>, Vec<_>) = build_arrival_copies(batch).into_iter().unzip();
    match forward::publish_copies(deliveries, &copies, context).await {
        Err(outage) => {
            for index in indices {
                forwarded.done[index] = false;
            }
            forwarded.outage.get_or_insert(outage);
        }
        Ok(confirmed) => {
            for (index, confirmed) in indices.iter().zip(&confirmed) {
                if let Err(reason) = confirmed {
                    forwarded.done[*index] = false;
                    forwarded.outage.get_or_insert_with(|| forward::broker_outage(reason));
                }
            }
            log_confirmed(&copies, &confirmed, &pipeline.retry);
        }
    }
    forwarded
}

/// Returns the destination of an entry that is forwarded.
fn destination<M>(batch: &Batch<M>, index: usize) -> Option<Destination> {
    match batch.outcomes[index].as_ref().map(CheckOutcome::settlement) {
        Some(Settlement::Forward(to)) => Some(to),
        Some(Settlement::Ack) | None => None,
    }
}

/// Builds the copies of notifications that are parked or retried, with the indices of their deliveries. Each delivery
/// has one entry.
fn build_arrival_copies<M>(batch: &Batch<M>) -> Vec<(usize, Forward<'_, M>)> {
    let mut copies = Vec::new();
    for (index, delivery) in batch.deliveries.iter().enumerate() {
        let (Some(to @ (Destination::Dead(_) | Destination::Retry(_))), Some(outcome)) =
            (destination(batch, index), &batch.outcomes[index])
        else {
            continue;
        };
        let copy = Forward {
            message: &delivery.message,
            payment_id: batch.entries[index].payment_id(),
            to,
            error: outcome.error().map(Cow::Borrowed),
            recorded: None,
            body: CopyBody::Original,
        };
        copies.push((index, copy));
    }
    copies
}

/// Returns the copies with these indices, which are sorted.
fn select_copies(copies: Vec<CheckCopy>, indices: &[usize]) -> Vec<CheckCopy> {
    let is_selected = |index: &usize| indices.binary_search(index).is_ok();
    copies.into_iter().enumerate().filter(|(index, _)| is_selected(index)).map(|(_, copy)| copy).collect()
}

fn log_confirmed<M: Message>(copies: &[Forward<'_, M>], confirmed: &Confirmed, retry: &RetryPolicy) {
    for (copy, _) in copies.iter().zip(confirmed).filter(|(_, confirmed)| confirmed.is_ok()) {
        forward::log_forward(copy, retry);
    }
}
