//! One batch of points messages from arrival to settlement.
//!
//! [`CreditPipeline::process`] is the whole way. At every `await` the process may die, and the message comes again:
//! before the commit nothing happened; after it the message is a duplicate; after a copy for another queue is confirmed
//! there may be a second copy. Nothing is settled before its effect is durable.

use super::ports::{CommitError, CreditLedger, Decided, Deliveries, Forward, Message, Outage};
use crate::{
    backoff,
    domain::{
        credit::{Credit, Outcome},
        message::Format,
        retry::RetryPolicy,
        settlement::{Destination, Settlement},
    },
    observe::{events, pulse::Pulse},
};
use std::{
    borrow::Cow,
    ops::Range,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// How long a batch that fails may be worked on. The broker takes deliveries back that are not settled for half an
/// hour (RabbitMQ, "Delivery Acknowledgement Timeout"); what is undecided by then goes back in order before.
const SPLITTING_TIME: Duration = Duration::from_secs(60);

/// Copies that are sent and confirmed together.
const FORWARDED_TOGETHER: usize = 100;

/// What stands between a delivered message and the ledger. Shared by all workers.
pub struct CreditPipeline {
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

/// Who works on a batch.
pub struct Turn<'a> {
    /// Beats before each step that waits.
    pub pulse: &'a Pulse,
    /// When cancelled, no further attempt is begun.
    pub stop: &'a CancellationToken,
}

/// Processing stopped before every message was settled.
#[derive(Debug)]
pub struct Interrupted<M> {
    /// What is down; `None` when the worker was told to stop, or a batch took too long.
    pub outage: Option<Outage>,
    /// Neither committed for certain nor forwarded: to be given back.
    pub unsettled: Vec<M>,
}

impl CreditPipeline {
    /// Takes `batch` the whole way: parse, commit, forward what is not done with, settle. Each message ends as if it
    /// had come alone. What is left undone is handed back, the rest is settled.
    pub async fn process<D: Deliveries>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        turn: &Turn<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let (credits, malformed) = self.parse(batch);
        let committed = self.commit(credits, turn).await;
        turn.pulse.beat();
        let decided = malformed.into_iter().chain(committed.decided).collect();
        let forwarded = forward(deliveries, decided, turn).await;
        turn.pulse.beat();
        self.report(&forwarded.decided);
        deliveries.settle(forwarded.decided).await;

        let mut unsettled = committed.undecided;
        unsettled.extend(forwarded.undecided);
        let outage = committed.outage.or(forwarded.outage);
        if outage.is_none() && unsettled.is_empty() { Ok(()) } else { Err(Interrupted { outage, unsettled }) }
    }

    fn parse<M: Message>(&self, batch: Vec<M>) -> (Vec<(M, Credit)>, Vec<Decided<M>>) {
        let mut credits = Vec::with_capacity(batch.len());
        let mut malformed = Vec::new();
        for message in batch {
            match self.format.parse(message.body()) {
                Ok(credit) => credits.push((message, credit)),
                Err(error) => {
                    malformed.push(Decided { message, payment_id: None, outcome: Outcome::Malformed(error) });
                }
            }
        }
        (credits, malformed)
    }

    async fn commit<M: Message>(&self, credits: Vec<(M, Credit)>, turn: &Turn<'_>) -> Progress<M> {
        let (messages, credits): (Vec<M>, Vec<Credit>) = credits.into_iter().unzip();
        let credits: Arc<[Credit]> = credits.into();
        let (fates, outage) = self.commit_credits(&credits, turn).await;
        let mut progress = Progress { decided: Vec::with_capacity(messages.len()), undecided: Vec::new(), outage };
        for ((message, credit), fate) in messages.into_iter().zip(&*credits).zip(fates) {
            let outcome = match fate {
                Fate::Open => {
                    progress.undecided.push(message);
                    continue;
                }
                Fate::Decided(outcome) => outcome,
                Fate::Failed(error) => Outcome::after_failure(error, message.retries_taken(), &self.retry),
            };
            let told = outcome.settlement() != Settlement::Ack;
            let payment_id = told.then(|| credit.payment_id.clone());
            progress.decided.push(Decided { message, payment_id, outcome });
        }
        progress
    }

    /// What became of each credit, in order.
    ///
    /// A batch that fails for a reason of its own is split until the message that fails is alone; the parts are
    /// committed in order, so that of two messages with one id still the first one is credited.
    async fn commit_credits(&self, credits: &Arc<[Credit]>, turn: &Turn<'_>) -> (Vec<Fate>, Option<Outage>) {
        let mut fates = vec![Fate::Open; credits.len()];
        let begun = Instant::now();
        let mut parts = vec![Range { start: 0, end: credits.len() }];
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            let (whole, alone) = (part.len() == credits.len(), part.len() == 1);
            if !whole && (turn.stop.is_cancelled() || begun.elapsed() > SPLITTING_TIME) {
                break;
            }
            // A part that is only looked through for the message that fails has failed often enough.
            let attempts = if whole || alone { self.immediate_attempts } else { 1 };
            let tried = match self.attempt(credits, part.clone(), attempts, turn).await {
                Err(CommitError::Transient(reason)) => self.blame(credits, &part, reason, turn).await,
                tried => tried,
            };
            match tried {
                Ok(verdicts) => {
                    for (fate, outcome) in fates[part].iter_mut().zip(verdicts) {
                        *fate = Fate::Decided(outcome);
                    }
                }
                Err(CommitError::Outage(outage)) => return (fates, Some(outage)),
                // Told to stop: no attempt is spent on a message that has not had all of its own.
                Err(CommitError::Transient(_)) if alone && turn.stop.is_cancelled() => break,
                Err(CommitError::Refused(reason)) if alone => {
                    fates[part.start] = Fate::Decided(Outcome::Rejected(reason));
                }
                Err(CommitError::Transient(reason)) if alone => fates[part.start] = Fate::Failed(reason),
                Err(CommitError::Refused(_) | CommitError::Transient(_)) => {
                    let middle = part.start + part.len() / 2;
                    parts.push(middle..part.end);
                    parts.push(part.start..middle);
                }
            }
        }
        (fates, None)
    }

    /// Whether a failure that may pass is the part's own: something else must be committed meanwhile, or nobody's
    /// message is to blame. A message alone is tried once more after that, so that what was in everybody's way when it
    /// failed, and has just gone, is not charged to it.
    async fn blame(
        &self,
        credits: &Arc<[Credit]>,
        part: &Range<usize>,
        reason: String,
        turn: &Turn<'_>,
    ) -> Result<Vec<Outcome>, CommitError> {
        turn.pulse.beat();
        self.ledger.probe().await?;
        if part.len() > 1 {
            return Err(CommitError::Transient(reason));
        }
        self.attempt(credits, part.clone(), 1, turn).await
    }

    /// The immediate stage: a few attempts at one part, as long as the reason may pass.
    async fn attempt(
        &self,
        credits: &Arc<[Credit]>,
        part: Range<usize>,
        attempts: u32,
        turn: &Turn<'_>,
    ) -> Result<Vec<Outcome>, CommitError> {
        let batch: Arc<[Credit]> = if part.len() == credits.len() { Arc::clone(credits) } else { credits[part].into() };
        let mut pauses = backoff::immediate(attempts);
        loop {
            turn.pulse.beat();
            let begun = Instant::now();
            match self.ledger.credit(Arc::clone(&batch)).await {
                Ok(verdicts) => {
                    events::BatchCommitted { credits: &batch, verdicts: &verdicts, took: begun.elapsed() }.emit();
                    return Ok(verdicts.into_iter().map(Outcome::from).collect());
                }
                Err(CommitError::Transient(reason)) => match pauses.next().filter(|_| !turn.stop.is_cancelled()) {
                    Some(pause) => {
                        events::CommitRetried { size: batch.len(), reason: &reason, pause }.emit();
                        tokio::time::sleep(pause).await;
                    }
                    None => return Err(CommitError::Transient(reason)),
                },
                Err(final_error) => return Err(final_error),
            }
        }
    }

    /// Tells of every message that is about to be settled.
    fn report<M: Message>(&self, done: &[Decided<M>]) {
        let now = SystemTime::now();
        let ages = done.iter().filter_map(|decided| now.duration_since(decided.message.sent_at()?).ok());
        events::BatchSettled { outcomes: done.iter().map(|decided| &decided.outcome), ages }.emit();
        for Forward { message, payment_id, to, error, .. } in done.iter().filter_map(copy) {
            let message = &message.label();
            match to {
                Destination::Dead(reason) => {
                    events::MessageParked { reason, payment_id, message, error: &error }.emit();
                }
                Destination::Retry(step) => {
                    let delay = self.retry.delays()[step.index()].as_str();
                    events::MessageDelayed { attempt: step.attempt(), delay, payment_id, message, error: &error }
                        .emit();
                }
            }
        }
    }
}

/// What became of a credit.
#[derive(Debug, Clone)]
enum Fate {
    /// Nothing that is certain.
    Open,
    /// This.
    Decided(Outcome),
    /// It failed alone for a reason that may pass, while something else was committed.
    Failed(String),
}

/// How far a batch came in one step.
struct Progress<M> {
    decided: Vec<Decided<M>>,
    undecided: Vec<M>,
    outage: Option<Outage>,
}

/// Puts confirmed copies of what is not done with into the queues that they go to, so many at a time; what was confirmed
/// before one fails is done. Of those that fail together none counts as being there: a second copy is better than none.
async fn forward<D: Deliveries>(
    deliveries: &D,
    decided: Vec<Decided<D::Message>>,
    turn: &Turn<'_>,
) -> Progress<D::Message> {
    let (mut done, open): (Vec<_>, Vec<_>) =
        decided.into_iter().partition(|decided| decided.outcome.settlement() == Settlement::Ack);
    let mut open = open.into_iter().peekable();
    while open.peek().is_some() {
        let together: Vec<_> = open.by_ref().take(FORWARDED_TOGETHER).collect();
        let copies: Vec<_> = together.iter().filter_map(copy).collect();
        turn.pulse.beat();
        if let Err(outage) = deliveries.forward(&copies).await {
            let undecided = together.into_iter().chain(open).map(|decided| decided.message).collect();
            return Progress { decided: done, undecided, outage: Some(outage) };
        }
        done.extend(together);
    }
    Progress { decided: done, undecided: Vec::new(), outage: None }
}

/// The copy for another queue, for outcomes that ask for one.
fn copy<M>(decided: &Decided<M>) -> Option<Forward<'_, M>> {
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
    Some(Forward { message: &decided.message, payment_id: decided.payment_id.as_ref(), to, error, standing })
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;
