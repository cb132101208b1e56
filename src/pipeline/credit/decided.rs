//! Messages with their outcomes, and the copies that the outcomes require.

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

/// A message with its outcome, and the copy that the outcome requires.
#[derive(Debug)]
pub struct Decided<M> {
    /// The processed message.
    pub message: M,
    /// The payment ID; present if the message is forwarded and its ID could be read.
    pub payment_id: Option<PaymentId>,
    /// The outcome of the message.
    pub outcome: Outcome,
    copy: Option<PlannedCopy>,
}

/// The destination and error text of a copy for another queue.
#[derive(Debug)]
struct PlannedCopy {
    to: Destination,
    error: Cow<'static, str>,
}

impl<M> Decided<M> {
    /// Plans the copy that the outcome requires. `payment_id` is called only for messages that are forwarded.
    pub(super) fn new(message: M, outcome: Outcome, payment_id: impl FnOnce() -> Option<PaymentId>) -> Self {
        let copy = match outcome.settlement() {
            Settlement::Ack => None,
            Settlement::Forward(to) => Some(PlannedCopy { to, error: error_text(&outcome) }),
        };
        let payment_id = if copy.is_some() { payment_id() } else { None };
        Self { message, payment_id, outcome, copy }
    }

    /// Returns the copy for another queue; `None` for a message that is acknowledged at once.
    pub fn forward(&self) -> Option<Forward<'_, M>> {
        let PlannedCopy { to, error } = self.copy.as_ref()?;
        Some(Forward {
            message: &self.message,
            payment_id: self.payment_id.as_ref(),
            to: *to,
            error: Some(Cow::Borrowed(error)),
            recorded: recorded_credit(&self.outcome),
            body: CopyBody::Original,
        })
    }
}

fn error_text(outcome: &Outcome) -> Cow<'static, str> {
    match outcome {
        Outcome::Credited | Outcome::Duplicate { .. } => Cow::Borrowed(""),
        Outcome::Conflict(_) => Cow::Borrowed("the payment is in the ledger with another user or other points"),
        Outcome::Malformed(malformed) => Cow::Owned(malformed.to_string()),
        Outcome::Rejected(error) | Outcome::Retry { error, .. } | Outcome::Exhausted { error } => {
            Cow::Owned(error.clone())
        }
    }
}

fn recorded_credit(outcome: &Outcome) -> Option<&RecordedCredit> {
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

/// The result of forwarding a batch.
pub(super) struct ForwardedBatch<M> {
    /// The messages that may be settled.
    pub(super) decided: Vec<Decided<M>>,
    /// The messages that must not be settled, because their copies are not confirmed.
    pub(super) undecided: Vec<M>,
    pub(super) outage: Option<Outage>,
}

/// Publishes the copies that the outcomes require. A message whose copy is not confirmed remains undecided.
pub(super) async fn forward_decided<D: Deliveries>(
    deliveries: &D,
    decided: Vec<Decided<D::Message>>,
    context: &BatchContext<'_>,
) -> ForwardedBatch<D::Message> {
    let mut forwarded = ForwardedBatch { decided: Vec::new(), undecided: Vec::new(), outage: None };
    let (copied, done): (Vec<_>, Vec<_>) = decided.into_iter().partition(|decided| decided.copy.is_some());
    forwarded.decided = done;
    // The usual case: no message is forwarded.
    if copied.is_empty() {
        return forwarded;
    }
    let confirmed = {
        let copies: Vec<Forward<'_, D::Message>> = copied.iter().filter_map(Decided::forward).collect();
        forward::publish_copies(deliveries, &copies, context).await
    };
    match confirmed {
        Err(outage) => {
            forwarded.outage = Some(outage);
            forwarded.undecided = copied.into_iter().map(|decided| decided.message).collect();
        }
        Ok(confirmed) => {
            for (decided, confirmed) in copied.into_iter().zip(confirmed) {
                match confirmed {
                    Ok(()) => forwarded.decided.push(decided),
                    Err(reason) => {
                        forwarded.outage.get_or_insert_with(|| forward::broker_outage(&reason));
                        forwarded.undecided.push(decided.message);
                    }
                }
            }
        }
    }
    forwarded
}
