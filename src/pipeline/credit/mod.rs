//! One batch of points messages from arrival to settlement.
//!
//! [`CreditPipeline::process`] is the whole way: [`CreditPipeline::commit`] and then [`CreditPipeline::finish`]. The next
//! batch may commit while this one finishes. At every `await` the process may die, and the message comes again: before
//! the commit nothing happened; after it the message is a duplicate whose check is scheduled again; after a check message
//! or a copy is confirmed there may be a second one. Nothing is settled before its effect is durable and its check is
//! scheduled.

mod commit;
mod decided;

use super::ports::{CreditLedger, Deliveries, FirstChecks, Message};
use crate::{
    domain::{
        check_message::{Limits, Writer},
        check_schedule::CheckDelay,
        component::Component,
        credit::Credit,
        failure::Outage,
        message::Format,
        outcome::Outcome,
        retry::RetryPolicy,
    },
    observe::events::{self, Event as _},
    pipeline::{
        batch::run_bisecting,
        forward,
        locked_rows::LockedRows,
        work::{BatchContext, Interrupted, ItemResult},
    },
};
use commit::Commit;
pub use decided::Decided;
use std::{sync::Arc, time::SystemTime};

/// What stands between a delivered message and the ledger. Shared by all workers.
pub struct CreditPipeline {
    /// Which queue it works on: the credit queue, or that of a source.
    pub component: Component,
    /// How bodies look.
    pub format: Format,
    /// Where credits go.
    pub ledger: Arc<dyn CreditLedger>,
    /// Rows of the ledger that are known to be locked.
    pub locked: Arc<LockedRows>,
    /// How often a batch is tried before it is split, and a message that fails alone: at least 1
    /// (`retry.immediate_attempts`).
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone (`retry.delays`).
    pub retry: RetryPolicy,
    /// How checks are scheduled; `None` without a payment source.
    pub checks: Option<CheckScheduling>,
}

/// How the checks of credits are scheduled.
#[derive(Debug, Clone, Copy)]
pub struct CheckScheduling {
    /// The wait before the first check.
    pub wait: CheckDelay,
    /// How large a check message may be.
    pub limits: Limits,
}

/// Messages whose outcomes are durable in the ledger, and that are not settled yet. Several batches may be put together.
pub struct Committed<M> {
    /// Each message with its outcome.
    pub decided: Vec<Decided<M>>,
    /// What has no outcome, because the ledger is down or the worker was told to stop.
    pub undecided: Vec<M>,
    /// What is down.
    pub outage: Option<Outage>,
    /// The credits of each batch, and which of them are to be checked.
    to_be_checked: Vec<(Arc<[Credit]>, Vec<usize>)>,
}

impl<M> Default for Committed<M> {
    fn default() -> Self {
        Self { decided: Vec::new(), undecided: Vec::new(), outage: None, to_be_checked: Vec::new() }
    }
}

impl<M> Committed<M> {
    /// Adds the batch that was committed after these.
    pub fn extend(&mut self, later: Self) {
        if self.is_empty() {
            *self = later;
            return;
        }
        self.decided.extend(later.decided);
        self.undecided.extend(later.undecided);
        self.outage = self.outage.take().or(later.outage);
        self.to_be_checked.extend(later.to_be_checked);
    }

    /// How many messages there are.
    pub fn len(&self) -> usize {
        self.decided.len() + self.undecided.len()
    }

    /// Whether there is nothing to finish.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.outage.is_none()
    }

    /// Whether a message among them has an outcome that the ledger gave.
    pub fn reached_the_ledger(&self) -> bool {
        self.decided.iter().any(|decided| match decided.outcome {
            Outcome::Credited | Outcome::Duplicate { .. } | Outcome::Conflict(_) | Outcome::Rejected(_) => true,
            Outcome::Malformed(_) | Outcome::Retry { .. } | Outcome::Exhausted { .. } => false,
        })
    }

    /// The messages, when they cannot be settled any more.
    pub fn into_messages(self) -> impl Iterator<Item = M> {
        self.decided.into_iter().map(|decided| decided.message).chain(self.undecided)
    }
}

/// Messages, their credits in the same order, and the messages from which nothing could be read.
type Parsed<M> = (Vec<M>, Arc<[Credit]>, Vec<Decided<M>>);

impl CreditPipeline {
    /// Takes `batch` the whole way. Each message ends as if it had come alone. What is left undone is handed back, the
    /// rest is settled.
    pub async fn process<D: Deliveries>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        context: &BatchContext<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let committed = self.commit(batch, context).await;
        self.finish(deliveries, committed, context).await
    }

    /// The first half: parse and commit.
    pub async fn commit<M: Message>(&self, batch: Vec<M>, context: &BatchContext<'_>) -> Committed<M> {
        let (messages, credits, malformed) = self.parse(batch);
        let is_last = messages.iter().map(|message| self.retry.next(message.retries_taken()).is_none()).collect();
        let work = Commit { component: self.component, ledger: &*self.ledger, locked: &self.locked, is_last };
        let (results, outage) = run_bisecting(&work, &credits, self.immediate_attempts, context).await;
        let mut committed = Committed { outage, ..Committed::default() };
        committed.decided.reserve(messages.len());
        let mut to_be_checked = Vec::new();
        for (index, (message, result)) in messages.into_iter().zip(results).enumerate() {
            let outcome = match result {
                ItemResult::Undecided => {
                    committed.undecided.push(message);
                    continue;
                }
                ItemResult::Done(verdict) => verdict.into(),
                ItemResult::Rejected(reason) => Outcome::Rejected(reason),
                ItemResult::Failed(error) => Outcome::after_failure(error, message.retries_taken(), &self.retry),
            };
            if outcome.schedules_check() {
                to_be_checked.push(index);
            }
            let payment_id = || Some(credits[index].payment_id.clone());
            committed.decided.push(Decided::new(message, outcome, payment_id));
        }
        committed.decided.extend(malformed);
        committed.to_be_checked.push((credits, to_be_checked));
        committed
    }

    /// The second half: schedule the checks, forward what is not done with, settle.
    pub async fn finish<D: Deliveries>(
        &self,
        deliveries: &D,
        committed: Committed<D::Message>,
        context: &BatchContext<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let Committed { decided, undecided: mut unsettled, outage, to_be_checked } = committed;
        let first_checks = self.first_checks(&to_be_checked);
        if let Err(broker) = forward::schedule(deliveries, &first_checks, context).await {
            unsettled.extend(decided.into_iter().map(|decided| decided.message));
            return Interrupted::unless_done(outage.or(Some(broker)), unsettled);
        }
        let forwarded = decided::forward(deliveries, decided, context).await;
        context.heartbeat.beat();
        self.report(&forwarded.decided);
        deliveries.settle(forwarded.decided.into_iter().map(|decided| decided.message).collect()).await;
        unsettled.extend(forwarded.undecided);
        Interrupted::unless_done(outage.or(forwarded.outage), unsettled)
    }

    /// Reads every body in the credit format.
    fn parse<M: Message>(&self, batch: Vec<M>) -> Parsed<M> {
        let (mut messages, mut credits) = (Vec::with_capacity(batch.len()), Vec::with_capacity(batch.len()));
        let mut malformed = Vec::new();
        for message in batch {
            match self.format.parse(message.body()) {
                Ok(credit) => {
                    messages.push(message);
                    credits.push(credit);
                }
                Err(error) => {
                    let payment_id = self.format.readable_payment_id(message.body());
                    malformed.push(Decided::new(message, Outcome::Malformed(error), || payment_id));
                }
            }
        }
        (messages, credits.into(), malformed)
    }

    /// The check messages for these credits, one check for each payment.
    fn first_checks(&self, to_be_checked: &[(Arc<[Credit]>, Vec<usize>)]) -> Vec<FirstChecks> {
        let Some(CheckScheduling { wait, limits }) = self.checks else { return Vec::new() };
        let mut credits: Vec<&Credit> =
            to_be_checked.iter().flat_map(|(credits, indices)| indices.iter().map(|index| &credits[*index])).collect();
        // Of several messages of one payment the first one counted: the order of the others stays.
        credits.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
        credits.dedup_by(|later, first| later.payment_id == first.payment_id);
        let mut writer = Writer::new(limits);
        for Credit { payment_id, user_id, points } in credits {
            writer.push_claim(payment_id, user_id, *points);
        }
        writer.finish().into_iter().map(|body| FirstChecks { wait, body }).collect()
    }

    /// Counts and logs every message that is about to be settled.
    fn report<M: Message>(&self, done: &[Decided<M>]) {
        let now = SystemTime::now();
        let ages = done.iter().filter_map(|decided| Some(now.duration_since(decided.message.sent_at()?)));
        events::CreditsSettled {
            component: self.component,
            outcomes: done.iter().map(|decided| &decided.outcome),
            ages,
        }
        .emit();
        for copy in done.iter().filter_map(Decided::forward) {
            forward::log_forward(&copy, &self.retry);
        }
    }
}

#[cfg(test)]
mod tests;
