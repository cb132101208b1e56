//! Publishing the rows of the outbox, with a separate result for each row.

use super::{
    BrokerError, CONFIRM_TIMEOUT, ExchangeSpec, Outgoing, Publisher, Topology,
    declare::{Failure, Item},
    publish_window::Unsent,
};
use crate::{
    broker::{ExchangeType, Plan},
    domain::component::Component,
    observe::heartbeat::Heartbeat,
};
use std::collections::{HashMap, HashSet};
use tokio::sync::Mutex;

/// The message of an outbox row.
#[derive(Debug, Clone, Copy)]
pub struct OutboxMessage<'a> {
    /// The exchange; empty for the default exchange.
    pub exchange: &'a str,
    /// The routing key.
    pub routing_key: &'a str,
    /// The message ID, which is the same each time the row is published.
    pub message_id: &'a str,
    /// The headers as a JSON object.
    pub headers: &'a str,
    /// The body.
    pub body: &'a [u8],
}

/// The result for one message: `Ok` if it is confirmed in a queue, otherwise the reason.
pub type PublishResult = Result<(), String>;

/// Publishes each row to the exchange that it names. A missing or refused exchange affects only the rows for it.
pub struct EventPublisher {
    publisher: Publisher,
    /// The topology of the relay: the exchange of events.
    topology: Topology,
    /// The exchanges that are known to exist.
    known: Mutex<HashSet<String>>,
}

impl EventPublisher {
    /// Connects. [`EventPublisher::prove`] tests whether the broker accepts messages.
    pub async fn open(plan: &Plan) -> Result<Self, BrokerError> {
        let publisher = Publisher::open_for(&plan.broker, "relay publisher").await?;
        Ok(Self { publisher, topology: Topology::of_component(plan, Component::Relay), known: Mutex::default() })
    }

    /// The error if an alarm of the broker blocks the publisher: it cannot be closed then, and a new one would be
    /// blocked, too.
    pub fn is_blocked(&self) -> Option<BrokerError> {
        self.publisher.is_blocked()
    }

    /// Tests whether the broker accepts messages, and declares the exchange of events if pointsd declares it: after a
    /// deletion no queue can be bound to it.
    pub async fn prove(&self) -> Result<(), BrokerError> {
        self.topology.establish_on(self.publisher.connection()).await?;
        self.publisher.prove().await
    }

    /// Closes the connection in order.
    pub async fn close(&self) {
        self.publisher.close().await;
    }

    /// Publishes a window of messages and returns the result of each. After an error, no result is known. `heartbeat`
    /// beats before each step that waits.
    pub async fn send(
        &self,
        rows: &[OutboxMessage<'_>],
        heartbeat: &Heartbeat,
    ) -> Result<Vec<PublishResult>, BrokerError> {
        let mut results: Vec<PublishResult> = Vec::with_capacity(rows.len());
        let mut unusable: HashMap<&str, String> = HashMap::new();
        let mut publishable = Vec::with_capacity(rows.len());
        for (index, message) in rows.iter().enumerate() {
            match self.prepare(message, &mut unusable, heartbeat).await? {
                Ok(message) => {
                    publishable.push((index, message));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        let messages: Vec<Outgoing<'_>> = publishable.iter().map(|(_, message)| message.clone()).collect();
        heartbeat.beat();
        match self.publish(&messages, heartbeat).await {
            Ok(sent) => {
                for ((index, _), result) in publishable.iter().zip(sent) {
                    results[*index] = result;
                }
            }
            Err(Unsent::Silent) => return Err(confirm_timeout()),
            Err(Unsent::Broker(error)) => return Err(error),
            // A refusal closes the channel and does not identify the message: publish each one separately.
            Err(Unsent::Refused(_)) => {
                let mut refused: HashMap<&str, String> = HashMap::new();
                for (index, message) in &publishable {
                    let exchange = rows[*index].exchange;
                    heartbeat.beat();
                    if !refused.contains_key(exchange)
                        && let Err(error) = self.publish_alone(message, &mut results[*index], heartbeat).await?
                    {
                        if concerns_the_exchange(&error) {
                            refused.insert(exchange, error);
                        } else {
                            results[*index] = Err(error);
                        }
                    }
                    if let Some(error) = refused.get(exchange) {
                        results[*index] = Err(error.clone());
                    }
                }
                self.known.lock().await.retain(|exchange| !refused.contains_key(exchange.as_str()));
            }
        }
        Ok(results)
    }

    /// Publishes one message. `Err` within `Ok`: the broker refused the message and closed the channel.
    async fn publish_alone(
        &self,
        message: &Outgoing<'_>,
        result: &mut PublishResult,
        heartbeat: &Heartbeat,
    ) -> Result<Result<(), String>, BrokerError> {
        match self.publish(std::slice::from_ref(message), heartbeat).await {
            Ok(sent) => {
                *result = sent.into_iter().next().unwrap_or(Ok(()));
                Ok(Ok(()))
            }
            Err(Unsent::Refused(error)) => Ok(Err(error)),
            Err(Unsent::Silent) => Err(confirm_timeout()),
            Err(Unsent::Broker(error)) => Err(error),
        }
    }

    /// Publishes one window. If no message is confirmed, a probe tests whether the broker answers at all: if it does,
    /// the failure belongs to the messages.
    async fn publish(&self, messages: &[Outgoing<'_>], heartbeat: &Heartbeat) -> Result<Vec<PublishResult>, Unsent> {
        match self.publisher.publish_each(messages, CONFIRM_TIMEOUT, heartbeat).await {
            Err(Unsent::Silent) => {
                self.publisher.prove().await?;
                Ok(vec![Err(confirm_timeout().to_string()); messages.len()])
            }
            result => result,
        }
    }

    /// Builds the message to publish. `Err` within `Ok`: the reason why it cannot be published.
    async fn prepare<'a>(
        &self,
        message: &OutboxMessage<'a>,
        unusable: &mut HashMap<&'a str, String>,
        heartbeat: &Heartbeat,
    ) -> Result<Result<Outgoing<'a>, String>, BrokerError> {
        if let Some(problem) = unusable.get(message.exchange) {
            return Ok(Err(problem.clone()));
        }
        if let Some(problem) = self.find_exchange_problem(message.exchange, heartbeat).await? {
            unusable.insert(message.exchange, problem.clone());
            return Ok(Err(problem));
        }
        let OutboxMessage { exchange, routing_key, message_id, headers, body } = message;
        let Ok(headers) = serde_json::from_str(headers) else {
            return Ok(Err(
                "invalid headers: not a JSON object, nested too deeply, or with a number out of range".into()
            ));
        };
        let message = Outgoing::from_outbox_row(exchange, routing_key, body, message_id, &headers);
        Ok(message
            .and_then(|message| self.publisher.check(&message).map(|()| message))
            .map_err(|error| error.to_string()))
    }

    /// The reason why an exchange cannot be used; publishing to a missing one would close the channel.
    async fn find_exchange_problem(
        &self,
        exchange: &str,
        heartbeat: &Heartbeat,
    ) -> Result<Option<String>, BrokerError> {
        if exchange.is_empty() || self.known.lock().await.contains(exchange) {
            return Ok(None);
        }
        let ours = self.topology.exchanges.iter().find(|ours| ours.name == exchange && ours.declare);
        heartbeat.beat();
        // A passive declare ignores the type.
        let theirs = ExchangeSpec { name: exchange.to_owned(), kind: ExchangeType::Topic, declare: false };
        let item = Item::Exchange(ours.unwrap_or(&theirs));
        match item.declare(self.publisher.connection(), ours.is_none()).await {
            Ok(()) => {
                self.known.lock().await.insert(exchange.to_owned());
                Ok(None)
            }
            Err(Failure::Broker(text)) => Ok(Some(text)),
            Err(Failure::Other(error)) => Err(error),
        }
    }
}

/// Whether a refusal applies to all messages for the exchange, because it is missing or write access is refused. Any
/// other refusal (a routing key, a size) applies to one message.
fn concerns_the_exchange(refusal: &str) -> bool {
    ["no exchange", "access to exchange", "internal exchange"].iter().any(|words| refusal.contains(words))
}

fn confirm_timeout() -> BrokerError {
    BrokerError::Timeout { step: "basic.publish", after: CONFIRM_TIMEOUT }
}
