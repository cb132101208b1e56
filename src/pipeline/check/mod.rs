//! The path of check messages and notifications from arrival to settlement: parse, mark paid, look up, apply
//! (interpret, close, commit), forward, settle. Only notifications set the row of a payment to paid or closed.
//!
//! [`CheckPipeline::process`] is the whole path. The process may die at every `await`, and the messages are then
//! delivered again: repeating a step leaves the ledger unchanged, and a copy for a later check may be published twice.

mod apply;
pub mod brake;
mod commit;
mod copies;
mod forward;
mod group;
mod look_up;
mod parse;
mod payment_rows;
mod pipeline;

use super::ports::{Deliveries, Message};
use crate::{
    domain::{
        check_outcome::CheckOutcome,
        failure::{Dependency, Outage},
        ids::PaymentId,
    },
    observe::events::{self, Event as _},
    pipeline::work::{BatchContext, Interrupted},
};
use forward::Forwarded;
use group::Group;
use look_up::{PaymentAnswer, Unanswered, distinct_payment_ids};
use parse::{Batch, ParsedDelivery};
pub use pipeline::CheckPipeline;
use std::{
    cmp::Reverse,
    pin::pin,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// Time limit for deciding a batch. Checks without an outcome by then are copied to the end of the check queue.
pub const DECIDING_TIME: Duration = Duration::from_secs(60);

/// Time for which answers are gathered before they are committed.
const GATHERING_TIME: Duration = Duration::from_millis(100);

/// Maximum number of passes over entries whose answers change each time.
const MAX_PASSES: usize = 3;

impl CheckPipeline {
    /// Processes and settles `batch`. Each check ends as if it had arrived alone. After an interruption, the error
    /// contains the messages that are not settled.
    pub async fn process<D: Deliveries>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        context: &BatchContext<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let mut batch = parse::parse_batch(self, batch);
        let decided = self.decide_batch(&mut batch, context).await;
        context.heartbeat.beat();
        let Forwarded { done, outage } = if self.is_arrival() {
            forward::forward_arrivals(self, deliveries, &batch, context).await
        } else {
            let concluded = find_concluded(&batch, decided.is_none() && !context.stop.is_cancelled());
            forward::forward_copies(self, deliveries, &batch, &concluded, context).await
        };
        context.heartbeat.beat();
        if decided.as_ref().is_none_or(|outage| outage.dependency != Dependency::Ledger) {
            apply::note_parked(self, &batch, &done, context).await;
        }
        self.report_settled(&batch, &done);
        let (settled, unsettled): (Vec<_>, Vec<_>) =
            batch.deliveries.into_iter().zip(done).partition(|(_, done)| *done);
        let messages = |deliveries: Vec<(ParsedDelivery<D::Message>, bool)>| {
            deliveries.into_iter().map(|(delivery, _)| delivery.message).collect()
        };
        deliveries.settle(messages(settled)).await;
        Interrupted::unless_done(decided.or(outage).or_else(|| self.brake.engaged()), messages(unsettled))
    }

    /// Finds outcomes for the entries within [`DECIDING_TIME`]. Returns the outage that interrupted it.
    async fn decide_batch<M: Message>(&self, batch: &mut Batch<M>, context: &BatchContext<'_>) -> Option<Outage> {
        let until = Instant::now() + DECIDING_TIME;
        let together = self.limits.entries.max(1);
        for _ in 0..MAX_PASSES {
            let groups = batch.entries.chunks(together).zip(batch.outcomes.chunks_mut(together));
            for (entries, outcomes) in groups {
                if context.stop.is_cancelled() || Instant::now() > until {
                    break;
                }
                let mut group = Group { entries, outcomes };
                if group.open_entries().next().is_none() {
                    continue;
                }
                match payment_rows::mark_paid(self, &mut group, context).await {
                    Err(outage) => return Some(outage),
                    Ok(false) => continue,
                    Ok(true) => {}
                }
                let outage = self.look_up_and_apply(&mut group, until, context).await;
                if outage.is_some() {
                    return outage;
                }
            }
            if batch.outcomes.iter().all(Option::is_some) {
                break;
            }
        }
        None
    }

    /// Looks up the payments of a group. Answers are applied in groups as they arrive, while the look-up continues.
    /// Returns the outage that interrupted it.
    async fn look_up_and_apply(
        &self,
        group: &mut Group<'_>,
        until: Instant,
        context: &BatchContext<'_>,
    ) -> Option<Outage> {
        let payments = distinct_payment_ids(group.open_entries());
        let (sender, receiver) = mpsc::unbounded_channel();
        // The look-up ends when the worker is stopped; the answers that have arrived are applied.
        let looking_up = look_up::look_up_payments(self, &payments, until, sender, context);
        let looking_up = context.stop.run_until_cancelled(looking_up);
        let (mut looking_up, mut looked_up, mut applied) = (pin!(looking_up), None, None);
        {
            let mut applying = pin!(self.apply_answers(group, &payments, receiver, context));
            while applied.is_none() {
                tokio::select! {
                    biased;
                    outage = &mut applying => applied = Some(outage),
                    unanswered = &mut looking_up, if looked_up.is_none() => looked_up = Some(unanswered),
                }
            }
        }
        // After an outage in `apply_answers` the look-up is abandoned.
        let Unanswered { failed, outage } = looked_up.flatten().unwrap_or_default();
        for (index, error) in failed {
            for entry in group.open_entries_of(&payments[index]) {
                let retries_taken = group.entries[entry].retries_taken;
                group.outcomes[entry] = Some(CheckOutcome::after_failure(error.clone(), retries_taken, &self.retry));
            }
        }
        applied.flatten().or(outage)
    }

    /// Applies the answers in groups as they arrive. Returns the outage that interrupted it.
    async fn apply_answers(
        &self,
        group: &mut Group<'_>,
        payments: &[PaymentId],
        mut answers: UnboundedReceiver<PaymentAnswer>,
        context: &BatchContext<'_>,
    ) -> Option<Outage> {
        // Pairs of payment index and entry index, sorted.
        let mut entries_of: Vec<(usize, usize)> = Vec::with_capacity(group.entries.len());
        for (entry, request) in group.entries.iter().enumerate().filter(|(entry, _)| group.outcomes[*entry].is_none()) {
            let payment = request.check().and_then(|check| payments.binary_search(&check.payment_id).ok());
            entries_of.extend(payment.map(|payment| (payment, entry)));
        }
        entries_of.sort_unstable();
        while let Some(first) = answers.recv().await {
            let gathered_at = first.at + GATHERING_TIME;
            let mut found = vec![first];
            while found.len() < self.limits.entries {
                match tokio::time::timeout_at(gathered_at.into(), answers.recv()).await {
                    Ok(Some(another)) => found.push(another),
                    Ok(None) | Err(_) => break,
                }
            }
            context.heartbeat.beat();
            let mut of_entries = Vec::with_capacity(found.len());
            for PaymentAnswer { index, payment, at } in found {
                let begin = entries_of.partition_point(|(payment, _)| *payment < index);
                let these = entries_of[begin..].iter().take_while(|(payment, _)| *payment == index);
                let open = these.filter(|(_, entry)| group.outcomes[*entry].is_none());
                of_entries
                    .extend(open.map(|(_, entry)| (*entry, PaymentAnswer { index, payment: payment.clone(), at })));
            }
            // A payment has two answers if a part of a look-up failed; the last answer counts.
            of_entries.sort_by_key(|(entry, found): &(usize, PaymentAnswer)| (*entry, Reverse(found.at)));
            of_entries.dedup_by_key(|(entry, _)| *entry);
            let outage = apply::apply_answers(self, group, of_entries, context).await;
            if outage.is_some() {
                return outage;
            }
        }
        None
    }

    /// Counts and logs the deliveries that are about to be settled.
    fn report_settled<M: Message>(&self, batch: &Batch<M>, done: &[bool]) {
        let settled = || batch.deliveries.iter().zip(done).filter(|(_, done)| **done).map(|(delivery, _)| delivery);
        let entries = || settled().flat_map(|delivery| delivery.entries.clone());
        let outcomes = entries().filter_map(|entry| batch.outcomes[entry].as_ref());
        let now = SystemTime::now();
        let ages = settled().filter_map(|delivery| Some(now.duration_since(delivery.message.sent_at()?)));
        events::ChecksSettled { component: self.component, outcomes, ages }.emit();
        for entry in entries().filter(|entry| self.is_arrival() || batch.entries[*entry].kind().is_some()) {
            if let (Some(payment_id), Some(outcome)) =
                (batch.entries[entry].payment_id(), batch.outcomes[entry].as_ref())
            {
                events::NotificationWithoutEffect { component: self.component, payment_id, outcome }.emit();
            }
        }
    }
}

/// Returns for each delivery whether it may be settled after its copies are confirmed: if every entry has an outcome,
/// or, if only the time limit was reached, at least one entry. All other deliveries are requeued whole.
fn find_concluded<M>(batch: &Batch<M>, timed_out: bool) -> Vec<bool> {
    let is_concluded = |delivery: &ParsedDelivery<M>| {
        let decided = batch.outcomes[delivery.entries.clone()].iter().filter(|outcome| outcome.is_some()).count();
        decided == delivery.entries.len() || (timed_out && decided > 0)
    };
    batch.deliveries.iter().map(is_concluded).collect()
}

#[cfg(test)]
mod tests;
