//! What must stand at the broker: an exchange, the credit queue and the check queue with their delay queues, the dead
//! queue. Printed, declared, checked.

use super::{
    BrokerError, STEP_TIMEOUT,
    connect::connect,
    declare::{Failure, Item, NOT_FOUND, close},
    inequivalence::Inequivalence,
    within,
};
use crate::{
    config::BrokerSettings,
    domain::{
        check::CheckPolicy,
        retry::{Delay, RetryPolicy},
    },
};
use lapin::{Connection, options::QueueBindOptions, types::FieldTable};
use serde::Serialize;

/// The type of the queues that are declared (`broker.queue_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueType {
    /// Replicated, for clusters; redelivery is counted and limited.
    Quorum,
    /// On one node.
    Classic,
}

impl QueueType {
    /// The value of `x-queue-type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Quorum => "quorum",
            Self::Classic => "classic",
        }
    }
}

/// An argument of a queue. Immutable once the queue exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A text.
    Text(String),
    /// A number.
    Number(i64),
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub purpose: &'static str,
    /// Its arguments, in order; in JSON an object.
    #[serde(serialize_with = "as_object")]
    pub arguments: Vec<(&'static str, Argument)>,
}

fn as_object<S: serde::Serializer>(arguments: &[(&'static str, Argument)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(arguments.iter().map(|(name, value)| (name, value)))
}

/// Everything that is needed of the broker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// The exchange that producers publish to: direct, durable.
    pub exchange: String,
    /// The queues.
    pub queues: Vec<QueueSpec>,
    /// What is bound to the exchange.
    pub bindings: Vec<Binding>,
    /// What must not be bound to it (any more): nobody would take what it holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unbound: Vec<Binding>,
}

/// A queue's binding to the exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The queue.
    pub queue: String,
    /// The routing key.
    pub key: String,
}

/// Something that is not as [`Topology`] says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The queue or exchange.
    pub subject: String,
    /// What is different, and what to do.
    pub problem: String,
    /// Whether the daemon works all the same: a queue that somebody else declared in his own way.
    pub harmless: bool,
}

/// A dead queue, or a delay queue, is only browsed, and each look counts as a delivery: it must not be browsed to death.
pub(super) const BROWSED_DELIVERY_LIMIT: i64 = 1_000_000;

/// The queue in which the messages of `queue` wait for one step: another delay is another queue, because a queue's time
/// to live cannot be changed, and because per-message times expire only at a queue's head.
pub fn retry_queue(queue: &str, delay: &Delay) -> String {
    format!("{queue}.retry.{}", delay.as_str())
}

/// The queue in which messages wait for a check.
pub fn check_delay_queue(check_queue: &str, delay: &Delay) -> String {
    format!("{check_queue}.delay.{}", delay.as_str())
}

pub(super) const TIME_TO_LIVE: &str = "x-message-ttl";

/// The arguments of a delay queue: quorum, whatever the others are, because only quorum queues dead-letter at least
/// once, and a delay must lose nothing. What has waited goes back through the default exchange.
fn delay_arguments(delay: &Delay, back_to: &str) -> Vec<(&'static str, Argument)> {
    let text = |text: &str| Argument::Text(text.to_owned());
    vec![
        ("x-queue-type", text(QueueType::Quorum.as_str())),
        // Bounded by `domain::retry::MAX_DELAY_MILLISECONDS`.
        (TIME_TO_LIVE, Argument::Number(i64::try_from(delay.milliseconds()).unwrap_or(i64::MAX))),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(back_to)),
        ("x-dead-letter-strategy", text("at-least-once")),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", Argument::Number(BROWSED_DELIVERY_LIMIT)),
    ]
}

impl Topology {
    /// From the configuration. Without a payment source (`checking`) there are no checks, and no queues for them.
    pub fn of(settings: &BrokerSettings, retry: &RetryPolicy, checks: &CheckPolicy, checking: bool) -> Self {
        let text = |text: &str| Argument::Text(text.to_owned());
        let queue_type = ("x-queue-type", text(settings.queue_type.as_str()));
        let (consumed, dead_arguments) = match settings.queue_type {
            QueueType::Quorum => (
                vec![
                    queue_type.clone(),
                    // Explicit, because the broker's default is none before 4.0 and 20 since.
                    ("x-delivery-limit", Argument::Number(settings.delivery_limit)),
                    // What reaches the limit goes to the dead queue through the default exchange, and is kept until
                    // it is confirmed there; at-least-once asks for reject-publish (RabbitMQ, "Quorum Queues").
                    ("x-dead-letter-exchange", text("")),
                    ("x-dead-letter-routing-key", text(&settings.dead_queue)),
                    ("x-dead-letter-strategy", text("at-least-once")),
                    ("x-overflow", text("reject-publish")),
                ],
                vec![queue_type, ("x-delivery-limit", Argument::Number(BROWSED_DELIVERY_LIMIT))],
            ),
            QueueType::Classic => (vec![queue_type.clone()], vec![queue_type]),
        };
        let queue = |name: &str, purpose, arguments| QueueSpec { name: name.to_owned(), purpose, arguments };
        let mut queues = vec![
            queue(&settings.dead_queue, "parked for a person", dead_arguments),
            queue(&settings.credit_queue, "points messages", consumed.clone()),
        ];
        if checking {
            queues.push(queue(&settings.check_queue, "checks of payments", consumed));
        }
        let mut waiting = |name: String, purpose, delay: &Delay, back_to: &str| {
            if !queues.iter().any(|queue| queue.name == name) {
                queues.push(queue(&name, purpose, delay_arguments(delay, back_to)));
            }
        };
        let again = "waiting to be tried again";
        for delay in retry.delays() {
            waiting(retry_queue(&settings.credit_queue, delay), again, delay, &settings.credit_queue);
        }
        let bind = |queue: String| Binding { queue, key: settings.routing_key.clone() };
        let mut bindings = vec![bind(settings.credit_queue.clone())];
        let mut unbound: Vec<Binding> = Vec::new();
        let mut of_checks: Vec<String> = Vec::new();
        for delay in checks.delays() {
            let name = check_delay_queue(&settings.check_queue, delay);
            if !of_checks.contains(&name) {
                of_checks.push(name);
            }
        }
        let mut of_checks = of_checks.into_iter().map(bind);
        if checking {
            for delay in checks.delays() {
                let name = check_delay_queue(&settings.check_queue, delay);
                waiting(name, "waiting for a check", delay, &settings.check_queue);
            }
            for delay in retry.delays() {
                waiting(retry_queue(&settings.check_queue, delay), again, delay, &settings.check_queue);
            }
            // Every points message goes to the first one, too: the broker itself gives each one its later check.
            bindings.extend(of_checks.next());
        }
        // What was the first one before may still be bound, and would shorten the time that a payment has.
        unbound.extend(of_checks);
        Self { exchange: settings.exchange.clone(), queues, bindings, unbound }
    }

    /// Declares everything: what is there already must be as it is here.
    pub async fn declare(&self, settings: &BrokerSettings) -> Result<(), BrokerError> {
        let (connection, _) = connect(settings, "topology").await?;
        let declared = self.declare_on(&connection).await;
        close(&connection).await;
        declared
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        std::iter::once(Item::Exchange(&self.exchange)).chain(self.queues.iter().map(Item::Queue))
    }

    pub(super) async fn declare_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        for item in self.items() {
            item.declare(connection, false).await.map_err(|failure| match failure {
                Failure::Broker(text) => BrokerError::Topology(format!("{} {}", item.subject(), item.explain(&text))),
                Failure::Other(error) => error,
            })?;
        }
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        self.bind_on(&channel).await?;
        for binding in &self.unbound {
            self.unbind(&channel, binding).await?;
        }
        Ok(())
    }

    pub(super) async fn bind_on(&self, channel: &lapin::Channel) -> Result<(), BrokerError> {
        for Binding { queue, key } in &self.bindings {
            let bind = channel.queue_bind(
                queue.as_str().into(),
                self.exchange.as_str().into(),
                key.as_str().into(),
                QueueBindOptions { nowait: false },
                FieldTable::default(),
            );
            within(STEP_TIMEOUT, "queue.bind", bind).await?;
        }
        Ok(())
    }

    /// Takes a binding away; one that is not there is as good (RabbitMQ, "AMQP 0-9-1 Errata": queue.unbind).
    pub(super) async fn unbind(&self, channel: &lapin::Channel, binding: &Binding) -> Result<(), BrokerError> {
        let unbind = channel.queue_unbind(
            binding.queue.as_str().into(),
            self.exchange.as_str().into(),
            binding.key.as_str().into(),
            FieldTable::default(),
        );
        within(STEP_TIMEOUT, "queue.unbind", unbind).await
    }

    /// That the queues are there, whatever they are like: enough to consume and to park.
    pub(super) async fn require_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let mut missing = Vec::new();
        for item in self.queues.iter().map(Item::Queue) {
            match item.declare(connection, true).await {
                Ok(()) => {}
                Err(Failure::Broker(text)) if text.starts_with(NOT_FOUND) => missing.push(item.subject()),
                Err(Failure::Broker(text)) => {
                    return Err(BrokerError::Topology(format!("{} {}", item.subject(), item.explain(&text))));
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(BrokerError::Topology(format!(
            "missing at the broker, and broker.declare is false: {} (`pointsd topology print` shows what is needed)",
            missing.join(", ")
        )))
    }

    /// Compares the broker with this, changing nothing: first by passive declares, then, of what is there, by
    /// declaring it as it should be, which the broker refuses with the argument that differs.
    pub async fn check(&self, settings: &BrokerSettings) -> Result<Vec<Difference>, BrokerError> {
        let (connection, _) = connect(settings, "topology").await?;
        let mut differences = Vec::new();
        for item in self.items() {
            let (refusal, there) = match item.declare(&connection, true).await {
                Ok(()) => (item.declare(&connection, false).await, true),
                missing => (missing, false),
            };
            match refusal {
                Ok(()) => {}
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Broker(text)) => differences.push(Difference {
                    subject: item.subject(),
                    problem: item.explain(&text),
                    // From a delay queue that is different a message may never come back.
                    harmless: there && !settings.declare && !(item.is_delay() && Inequivalence::parse(&text).is_some()),
                }),
            }
        }
        close(&connection).await;
        Ok(differences)
    }
}
