//! One batch of points messages from arrival to settlement.
//!
//! [`CreditPipeline::process`] is the whole way. At every `await` the process may die, and the message comes again:
//! before the commit nothing happened; after it the message is a duplicate; after the copy in the dead queue is
//! confirmed there may be a second copy. Nothing is settled before its effect is durable.

use super::ports::{CommitError, CreditLedger, DeadLetter, Decided, Deliveries, Message, Outage};
use crate::{
    backoff,
    domain::{
        credit::{Credit, Outcome},
        message::Format,
        settlement::Settlement,
    },
    observe::{events, pulse::Pulse},
    pipeline::ports::Dependency,
};
use std::{
    ops::Range,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// How long a batch that fails may be worked on. The broker takes deliveries back that are not settled for half an
/// hour (RabbitMQ, "Delivery Acknowledgement Timeout"); what is undecided by then goes back in order before.
const SPLITTING_TIME: Duration = Duration::from_secs(60);

/// What stands between a delivered message and the ledger. Shared by all workers.
pub struct CreditPipeline {
    /// How bodies look.
    pub format: Format,
    /// Where credits go.
    pub ledger: Arc<dyn CreditLedger>,
    /// How often a batch is tried before it is split: at least 1 (`retry.immediate_attempts`).
    pub immediate_attempts: u32,
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
    /// What is down; `None` when the worker was told to stop.
    pub outage: Option<Outage>,
    /// Neither committed for certain nor parked: to be given back.
    pub unsettled: Vec<M>,
}

impl CreditPipeline {
    /// Takes `batch` the whole way: parse, commit, park what cannot be credited, settle. Each message ends as if it
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
        let parked = park(deliveries, decided).await;
        turn.pulse.beat();
        report(&parked.decided);
        deliveries.settle(parked.decided).await;

        let mut unsettled = committed.undecided;
        unsettled.extend(parked.undecided);
        let outage = committed.outage.or(parked.outage);
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
        let (outcomes, outage) = self.commit_credits(&credits, turn).await;
        let mut progress = Progress { decided: Vec::with_capacity(messages.len()), undecided: Vec::new(), outage };
        for ((message, credit), outcome) in messages.into_iter().zip(&*credits).zip(outcomes) {
            match outcome {
                None => progress.undecided.push(message),
                Some(outcome) => {
                    let parked = outcome.settlement() != Settlement::Ack;
                    let payment_id = parked.then(|| credit.payment_id.clone());
                    progress.decided.push(Decided { message, payment_id, outcome });
                }
            }
        }
        progress
    }

    /// The outcome of each credit, in order; `None` for those that are not decided.
    ///
    /// A batch that fails for a reason of its own is split until the message that fails is alone; the parts are
    /// committed in order, so that of two messages with one id still the first one is credited. One that is refused
    /// is rejected. One that fails alone for a reason that may pass is left undecided, and is an outage for itself:
    /// it goes back to the queue, and the others are credited.
    async fn commit_credits(&self, credits: &Arc<[Credit]>, turn: &Turn<'_>) -> (Vec<Option<Outcome>>, Option<Outage>) {
        let mut outcomes = vec![None; credits.len()];
        let mut failed_alone = None;
        let begun = Instant::now();
        let mut parts = vec![Range { start: 0, end: credits.len() }];
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            let split_before = part.len() < credits.len();
            if split_before && (turn.stop.is_cancelled() || begun.elapsed() > SPLITTING_TIME) {
                break;
            }
            match self.attempt(credits, part.clone(), turn).await {
                Ok(decided) => {
                    for (outcome, decided) in outcomes[part].iter_mut().zip(decided) {
                        *outcome = Some(decided);
                    }
                    continue;
                }
                Err(CommitError::Outage(outage)) => return (outcomes, Some(outage)),
                Err(CommitError::Refused(reason)) if part.len() == 1 => {
                    outcomes[part.start] = Some(Outcome::Rejected(reason));
                    continue;
                }
                Err(CommitError::Refused(_)) => {}
                Err(CommitError::Transient(reason)) => {
                    // It is a message's fault only if something else can be committed meanwhile.
                    turn.pulse.beat();
                    if let Err(outage) = self.ledger.probe().await {
                        return (outcomes, Some(outage));
                    }
                    if part.len() == 1 {
                        let reason = format!("payment {} fails alone: {reason}", credits[part.start].payment_id);
                        failed_alone = Some(Outage { dependency: Dependency::Ledger, reason });
                        continue;
                    }
                }
            }
            let middle = part.start + part.len() / 2;
            parts.push(middle..part.end);
            parts.push(part.start..middle);
        }
        (outcomes, failed_alone)
    }

    /// The immediate stage: a few attempts at one part, as long as the reason may pass.
    async fn attempt(
        &self,
        credits: &Arc<[Credit]>,
        part: Range<usize>,
        turn: &Turn<'_>,
    ) -> Result<Vec<Outcome>, CommitError> {
        let batch: Arc<[Credit]> = if part.len() == credits.len() { Arc::clone(credits) } else { credits[part].into() };
        let mut pauses = backoff::immediate(self.immediate_attempts);
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
}

/// How far a batch came in one step.
struct Progress<M> {
    decided: Vec<Decided<M>>,
    undecided: Vec<M>,
    outage: Option<Outage>,
}

/// Puts confirmed copies of what cannot be credited into the dead queue. When that fails none of them counts as
/// parked: a second copy is better than none.
async fn park<D: Deliveries>(deliveries: &D, decided: Vec<Decided<D::Message>>) -> Progress<D::Message> {
    let dead_letters: Vec<_> = decided.iter().filter_map(dead_letter).collect();
    let parked = if dead_letters.is_empty() { Ok(()) } else { deliveries.park(&dead_letters).await };
    match parked {
        Ok(()) => Progress { decided, undecided: Vec::new(), outage: None },
        Err(outage) => {
            let (decided, unparked): (Vec<_>, Vec<_>) =
                decided.into_iter().partition(|decided| decided.outcome.settlement() == Settlement::Ack);
            let undecided = unparked.into_iter().map(|decided| decided.message).collect();
            Progress { decided, undecided, outage: Some(outage) }
        }
    }
}

/// The copy for the dead queue, for outcomes that ask for one.
fn dead_letter<M>(decided: &Decided<M>) -> Option<DeadLetter<'_, M>> {
    let Settlement::Park(reason) = decided.outcome.settlement() else { return None };
    let (error, standing) = match &decided.outcome {
        Outcome::Credited | Outcome::Duplicate => return None,
        Outcome::Conflict(standing) => {
            ("the payment is in the ledger with another user or other points".to_owned(), Some(standing))
        }
        Outcome::Malformed(malformed) => (malformed.to_string(), None),
        Outcome::Rejected(why) => (why.clone(), None),
    };
    let payment_id = decided.payment_id.as_ref();
    Some(DeadLetter { message: &decided.message, payment_id, reason, error, standing })
}

/// Tells of every message that is about to be settled.
fn report<M: Message>(done: &[Decided<M>]) {
    let now = SystemTime::now();
    let ages = done.iter().filter_map(|decided| now.duration_since(decided.message.sent_at()?).ok());
    events::BatchSettled { outcomes: done.iter().map(|decided| &decided.outcome), ages }.emit();
    for dead in done.iter().filter_map(dead_letter) {
        let message = dead.message.label();
        events::MessageParked {
            reason: dead.reason,
            payment_id: dead.payment_id,
            message: &message,
            error: &dead.error,
        }
        .emit();
    }
}

#[cfg(test)]
#[path = "credit_tests.rs"]
mod tests;
