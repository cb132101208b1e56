//! Opening sessions with the broker: connections, topology and consumer.

use super::{
    BrokerError, STEP_TIMEOUT,
    batch::{DeliveryTimes, Stream},
    blocked::Blocked,
    connect::connect,
    consume::{CONSUMER_TAG, Consumer},
    declare::{declare_passively, with_channel},
    publish::Publisher,
    server::warn_of_x_death,
    topology::Topology,
    unreadable::UnreadableDeliveries,
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

/// The factory of the broker sessions of one component, which are opened one after the other.
pub struct Sessions {
    component: Component,
    settings: BrokerSettings,
    /// For the first session: everything must exist before the first message is published.
    first_topology: Topology,
    topology: Arc<Topology>,
    queue: String,
    retry: RetryPolicy,
    check_delays: Vec<Delay>,
    /// The value of `x-pointsd-source` on copies.
    source: Option<String>,
    blocked: Blocked,
    /// Whether a session has found or declared its queues: a queue that is missing later was deleted.
    has_opened: AtomicBool,
    /// Whether to log, once, that a check queue exists although this daemon schedules no checks.
    warns_of_checks: AtomicBool,
    /// Whether to log, once, the arguments by which the queue can lose messages.
    warns_of_dangers: AtomicBool,
    /// Whether to log, once, that the broker accepts `x-death` headers of clients.
    warns_of_x_death: AtomicBool,
}

impl Sessions {
    /// Creates the factory for the queue of a component.
    pub fn new(component: Component, plan: &Plan) -> Self {
        let broker = &plan.broker;
        let source_settings =
            plan.sources.iter().find(|source| matches!(component, Component::Source(name) if name == source.name));
        let queue = match source_settings {
            Some(source) => &source.queue,
            None if component == Component::Checks => &broker.check_queue,
            None => &broker.credit_queue,
        };
        Self {
            component,
            settings: broker.clone(),
            first_topology: Topology::of_component(plan, component),
            topology: Arc::new(Topology::of_component_alone(plan, component)),
            queue: queue.clone(),
            retry: plan.retry.clone(),
            check_delays: plan.check_delays.clone(),
            source: source_settings
                .filter(|source| matches!(source.kind, SourceKind::Notification(_)))
                .map(|source| source.name.clone()),
            blocked: Blocked::default(),
            has_opened: AtomicBool::new(false),
            warns_of_checks: AtomicBool::new(component == Component::Credits && !plan.has_checks),
            warns_of_dangers: AtomicBool::new(true),
            warns_of_x_death: AtomicBool::new(component == Component::Credits),
        }
    }

    /// The consumed queue.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Connects, declares (or requires) the topology and starts to consume. `prefetch`: the maximum number of
    /// unacknowledged deliveries; if `limited`, of all deliveries of the session.
    pub async fn open(&self, prefetch: u16, limited: bool) -> Result<Consumer, BrokerError> {
        let publisher = self.open_publisher().await?;
        let opened = self.consume(prefetch, limited, Arc::clone(&publisher)).await;
        if opened.is_err() {
            publisher.close().await;
        }
        opened
    }

    /// Opens a publisher and proves that the broker accepts its messages. At most one blocked publisher exists, however
    /// long the alarm lasts.
    async fn open_publisher(&self) -> Result<Arc<Publisher>, BrokerError> {
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
            self.first_topology.establish_on(&connection).await?;
            self.has_opened.store(true, Ordering::Relaxed);
        }
        self.topology.refuse_stream(&connection, &self.queue).await?;
        self.log_unscheduled_checks(&connection).await?;
        self.log_dangers(&connection).await?;
        if self.warns_of_x_death.swap(false, Ordering::Relaxed) {
            tokio::spawn(warn_of_x_death(node.clone(), settings.tls.clone()));
        }
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        // Set before consuming: without it, the buffer of lapin is unbounded. Set per consumer, because a quorum queue
        // refuses a limit for the whole channel.
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        within(STEP_TIMEOUT, "basic.qos", qos).await?;
        let mut tracker = AckTracker::default();
        tracker.channel_opened();
        let consume = channel.basic_consume(
            self.queue().into(),
            CONSUMER_TAG.into(),
            // Manual acknowledgement; the queue is shared with other daemons.
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
            delivery_times: Mutex::new(DeliveryTimes::new(prefetch)),
            unreadable: UnreadableDeliveries::default(),
        })
    }

    /// Logs, once, that a queue of another program can lose messages after a few outages.
    async fn log_dangers(&self, connection: &Connection) -> Result<(), BrokerError> {
        if self.warns_of_dangers.swap(false, Ordering::Relaxed) {
            for danger in self.topology.find_dangers(connection, &self.queue).await? {
                events::QueueIsDangerous { queue: &self.queue, danger: &danger }.emit();
            }
        }
        Ok(())
    }

    /// Logs, once, that a check queue exists although this daemon has no payment source: it belongs to daemons with
    /// one.
    async fn log_unscheduled_checks(&self, connection: &Connection) -> Result<(), BrokerError> {
        if self.warns_of_checks.swap(false, Ordering::Relaxed) {
            let queue = &self.settings.check_queue;
            let exists = with_channel(connection, async |channel| Ok(declare_passively(channel, queue).await.is_ok()));
            if exists.await? {
                events::ChecksNotScheduled { queue }.emit();
            }
        }
        Ok(())
    }
}
