//! Creating or requiring the topology at the broker, and comparing the two.

use super::{
    Binding, BrokerError, Difference, STEP_TIMEOUT, Topology,
    connect::connect,
    declare::{Failure, Item, NOT_FOUND, close_connection, is_stream, with_channel},
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
    /// Declares the whole topology, including missing items of other programs. Existing items of pointsd must have the
    /// same arguments.
    pub async fn declare(&self, settings: &BrokerSettings) -> Result<(), BrokerError> {
        let (connection, _) = connect(settings, "topology").await?;
        let declared = self.create_on(&connection).await;
        close_connection(&connection).await;
        declared
    }

    async fn create_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        for item in self.items() {
            let missing = || async { item.declare(connection, true).await.is_err() };
            if item.is_declared() || missing().await {
                item.declare(connection, false).await.map_err(|failure| failure.into_error(&item))?;
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

    /// Declares the items of pointsd, and requires the other queues to exist, with any arguments: that suffices to
    /// consume and to park.
    pub(super) async fn establish_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        for item in self.items().filter(Item::is_declared) {
            item.declare(connection, false).await.map_err(|failure| failure.into_error(&item))?;
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

    /// Repeats [`Topology::establish_on`] for the sessions after the first: missing items of pointsd were deleted
    /// meanwhile and are declared again, with a warning that names the loss.
    pub(super) async fn reestablish_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let deleted = self.find_deleted(connection).await?;
        self.establish_on(connection).await?;
        log_deleted(&deleted);
        Ok(())
    }

    /// Declares deleted items of pointsd again, with a warning for each. Fails if a queue of another program is
    /// missing. Costs less than [`Topology::reestablish_on`] if nothing is missing.
    pub(super) async fn restore_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let deleted = self.find_deleted(connection).await?;
        if deleted.is_empty() {
            return self.require_on(connection).await;
        }
        self.establish_on(connection).await?;
        log_deleted(&deleted);
        Ok(())
    }

    /// The items that pointsd declares and that do not exist.
    async fn find_deleted(&self, connection: &Connection) -> Result<Vec<Item<'_>>, BrokerError> {
        let mut deleted = Vec::new();
        for item in self.items().filter(Item::is_declared) {
            match item.declare(connection, true).await {
                Err(Failure::Broker(text)) if text.starts_with(NOT_FOUND) => deleted.push(item),
                // Other differences were accepted when the first session opened.
                Ok(()) | Err(Failure::Broker(_)) => {}
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        Ok(deleted)
    }

    /// Makes the bindings of pointsd. `all`: also those of other programs.
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

    /// Removes a binding; a missing one is no error (RabbitMQ, "AMQP 0-9-1 Errata": queue.unbind).
    pub(super) async fn unbind(&self, channel: &lapin::Channel, binding: &Binding) -> Result<(), BrokerError> {
        let unbind = channel.queue_unbind(
            binding.queue.as_str().into(),
            binding.exchange.as_str().into(),
            binding.key.as_str().into(),
            FieldTable::default(),
        );
        within(STEP_TIMEOUT, "queue.unbind", unbind).await
    }

    /// Requires the queues of other programs to exist.
    async fn require_on(&self, connection: &Connection) -> Result<(), BrokerError> {
        let mut missing = Vec::new();
        for item in self.queues.iter().map(Item::Queue).filter(|item| !item.is_declared()) {
            match item.declare(connection, true).await {
                Ok(()) => {}
                Err(Failure::Broker(text)) if text.starts_with(NOT_FOUND) => missing.push(item.subject()),
                Err(Failure::Broker(text)) => {
                    return Err(BrokerError::Topology(format!("{} {}", item.subject(), item.explain_refusal(&text))));
                }
                Err(Failure::Other(error)) => return Err(error),
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        Err(BrokerError::Topology(format!(
            "missing at the broker, and declare is false: {} (`pointsd topology print` shows the required topology)",
            missing.join(", ")
        )))
    }

    /// Compares the topology with the broker without changing anything: first with passive declares, and then, for
    /// existing items, with active declares, which the broker refuses with the argument that differs.
    pub async fn check(&self, settings: &BrokerSettings) -> Result<Vec<Difference>, BrokerError> {
        let (connection, _) = connect(settings, "topology").await?;
        let mut differences = Vec::new();
        for item in self.items() {
            let (refusals, exists) = match item.declare(&connection, true).await {
                Ok(()) => (item.refusals(&connection).await?, true),
                Err(Failure::Other(error)) => return Err(error),
                Err(Failure::Broker(text)) => (vec![text], false),
            };
            differences.extend(refusals.into_iter().map(|text| Difference {
                subject: item.subject(),
                problem: item.explain_refusal(&text),
                harmless: exists && !item.is_declared() && !is_harmful(&item, &text),
            }));
        }
        close_connection(&connection).await;
        differences.extend(find_missing_right(settings).await?);
        Ok(differences)
    }

    /// Fails if the consumed queue belongs to another program and is a stream. The comparison requires the right to
    /// configure the queue; without it, the type is unknown and accepted.
    pub(super) async fn refuse_stream(&self, connection: &Connection, queue: &str) -> Result<(), BrokerError> {
        let consumed = self.queues.iter().find(|spec| spec.name == queue && !spec.declare);
        let Some(item) = consumed.map(Item::Queue) else { return Ok(()) };
        match item.refusals(connection).await?.into_iter().find(|text| is_stream(text)) {
            Some(text) => Err(Failure::Broker(text).into_error(&item)),
            None => Ok(()),
        }
    }

    /// The arguments by which a consumed queue of another program can lose valid messages after a few outages, as far
    /// as AMQP shows them: a low delivery limit, and no dead-letter exchange. Empty for a queue that cannot be
    /// compared.
    pub(super) async fn find_dangers(&self, connection: &Connection, queue: &str) -> Result<Vec<String>, BrokerError> {
        let consumed = self.queues.iter().find(|spec| spec.name == queue && !spec.declare);
        let Some(item) = consumed.map(Item::Queue) else { return Ok(Vec::new()) };
        let refusals = item.refusals(connection).await?;
        let difference = |argument: &str| {
            refusals.iter().filter_map(|text| Inequivalence::parse(text)).find(|it| it.argument == argument)
        };
        if difference("x-queue-type").is_some_and(|it| it.found != "quorum") {
            return Ok(Vec::new());
        }
        let is_lower = |it: &Inequivalence<'_>| {
            let (found, wanted) = (it.found.parse::<i64>(), it.wanted.parse::<i64>());
            found.map_or(true, |found| found >= 0 && wanted.is_ok_and(|wanted| found < wanted))
        };
        let limit = difference("x-delivery-limit").filter(is_lower).map(|it| {
            format!(
                "its delivery limit is {} (none means 20 since RabbitMQ 4.0), {} is recommended",
                it.found, it.wanted
            )
        });
        let exchange = difference("x-dead-letter-exchange").filter(|it| it.found == "none").map(|_| {
            "it has no dead-letter exchange: unless a policy sets one, messages that reach the delivery limit are lost"
                .to_owned()
        });
        Ok(limit.into_iter().chain(exchange).collect())
    }
}

fn log_deleted(deleted: &[Item<'_>]) {
    for item in deleted {
        events::QueueGone { subject: &item.subject(), lost: item.when_lost() }.emit();
    }
}

/// Tests the right to publish to queues through the default exchange, which copies require. The message reaches no
/// queue.
async fn find_missing_right(settings: &BrokerSettings) -> Result<Option<Difference>, BrokerError> {
    let publisher = Publisher::open_for(settings, "topology publisher").await?;
    let proven = publisher.prove().await;
    publisher.close().await;
    match proven {
        Ok(()) => Ok(None),
        Err(BrokerError::Lost(refusal)) if refusal.contains("ACCESS_REFUSED") => Ok(Some(Difference {
            subject: "the default exchange".into(),
            problem: format!(
                "refuses messages of this user, so that no message can be parked or retried: grant the user write \
                 access to \"amq.default\" ({refusal})"
            ),
            harmless: false,
        })),
        Err(error) => Err(error),
    }
}

/// Whether pointsd cannot work with a queue of another program that differs: a stream keeps acknowledged messages, and
/// a delay queue with other arguments may never return a message.
fn is_harmful(item: &Item<'_>, refusal: &str) -> bool {
    is_stream(refusal) || (item.is_delay() && Inequivalence::parse(refusal).is_some())
}
