//! The exchanges, queues and bindings that pointsd requires, built from the configuration: the credit queue, the check
//! queue and the queues of the sources with their delay queues, and the dead queue.

use super::contents::Contents;
use crate::{
    broker::{
        BrokerSettings, ExchangeType, Plan, QueueType, SourceKind, SourceSettings, check_delay_queue, retry_queue,
    },
    domain::{component::Component, retry::Delay},
};
use serde::Serialize;

/// An argument of a queue. It cannot change while the queue exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Argument {
    /// A string.
    Text(String),
    /// A number.
    Number(i64),
}

/// A durable queue.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct QueueSpec {
    /// Its name.
    pub name: String,
    /// Its purpose.
    pub purpose: &'static str,
    /// The kind of its messages.
    #[serde(skip)]
    pub contents: Contents,
    /// Its arguments, in order; an object in JSON.
    #[serde(serialize_with = "as_object")]
    pub arguments: Vec<(&'static str, Argument)>,
    /// Whether pointsd declares it; otherwise it must exist.
    #[serde(skip)]
    pub declare: bool,
}

fn as_object<S: serde::Serializer>(arguments: &[(&'static str, Argument)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(arguments.iter().map(|(name, value)| (name, value)))
}

/// A durable exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ExchangeSpec {
    /// Its name.
    pub name: String,
    /// Its type.
    #[serde(rename = "type")]
    pub kind: ExchangeType,
    /// Whether pointsd declares it; otherwise it belongs to another program.
    #[serde(skip)]
    pub declare: bool,
}

/// The exchanges, queues and bindings that pointsd requires.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Topology {
    /// The exchanges, beginning with that of the producers.
    pub exchanges: Vec<ExchangeSpec>,
    /// The queues.
    pub queues: Vec<QueueSpec>,
    /// The bindings.
    pub bindings: Vec<Binding>,
    /// The bindings that must not exist; an earlier build made them.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unbound: Vec<Binding>,
}

/// A binding of a queue to an exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Binding {
    /// The exchange.
    pub exchange: String,
    /// The queue.
    pub queue: String,
    /// The routing key.
    pub key: String,
    /// Whether pointsd makes it; otherwise it belongs to another program.
    #[serde(skip)]
    pub declare: bool,
}

/// A difference between the broker and the [`Topology`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// The queue or exchange.
    pub subject: String,
    /// The difference, and what to do.
    pub problem: String,
    /// Whether the daemon works nevertheless, as with a queue that another program declared with other arguments.
    pub harmless: bool,
}

/// The delivery limit of dead and delay queues. Each inspection of a message counts as a delivery, and inspecting
/// messages must not exhaust the limit.
pub(super) const BROWSED_DELIVERY_LIMIT: i64 = 1_000_000;

pub(super) const TIME_TO_LIVE: &str = "x-message-ttl";

/// The arguments of a delay queue. It is a quorum queue even if the other queues are not, because only quorum queues
/// dead-letter at least once, and a delay must not lose messages. Messages return through the default exchange.
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

/// The arguments of a consumed queue, by its type.
fn consumed_arguments(settings: &BrokerSettings, queue_type: QueueType) -> Vec<(&'static str, Argument)> {
    let text = |text: &str| Argument::Text(text.to_owned());
    let mut arguments = vec![("x-queue-type", text(queue_type.as_str()))];
    if queue_type == QueueType::Quorum {
        arguments.extend([
            // Explicit, because the default of the broker is none before 4.0 and 20 since.
            ("x-delivery-limit", Argument::Number(settings.delivery_limit)),
            // A message that reaches the limit moves to the dead queue through the default exchange, and is kept until
            // it is confirmed there; at-least-once requires reject-publish (RabbitMQ, "Quorum Queues").
            ("x-dead-letter-exchange", text("")),
            ("x-dead-letter-routing-key", text(&settings.dead_queue)),
            ("x-dead-letter-strategy", text("at-least-once")),
            ("x-overflow", text("reject-publish")),
        ]);
    }
    arguments
}

/// The arguments of the dead queue.
fn dead_arguments(queue_type: QueueType) -> Vec<(&'static str, Argument)> {
    let mut arguments = vec![("x-queue-type", Argument::Text(queue_type.as_str().to_owned()))];
    if queue_type == QueueType::Quorum {
        arguments.push(("x-delivery-limit", Argument::Number(BROWSED_DELIVERY_LIMIT)));
    }
    arguments
}

impl Topology {
    /// The whole topology of a configuration.
    pub fn of(plan: &Plan) -> Self {
        let mut all = Self::core(plan);
        for source in &plan.sources {
            all.add_source(plan, source);
        }
        all.add_events(plan);
        all
    }

    /// The topology that one component requires: a wrong queue of another program must not stop the other components.
    pub(super) fn of_component(plan: &Plan, component: Component) -> Self {
        let mut topology = Self::default();
        match component {
            Component::Credits | Component::Checks => topology = Self::core(plan),
            Component::Source(name) => {
                topology = Self::core(plan);
                if let Some(source) = plan.sources.iter().find(|source| source.name == name) {
                    topology.add_source(plan, source);
                }
            }
            Component::Relay => topology.add_events(plan),
        }
        topology
    }

    /// The same topology without the queues that other components consume, for the sessions after the first.
    ///
    /// Then a consumed queue belongs to its consumer alone: if another session declared it again right after it was deleted,
    /// the broker could keep the consumer registered and deliver nothing to it, without cancelling it.
    pub(super) fn of_component_alone(plan: &Plan, component: Component) -> Self {
        let BrokerSettings { credit_queue, check_queue, .. } = &plan.broker;
        let whole = Self::of_component(plan, component);
        match component {
            Component::Credits => whole.without(&[check_queue]),
            Component::Checks => whole.without(&[credit_queue]),
            Component::Source(_) => whole.without(&[credit_queue, check_queue]),
            Component::Relay => whole,
        }
    }

    /// The same topology without these queues and what is bound to them.
    fn without(mut self, queues: &[&String]) -> Self {
        self.queues.retain(|queue| !queues.contains(&&queue.name));
        self.bindings.retain(|binding| !queues.contains(&&binding.queue));
        self
    }

    /// The queues of points messages and their checks, and the dead queue. Without a payment source there are no check
    /// queues.
    fn core(plan: &Plan) -> Self {
        let (broker, checking) = (&plan.broker, plan.has_checks);
        let mut core = Self::default();
        core.add_exchange(&broker.exchange, ExchangeType::Direct, broker.declare);
        core.add_queue(
            broker,
            &broker.dead_queue,
            "parked for a person",
            Contents::DeadLetters,
            dead_arguments(broker.queue_type),
        );
        let consumed = consumed_arguments(broker, broker.queue_type);
        core.add_queue(broker, &broker.credit_queue, "points messages", Contents::Payments, consumed.clone());
        if checking {
            core.add_queue(broker, &broker.check_queue, "checks of payments", Contents::Checks, consumed);
        }
        core.add_retries(plan, &broker.credit_queue, Contents::Payments);
        if checking {
            for delay in &plan.check_delays {
                let name = check_delay_queue(&broker.check_queue, delay);
                let arguments = delay_arguments(delay, &broker.check_queue);
                core.add_queue(broker, &name, "waiting for a check", Contents::Checks, arguments);
            }
            core.add_retries(plan, &broker.check_queue, Contents::Checks);
        }
        core.add_binding(&broker.exchange, &broker.credit_queue, &broker.routing_key, broker.declare);
        if checking {
            core.add_unbound_checks(plan, &broker.exchange, &broker.routing_key, broker.declare);
        }
        core
    }

    /// Adds the bindings of check delay queues to those that must not exist: messages of producers must not reach these
    /// queues. An earlier build bound the first one to the exchange of points messages.
    fn add_unbound_checks(&mut self, plan: &Plan, exchange: &str, key: &str, declare: bool) {
        let mut seen: Vec<String> = Vec::new();
        for delay in &plan.check_delays {
            let queue = check_delay_queue(&plan.broker.check_queue, delay);
            if seen.contains(&queue) {
                continue;
            }
            seen.push(queue.clone());
            self.unbound.push(Binding { exchange: exchange.to_owned(), queue, key: key.to_owned(), declare });
        }
    }

    fn add_source(&mut self, plan: &Plan, source: &SourceSettings) {
        let SourceSettings { exchange, exchange_type, routing_key, queue, queue_type, declare, kind, .. } = source;
        self.add_exchange(exchange, *exchange_type, *declare);
        let arguments = consumed_arguments(&plan.broker, *queue_type);
        let purpose = match kind {
            SourceKind::Credit => "points messages",
            SourceKind::Notification(_) => "notifications",
        };
        let contents = Contents::Payments;
        self.queues.push(QueueSpec { name: queue.clone(), purpose, contents, arguments, declare: *declare });
        self.add_retries(plan, queue, contents);
        self.add_binding(exchange, queue, routing_key, *declare);
        if matches!(kind, SourceKind::Credit) && plan.has_checks {
            self.add_unbound_checks(plan, exchange, routing_key, *declare);
        }
    }

    fn add_events(&mut self, plan: &Plan) {
        if let Some(exchange) = &plan.events_exchange {
            self.add_exchange(exchange, ExchangeType::Topic, plan.broker.declare);
        }
    }

    fn add_exchange(&mut self, name: &str, kind: ExchangeType, declare: bool) {
        match self.exchanges.iter_mut().find(|exchange| exchange.name == name) {
            Some(known) => known.declare |= declare,
            None => self.exchanges.push(ExchangeSpec { name: name.to_owned(), kind, declare }),
        }
    }

    /// Adds a queue of pointsd, once.
    fn add_queue(
        &mut self,
        broker: &BrokerSettings,
        name: &str,
        purpose: &'static str,
        contents: Contents,
        arguments: Vec<(&'static str, Argument)>,
    ) {
        if !self.queues.iter().any(|queue| queue.name == name) {
            self.queues.push(QueueSpec {
                name: name.to_owned(),
                purpose,
                contents,
                arguments,
                declare: broker.declare,
            });
        }
    }

    /// Adds the retry delay queues of a consumed queue.
    fn add_retries(&mut self, plan: &Plan, queue: &str, contents: Contents) {
        for delay in plan.retry.delays() {
            let arguments = delay_arguments(delay, queue);
            self.add_queue(&plan.broker, &retry_queue(queue, delay), "waiting to be tried again", contents, arguments);
        }
    }

    fn add_binding(&mut self, exchange: &str, queue: &str, key: &str, declare: bool) {
        let (exchange, queue, key) = (exchange.to_owned(), queue.to_owned(), key.to_owned());
        self.bindings.push(Binding { exchange, queue, key, declare });
    }
}
