//! Parsing deliveries into the checks that they contain.

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

/// A batch of deliveries, and the checks that they contain.
pub(super) struct Batch<M> {
    pub(super) deliveries: Vec<ParsedDelivery<M>>,
    /// The entries of all deliveries, in order.
    pub(super) entries: Vec<Entry>,
    /// The outcome of each entry; `None` until it is decided.
    pub(super) outcomes: Vec<Option<CheckOutcome>>,
}

/// A delivery, and its range of entries, which has at least one.
pub(super) struct ParsedDelivery<M> {
    pub(super) message: M,
    pub(super) entries: Range<usize>,
    /// Whether the body is a check message, as opposed to a single points message or notification.
    pub(super) is_check_message: bool,
}

/// One check of a delivery.
pub(super) struct Entry {
    pub(super) request: CheckRequest,
    /// The position of the check in the schedule of its payment.
    pub(super) attempt: CheckAttempt,
    /// Number of delayed retries that the check has taken.
    pub(super) retries_taken: u32,
}

/// The content of an entry.
pub(super) enum CheckRequest {
    /// The check of a payment.
    Check(ScheduledCheck),
    /// An unreadable entry of a check message: its text, and its payment ID if that can be read.
    Bad { json: String, payment_id: Option<PaymentId> },
    /// A message that has its outcome as a whole and is not looked up; with its payment ID if that can be read.
    Message(Option<PaymentId>),
}

impl Entry {
    /// Returns the check; `None` for an entry that cannot be read or is not looked up.
    pub(super) fn check(&self) -> Option<&ScheduledCheck> {
        match &self.request {
            CheckRequest::Check(check) => Some(check),
            CheckRequest::Bad { .. } | CheckRequest::Message(_) => None,
        }
    }

    /// Returns the payment ID as the message writes it, for people. The ID of a malformed message decides nothing.
    pub(super) fn payment_id(&self) -> Option<&PaymentId> {
        match &self.request {
            CheckRequest::Check(check) => Some(&check.payment_id),
            CheckRequest::Bad { payment_id, .. } | CheckRequest::Message(payment_id) => payment_id.as_ref(),
        }
    }

    /// Returns the kind of the notification from which the check comes.
    pub(super) fn kind(&self) -> Option<NotificationKind> {
        match &self.check()?.about {
            About::Notification { kind, .. } => *kind,
            About::Claim(_) | About::Record => None,
        }
    }
}

/// A parsed entry: a check that is looked up, or an entry that is already decided.
enum ParsedEntry {
    Check(ScheduledCheck, CheckAttempt),
    Decided(CheckRequest, CheckOutcome),
}

/// Parses every body in its own format.
pub(super) fn parse_batch<M: Message>(pipeline: &CheckPipeline, batch: Vec<M>) -> Batch<M> {
    let mut parsed = Batch { deliveries: Vec::with_capacity(batch.len()), entries: Vec::new(), outcomes: Vec::new() };
    for message in batch {
        let begin = parsed.entries.len();
        let is_check_message = pipeline.component == Component::Checks && message.origin() == Origin::Checks;
        if is_check_message {
            parse_check_message(pipeline, &message, &mut parsed);
        } else {
            let entry = parse_single(pipeline, &message);
            push_entry(pipeline, &message, entry, &mut parsed);
        }
        let entries = begin..parsed.entries.len();
        parsed.deliveries.push(ParsedDelivery { message, entries, is_check_message });
    }
    parsed
}

fn push_entry<M: Message>(pipeline: &CheckPipeline, message: &M, parsed: ParsedEntry, into: &mut Batch<M>) {
    let (request, attempt, outcome) = match parsed {
        ParsedEntry::Check(check, attempt) => (CheckRequest::Check(check), attempt, None),
        ParsedEntry::Decided(request, outcome) => {
            (request, pipeline.policy.attempt(message.checks_done()), Some(outcome))
        }
    };
    into.entries.push(Entry { request, attempt, retries_taken: message.retries_taken() });
    into.outcomes.push(outcome);
}

fn parse_check_message<M: Message>(pipeline: &CheckPipeline, message: &M, into: &mut Batch<M>) {
    match check_message::parse(message.body()) {
        Ok(checks) => {
            for check in checks {
                let parsed = match check {
                    Ok(check) => parse_scheduled_check(pipeline, check, message.checks_done()),
                    Err(BadCheck { json, payment_id, error }) => {
                        ParsedEntry::Decided(CheckRequest::Bad { json, payment_id }, CheckOutcome::Unreadable(error))
                    }
                };
                push_entry(pipeline, message, parsed, into);
            }
        }
        Err(error) => {
            let outcome = CheckOutcome::Unreadable(error.to_string());
            push_entry(pipeline, message, ParsedEntry::Decided(CheckRequest::Message(None), outcome), into);
        }
    }
}

/// Parses a check of a check message or of a copy of an earlier build. The kind of its notification source must be
/// unchanged.
fn parse_scheduled_check(pipeline: &CheckPipeline, mut check: ScheduledCheck, checks_done: u32) -> ParsedEntry {
    let About::Notification { source: name, kind } = &mut check.about else {
        return ParsedEntry::Check(check, pipeline.policy.attempt(checks_done));
    };
    let rejected = match pipeline.sources.iter().find(|source| source.name == *name) {
        None => format!("the notification source {name:?} is not configured"),
        Some(NotificationSource { kind: now, policy, .. }) => {
            let then = *kind.get_or_insert(*now);
            if then == *now {
                let attempt = policy.attempt(checks_done);
                return ParsedEntry::Check(check, attempt);
            }
            format!(
                "the check was scheduled when notifications of source {name:?} meant {:?}; now they mean {:?}",
                then.label(),
                now.label()
            )
        }
    };
    ParsedEntry::Decided(CheckRequest::Check(check), CheckOutcome::Rejected(rejected))
}

/// Parses a message with one payment: a notification on arrival, or a single message in the check queue.
fn parse_single<M: Message>(pipeline: &CheckPipeline, message: &M) -> ParsedEntry {
    if let Some(name) = message.source() {
        return parse_notification(pipeline, name, message);
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
            return ParsedEntry::Decided(CheckRequest::Message(payment_id), outcome);
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
            return ParsedEntry::Decided(CheckRequest::Check(check), CheckOutcome::Begins(pipeline.policy.beginning()));
        }
    }
    ParsedEntry::Check(check, pipeline.policy.attempt(message.checks_done()))
}

fn parse_notification<M: Message>(pipeline: &CheckPipeline, name: &str, message: &M) -> ParsedEntry {
    let is_arrival = pipeline.is_arrival();
    let Some(source) = pipeline.sources.iter().find(|source| source.name == name) else {
        let error = format!("the notification source {name:?} is not configured");
        return ParsedEntry::Decided(CheckRequest::Message(None), CheckOutcome::Rejected(error));
    };
    match source.format.parse(message.body(), &pipeline.format) {
        Ok(Notification::Payment(payment_id)) => {
            let about = About::Notification { source: name.to_owned(), kind: Some(source.kind) };
            let check = ScheduledCheck { payment_id, about };
            match (is_arrival, source.kind) {
                (true, NotificationKind::OrderCreated) => {
                    ParsedEntry::Decided(CheckRequest::Check(check), CheckOutcome::Begins(source.policy.beginning()))
                }
                (true, _) => ParsedEntry::Check(check, source.policy.arrival()),
                (false, _) => ParsedEntry::Check(check, source.policy.attempt(message.checks_done())),
            }
        }
        Ok(Notification::Ignored) => ParsedEntry::Decided(CheckRequest::Message(None), CheckOutcome::Ignored),
        Err(error) => {
            let payment_id = source.format.readable_payment_id(message.body(), &pipeline.format);
            ParsedEntry::Decided(CheckRequest::Message(payment_id), CheckOutcome::Unreadable(error.to_string()))
        }
    }
}
