//! Check messages, or notifications, from arrival to settlement: parse, mark paid, look up, apply (judge, close, commit),
//! forward, settle. (Only notifications mark a payment's row as paid, or close it.)
//!
//! [`CheckPipeline::process`] is the whole way. At every `await` the process may die, and the message comes again: every
//! step leaves the ledger the same when it is done twice, and a copy for a later check may be there twice.

mod apply;
pub mod brake;
mod commit;
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
use look_up::{LookedUp, Unanswered, distinct_payment_ids};
use parse::Batch;
pub use pipeline::CheckPipeline;
use std::{
    cmp::Reverse,
    pin::pin,
    time::{Duration, Instant, SystemTime},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// How long a batch is worked on. What has no outcome by then goes to the end of the check queue.
pub const DECIDING_TIME: Duration = Duration::from_secs(60);

/// How long answers are gathered before those that have come are committed.
const GATHERING: Duration = Duration::from_millis(100);

/// Attempts at entries of which the source says something else each time.
const PASSES: usize = 3;

impl CheckPipeline {
    /// Takes `batch` the whole way. Each check ends as if it had come alone. What is left undone is handed back, the
    /// rest is settled.
    pub async fn process<D: Deliveries>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        context: &BatchContext<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let mut batch = parse::parse(self, batch);
        let decided = self.decide(&mut batch, context).await;
        context.heartbeat.beat();
        let Forwarded { done, outage } = if self.is_arrival() {
            forward::forward_arrivals(self, deliveries, &batch, context).await
        } else {
            let concluded = concluded(&batch, decided.is_none() && !context.stop.is_cancelled());
            forward::forward_copies(self, deliveries, &batch, &concluded, context).await
        };
        context.heartbeat.beat();
        if decided.as_ref().is_none_or(|outage| outage.dependency != Dependency::Ledger) {
            apply::note_parked(self, &batch, &done, context).await;
        }
        self.report(&batch, &done);
        let (settled, unsettled): (Vec<_>, Vec<_>) =
            batch.deliveries.into_iter().zip(done).partition(|(_, done)| *done);
        let messages =
            |held: Vec<(parse::Held<D::Message>, bool)>| held.into_iter().map(|(held, _)| held.message).collect();
        deliveries.settle(messages(settled)).await;
        Interrupted::unless_done(decided.or(outage).or_else(|| self.brake.engaged()), messages(unsettled))
    }

    /// Finds an outcome for every entry, as far as there is time. What is down.
    async fn decide<M: Message>(&self, batch: &mut Batch<M>, context: &BatchContext<'_>) -> Option<Outage> {
        let until = Instant::now() + DECIDING_TIME;
        let together = self.limits.entries.max(1);
        for _ in 0..PASSES {
            let groups = batch.entries.chunks(together).zip(batch.outcomes.chunks_mut(together));
            for (entries, outcomes) in groups {
                if context.stop.is_cancelled() || Instant::now() > until {
                    break;
                }
                let mut group = Group { entries, outcomes };
                if group.open().next().is_none() {
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

    /// Asks for the payments of a group; answers are applied in groups as they come, while others are still asked for.
    async fn look_up_and_apply(
        &self,
        group: &mut Group<'_>,
        until: Instant,
        context: &BatchContext<'_>,
    ) -> Option<Outage> {
        let payments = distinct_payment_ids(group.open());
        let (sender, receiver) = mpsc::unbounded_channel();
        // A look-up ends with the worker: what was answered by then is applied.
        let asking = context.stop.run_until_cancelled(look_up::ask(self, &payments, until, sender, context));
        let (mut asking, mut asked, mut applied) = (pin!(asking), None, None);
        {
            let mut applying = pin!(self.apply_as_they_come(group, &payments, receiver, context));
            while applied.is_none() {
                tokio::select! {
                    biased;
                    outage = &mut applying => applied = Some(outage),
                    left = &mut asking, if asked.is_none() => asked = Some(left),
                }
            }
        }
        // When applying has met an outage nothing more is asked.
        let Unanswered { failed, outage } = asked.flatten().unwrap_or_default();
        for (index, error) in failed {
            for entry in group.open_of(&payments[index]) {
                let retries_taken = group.entries[entry].retries_taken;
                group.outcomes[entry] = Some(CheckOutcome::after_failure(error.clone(), retries_taken, &self.retry));
            }
        }
        applied.flatten().or(outage)
    }

    async fn apply_as_they_come(
        &self,
        group: &mut Group<'_>,
        payments: &[PaymentId],
        mut answers: UnboundedReceiver<LookedUp>,
        context: &BatchContext<'_>,
    ) -> Option<Outage> {
        // The entries of each payment, by the payment's index.
        let mut entries_of: Vec<(usize, usize)> = Vec::with_capacity(group.entries.len());
        for (entry, asked) in group.entries.iter().enumerate().filter(|(entry, _)| group.outcomes[*entry].is_none()) {
            let payment = asked.check().and_then(|check| payments.binary_search(&check.payment_id).ok());
            entries_of.extend(payment.map(|payment| (payment, entry)));
        }
        entries_of.sort_unstable();
        while let Some(first) = answers.recv().await {
            let gathered_at = first.at + GATHERING;
            let mut found = vec![first];
            while found.len() < self.limits.entries {
                match tokio::time::timeout_at(gathered_at.into(), answers.recv()).await {
                    Ok(Some(another)) => found.push(another),
                    Ok(None) | Err(_) => break,
                }
            }
            context.heartbeat.beat();
            let mut of_entries = Vec::with_capacity(found.len());
            for LookedUp { index, payment, at } in found {
                let begin = entries_of.partition_point(|(payment, _)| *payment < index);
                let these = entries_of[begin..].iter().take_while(|(payment, _)| *payment == index);
                let open = these.filter(|(_, entry)| group.outcomes[*entry].is_none());
                of_entries.extend(open.map(|(_, entry)| (*entry, LookedUp { index, payment: payment.clone(), at })));
            }
            // Answered twice after a part of a look-up failed: the last answer counts.
            of_entries.sort_by_key(|(entry, found): &(usize, LookedUp)| (*entry, Reverse(found.at)));
            of_entries.dedup_by_key(|(entry, _)| *entry);
            let outage = apply::apply(self, group, of_entries, context).await;
            if outage.is_some() {
                return outage;
            }
        }
        None
    }

    /// Counts and logs every delivery that is about to be settled.
    fn report<M: Message>(&self, batch: &Batch<M>, done: &[bool]) {
        let settled = || batch.deliveries.iter().zip(done).filter(|(_, done)| **done).map(|(held, _)| held);
        let entries = || settled().flat_map(|held| held.entries.clone());
        let outcomes = entries().filter_map(|entry| batch.outcomes[entry].as_ref());
        let now = SystemTime::now();
        let ages = settled().filter_map(|held| Some(now.duration_since(held.message.sent_at()?)));
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

/// Which deliveries may be settled when their copies are confirmed: with an outcome for every entry, or, when only the time
/// was up, for some of them. Anything else goes back whole.
fn concluded<M>(batch: &Batch<M>, only_late: bool) -> Vec<bool> {
    let concluded = |held: &parse::Held<M>| {
        let decided = batch.outcomes[held.entries.clone()].iter().filter(|outcome| outcome.is_some()).count();
        decided == held.entries.len() || (only_late && decided > 0)
    };
    batch.deliveries.iter().map(concluded).collect()
}

#[cfg(test)]
mod tests;
