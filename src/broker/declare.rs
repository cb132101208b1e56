//! Declaring an exchange or a queue, passively or not, and what the broker's refusals mean.

use super::{
    Argument, BrokerError, ExchangeSpec, QueueSpec, STEP_TIMEOUT,
    inequivalence::Inequivalence,
    told,
    topology::{BROWSED_DELIVERY_LIMIT, TIME_TO_LIVE},
    within,
};
use crate::broker::ExchangeType;
use lapin::{
    Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use std::time::Duration;

/// What the broker's refusal of something that is not there begins with.
pub(super) const NOT_FOUND: &str = "NOT_FOUND";

/// The type of a stream (`x-queue-type`).
const STREAM: &str = "stream";

/// Whether a refusal says that the queue is a stream.
pub(super) fn is_stream(refusal: &str) -> bool {
    Inequivalence::parse(refusal).is_some_and(|it| it.argument == "x-queue-type" && it.found == STREAM)
}

/// An exchange or a queue.
pub(super) enum Item<'a> {
    Exchange(&'a ExchangeSpec),
    Queue(&'a QueueSpec),
}

impl Item<'_> {
    pub(super) fn is_delay(&self) -> bool {
        matches!(self, Self::Queue(queue) if queue.arguments.iter().any(|(name, _)| *name == TIME_TO_LIVE))
    }

    /// Whether it is ours to declare.
    pub(super) fn is_declared(&self) -> bool {
        match self {
            Self::Exchange(exchange) => exchange.declare,
            Self::Queue(queue) => queue.declare,
        }
    }

    /// What its disappearance means, and what to do.
    pub(super) fn when_lost(&self) -> &'static str {
        match self {
            Self::Exchange(_) => {
                "what was published to it meanwhile reached no queue; have the payment side publish it again"
            }
            Self::Queue(queue) => queue.contents.when_lost(),
        }
    }

    pub(super) fn subject(&self) -> String {
        match self {
            Self::Exchange(exchange) => format!("exchange {}", exchange.name),
            Self::Queue(queue) => format!("queue {}", queue.name),
        }
    }

    /// Passively: that it is there. Otherwise: that it is there just so, and made if it is not.
    pub(super) async fn declare(&self, connection: &Connection, passive: bool) -> Result<(), Failure> {
        match self {
            Self::Exchange(ExchangeSpec { name, kind, .. }) => {
                on_channel(connection, "exchange.declare", async |channel| {
                    let options = ExchangeDeclareOptions {
                        passive,
                        durable: true,
                        auto_delete: false,
                        internal: false,
                        nowait: false,
                    };
                    let kind = match kind {
                        ExchangeType::Direct => ExchangeKind::Direct,
                        ExchangeType::Fanout => ExchangeKind::Fanout,
                        ExchangeType::Topic => ExchangeKind::Topic,
                    };
                    channel.exchange_declare(name.as_str().into(), kind, options, FieldTable::default()).await
                })
                .await
            }
            Self::Queue(queue) => {
                on_channel(connection, "queue.declare", async |channel| {
                    // Exclusive or auto-deleted queues would lose what they hold with their connection.
                    let options = QueueDeclareOptions {
                        passive,
                        durable: true,
                        exclusive: false,
                        auto_delete: false,
                        nowait: false,
                    };
                    channel.queue_declare(queue.name.as_str().into(), options, table(&queue.arguments)).await
                })
                .await
            }
        }
    }

    /// What the broker's refusal means, and what to do.
    pub(super) fn explain(&self, text: &str) -> String {
        if text.starts_with(NOT_FOUND) {
            return "is missing; `pointsd topology declare` makes it".to_owned();
        }
        let Some(Inequivalence { argument, wanted, found }) = Inequivalence::parse(text) else {
            return format!("cannot be had: {text}");
        };
        if argument == "x-queue-type" && found == STREAM {
            return "is a stream, which keeps what is acknowledged and serves each reader from a place of its own: name a quorum \
                    or a classic queue that is bound to the same exchange"
                .to_owned();
        }
        let advice = match (self, argument) {
            // It is used as it is.
            (Self::Exchange(_), _) if !self.is_declared() => "name another one if that is not meant",
            (Self::Queue(_), "x-delivery-limit")
                if !self.is_declared() && wanted != BROWSED_DELIVERY_LIMIT.to_string() =>
            {
                "with a lower limit (none means 20 since RabbitMQ 4.0) messages leave it after few redeliveries, and are lost \
                 without a dead-letter exchange: raise it"
            }
            (Self::Queue(_), "x-dead-letter-exchange") if !self.is_declared() => {
                "what reaches the queue's delivery limit is lost, unless a policy names a dead-letter exchange"
            }
            (Self::Queue(_), _) if !self.is_declared() && wanted != BROWSED_DELIVERY_LIMIT.to_string() => {
                "arguments of a queue cannot be changed: make the queue anew if that is not meant"
            }
            (Self::Exchange(_), _) => "name another one, or set declare = false to use it as it is",
            (Self::Queue(_), "x-delivery-limit") if wanted == BROWSED_DELIVERY_LIMIT.to_string() => {
                "each look at a message in it counts as a delivery, and the broker drops a message after the last one \
                 (none means 20 since RabbitMQ 4.0): `pointsd dead` renews messages, but a look that is killed cannot; \
                 declare the queue again"
            }
            (Self::Queue(_), "x-delivery-limit") => {
                "with a lower limit (none means 20 since RabbitMQ 4.0) messages leave it after few redeliveries: \
                 set broker.delivery_limit, make the queue anew, or set declare = false to use it as it is"
            }
            (Self::Queue(_), _) => {
                "arguments of a queue cannot be changed: make the queue anew, name another one, or set \
                 declare = false to use it as it is"
            }
        };
        format!("exists with another {argument}: {found} there, {wanted} here; {advice}")
    }
}

impl Item<'_> {
    /// Everything that is different at the broker, as it says it. It names only the first argument that differs: that one is
    /// taken over, and the next declaration shows the next.
    pub(super) async fn refusals(&self, connection: &Connection) -> Result<Vec<String>, BrokerError> {
        let mut refusals = Vec::new();
        let mut queue = match self {
            Self::Queue(queue) => Some((*queue).clone()),
            Self::Exchange(_) => None,
        };
        loop {
            let item = queue.as_ref().map_or(Item::from(self), Item::Queue);
            let text = match item.declare(connection, false).await {
                Ok(()) => return Ok(refusals),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Broker(text)) => text,
            };
            let next = queue.as_mut().is_some_and(|queue| take_over(queue, &text));
            refusals.push(text);
            if !next {
                return Ok(refusals);
            }
        }
    }
}

impl<'a> From<&Item<'a>> for Item<'a> {
    fn from(item: &Item<'a>) -> Self {
        match item {
            Item::Exchange(exchange) => Item::Exchange(exchange),
            Item::Queue(queue) => Item::Queue(queue),
        }
    }
}

/// Sets the argument that differs to what the broker has. `false` when that leads nowhere.
fn take_over(queue: &mut QueueSpec, refusal: &str) -> bool {
    let Some(Inequivalence { argument, found, .. }) = Inequivalence::parse(refusal) else { return false };
    let Some(index) = queue.arguments.iter().position(|(name, _)| *name == argument) else { return false };
    let found = match (found.as_str(), found.parse()) {
        ("none", _) => None,
        (_, Ok(number)) => Some(Argument::Number(number)),
        ("\"\"", _) => Some(Argument::Text(String::new())),
        (text, _) => Some(Argument::Text(text.to_owned())),
    };
    match found {
        None => drop(queue.arguments.remove(index)),
        Some(found) if queue.arguments[index].1 == found => return false,
        Some(found) => queue.arguments[index].1 = found,
    }
    true
}

/// Why a declaration failed: the broker's word, or no word.
#[derive(Debug)]
pub(super) enum Failure {
    Broker(String),
    Other(BrokerError),
}

impl Failure {
    /// What it means for that item.
    pub(super) fn explained(self, item: &Item<'_>) -> BrokerError {
        match self {
            Self::Broker(text) => BrokerError::Topology(format!("{} {}", item.subject(), item.explain(&text))),
            Self::Other(error) => error,
        }
    }
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        match error.kind() {
            lapin::ErrorKind::ProtocolError(_) => Self::Broker(told(&error)),
            _ => Self::Other(error.into()),
        }
    }
}

/// On a channel of its own, because a refusal closes the channel.
async fn on_channel<T>(
    connection: &Connection,
    step: &'static str,
    work: impl AsyncFnOnce(&lapin::Channel) -> lapin::Result<T>,
) -> Result<(), Failure> {
    let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await.map_err(Failure::Other)?;
    let done = tokio::time::timeout(STEP_TIMEOUT, work(&channel)).await;
    end(&channel).await;
    match done {
        Ok(done) => done.map(|_| ()).map_err(Failure::from),
        Err(_) => Err(Failure::Other(BrokerError::Timeout { step, after: STEP_TIMEOUT })),
    }
}

/// Runs `work` on a channel of its own, and ends the channel.
pub(super) async fn with_channel<T>(
    connection: &Connection,
    work: impl AsyncFnOnce(&lapin::Channel) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
    let done = work(&channel).await;
    end(&channel).await;
    done
}

/// Returns when the channel is closed. A channel that is dropped is closed by lapin later, and a connection that is closed
/// meanwhile ends without the broker's answer, which the broker logs as a fault of the client.
async fn end(channel: &lapin::Channel) {
    let ended = async {
        if channel.status().connected() {
            let _ = channel.close(200, "done".into()).await;
        }
        // The broker has closed it, and lapin confirms that.
        while channel.status().closing() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = tokio::time::timeout(STEP_TIMEOUT, ended).await;
}

fn table(arguments: &[(&'static str, Argument)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, argument) in arguments {
        let value = match argument {
            Argument::Text(text) => AMQPValue::LongString(text.as_str().into()),
            Argument::Number(number) => AMQPValue::LongLongInt(*number),
        };
        table.insert((*name).into(), value);
    }
    table
}

/// Looks at a queue, changing nothing. A refusal (it is not there, say) closes the channel.
pub(super) async fn passive(channel: &lapin::Channel, queue: &str) -> Result<lapin::Queue, BrokerError> {
    let options =
        QueueDeclareOptions { passive: true, durable: true, exclusive: false, auto_delete: false, nowait: false };
    let declare = channel.queue_declare(queue.into(), options, FieldTable::default());
    match tokio::time::timeout(STEP_TIMEOUT, declare).await {
        Ok(declared) => declared.map_err(|error| match Failure::from(error) {
            Failure::Broker(text) => BrokerError::Topology(text),
            Failure::Other(error) => error,
        }),
        Err(_) => Err(BrokerError::Timeout { step: "queue.declare", after: STEP_TIMEOUT }),
    }
}

pub(super) async fn close(connection: &Connection) {
    // A connection that does not close in order is closed by being dropped.
    let _ = tokio::time::timeout(STEP_TIMEOUT, connection.close(200, "done".into())).await;
}
