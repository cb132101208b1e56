//! From deliveries to the checks that they ask for.

use crate::{
    domain::{
        check_message::{self, About, BadCheck, ScheduledCheck},
        check_outcome::CheckOutcome,
        check_schedule::CheckAttempt,
        component::Component,
        credit::Credit,
        ids::PaymentId,
        notification::Notification,
        notification_source::{NotificationKind, NotificationSource},
    },
    observe::events::{self, Event as _},
    pipeline::{
        check::pipeline::CheckPipeline,
        ports::{Message, Origin},
    },
    unpoisoned::lock,
};
use std::ops::Range;

/// Deliveries on their way, and the checks that they ask for.
pub(super) struct Batch<M> {
    pub(super) deliveries: Vec<Held<M>>,
    /// Those of all deliveries, in order.
    pub(super) entries: Vec<Entry>,
    /// What became of each entry; `None` while nothing has.
    pub(super) outcomes: Vec<Option<CheckOutcome>>,
}

/// A delivery, and which entries are its own: at least one.
pub(super) struct Held<M> {
    pub(super) message: M,
    pub(super) entries: Range<usize>,
    /// Whether its body is a check message, and not a single points message or notification.
    pub(super) is_check_message: bool,
}

/// One check.
pub(super) struct Entry {
    pub(super) request: CheckRequest,
    /// Which check of its payment it is.
    pub(super) attempt: CheckAttempt,
    /// Delayed retries that it has taken.
    pub(super) retries_taken: u32,
}

/// What an entry is about.
pub(super) enum CheckRequest {
    /// A payment.
    Check(ScheduledCheck),
    /// An entry of a check message that cannot be read: its text, and its payment where that can be read.
    Bad { json: String, payment_id: Option<PaymentId> },
    /// Nothing that is looked up: the message as a whole has its outcome already. Its payment, where that can be read.
    Message(Option<PaymentId>),
}

impl Entry {
    /// The check, where there is one.
    pub(super) fn check(&self) -> Option<&ScheduledCheck> {
        match &self.request {
            CheckRequest::Check(check) => Some(check),
            CheckRequest::Bad { .. } | CheckRequest::Message(_) => None,
        }
    }

    /// The payment as the message writes it, for people. Of a malformed message it decides nothing.
    pub(super) fn payment_id(&self) -> Option<&PaymentId> {
        match &self.request {
            CheckRequest::Check(check) => Some(&check.payment_id),
            CheckRequest::Bad { payment_id, .. } | CheckRequest::Message(payment_id) => payment_id.as_ref(),
        }
    }

    /// What it means that its notification has come.
    pub(super) fn kind(&self) -> Option<NotificationKind> {
        match &self.check()?.about {
            About::Notification { kind, .. } => *kind,
            About::Claim(_) | About::Record => None,
        }
    }
}

/// What was read: a check that is looked up, or something that is decided already.
enum Read {
    Check(ScheduledCheck, CheckAttempt),
    Decided(CheckRequest, CheckOutcome),
}

/// Reads every body, each in its own format.
pub(super) fn parse<M: Message>(pipeline: &CheckPipeline, batch: Vec<M>) -> Batch<M> {
    let mut read = Batch { deliveries: Vec::with_capacity(batch.len()), entries: Vec::new(), outcomes: Vec::new() };
    for message in batch {
        let begin = read.entries.len();
        let is_check_message = pipeline.component == Component::Checks && message.origin() == Origin::Checks;
        if is_check_message {
            read_check_message(pipeline, &message, &mut read);
        } else {
            let one = read_single(pipeline, &message);
            push(pipeline, &message, one, &mut read);
        }
        let entries = begin..read.entries.len();
        read.deliveries.push(Held { message, entries, is_check_message });
    }
    read
}

fn push<M: Message>(pipeline: &CheckPipeline, message: &M, read: Read, into: &mut Batch<M>) {
    let (request, attempt, outcome) = match read {
        Read::Check(check, attempt) => (CheckRequest::Check(check), attempt, None),
        Read::Decided(request, outcome) => (request, pipeline.policy.attempt(message.checks_done()), Some(outcome)),
    };
    into.entries.push(Entry { request, attempt, retries_taken: message.retries_taken() });
    into.outcomes.push(outcome);
}

fn read_check_message<M: Message>(pipeline: &CheckPipeline, message: &M, into: &mut Batch<M>) {
    match check_message::parse(message.body()) {
        Ok(checks) => {
            for check in checks {
                let read = match check {
                    Ok(check) => scheduled(pipeline, check, message.checks_done()),
                    Err(BadCheck { json, payment_id, error }) => {
                        Read::Decided(CheckRequest::Bad { json, payment_id }, CheckOutcome::Unreadable(error))
                    }
                };
                push(pipeline, message, read, into);
            }
        }
        Err(error) => {
            let outcome = CheckOutcome::Unreadable(error.to_string());
            push(pipeline, message, Read::Decided(CheckRequest::Message(None), outcome), into);
        }
    }
}

/// A check of a check message, or of a copy of an earlier build: its source must still mean the same.
fn scheduled(pipeline: &CheckPipeline, mut check: ScheduledCheck, checks_done: u32) -> Read {
    let About::Notification { source: name, kind } = &mut check.about else {
        return Read::Check(check, pipeline.policy.attempt(checks_done));
    };
    let rejected = match pipeline.sources.iter().find(|source| source.name == *name) {
        None => format!("it came from the source {name:?}, which is not configured"),
        Some(NotificationSource { kind: now, policy, .. }) => {
            let then = *kind.get_or_insert(*now);
            if then == *now {
                let attempt = policy.attempt(checks_done);
                return Read::Check(check, attempt);
            }
            format!(
                "it was scheduled when notifications of source {name:?} meant {:?}; now they mean {:?}",
                then.label(),
                now.label()
            )
        }
    };
    Read::Decided(CheckRequest::Check(check), CheckOutcome::Rejected(rejected))
}

/// A message with one payment: a notification on arrival, or a single message in the check queue.
fn read_single<M: Message>(pipeline: &CheckPipeline, message: &M) -> Read {
    if let Some(name) = message.source() {
        return read_notification(pipeline, name, message);
    }
    let origin = message.origin();
    let credit = match pipeline.format.parse(message.body()) {
        Ok(credit) => credit,
        Err(error) => {
            let error = error.to_string();
            let payment_id = pipeline.format.readable_payment_id(message.body());
            let outcome = if origin == Origin::Ours {
                CheckOutcome::Unreadable(error)
            } else {
                let (message_id, payment_id) = (&message.label(), payment_id.as_ref());
                events::CheckIgnored { message_id, payment_id, error: &error }.emit();
                CheckOutcome::Malformed(error)
            };
            return Read::Decided(CheckRequest::Message(payment_id), outcome);
        }
    };
    let Credit { payment_id, .. } = credit.clone();
    let check = ScheduledCheck { payment_id, about: About::Claim(credit.into()) };
    match origin {
        Origin::Ours | Origin::Checks => {}
        Origin::FormerBinding(queue) => {
            if lock(&pipeline.former).insert(queue.clone()) {
                events::CheckQueueBound { queue: &queue }.emit();
            }
        }
        Origin::Foreign => {
            return Read::Decided(CheckRequest::Check(check), CheckOutcome::Begins(pipeline.policy.beginning()));
        }
    }
    Read::Check(check, pipeline.policy.attempt(message.checks_done()))
}

fn read_notification<M: Message>(pipeline: &CheckPipeline, name: &str, message: &M) -> Read {
    let arrives = pipeline.is_arrival();
    let Some(source) = pipeline.sources.iter().find(|source| source.name == name) else {
        let error = format!("it came from the source {name:?}, which is not configured");
        return Read::Decided(CheckRequest::Message(None), CheckOutcome::Rejected(error));
    };
    match source.format.parse(message.body(), &pipeline.format) {
        Ok(Notification::Payment(payment_id)) => {
            let about = About::Notification { source: name.to_owned(), kind: Some(source.kind) };
            let check = ScheduledCheck { payment_id, about };
            match (arrives, source.kind) {
                (true, NotificationKind::OrderCreated) => {
                    Read::Decided(CheckRequest::Check(check), CheckOutcome::Begins(source.policy.beginning()))
                }
                (true, _) => Read::Check(check, source.policy.arrival()),
                (false, _) => Read::Check(check, source.policy.attempt(message.checks_done())),
            }
        }
        Ok(Notification::Ignored) => Read::Decided(CheckRequest::Message(None), CheckOutcome::Ignored),
        Err(error) => {
            let payment_id = source.format.readable_payment_id(message.body(), &pipeline.format);
            Read::Decided(CheckRequest::Message(payment_id), CheckOutcome::Unreadable(error.to_string()))
        }
    }
}
