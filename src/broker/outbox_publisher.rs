//! Publishing the rows of the outbox: each has a result of its own.

use super::{
    BrokerError, CONFIRM_TIMEOUT, ExchangeSpec, Outgoing, Publisher, Topology,
    declare::{Failure, Item},
    publish::Unsent,
};
use crate::{
    broker::{ExchangeType, Plan},
    domain::component::Component,
    observe::heartbeat::Heartbeat,
};
use std::collections::{HashMap, HashSet};
use tokio::sync::Mutex;

/// A message of the outbox.
#[derive(Debug, Clone, Copy)]
pub struct OutboxMessage<'a> {
    /// Where it goes; empty is the default exchange.
    pub exchange: &'a str,
    /// With which key.
    pub routing_key: &'a str,
    /// Stays the same however often it is published.
    pub message_id: &'a str,
    /// A JSON object.
    pub headers: &'a str,
    /// As it is sent.
    pub body: &'a [u8],
}

/// What became of one: `Ok`, the broker has it, in a queue. Otherwise why not.
pub type PublishResult = Result<(), String>;

/// Publishes to whatever exchange a row names. One that is missing or refused concerns the rows that go there, and nobody
/// else.
pub struct EventPublisher {
    publisher: Publisher,
    /// What is declared here, the exchange of events.
    topology: Topology,
    /// Exchanges that are there.
    known: Mutex<HashSet<String>>,
}

impl EventPublisher {
    /// Connects. Whether the broker takes anything is found by [`EventPublisher::prove`].
    pub async fn open(plan: &Plan) -> Result<Self, BrokerError> {
        let publisher = Publisher::open_for(&plan.broker, "relay publisher").await?;
        Ok(Self { publisher, topology: Topology::of_component(plan, Component::Relay), known: Mutex::default() })
    }

    /// Whether an alarm of the broker blocks it: then it cannot even be closed, and another one would be blocked, too.
    pub fn is_blocked(&self) -> Option<BrokerError> {
        self.publisher.is_blocked()
    }

    /// Whether the broker takes messages; and that the exchange of events is there, if it is ours to declare: somebody may
    /// have deleted it, and listeners cannot bind to it then.
    pub async fn prove(&self) -> Result<(), BrokerError> {
        self.topology.establish_on(self.publisher.connection()).await?;
        self.publisher.prove().await
    }

    /// Closes the connection in order.
    pub async fn close(&self) {
        self.publisher.close().await;
    }

    /// Sends messages in a window, and tells of each what became of it. An error: of none it is known.
    /// `heartbeat` beats before each step that waits.
    pub async fn send(
        &self,
        rows: &[OutboxMessage<'_>],
        heartbeat: &Heartbeat,
    ) -> Result<Vec<PublishResult>, BrokerError> {
        let mut results: Vec<PublishResult> = Vec::with_capacity(rows.len());
        let mut missing: HashMap<&str, String> = HashMap::new();
        let mut sound = Vec::with_capacity(rows.len());
        for (index, message) in rows.iter().enumerate() {
            match self.outgoing(message, &mut missing, heartbeat).await? {
                Ok(message) => {
                    sound.push((index, message));
                    results.push(Ok(()));
                }
                Err(error) => results.push(Err(error)),
            }
        }
        let messages: Vec<Outgoing<'_>> = sound.iter().map(|(_, message)| message.clone()).collect();
        heartbeat.beat();
        match self.publish(&messages, heartbeat).await {
            Ok(sent) => {
                for ((index, _), result) in sound.iter().zip(sent) {
                    results[*index] = result;
                }
            }
            Err(Unsent::Silent) => return Err(silent()),
            Err(Unsent::Broker(error)) => return Err(error),
            // It ends the channel, and does not say which of them it is about.
            Err(Unsent::Refused(_)) => {
                let mut refused: HashMap<&str, String> = HashMap::new();
                for (index, message) in &sound {
                    let exchange = rows[*index].exchange;
                    heartbeat.beat();
                    if !refused.contains_key(exchange)
                        && let Err(error) = self.send_alone(message, &mut results[*index], heartbeat).await?
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

    /// `Err` within `Ok`: the broker refuses its exchange.
    async fn send_alone(
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
            Err(Unsent::Silent) => Err(silent()),
            Err(Unsent::Broker(error)) => Err(error),
        }
    }

    /// One window. Where none of it was confirmed, a message of our own tells whether the broker answers anybody: then it is the
    /// trouble of these.
    async fn publish(&self, messages: &[Outgoing<'_>], heartbeat: &Heartbeat) -> Result<Vec<PublishResult>, Unsent> {
        match self.publisher.publish_each(messages, CONFIRM_TIMEOUT, heartbeat).await {
            Err(Unsent::Silent) => {
                self.publisher.prove().await?;
                Ok(vec![Err(silent().to_string()); messages.len()])
            }
            told => told,
        }
    }

    /// As it is sent, or why it cannot be.
    async fn outgoing<'a>(
        &self,
        message: &OutboxMessage<'a>,
        missing: &mut HashMap<&'a str, String>,
        heartbeat: &Heartbeat,
    ) -> Result<Result<Outgoing<'a>, String>, BrokerError> {
        if let Some(problem) = missing.get(message.exchange) {
            return Ok(Err(problem.clone()));
        }
        if let Some(problem) = self.missing(message.exchange, heartbeat).await? {
            missing.insert(message.exchange, problem.clone());
            return Ok(Err(problem));
        }
        let OutboxMessage { exchange, routing_key, message_id, headers, body } = message;
        let Ok(headers) = serde_json::from_str(headers) else {
            return Ok(Err(
                "its headers cannot be read: no JSON object, nested too deep, or with a number out of range".into(),
            ));
        };
        let message = Outgoing::of_outbox(exchange, routing_key, body, message_id, &headers);
        Ok(message
            .and_then(|message| self.publisher.check(&message).map(|()| message))
            .map_err(|error| error.to_string()))
    }

    /// What is wrong with an exchange: publishing to one that is not there would end the channel.
    async fn missing(&self, exchange: &str, heartbeat: &Heartbeat) -> Result<Option<String>, BrokerError> {
        if exchange.is_empty() || self.known.lock().await.contains(exchange) {
            return Ok(None);
        }
        let ours = self.topology.exchanges.iter().find(|ours| ours.name == exchange && ours.declare);
        heartbeat.beat();
        // Of one that is only looked for the type does not matter.
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

/// Whether what the broker says of one message holds for all that go to its exchange: it is not there, or may not be written
/// to. What else it refuses (a routing key, a size) is that message's own.
fn concerns_the_exchange(refusal: &str) -> bool {
    ["no exchange", "access to exchange", "internal exchange"].iter().any(|words| refusal.contains(words))
}

fn silent() -> BrokerError {
    BrokerError::Timeout { step: "basic.publish", after: CONFIRM_TIMEOUT }
}
