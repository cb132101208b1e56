//! Consuming with manual acknowledgement: natural batches in, prefixes of acknowledgements out.

use super::{
    BrokerError, STEP_TIMEOUT,
    connect::{BrokerUrl, connect},
    copy::{self, Marks},
    publish::{Outgoing, Publisher},
    topology::{Topology, check_delay_queue, retry_queue},
    within,
};
use crate::{
    config::{BrokerSettings, Settings, SourceKind},
    domain::{
        retry::{Delay, RetryPolicy},
        settlement::{Destination, Token, Tracker},
    },
    observe::{events, status::Part},
    pipeline::ports::{Decided, Deliveries, Forward, Message, Outage},
};
use async_trait::async_trait;
use futures_util::{FutureExt, StreamExt};
use lapin::{
    Channel, Connection,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicNackOptions, BasicQosOptions},
    types::FieldTable,
};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// How often it is proven that copies could be published.
const PROOF_INTERVAL: Duration = Duration::from_secs(5);

/// Our only consumer on its channel.
const CONSUMER_TAG: &str = "pointsd";

/// A delivery and the right to settle it.
#[derive(Debug)]
pub struct Delivered {
    token: Token,
    /// In a box, because it is large and what holds it is handed on from step to step.
    delivery: Box<Delivery>,
    former_delay_queue: Option<String>,
    source: Option<Arc<str>>,
}

impl Message for Delivered {
    fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    fn sent_at(&self) -> Option<SystemTime> {
        let seconds = (*self.delivery.properties.timestamp())?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds))
    }

    fn retries_taken(&self) -> u32 {
        copy::retries_taken(&self.delivery.properties)
    }

    fn checks_done(&self) -> u32 {
        copy::checks_done(&self.delivery.properties)
    }

    fn source(&self) -> Option<&str> {
        self.source.as_deref()
    }

    fn former_delay_queue(&self) -> Option<&str> {
        self.former_delay_queue.as_deref()
    }

    fn label(&self) -> String {
        self.delivery.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string)
    }
}

/// The consumed stream, and how it ended: its end is told once by lapin, and must be seen by every worker.
struct Stream {
    consumer: lapin::Consumer,
    ended: Option<BrokerError>,
}

/// A session with the broker: consuming on one connection, publishing copies on another. After any loss it is thrown away and
/// opened anew.
pub struct Consumer {
    connection: Connection,
    channel: Channel,
    node: BrokerUrl,
    part: Part,
    queue: String,
    /// By the step that they are for.
    retry_queues: Vec<String>,
    /// By the delay that they are for.
    check_delay_queues: Vec<String>,
    dead_queue: String,
    /// The value of `x-pointsd-source` on copies.
    source: Option<Arc<str>>,
    stream: tokio::sync::Mutex<Stream>,
    tracker: Mutex<Tracker>,
    /// Held while an acknowledgement is sent, so that prefixes leave in rising order.
    acknowledging: tokio::sync::Mutex<()>,
    publisher: Arc<Publisher>,
    blocked: Blocked,
}

/// Opens sessions with the broker, one after the other.
pub struct Sessions {
    part: Part,
    settings: BrokerSettings,
    topology: Topology,
    queue: String,
    retry: RetryPolicy,
    check_delays: Vec<Delay>,
    /// The value of `x-pointsd-source` on copies.
    source: Option<String>,
    blocked: Blocked,
}

/// A publisher that an alarm of the broker has blocked. It cannot even be closed, and another one would be blocked, too:
/// it is kept, because it will hear when the alarm is over.
type Blocked = Arc<Mutex<Option<Arc<Publisher>>>>;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Sessions {
    /// With the broker that is configured, for one of the queues.
    pub fn new(part: Part, settings: &Settings) -> Self {
        let broker = &settings.broker;
        let of_source =
            settings.sources.iter().find(|source| matches!(part, Part::Source(name) if name == source.name));
        let queue = match of_source {
            Some(source) => &source.queue,
            None if part == Part::Checks => &broker.check_queue,
            None => &broker.credit_queue,
        };
        Self {
            part,
            settings: broker.clone(),
            topology: Topology::of_part(settings, part),
            queue: queue.clone(),
            retry: settings.retry.policy.clone(),
            check_delays: settings.check_delays(),
            source: of_source
                .filter(|source| matches!(source.kind, SourceKind::Notification(_)))
                .map(|source| source.name.clone()),
            blocked: Blocked::default(),
        }
    }

    /// The queue that is consumed.
    pub fn queue(&self) -> &str {
        &self.queue
    }

    /// Connects, declares (or requires) the topology and begins to consume.
    /// `prefetch`: most unacknowledged deliveries.
    pub async fn open(&self, prefetch: u16) -> Result<Consumer, BrokerError> {
        let publisher = self.publisher().await?;
        let opened = self.consume(prefetch, Arc::clone(&publisher)).await;
        if opened.is_err() {
            publisher.close().await;
        }
        opened
    }

    /// A publisher that the broker takes messages from. Never more than one that is blocked, however long the alarm.
    async fn publisher(&self) -> Result<Arc<Publisher>, BrokerError> {
        let kept = locked(&self.blocked).take();
        if let Some(publisher) = kept {
            if let Some(alarm) = publisher.is_blocked() {
                *locked(&self.blocked) = Some(publisher);
                return Err(alarm);
            }
            publisher.close().await;
        }
        let publisher =
            Arc::new(Publisher::open_for(&self.settings, &format!("{} publisher", self.part.label())).await?);
        let proven = publisher.prove().await;
        if let Err(BrokerError::Blocked(_)) = proven {
            *locked(&self.blocked) = Some(Arc::clone(&publisher));
        }
        proven.map(|()| publisher)
    }

    async fn consume(&self, prefetch: u16, publisher: Arc<Publisher>) -> Result<Consumer, BrokerError> {
        let settings = &self.settings;
        let (connection, node) = connect(settings, &format!("{} consumer", self.part.label())).await?;
        self.topology.establish_on(&connection).await?;
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        // Before consuming: without it lapin's buffer has no bound. Per consumer, because a quorum queue refuses a
        // limit for the whole channel.
        let qos = channel.basic_qos(prefetch, BasicQosOptions { global: false });
        within(STEP_TIMEOUT, "basic.qos", qos).await?;
        let mut tracker = Tracker::default();
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
            part: self.part,
            retry_queues: self.retry.delays().iter().map(|delay| retry_queue(&queue, delay)).collect(),
            check_delay_queues: self.check_delays.iter().map(check_delay_queue).collect(),
            source: self.source.as_deref().map(Arc::from),
            queue,
            dead_queue: settings.dead_queue.clone(),
            stream: tokio::sync::Mutex::new(Stream { consumer, ended: None }),
            tracker: Mutex::new(tracker),
            acknowledging: tokio::sync::Mutex::new(()),
            publisher,
            blocked: Arc::clone(&self.blocked),
        })
    }
}

impl Consumer {
    /// The node that it is connected to.
    pub fn node(&self) -> &BrokerUrl {
        &self.node
    }

    /// Whether the session ended by a message that the client cannot read.
    pub async fn met_unreadable(&self) -> bool {
        matches!(self.stream.lock().await.ended, Some(BrokerError::Unreadable(_)))
    }

    /// An error when the broker takes no messages any more, because of an alarm or because the publishing connection is
    /// not sound; `Ok` when told to stop. It must be asked: it tells of an alarm only who publishes.
    pub async fn watch_publishing(&self, stop: &CancellationToken) -> Result<(), BrokerError> {
        loop {
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                alarm = self.publisher.alarm() => return Err(alarm),
                () = tokio::time::sleep(PROOF_INTERVAL) => {}
            }
            // On its own: a proof that is cut off would leave a channel that no worker can use any more.
            let publisher = Arc::clone(&self.publisher);
            let proof = tokio::spawn(async move { publisher.prove().await });
            match stop.run_until_cancelled(proof).await {
                None => return Ok(()),
                Some(proven) => proven.unwrap_or_else(|panicked| Err(BrokerError::Lost(panicked.to_string())))?,
            }
        }
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        locked(&self.tracker)
    }

    /// Waits for a delivery and takes it together with whatever else has arrived, up to `most`.
    ///
    /// Cancel safe: between taking a delivery and returning it nothing is awaited.
    pub async fn next_batch(&self, most: usize) -> Result<Vec<Delivered>, BrokerError> {
        let mut stream = self.stream.lock().await;
        let first = stream.next().await?;
        let mut batch = Vec::with_capacity(most.min(64));
        let mut tracker = self.tracker();
        let mut next = Some(first);
        while let Some(delivery) = next {
            match tracker.delivered(delivery.delivery_tag) {
                Some(token) => batch.push(self.delivered(token, delivery)),
                None => stream.ended = Some(BrokerError::Lost("a delivery tag does not count up by one".into())),
            }
            // Whatever ends the stream here is told to the next caller.
            next = if batch.len() < most { stream.next().now_or_never().and_then(Result::ok) } else { None };
        }
        events::InFlight { part: self.part, deliveries: tracker.in_flight() }.emit();
        Ok(batch)
    }

    fn delivered(&self, token: Token, delivery: Delivery) -> Delivered {
        let former_delay_queue = match self.part {
            Part::Credits | Part::Source(_) | Part::Relay => None,
            Part::Checks => copy::waited_in(&delivery.properties).filter(|queue| {
                let a_delay_queue = queue.strip_prefix(&self.queue).is_some_and(|rest| rest.starts_with(".delay."));
                a_delay_queue && self.check_delay_queues.first() != Some(queue)
            }),
        };
        let source = match self.part {
            Part::Checks => copy::source_of_check(&delivery.properties).map(Arc::from),
            Part::Credits | Part::Source(_) | Part::Relay => self.source.clone(),
        };
        Delivered { token, delivery: Box::new(delivery), former_delay_queue, source }
    }

    fn queue_of(&self, destination: Destination) -> &str {
        match destination {
            Destination::Retry(step) => &self.retry_queues[step.index()],
            Destination::Check(wait) => &self.check_delay_queues[wait.index()],
            Destination::Dead(_) => &self.dead_queue,
        }
    }

    /// Stops consuming and gives back whatever is not settled, one at a time: a requeue of many would count against
    /// each of them at once. What cannot be given back is the broker's again when the channel ends.
    pub async fn close(&self, unsettled: Vec<Delivered>) {
        let given_back = tokio::time::timeout(STEP_TIMEOUT, self.stop_and_give_back(unsettled)).await.ok();
        events::GaveBack { deliveries: given_back }.emit();
        if self.publisher.is_blocked().is_some() {
            *locked(&self.blocked) = Some(Arc::clone(&self.publisher));
        } else {
            self.publisher.close().await;
        }
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.connection.close(200, "done".into())).await;
        self.tracker().channel_opened();
        events::InFlight { part: self.part, deliveries: 0 }.emit();
    }

    async fn stop_and_give_back(&self, mut unsettled: Vec<Delivered>) -> usize {
        if self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions { nowait: false }).await.is_err() {
            return 0;
        }
        let mut stream = self.stream.lock().await;
        while let Ok(delivery) = stream.next().await {
            let Some(token) = self.tracker().delivered(delivery.delivery_tag) else { break };
            unsettled.push(self.delivered(token, delivery));
        }
        drop(stream);
        self.give_back(unsettled).await
    }

    /// Gives deliveries back to the queue, while the others go on. Returns how many.
    pub async fn give_back(&self, unsettled: Vec<Delivered>) -> usize {
        let _order = self.acknowledging.lock().await;
        let mut given_back = 0;
        for delivered in unsettled {
            let Some(tag) = self.tracker().give_back(delivered.token) else { continue };
            let nack = self.channel.basic_nack(tag, BasicNackOptions { multiple: false, requeue: true });
            // A channel that does not take it has ended or will: the rest comes back with it.
            if within(STEP_TIMEOUT, "basic.nack", nack).await.is_err() {
                break;
            }
            given_back += 1;
        }
        events::InFlight { part: self.part, deliveries: self.tracker().in_flight() }.emit();
        // What was settled behind a delivery that has just gone back can be acknowledged now.
        let prefix = self.tracker().settled_prefix();
        if let Some(tag) = prefix {
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let _ = tokio::time::timeout(STEP_TIMEOUT, ack).await;
        }
        given_back
    }
}

impl Stream {
    async fn next(&mut self) -> Result<Delivery, BrokerError> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let ended = match self.consumer.next().await {
            Some(Ok(delivery)) => return Ok(delivery),
            Some(Err(error)) => BrokerError::from(error),
            None => BrokerError::Lost("the consumer was cancelled (its queue is gone, or a node left)".into()),
        };
        self.ended = Some(ended.clone());
        Err(ended)
    }
}

#[async_trait]
impl<O: Send + 'static> Deliveries<O> for Consumer {
    type Message = Delivered;

    async fn forward(&self, copies: &[Forward<'_, Delivered>]) -> Result<(), Outage> {
        let now = jiff::Timestamp::now().to_string();
        let mut frame = self.publisher.header_frame();
        let copies: Vec<Outgoing<'_>> = copies
            .iter()
            .map(|copy| {
                let original = &copy.message.delivery;
                let marks = Marks::of(copy, &self.queue, copy.message.source(), &now);
                let properties = copy::copied(&original.properties, &marks, &mut frame);
                Outgoing::to_queue(self.queue_of(copy.to), &original.data, properties)
            })
            .collect();
        self.publisher.publish(&copies).await.map_err(BrokerError::into_outage)
    }

    async fn settle(&self, done: Vec<Decided<Delivered, O>>) {
        let _order = self.acknowledging.lock().await;
        let prefix = {
            let mut tracker = self.tracker();
            for decided in done {
                tracker.settle(decided.message.token);
            }
            events::InFlight { part: self.part, deliveries: tracker.in_flight() }.emit();
            tracker.settled_prefix()
        };
        if let Some(tag) = prefix {
            // A channel that does not take it has ended or will: the stream tells, and the messages come again.
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let _ = tokio::time::timeout(STEP_TIMEOUT, ack).await;
        }
    }
}
