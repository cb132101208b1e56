//! One batch of points messages from arrival to settlement.
//!
//! [`CreditPipeline::process`] is the whole way. At every `await` the process may die, and the message comes again:
//! before the commit nothing happened; after it the message is a duplicate; after a copy for another queue is confirmed
//! there may be a second copy. Nothing is settled before its effect is durable.

use super::{
    ports::{BatchError, CreditLedger, Decided, Deliveries, Forward, Message, Outage},
    stages::{Fate, Interrupted, Progress, Turn, Work, forward, parse, tell_copies, through},
};
use crate::{
    domain::{
        credit::{Credit, Outcome, Verdict},
        message::Format,
        retry::RetryPolicy,
        settlement::Settlement,
    },
    observe::{events, status::Part},
};
use async_trait::async_trait;
use std::{
    borrow::Cow,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// What stands between a delivered message and the ledger. Shared by all workers.
pub struct CreditPipeline {
    /// Which queue it works on: the credit queue, or that of a source.
    pub part: Part,
    /// How bodies look.
    pub format: Format,
    /// Where credits go.
    pub ledger: Arc<dyn CreditLedger>,
    /// How often a batch is tried before it is split, and a message that fails alone: at least 1
    /// (`retry.immediate_attempts`).
    pub immediate_attempts: u32,
    /// The delayed retries of a message that fails alone (`retry.delays`).
    pub retry: RetryPolicy,
}

impl CreditPipeline {
    /// Takes `batch` the whole way: parse, commit, forward what is not done with, settle. Each message ends as if it
    /// had come alone. What is left undone is handed back, the rest is settled.
    pub async fn process<D: Deliveries<Outcome>>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        turn: &Turn<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let (credits, malformed) = parse(&self.format, batch);
        let committed = self.commit(credits, turn).await;
        turn.pulse.beat();
        let mut decided = committed.decided;
        decided.extend(malformed);
        let forwarded = forward(deliveries, decided, copy, turn).await;
        turn.pulse.beat();
        self.report(&forwarded.decided);
        deliveries.settle(forwarded.decided).await;

        let mut unsettled = committed.undecided;
        unsettled.extend(forwarded.undecided);
        Interrupted::unless_done(committed.outage.or(forwarded.outage), unsettled)
    }

    async fn commit<M: Message>(&self, credits: Vec<(M, Credit)>, turn: &Turn<'_>) -> Progress<M, Outcome> {
        let (messages, credits): (Vec<M>, Vec<Credit>) = credits.into_iter().unzip();
        let credits: Arc<[Credit]> = credits.into();
        let work = Commit(&*self.ledger);
        let (fates, outage) = through(&work, &credits, self.immediate_attempts, turn).await;
        let mut progress = Progress { decided: Vec::with_capacity(messages.len()), undecided: Vec::new(), outage };
        for ((message, credit), fate) in messages.into_iter().zip(&*credits).zip(fates) {
            let outcome = match fate {
                Fate::Open => {
                    progress.undecided.push(message);
                    continue;
                }
                Fate::Done(verdict) => verdict.into(),
                Fate::Refused(reason) => Outcome::Rejected(reason),
                Fate::Failed(error) => Outcome::after_failure(error, message.retries_taken(), &self.retry),
            };
            let told = outcome.settlement() != Settlement::Ack;
            let payment_id = told.then(|| credit.payment_id.clone());
            progress.decided.push(Decided { message, payment_id, outcome });
        }
        progress
    }

    /// Tells of every message that is about to be settled.
    fn report<M: Message>(&self, done: &[Decided<M, Outcome>]) {
        let now = SystemTime::now();
        let ages = done.iter().filter_map(|decided| now.duration_since(decided.message.sent_at()?).ok());
        events::CreditsSettled { part: self.part, outcomes: done.iter().map(|decided| &decided.outcome), ages }.emit();
        tell_copies(done.iter().filter_map(copy), &self.retry);
    }
}

/// A transaction of the ledger.
struct Commit<'a>(&'a dyn CreditLedger);

#[async_trait]
impl Work for Commit<'_> {
    type Item = Credit;
    type Done = Verdict;

    async fn attempt(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, BatchError> {
        let begun = Instant::now();
        let verdicts = self.0.credit(Arc::clone(&batch)).await?;
        events::BatchCommitted { credits: &batch, verdicts: &verdicts, took: begun.elapsed() }.emit();
        Ok(verdicts)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.0.probe().await
    }
}

/// The copy for another queue, for outcomes that ask for one.
fn copy<M>(decided: &Decided<M, Outcome>) -> Option<Forward<'_, M>> {
    let Settlement::Forward(to) = decided.outcome.settlement() else { return None };
    let mut standing = None;
    let error = match &decided.outcome {
        Outcome::Credited | Outcome::Duplicate => return None,
        Outcome::Conflict(version) => {
            standing = Some(version);
            Cow::Borrowed("the payment is in the ledger with another user or other points")
        }
        Outcome::Malformed(malformed) => Cow::Owned(malformed.to_string()),
        Outcome::Rejected(error) | Outcome::Retry { error, .. } | Outcome::Exhausted { error } => {
            Cow::Borrowed(error.as_str())
        }
    };
    let error = Some(error);
    Some(Forward { message: &decided.message, payment_id: decided.payment_id.as_ref(), to, error, standing })
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;
