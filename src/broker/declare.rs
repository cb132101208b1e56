//! Declaring an exchange or a queue, actively or passively, and explaining the errors of the broker.

use super::{
    Argument, BrokerError, ExchangeSpec, QueueSpec, STEP_TIMEOUT, error_text,
    inequivalence::Inequivalence,
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

/// The beginning of the broker's error for a missing queue or exchange.
pub(super) const NOT_FOUND: &str = "NOT_FOUND";

/// The queue type of a stream (`x-queue-type`).
const STREAM: &str = "stream";

/// Whether an error of the broker shows that the queue is a stream.
pub(super) fn is_stream(refusal: &str) -> bool {
    Inequivalence::parse(refusal).is_some_and(|it| it.argument == "x-queue-type" && it.found == STREAM)
}

/// An exchange or a queue of the topology.
pub(super) enum Item<'a> {
    Exchange(&'a ExchangeSpec),
    Queue(&'a QueueSpec),
}

impl Item<'_> {
    /// Whether it is a delay queue.
    pub(super) fn is_delay(&self) -> bool {
        matches!(self, Self::Queue(queue) if queue.arguments.iter().any(|(name, _)| *name == TIME_TO_LIVE))
    }

    /// Whether pointsd declares it.
    pub(super) fn is_declared(&self) -> bool {
        match self {
            Self::Exchange(exchange) => exchange.declare,
            Self::Queue(queue) => queue.declare,
        }
    }

    /// What is lost with it, and what to do.
    pub(super) fn when_lost(&self) -> &'static str {
        match self {
            Self::Exchange(_) => {
                "messages published to it meanwhile reached no queue; have the producer publish them again"
            }
            Self::Queue(queue) => queue.contents.when_lost(),
        }
    }

    /// Its type and name, for error texts.
    pub(super) fn subject(&self) -> String {
        match self {
            Self::Exchange(exchange) => format!("exchange {}", exchange.name),
            Self::Queue(queue) => format!("queue {}", queue.name),
        }
    }

    /// Declares it. `passive`: only checks that it exists. Otherwise it is created if it is missing, and an existing
    /// one must have the same arguments.
    pub(super) async fn declare(&self, connection: &Connection, passive: bool) -> Result<(), Failure> {
        match self {
            Self::Exchange(ExchangeSpec { name, kind, .. }) => {
                declare_on_channel(connection, "exchange.declare", async |channel| {
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
                declare_on_channel(connection, "queue.declare", async |channel| {
                    // Exclusive and auto-delete queues would lose their messages with the connection.
                    let options = QueueDeclareOptions {
                        passive,
                        durable: true,
                        exclusive: false,
                        auto_delete: false,
                        nowait: false,
                    };
                    channel.queue_declare(queue.name.as_str().into(), options, argument_table(&queue.arguments)).await
                })
                .await
            }
        }
    }

    /// Explains an error of the broker, and what to do.
    pub(super) fn explain_refusal(&self, text: &str) -> String {
        if text.starts_with(NOT_FOUND) {
            return "is missing; create it with `pointsd topology declare`".to_owned();
        }
        let Some(Inequivalence { argument, wanted, found }) = Inequivalence::parse(text) else {
            return format!("cannot be declared: {text}");
        };
        if argument == "x-queue-type" && found == STREAM {
            return "is a stream, which keeps acknowledged messages and serves each consumer from its own offset: \
                    configure a quorum or classic queue that is bound to the same exchange"
                .to_owned();
        }
        let advice = match (self, argument) {
            // An exchange of others is used with its actual type.
            (Self::Exchange(_), _) if !self.is_declared() => "name another exchange if this is not intended",
            (Self::Queue(_), "x-delivery-limit")
                if !self.is_declared() && wanted != BROWSED_DELIVERY_LIMIT.to_string() =>
            {
                "with a lower limit (none means 20 since RabbitMQ 4.0) messages leave the queue after few \
                 redeliveries, and are lost without a dead-letter exchange: raise the limit"
            }
            (Self::Queue(_), "x-dead-letter-exchange") if !self.is_declared() => {
                "messages that reach the delivery limit are lost, unless a policy sets a dead-letter exchange"
            }
            (Self::Queue(_), _) if !self.is_declared() && wanted != BROWSED_DELIVERY_LIMIT.to_string() => {
                "arguments of a queue cannot be changed: delete and redeclare the queue if this is not intended"
            }
            (Self::Exchange(_), _) => "name another exchange, or set declare = false to use this one unchanged",
            (Self::Queue(_), "x-delivery-limit") if wanted == BROWSED_DELIVERY_LIMIT.to_string() => {
                "each inspection of a message counts as a delivery, and the broker drops a message at the limit \
                 (none means 20 since RabbitMQ 4.0): `pointsd dead` renews messages, but a killed command cannot; \
                 delete and redeclare the queue"
            }
            (Self::Queue(_), "x-delivery-limit") => {
                "with a lower limit (none means 20 since RabbitMQ 4.0) messages leave the queue after few \
                 redeliveries: set broker.delivery_limit, delete and redeclare the queue, or set declare = false to \
                 use it unchanged"
            }
            (Self::Queue(_), _) => {
                "arguments of a queue cannot be changed: delete and redeclare the queue, name another one, or set \
                 declare = false to use it unchanged"
            }
        };
        format!("exists with another {argument}: {found} there, {wanted} here; {advice}")
    }
}

impl Item<'_> {
    /// All differences at the broker, as error texts of the broker. An error names only the first argument that
    /// differs: its value at the broker is adopted, and the next declaration shows the next difference.
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
            let next = queue.as_mut().is_some_and(|queue| adopt_argument(queue, &text));
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

/// Sets the argument that differs to its value at the broker. `false` if no further difference can be found.
fn adopt_argument(queue: &mut QueueSpec, refusal: &str) -> bool {
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

/// The reason why a declaration failed: an error of the broker, or any other error.
#[derive(Debug)]
pub(super) enum Failure {
    Broker(String),
    Other(BrokerError),
}

impl Failure {
    /// Converts the failure to an error that explains it for the item.
    pub(super) fn into_error(self, item: &Item<'_>) -> BrokerError {
        match self {
            Self::Broker(text) => BrokerError::Topology(format!("{} {}", item.subject(), item.explain_refusal(&text))),
            Self::Other(error) => error,
        }
    }
}

impl From<lapin::Error> for Failure {
    fn from(error: lapin::Error) -> Self {
        match error.kind() {
            lapin::ErrorKind::ProtocolError(_) => Self::Broker(error_text(&error)),
            _ => Self::Other(error.into()),
        }
    }
}

/// Declares something on a separate channel, because an error closes the channel.
async fn declare_on_channel<T>(
    connection: &Connection,
    step: &'static str,
    work: impl AsyncFnOnce(&lapin::Channel) -> lapin::Result<T>,
) -> Result<(), Failure> {
    let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await.map_err(Failure::Other)?;
    let done = tokio::time::timeout(STEP_TIMEOUT, work(&channel)).await;
    close_channel(&channel).await;
    match done {
        Ok(done) => done.map(|_| ()).map_err(Failure::from),
        Err(_) => Err(Failure::Other(BrokerError::Timeout { step, after: STEP_TIMEOUT })),
    }
}

/// Runs `work` on a separate channel, and closes the channel.
pub(super) async fn with_channel<T>(
    connection: &Connection,
    work: impl AsyncFnOnce(&lapin::Channel) -> Result<T, BrokerError>,
) -> Result<T, BrokerError> {
    let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
    let done = work(&channel).await;
    close_channel(&channel).await;
    done
}

/// Closes the channel and waits for the end. lapin closes a dropped channel later; a connection that is closed
/// meanwhile ends without the answer of the broker, which the broker logs as an error of the client.
async fn close_channel(channel: &lapin::Channel) {
    let ended = async {
        if channel.status().connected() {
            let _ = channel.close(200, "done".into()).await;
        }
        // The broker has closed the channel, and lapin is confirming that.
        while channel.status().closing() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let _ = tokio::time::timeout(STEP_TIMEOUT, ended).await;
}

fn argument_table(arguments: &[(&'static str, Argument)]) -> FieldTable {
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

/// Declares a queue passively, which changes nothing. An error (for instance a missing queue) closes the channel.
pub(super) async fn declare_passively(channel: &lapin::Channel, queue: &str) -> Result<lapin::Queue, BrokerError> {
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

/// Closes a connection in order.
pub(super) async fn close_connection(connection: &Connection) {
    // Dropping a connection closes it if this fails.
    let _ = tokio::time::timeout(STEP_TIMEOUT, connection.close(200, "done".into())).await;
}
