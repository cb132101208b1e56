//! Renewing dead letters: a confirmed copy replaces a message whose delivery count was raised by inspections, so that
//! inspecting messages does not exhaust a delivery limit, even one that a policy sets and AMQP does not show.

use super::{
    BrokerError, copy,
    found::HeldLetter,
    header_frame::HeaderFrame,
    header_names,
    lenient::{self, Unreadable},
    outgoing::Outgoing,
    publish::Publisher,
};
use crate::{
    broker::{BrokerSettings, found::Tag},
    domain::dead_letter::DeadLetter,
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

/// A message that has returned to the queue this many times is renewed instead of returned again.
const MAX_RETURNS: i64 = 1;

/// The maximum number of messages that are renewed together.
const WINDOW: usize = 500;

/// The maximum size of the messages that wait to be renewed. Bytes.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// The messages that wait to be replaced by copies.
pub(super) struct Renewals {
    settings: BrokerSettings,
    /// The identifier of this dead-queue session, which its copies carry: the session receives its own copies and must
    /// not count them as further messages.
    look: String,
    publisher: Option<Publisher>,
    messages: Vec<HeldLetter>,
    bytes: usize,
    /// The number of messages that could not be renewed, and the first error.
    pub(super) failed: Option<(u64, BrokerError)>,
}

impl Renewals {
    pub(super) fn new(settings: &BrokerSettings) -> Self {
        let settings = settings.clone();
        let look = format!("{}-{}", std::process::id(), jiff::Timestamp::now().as_nanosecond());
        Self { settings, look, publisher: None, messages: Vec::new(), bytes: 0, failed: None }
    }

    /// Whether the message with these properties is a copy that this session published.
    pub(super) fn is_own_copy(&self, properties: &BasicProperties) -> bool {
        let headers = properties.headers().as_ref().map(FieldTable::inner);
        let look = headers.and_then(|headers| headers.get(header_names::LOOK));
        matches!(look, Some(AMQPValue::LongString(look)) if look.as_bytes() == self.look.as_bytes())
    }

    /// Keeps a message if it must be renewed. Returns whether the copies must be published now.
    pub(super) fn keep_if_due(&mut self, found: HeldLetter) -> bool {
        if found.times_given_back() < MAX_RETURNS {
            return false;
        }
        if let Some((messages, _)) = &mut self.failed {
            *messages += 1;
            return false;
        }
        self.bytes += found.size();
        self.messages.push(found);
        self.messages.len() >= WINDOW || self.bytes >= WINDOW_BYTES
    }

    /// Publishes the copies and returns the messages to remove: all or none, because after an error it is unknown which
    /// copies are in the queue.
    pub(super) async fn publish(&mut self, queue: &str) -> Vec<Tag> {
        let messages = std::mem::take(&mut self.messages);
        self.bytes = 0;
        if messages.is_empty() {
            return Vec::new();
        }
        match self.publish_copies(queue, &messages).await {
            Ok(()) => messages.iter().map(HeldLetter::tag).collect(),
            Err(error) => {
                self.failed = Some((messages.len() as u64, error));
                Vec::new()
            }
        }
    }

    async fn publish_copies(&mut self, queue: &str, messages: &[HeldLetter]) -> Result<(), BrokerError> {
        let publisher = match self.publisher.take() {
            Some(publisher) => publisher,
            None => Publisher::open(&self.settings).await?,
        };
        let mut frame = publisher.header_frame();
        let copies: Vec<Outgoing<'_>> = messages
            .iter()
            .map(|found| {
                let unreadable = found.unreadable.as_ref();
                let properties =
                    renewed_properties(&self.look, &found.properties, unreadable, &found.dead_letter(), &mut frame);
                Outgoing::to_queue(queue, found.body(), properties)
            })
            .collect();
        let published = publisher.publish(&copies).await;
        self.publisher = Some(publisher);
        published
    }

    pub(super) async fn close(&self) {
        if let Some(publisher) = &self.publisher {
            publisher.close().await;
        }
    }
}

/// The properties of a copy that replaces a dead letter and keeps its description. Information that only the broker
/// gives (`x-death`, which no copy keeps) and the raw properties of an unreadable message are written to own headers.
pub(super) fn renewed_properties(
    look: &str,
    original: &BasicProperties,
    unreadable: Option<&Unreadable>,
    letter: &DeadLetter,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let copied = add_renewal_headers(look, original, unreadable.is_some(), letter, frame);
    match unreadable {
        Some(unreadable) => lenient::add_raw_properties(&copied, unreadable, frame),
        None => copied,
    }
}

/// Adds the own headers of the copy. `is_unreadable`: the headers do not describe the failure yet.
fn add_renewal_headers(
    look: &str,
    original: &BasicProperties,
    is_unreadable: bool,
    letter: &DeadLetter,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let given = original.headers().as_ref().map(FieldTable::inner);
    let moved_by_the_broker = given.is_some_and(|given| given.contains_key("x-death"));
    let (mut ours, mut foreign) = (FieldTable::default(), FieldTable::default());
    for (name, value) in given.into_iter().flatten().filter(|(name, _)| !header_names::is_broker_header(name.as_str()))
    {
        let table = if name.as_str().starts_with(header_names::OUR_PREFIX) { &mut ours } else { &mut foreign };
        table.insert(name.clone(), value.clone());
    }
    if moved_by_the_broker || is_unreadable {
        let mut kept = FieldTable::default();
        // Existing headers of a single stay describe an earlier failure.
        for (name, value) in ours.inner().iter().filter(|(name, _)| !header_names::belongs_to_one_stay(name.as_str())) {
            kept.insert(name.clone(), value.clone());
        }
        ours = kept;
        let at = letter.first_failed_at.map(|at| at.to_string());
        let error = letter.error.as_deref().map(|error| copy::truncate(error, copy::MAX_ERROR_BYTES));
        let description = [
            (header_names::REASON, Some(letter.reason.as_str())),
            (header_names::ERROR, error),
            (header_names::SOURCE_QUEUE, letter.source_queue.as_deref()),
            (header_names::FIRST_FAILED_AT, at.as_deref()),
        ];
        for (name, value) in description {
            if let Some(value) = value {
                ours.insert(name.into(), AMQPValue::LongString(value.into()));
            }
        }
    }
    ours.insert(header_names::LOOK.into(), AMQPValue::LongString(look.into()));
    let mut all = ours.clone();
    for (name, value) in foreign.inner() {
        all.insert(name.clone(), value.clone());
    }
    let whole = copy::copy_with_headers(original, all);
    if frame.fits(&whole) {
        return whole;
    }
    ours.insert(header_names::TRUNCATED.into(), AMQPValue::Boolean(true));
    copy::copy_with_headers(original, ours)
}
