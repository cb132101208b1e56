//! The path of a batch of points messages from arrival to settlement.
//!
//! [`CreditPipeline::process`] is the whole path: [`CreditPipeline::commit`] and then [`CreditPipeline::finish`]. The
//! next batch may commit while this one finishes. The process may die at every `await`, and the messages are then
//! delivered again. Before the commit, this changes nothing. After the commit, a message is a duplicate, and its check
//! is scheduled again. After a check message or a copy is confirmed, it may be published a second time. A message is
//! settled only after its effect is durable and its check is scheduled.

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
use commit::CreditTransaction;
pub use decided::Decided;
use std::{sync::Arc, time::SystemTime};

/// The pipeline from a delivered points message to the ledger. All workers share it.
pub struct CreditPipeline {
    /// The component whose queue the pipeline processes.
    pub component: Component,
    /// The format of the bodies.
    pub format: Format,
    /// The ledger that receives the credits.
    pub ledger: Arc<dyn CreditLedger>,
    /// The rows of the ledger that are known to be locked.
    pub locked: Arc<LockedRows>,
    /// Number of attempts at a batch before it is split, and at a message that fails alone; at least 1
    /// (`retry.immediate_attempts`).
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone (`retry.delays`).
    pub retry: RetryPolicy,
    /// The scheduling of checks; `None` without a payment source.
    pub checks: Option<CheckScheduling>,
}

/// The scheduling of the checks of credits.
#[derive(Debug, Clone, Copy)]
pub struct CheckScheduling {
    /// The delay before the first check.
    pub wait: CheckDelay,
    /// The maximum size of a check message.
    pub limits: Limits,
}

/// Messages whose outcomes are durable in the ledger and that are not settled yet. Several batches can be combined.
pub struct Committed<M> {
    /// The messages with their outcomes.
    pub decided: Vec<Decided<M>>,
    /// The messages without an outcome, because the ledger is down or the worker was stopped.
    pub undecided: Vec<M>,
    /// The outage that interrupted the batch.
    pub outage: Option<Outage>,
    /// The credits of each batch, and the indices of those that must be checked.
    to_be_checked: Vec<(Arc<[Credit]>, Vec<usize>)>,
}

impl<M> Default for Committed<M> {
    fn default() -> Self {
        Self { decided: Vec::new(), undecided: Vec::new(), outage: None, to_be_checked: Vec::new() }
    }
}

impl<M> Committed<M> {
    /// Appends a batch that was committed later.
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

    /// Returns the number of messages.
    pub fn len(&self) -> usize {
        self.decided.len() + self.undecided.len()
    }

    /// Returns whether there is neither a message nor an outage.
    pub fn is_empty(&self) -> bool {
        self.len() == 0 && self.outage.is_none()
    }

    /// Returns whether a message has an outcome that the ledger has determined.
    pub fn reached_the_ledger(&self) -> bool {
        self.decided.iter().any(|decided| match decided.outcome {
            Outcome::Credited | Outcome::Duplicate { .. } | Outcome::Conflict(_) | Outcome::Rejected(_) => true,
            Outcome::Malformed(_) | Outcome::Retry { .. } | Outcome::Exhausted { .. } => false,
        })
    }

    /// Returns the messages, for the case that they can no longer be settled.
    pub fn into_messages(self) -> impl Iterator<Item = M> {
        self.decided.into_iter().map(|decided| decided.message).chain(self.undecided)
    }
}

/// The readable messages, their credits in the same order, and the malformed messages.
type Parsed<M> = (Vec<M>, Arc<[Credit]>, Vec<Decided<M>>);

impl CreditPipeline {
    /// Commits and settles `batch`. Each message ends as if it had arrived alone. After an interruption, the error
    /// contains the messages that are not settled.
    pub async fn process<D: Deliveries>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        context: &BatchContext<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let committed = self.commit(batch, context).await;
        self.finish(deliveries, committed, context).await
    }

    /// Parses and commits a batch: the first half of the path.
    pub async fn commit<M: Message>(&self, batch: Vec<M>, context: &BatchContext<'_>) -> Committed<M> {
        let (messages, credits, malformed) = self.parse(batch);
        let is_last = messages.iter().map(|message| self.retry.next(message.retries_taken()).is_none()).collect();
        let work =
            CreditTransaction { component: self.component, ledger: &*self.ledger, locked: &self.locked, is_last };
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

    /// Schedules the checks, forwards the copies and settles the messages: the second half of the path.
    pub async fn finish<D: Deliveries>(
        &self,
        deliveries: &D,
        committed: Committed<D::Message>,
        context: &BatchContext<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let Committed { decided, undecided: mut unsettled, outage, to_be_checked } = committed;
        let first_checks = self.build_first_checks(&to_be_checked);
        if let Err(broker) = forward::publish_first_checks(deliveries, &first_checks, context).await {
            unsettled.extend(decided.into_iter().map(|decided| decided.message));
            return Interrupted::unless_done(outage.or(Some(broker)), unsettled);
        }
        let forwarded = decided::forward_decided(deliveries, decided, context).await;
        context.heartbeat.beat();
        self.report_settled(&forwarded.decided);
        deliveries.settle(forwarded.decided.into_iter().map(|decided| decided.message).collect()).await;
        unsettled.extend(forwarded.undecided);
        Interrupted::unless_done(outage.or(forwarded.outage), unsettled)
    }

    /// Parses every body in the credit format.
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

    /// Builds the check messages for these credits, with one check for each payment.
    fn build_first_checks(&self, to_be_checked: &[(Arc<[Credit]>, Vec<usize>)]) -> Vec<FirstChecks> {
        let Some(CheckScheduling { wait, limits }) = self.checks else { return Vec::new() };
        let mut credits: Vec<&Credit> =
            to_be_checked.iter().flat_map(|(credits, indices)| indices.iter().map(|index| &credits[*index])).collect();
        // The first of several messages with the same payment counts: the sort keeps their order.
        credits.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
        credits.dedup_by(|later, first| later.payment_id == first.payment_id);
        let mut writer = Writer::new(limits);
        for Credit { payment_id, user_id, points } in credits {
            writer.push_claim(payment_id, user_id, *points);
        }
        writer.finish().into_iter().map(|body| FirstChecks { wait, body }).collect()
    }

    /// Counts and logs the messages that are about to be settled.
    fn report_settled<M: Message>(&self, done: &[Decided<M>]) {
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
