//! What a check or a notification asks for, and what was found of it.

use super::{
    check::CheckPipeline,
    ports::{Decided, Message, Payment},
    stages::Progress,
};
use crate::{
    domain::{
        check::{self, Check, CheckOutcome, Claim, Closing, Finding},
        ids::PaymentId,
        notification::Notification,
        settlement::Reason,
        source::{Meaning, Source},
        status::PaymentStatus,
        worth::Worth,
    },
    observe::status::Part,
};
use std::sync::Arc;

/// A message, and the payment that it is about.
pub(super) struct Asked<M> {
    pub(super) message: M,
    pub(super) payment_id: PaymentId,
    /// What the message says itself; `None` of a notification, whose payment is looked up.
    pub(super) claim: Option<Claim>,
    /// What it means that it has come; `None` of a check in the credit format.
    pub(super) meaning: Option<Meaning>,
    /// Which check it is.
    pub(super) turn: check::Turn,
}

/// One whose payment was looked up.
pub(super) struct Looked<M> {
    pub(super) asked: Asked<M>,
    pub(super) payment: Payment,
}

/// The payments of some messages, in order, each once.
pub(super) fn each_once<'a, M: 'a>(asked: impl Iterator<Item = &'a Asked<M>>) -> Arc<[PaymentId]> {
    let mut payments: Vec<PaymentId> = asked.map(|asked| asked.payment_id.clone()).collect();
    payments.sort_unstable();
    payments.dedup();
    payments.into()
}

/// What was read from a body.
enum Read {
    Payment(PaymentId, Option<Claim>, Option<Meaning>, check::Turn),
    Decided(Option<PaymentId>, CheckOutcome),
}

impl CheckPipeline {
    /// Reads every body, each in its own format.
    pub(super) fn parse<M: Message>(&self, batch: Vec<M>, progress: &mut Progress<M, CheckOutcome>) -> Vec<Asked<M>> {
        let mut asked = Vec::with_capacity(batch.len());
        for message in batch {
            let read = match message.source() {
                None => self.read_credit(&message),
                Some(name) => self.read_of(name, &message),
            };
            match read {
                Read::Payment(payment_id, claim, meaning, turn) => {
                    asked.push(Asked { message, payment_id, claim, meaning, turn });
                }
                Read::Decided(payment_id, outcome) => {
                    progress.decided.push(Decided { message, payment_id, outcome });
                }
            }
        }
        asked
    }

    fn read_credit<M: Message>(&self, message: &M) -> Read {
        match self.format.parse(message.body()) {
            Ok(credit) => {
                let turn = self.policy.turn(message.checks_done());
                Read::Payment(credit.payment_id.clone(), Some(credit.into()), None, turn)
            }
            Err(error) => Read::Decided(None, CheckOutcome::Malformed(error)),
        }
    }

    fn read_of<M: Message>(&self, name: &str, message: &M) -> Read {
        if let Some(source) = self.sources.iter().find(|source| source.name == name) {
            return self.read_notification(source, message);
        }
        let error = format!("it came from the source {name:?}, which is not configured");
        Read::Decided(None, CheckOutcome::Rejected(error))
    }

    fn read_notification<M: Message>(&self, source: &Source, message: &M) -> Read {
        let arrives = matches!(self.part, Part::Source(_));
        match source.format.parse(message.body(), self.format.max_body_bytes) {
            Ok(Notification::Payment(id)) if arrives && source.meaning == Meaning::Begun => {
                Read::Decided(Some(id), CheckOutcome::Early(source.policy.beginning()))
            }
            Ok(Notification::Payment(id)) => {
                let arrival = || source.policy.arrival();
                let turn = if arrives { arrival() } else { source.policy.turn(message.checks_done()) };
                Read::Payment(id, None, Some(source.meaning), turn)
            }
            Ok(Notification::Ignored) => Read::Decided(None, CheckOutcome::Ignored),
            Err(error) if arrives => Read::Decided(None, CheckOutcome::Unreadable(error)),
            Err(error) => Read::Decided(None, CheckOutcome::Malformed(error)),
        }
    }
}

impl<M> Asked<M> {
    pub(super) fn decided(self, outcome: CheckOutcome) -> Decided<M, CheckOutcome> {
        Decided { message: self.message, payment_id: Some(self.payment_id), outcome }
    }

    /// What the source says, as this message has to take it; or what becomes of the message because of that.
    pub(super) fn judge(&self, mut payment: Payment) -> Result<Payment, CheckOutcome> {
        if let Some(claim) = &self.claim {
            return match of_another_user(claim, &payment) {
                None => Ok(payment),
                Some(error) => Err(CheckOutcome::Conflict(error)),
            };
        }
        // A gateway may have heard of it before the row was committed from which it is credited.
        if payment.status == PaymentStatus::Paid && payment.worth.is_none() {
            if self.turn.used_up {
                let error = "it is paid at the gateway, but no record of it has come".into();
                return Err(CheckOutcome::Parked { status: payment.status, reason: Reason::Expired, error });
            }
            payment.status = PaymentStatus::Unknown;
        }
        let status = payment.status;
        match (self.meaning, status, self.turn.used_up) {
            (Some(Meaning::Paid), PaymentStatus::Closed, _) => Err(CheckOutcome::Conflict(
                "the notification says that it is paid, its own record that it is closed".into(),
            )),
            // Somebody has paid, and nothing shows it.
            (Some(Meaning::Paid), PaymentStatus::Pending | PaymentStatus::Unknown, true) => {
                let error = match status {
                    PaymentStatus::Unknown => "the notification says that it is paid, but no record of it has come",
                    _ => "the notification says that it is paid, but its record cannot be set to that",
                };
                Err(CheckOutcome::Parked { status, reason: Reason::Expired, error: error.into() })
            }
            _ => Ok(payment),
        }
    }
}

impl<M> Looked<M> {
    /// Whether its time is up, and its row is to say so.
    pub(super) fn is_to_be_closed(&self) -> bool {
        self.asked.meaning == Some(Meaning::Begun)
            && self.asked.turn.used_up
            && self.payment.status == PaymentStatus::Pending
    }

    /// What the ledger is told.
    pub(super) fn check(&self, finding: Finding) -> Check {
        let Self { asked, payment } = self;
        let of_record = || match &payment.worth {
            Some(Worth::Points(user_id, points)) if finding == Finding::Paid => {
                Some(Claim { user_id: user_id.clone(), points: *points })
            }
            _ => None,
        };
        let closes = asked.meaning == Some(Meaning::Begun) && asked.turn.used_up && finding == Finding::Closed;
        let user = || payment.user.clone().filter(|user| !user.is_empty());
        Check {
            payment_id: asked.payment_id.clone(),
            claim: asked.claim.clone().or_else(of_record),
            finding,
            closing: closes.then(|| Closing { user_id: user() }),
        }
    }
}

/// What is wrong where the source knows the payment as somebody else's.
fn of_another_user(claim: &Claim, payment: &Payment) -> Option<String> {
    let user = payment.user.as_deref()?;
    (user != claim.user_id.as_str()).then(|| {
        let user: String = user.chars().filter(|character| !character.is_control()).take(128).collect();
        format!("the payment's own record has another user: {user}")
    })
}
