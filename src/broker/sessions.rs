//! Opening sessions with the broker: the connections, the topology, the consumer.

use super::{
    BrokerError, STEP_TIMEOUT,
    batch::{Stream, Taken},
    blocked::Blocked,
    connect::connect,
    consume::{CONSUMER_TAG, Consumer},
    declare::{passive, with_channel},
    publish::Publisher,
    server::warn_of_x_death,
    topology::Topology,
    unreadable::UnreadableOnes,
    within,
};
use crate::{
    broker::{BrokerSettings, Plan, SourceKind, check_delay_queue, retry_queue},
    domain::{
        ack_tracker::AckTracker,
        component::Component,
        retry::{Delay, RetryPolicy},
    },
    observe::events::{self, Event as _},
    unpoisoned::lock,
};
use lapin::{
    Connection,
    options::{BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

/// Opens sessions with the broker, one after the other.
pub struct Sessions {
    component: Component,
    settings: BrokerSettings,
    topology: Arc<Topology>,
    queue: String,
    retry: RetryPolicy,
    check_delays: Vec<Delay>,
    /// The value of `x-pointsd-source` on copies.
    source: Option<String>,
    blocked: Blocked,
    /// Whether a session had its queues: one that is missing afterwards was deleted.
    has_opened: AtomicBool,
    /// Whether it is still to be logged that this daemon schedules no checks beside a check queue.
    warns_of_checks: AtomicBool,
    /// Whether it is still to be logged what makes the queue lose messages.
    warns_of_dangers: AtomicBool,
    /// Whether it is still to be logged that the broker trusts its clients' headers.
    warns_of_x_death: AtomicBool,
}

impl Sessions {
    /// With the broker that is configured, for one of the queues.
    pub fn new(component: Component, plan: &Plan) -> Self {
        let broker = &plan.broker;
        let of_source =
            plan.sources.iter().find(|source| matches!(component, Component::Source(name) if name == source.name));
        let queue = match of_source {
            Some(source) => &source.queue,
            None if component == Component::Checks => &broker.check_queue,
            None => &broker.credit_queue,
        };
        Self {
            component,
            settings: broker.clone(),
            topology: Arc::new(Topology::of_component(plan, component)),
            queue: queue.clone(),
            retry: plan.retry.clone(),
            check_delays: plan.check_delays.clone(),
            source: of_source
                .filter(|source| matches!(source.kind, SourceKind::Notification(_)))
                .map(|source| source.name.clone()),
            blocked: Blocked::default(),
            has_opened: AtomicBool::new(false),
            warns_of_checks: AtomicBool::new(component == Component::Credits && !plan.has_checks),
            warns_of_dangers: AtomicBool::new(true),
            warns_of_x_death: AtomicBool::new(component == Component::Credits),
        }
    }

    /// The queue that is consumed.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Connects, declares (or requires) the topology and begins to consume.
    /// `prefetch`: most unacknowledged deliveries; with `limited` most deliveries in all.
    pub async fn open(&self, prefetch: u16, limited: bool) -> Result<Consumer, BrokerError> {
        let publisher = self.publisher().await?;
        let opened = self.consume(prefetch, limited, Arc::clone(&publisher)).await;
        if opened.is_err() {
            publisher.close().await;
        }
        opened
    }

    /// A publisher that the broker takes messages from. Never more than one that is blocked, however long the alarm.
    async fn publisher(&self) -> Result<Arc<Publisher>, BrokerError> {
        let kept = lock(&self.blocked).take();
        if let Some(publisher) = kept {
            if let Some(alarm) = publisher.is_blocked() {
                *lock(&self.blocked) = Some(publisher);
                return Err(alarm);
            }
            publisher.close().await;
        }
        let publisher =
            Arc::new(Publisher::open_for(&self.settings, &format!("{} publisher", self.component.label())).await?);
        let proven = publisher.prove().await;
        if let Err(BrokerError::Blocked(_)) = proven {
            *lock(&self.blocked) = Some(Arc::clone(&publisher));
        }
        proven.map(|()| publisher)
    }

    async fn consume(&self, prefetch: u16, limited: bool, publisher: Arc<Publisher>) -> Result<Consumer, BrokerError> {
        let settings = &self.settings;
        let (connection, node) = connect(settings, &format!("{} consumer", self.component.label())).await?;
        if self.has_opened.load(Ordering::Relaxed) {
            self.topology.reestablish_on(&connection).await?;
        } else {
            self.topology.establish_on(&connection).await?;
            self.has_opened.store(true, Ordering::Relaxed);
        }
        self.topology.refuse_stream(&connection, &self.queue).await?;
        self.warn_of_checks(&connection).await?;
        self.warn_of_dangers(&connection).await?;
        if self.warns_of_x_death.swap(false, Ordering::Relaxed) {
            tokio::spawn(warn_of_x_death(node.clone(), settings.tls.clone()));
        }
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        // Before consuming: without it lapin's buffer has no bound. Per consumer, because a quorum queue refuses a
        // limit for the whole channel.
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        within(STEP_TIMEOUT, "basic.qos", qos).await?;
        let mut tracker = AckTracker::default();
        tracker.channel_opened();
        let consume = channel.basic_consume(
            self.queue().into(),
            CONSUMER_TAG.into(),
            // Manual acknowledgement; shared with other daemons.
            BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false },
            FieldTable::default(),
        );
        let consumer = within(STEP_TIMEOUT, "basic.consume", consume).await?;
        let queue = self.queue().to_owned();
        let check_delay_queue = |delay| check_delay_queue(&settings.check_queue, delay);
        Ok(Consumer {
            connection,
            channel,
            node,
            component: self.component,
            retry_queues: self.retry.delays().iter().map(|delay| retry_queue(&queue, delay)).collect(),
            check_delay_queues: self.check_delays.iter().map(check_delay_queue).collect(),
            source: self.source.as_deref().map(Arc::from),
            check_queue: settings.check_queue.clone(),
            dead_queue: settings.dead_queue.clone(),
            stream: tokio::sync::Mutex::new(Stream::new(consumer)),
            limited,
            has_cancelled: AtomicBool::new(false),
            queue,
            tracker: Mutex::new(tracker),
            acknowledging: tokio::sync::Mutex::new(()),
            publisher,
            blocked: Arc::clone(&self.blocked),
            topology: Arc::clone(&self.topology),
            taken: Mutex::new(Taken::new(prefetch)),
            unreadable: UnreadableOnes::default(),
        })
    }

    /// A queue of others may lose messages after a few outages. Logged once.
    async fn warn_of_dangers(&self, connection: &Connection) -> Result<(), BrokerError> {
        if self.warns_of_dangers.swap(false, Ordering::Relaxed) {
            for danger in self.topology.dangers(connection, &self.queue).await? {
                events::QueueIsDangerous { queue: &self.queue, danger: &danger }.emit();
            }
        }
        Ok(())
    }

    /// A check queue that exists belongs to daemons with a payment source. Logged once.
    async fn warn_of_checks(&self, connection: &Connection) -> Result<(), BrokerError> {
        if self.warns_of_checks.swap(false, Ordering::Relaxed) {
            let queue = &self.settings.check_queue;
            let is_there = with_channel(connection, async |channel| Ok(passive(channel, queue).await.is_ok()));
            if is_there.await? {
                events::ChecksNotScheduled { queue }.emit();
            }
        }
        Ok(())
    }
}
