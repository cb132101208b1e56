//! Making what must stand at the broker, or requiring it, and comparing.

use super::{
    Binding, BrokerError, Difference, STEP_TIMEOUT, Topology,
    connect::connect,
    declare::{Failure, Item, NOT_FOUND, close, is_stream, with_channel},
    inequivalence::Inequivalence,
    publish::Publisher,
    within,
};
use crate::{
    broker::BrokerSettings,
    observe::events::{self, Event as _},
};
use lapin::{Connection, options::QueueBindOptions, types::FieldTable};

impl Topology {
    /// Declares everything, also what is somebody else's where it is missing. What is there already and ours must be as it is
    /// here.
    pub async fn declare(&self, settings: &BrokerSettings) -> Result<(), BrokerError> {
        let (connection, _) = connect(settings, "topology").await?;
        let declared = self.make(&connection).await;
        close(&connection).await;
        declared
    }

    async fn make(&self, connection: &Connection) -> Result<(), BrokerError> {
        for item in self.items() {
            let missing = || async { item.declare(connection, true).await.is_err() };
            if item.is_declared() || missing().await {
                item.declare(connection, false).await.map_err(|failure| failure.explained(&item))?;
            }
        }
        with_channel(connection, async |channel| {
            self.bind_on(channel, true).await?;
            for binding in &self.unbound {
                self.unbind(channel, binding).await?;
            }
            Ok(())
        })
        .await
    }

    fn items(&self) -> impl Iterator<Item = Item<'_>> {
        self.exchanges.iter().map(Item::Exchange).chain(self.queues.iter().map(Item::Queue))
    }

    /// Declares what is ours to declare, and requires the other queues to be there, whatever they are like: enough to consume
    /// and to park.
    pub(super) async fn establish_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        for item in self.items().filter(Item::is_declared) {
            item.declare(connection, false).await.map_err(|failure| failure.explained(&item))?;
        }
        self.require_on(connection).await?;
        if self.bindings.iter().chain(&self.unbound).all(|binding| !binding.declare) {
            return Ok(());
        }
        with_channel(connection, async |channel| {
            self.bind_on(channel, false).await?;
            for binding in self.unbound.iter().filter(|binding| binding.declare) {
                self.unbind(channel, binding).await?;
            }
            Ok(())
        })
        .await
    }

    /// As [`Topology::establish_on`], for the sessions after the first: what is ours and missing now was deleted meanwhile, and
    /// is declared again with a warning that says what was lost with it.
    pub(super) async fn reestablish_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let deleted = self.deleted(connection).await?;
        self.establish_on(connection).await?;
        warn_of_deleted(&deleted);
        Ok(())
    }

    /// Declares what is ours and missing again, with a warning for each. An error when a queue of others is missing. It costs
    /// less than [`Topology::reestablish_on`] when nothing is missing.
    pub(super) async fn restore_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let deleted = self.deleted(connection).await?;
        if deleted.is_empty() {
            return self.require_on(connection).await;
        }
        self.establish_on(connection).await?;
        warn_of_deleted(&deleted);
        Ok(())
    }

    /// What is ours to declare and does not exist.
    async fn deleted(&self, connection: &Connection) -> Result<Vec<Item<'_>>, BrokerError> {
        let mut deleted = Vec::new();
        for item in self.items().filter(Item::is_declared) {
            match item.declare(connection, true).await {
                Err(Failure::Broker(text)) if text.starts_with(NOT_FOUND) => deleted.push(item),
                // Anything else the broker says about it was accepted when the first session began.
                Ok(()) | Err(Failure::Broker(_)) => {}
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// `all`: also what is somebody else's.
    pub(super) async fn bind_on(&self, channel: &lapin::Channel, all: bool) -> Result<(), BrokerError> {
        for Binding { exchange, queue, key, .. } in self.bindings.iter().filter(|binding| all || binding.declare) {
            let bind = channel.queue_bind(
                queue.as_str().into(),
                exchange.as_str().into(),
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
            binding.exchange.as_str().into(),
            binding.key.as_str().into(),
            FieldTable::default(),
        );
        within(STEP_TIMEOUT, "queue.unbind", unbind).await
    }

    async fn require_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let mut missing = Vec::new();
        for item in self.queues.iter().map(Item::Queue).filter(|item| !item.is_declared()) {
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
            "missing at the broker, and declare is false: {} (`pointsd topology print` shows what is needed)",
            missing.join(", ")
        )))
    }

    /// Compares the broker with this, changing nothing: first by passive declares, then, of what is there, by
    /// declaring it as it should be, which the broker refuses with the argument that differs.
    pub async fn check(&self, settings: &BrokerSettings) -> Result<Vec<Difference>, BrokerError> {
        let (connection, _) = connect(settings, "topology").await?;
        let mut differences = Vec::new();
        for item in self.items() {
            let (refusals, there) = match item.declare(&connection, true).await {
                Ok(()) => (item.refusals(&connection).await?, true),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Broker(text)) => (vec![text], false),
            };
            differences.extend(refusals.into_iter().map(|text| Difference {
                subject: item.subject(),
                problem: item.explain(&text),
                harmless: there && !item.is_declared() && !is_harmful(&item, &text),
            }));
        }
        close(&connection).await;
        differences.extend(missing_rights(settings).await?);
        Ok(differences)
    }

    /// An error when a consumed queue of others is a stream, as far as AMQP shows it to the user: to compare a queue takes the
    /// right to configure it.
    pub(super) async fn refuse_stream(&self, connection: &Connection, queue: &str) -> Result<(), BrokerError> {
        let consumed = self.queues.iter().find(|spec| spec.name == queue && !spec.declare);
        let Some(item) = consumed.map(Item::Queue) else { return Ok(()) };
        match item.refusals(connection).await?.into_iter().find(|text| is_stream(text)) {
            Some(text) => Err(Failure::Broker(text).explained(&item)),
            None => Ok(()),
        }
    }

    /// What makes a consumed queue of others lose good messages after an outage or two, as far as AMQP shows it: a low
    /// delivery limit, and no dead-letter exchange. A queue that cannot be compared has none.
    pub(super) async fn dangers(&self, connection: &Connection, queue: &str) -> Result<Vec<String>, BrokerError> {
        let consumed = self.queues.iter().find(|spec| spec.name == queue && !spec.declare);
        let Some(item) = consumed.map(Item::Queue) else { return Ok(Vec::new()) };
        let refusals = item.refusals(connection).await?;
        let of = |argument: &str| {
            refusals.iter().filter_map(|text| Inequivalence::parse(text)).find(|it| it.argument == argument)
        };
        if of("x-queue-type").is_some_and(|it| it.found != "quorum") {
            return Ok(Vec::new());
        }
        let is_lower = |it: &Inequivalence<'_>| {
            let (found, wanted) = (it.found.parse::<i64>(), it.wanted.parse::<i64>());
            found.map_or(true, |found| found >= 0 && wanted.is_ok_and(|wanted| found < wanted))
        };
        let limit = of("x-delivery-limit").filter(is_lower).map(|it| {
            format!(
                "its delivery limit is {} (none means 20 since RabbitMQ 4.0), {} is recommended",
                it.found, it.wanted
            )
        });
        let exchange = of("x-dead-letter-exchange").filter(|it| it.found == "none").map(|_| {
            "it names no dead-letter exchange: unless a policy does, what reaches its delivery limit is lost".to_owned()
        });
        Ok(limit.into_iter().chain(exchange).collect())
    }
}

fn warn_of_deleted(deleted: &[Item<'_>]) {
    for item in deleted {
        events::QueueGone { subject: &item.subject(), lost: item.when_lost() }.emit();
    }
}

/// Tries what the daemon must be able to do beside declaring: to publish to queues through the default exchange, as copies
/// go. What is sent can reach no queue.
async fn missing_rights(settings: &BrokerSettings) -> Result<Option<Difference>, BrokerError> {
    let publisher = Publisher::open_for(settings, "topology publisher").await?;
    let proven = publisher.prove().await;
    publisher.close().await;
    match proven {
        Ok(()) => Ok(None),
        Err(BrokerError::Lost(refusal)) if refusal.contains("ACCESS_REFUSED") => Ok(Some(Difference {
            subject: "the default exchange".into(),
            problem: format!(
                "may not be written to, and no copy can be parked or retried: grant the user write access to \
                 \"amq.default\" ({refusal})"
            ),
            harmless: false,
        })),
        Err(error) => Err(error),
    }
}

/// Whether a difference of a queue of others keeps the daemon from its work: a stream keeps what is acknowledged, and from a
/// delay queue that is different a message may never come back.
fn is_harmful(item: &Item<'_>, refusal: &str) -> bool {
    is_stream(refusal) || (item.is_delay() && Inequivalence::parse(refusal).is_some())
}
