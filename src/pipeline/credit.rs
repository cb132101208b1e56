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
};
use std::{
    ops::Range,
    sync::Arc,
    time::{Instant, SystemTime},
};

/// What stands between a delivered message and the ledger. Shared by all workers.
pub struct CreditPipeline {
    /// How bodies look.
    pub format: Format,
    /// Where credits go.
    pub ledger: Arc<dyn CreditLedger>,
    /// How often a batch is tried before it is split: at least 1 (`retry.immediate_attempts`).
    pub immediate_attempts: u32,
}

/// Processing stopped because a dependency is down: these messages are unsettled and must be given back.
#[derive(Debug)]
pub struct Interrupted<M> {
    /// What is down.
    pub outage: Outage,
    /// Neither committed for certain nor parked.
    pub unsettled: Vec<M>,
}

impl CreditPipeline {
    /// Takes `batch` the whole way: parse, commit, park what cannot be credited, settle. Each message ends as if it
    /// had come alone. What an outage leaves undone is handed back, the rest is settled. `pulse` beats at each step.
    pub async fn process<D: Deliveries>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        pulse: &Pulse,
    ) -> Result<(), Interrupted<D::Message>> {
        let (credits, malformed) = self.parse(batch);
        let committed = self.commit(credits, pulse).await;
        pulse.beat();
        let decided = malformed.into_iter().chain(committed.decided).collect();
        let parked = park(deliveries, decided).await;
        report(&parked.decided);
        deliveries.settle(parked.decided).await;

        let mut unsettled = committed.undecided;
        unsettled.extend(parked.undecided);
        match committed.outage.or(parked.outage) {
            Some(outage) => Err(Interrupted { outage, unsettled }),
            None => Ok(()),
        }
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

    async fn commit<M: Message>(&self, credits: Vec<(M, Credit)>, pulse: &Pulse) -> Progress<M> {
        let (messages, credits): (Vec<M>, Vec<Credit>) = credits.into_iter().unzip();
        let credits: Arc<[Credit]> = credits.into();
        let (outcomes, outage) = self.commit_credits(&credits, pulse).await;
        let mut messages = messages.into_iter();
        // The outcomes lead: what has none keeps its message, which is then given back.
        let decided = outcomes.into_iter().zip(messages.by_ref()).zip(&*credits);
        let decided = decided.map(|((outcome, message), credit)| {
            let parked = outcome.settlement() != Settlement::Ack;
            Decided { message, payment_id: parked.then(|| credit.payment_id.clone()), outcome }
        });
        Progress { decided: decided.collect(), undecided: messages.collect(), outage }
    }

    /// The outcomes of the credits in order, up to the point where an outage stopped it.
    ///
    /// A batch that fails for a reason of its own is split until the message that fails is alone; the parts are
    /// committed in order, so that of two messages with one id still the first one is credited.
    async fn commit_credits(&self, credits: &Arc<[Credit]>, pulse: &Pulse) -> (Vec<Outcome>, Option<Outage>) {
        let mut outcomes = Vec::with_capacity(credits.len());
        let mut parts = vec![Range { start: 0, end: credits.len() }];
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            pulse.beat();
            let failure = match self.attempt(credits, part.clone()).await {
                Ok(decided) => {
                    outcomes.extend(decided);
                    continue;
                }
                Err(CommitError::Outage(outage)) => return (outcomes, Some(outage)),
                Err(CommitError::Refused(reason)) => reason,
                Err(CommitError::Transient(reason)) => match self.ledger.probe().await {
                    // It is a message's fault only if something else can be committed meanwhile.
                    Ok(()) => reason,
                    Err(outage) => return (outcomes, Some(outage)),
                },
            };
            if part.len() == 1 {
                outcomes.push(Outcome::Rejected(failure));
            } else {
                let middle = part.start + part.len() / 2;
                parts.push(middle..part.end);
                parts.push(part.start..middle);
            }
        }
        (outcomes, None)
    }

    /// The immediate stage: a few attempts at one part, as long as the reason may pass.
    async fn attempt(&self, credits: &Arc<[Credit]>, part: Range<usize>) -> Result<Vec<Outcome>, CommitError> {
        let batch: Arc<[Credit]> = if part.len() == credits.len() { Arc::clone(credits) } else { credits[part].into() };
        let mut pauses = backoff::immediate(self.immediate_attempts);
        loop {
            let begun = Instant::now();
            match self.ledger.credit(Arc::clone(&batch)).await {
                Ok(verdicts) => {
                    events::BatchCommitted { credits: &batch, verdicts: &verdicts, took: begun.elapsed() }.emit();
                    return Ok(verdicts.into_iter().map(Outcome::from).collect());
                }
                Err(CommitError::Transient(reason)) => match pauses.next() {
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
