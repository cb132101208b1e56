//! Forwarding credits: the copy that an outcome asks for, computed once and carried with its message.

use crate::{
    domain::{
        credit::RecordedCredit,
        failure::Outage,
        ids::PaymentId,
        outcome::Outcome,
        settlement::{Destination, Settlement},
    },
    pipeline::{
        forward,
        ports::{CopyBody, Deliveries, Forward},
        work::BatchContext,
    },
};
use std::borrow::Cow;

/// A message with its outcome, and the copy that the outcome asks for.
#[derive(Debug)]
pub struct Decided<M> {
    /// The message.
    pub message: M,
    /// The payment id, for messages that are not acknowledged at once and whose id could be read.
    pub payment_id: Option<PaymentId>,
    /// The outcome.
    pub outcome: Outcome,
    copy: Option<PlannedCopy>,
}

/// A copy for another queue.
#[derive(Debug)]
struct PlannedCopy {
    to: Destination,
    error: Cow<'static, str>,
}

impl<M> Decided<M> {
    /// Plans the copy of an outcome. `payment_id` is called only for messages that are forwarded.
    pub(super) fn new(message: M, outcome: Outcome, payment_id: impl FnOnce() -> Option<PaymentId>) -> Self {
        let copy = match outcome.settlement() {
            Settlement::Ack => None,
            Settlement::Forward(to) => Some(PlannedCopy { to, error: error_of(&outcome) }),
        };
        let payment_id = if copy.is_some() { payment_id() } else { None };
        Self { message, payment_id, outcome, copy }
    }

    /// The copy for another queue; `None` for a message that is acknowledged at once.
    pub fn forward(&self) -> Option<Forward<'_, M>> {
        let PlannedCopy { to, error } = self.copy.as_ref()?;
        Some(Forward {
            message: &self.message,
            payment_id: self.payment_id.as_ref(),
            to: *to,
            error: Some(Cow::Borrowed(error)),
            recorded: recorded(&self.outcome),
            body: CopyBody::Original,
        })
    }
}

fn error_of(outcome: &Outcome) -> Cow<'static, str> {
    match outcome {
        Outcome::Credited | Outcome::Duplicate { .. } => Cow::Borrowed(""),
        Outcome::Conflict(_) => Cow::Borrowed("the payment is in the ledger with another user or other points"),
        Outcome::Malformed(malformed) => Cow::Owned(malformed.to_string()),
        Outcome::Rejected(error) | Outcome::Retry { error, .. } | Outcome::Exhausted { error } => {
            Cow::Owned(error.clone())
        }
    }
}

fn recorded(outcome: &Outcome) -> Option<&RecordedCredit> {
    match outcome {
        Outcome::Conflict(recorded) => Some(recorded),
        Outcome::Credited
        | Outcome::Duplicate { .. }
        | Outcome::Malformed(_)
        | Outcome::Rejected(_)
        | Outcome::Retry { .. }
        | Outcome::Exhausted { .. } => None,
    }
}

/// Messages that may be settled, and messages that may not.
pub(super) struct Progress<M> {
    pub(super) decided: Vec<Decided<M>>,
    pub(super) undecided: Vec<M>,
    pub(super) outage: Option<Outage>,
}

/// Publishes the copies that outcomes ask for. A message whose copy is not confirmed stays undecided.
pub(super) async fn forward<D: Deliveries>(
    deliveries: &D,
    decided: Vec<Decided<D::Message>>,
    context: &BatchContext<'_>,
) -> Progress<D::Message> {
    let mut progress = Progress { decided: Vec::new(), undecided: Vec::new(), outage: None };
    let (copied, done): (Vec<_>, Vec<_>) = decided.into_iter().partition(|decided| decided.copy.is_some());
    progress.decided = done;
    // As nearly always.
    if copied.is_empty() {
        return progress;
    }
    let confirmed = {
        let copies: Vec<Forward<'_, D::Message>> = copied.iter().filter_map(Decided::forward).collect();
        forward::forward(deliveries, &copies, context).await
    };
    match confirmed {
        Err(outage) => {
            progress.outage = Some(outage);
            progress.undecided = copied.into_iter().map(|decided| decided.message).collect();
        }
        Ok(confirmed) => {
            for (decided, confirmed) in copied.into_iter().zip(confirmed) {
                match confirmed {
                    Ok(()) => progress.decided.push(decided),
                    Err(reason) => {
                        progress.outage.get_or_insert_with(|| forward::outage(&reason));
                        progress.undecided.push(decided.message);
                    }
                }
            }
        }
    }
    progress
}
