//! Consuming with manual acknowledgement: natural batches in, prefixes of acknowledgements out.

use super::{
    BrokerError, STEP_TIMEOUT,
    connect::{BrokerUrl, connect},
    copy::{self, Marks},
    declare::passive,
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
    observe::{events, pulse::Pulse, status::Part},
    pipeline::ports::{Confirmed, CopyBody, Deliveries, FirstChecks, Forward, Message, Origin, Outage},
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
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};
use tokio_util::sync::CancellationToken;

/// How often it is proven that copies could be published.
const PROOF_INTERVAL: Duration = Duration::from_secs(5);

/// After so many proofs it is looked whether the queues are there: once a minute.
const PROOFS_BEFORE_LOOK: u32 = 12;

/// Our only consumer on its channel.
const CONSUMER_TAG: &str = "pointsd";

/// A delivery and the right to settle it.
#[derive(Debug)]
pub struct Delivered {
    token: Token,
    /// In a box, because it is large and what holds it is handed on from step to step.
    delivery: Box<Delivery>,
    origin: Origin,
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

    fn origin(&self) -> Origin {
        self.origin.clone()
    }

    fn label(&self) -> String {
        self.delivery.properties.message_id().as_ref().map_or_else(String::new, ToString::to_string)
    }
}

/// The consumed stream, and how it ended: its end is told once by lapin, and must be seen by every worker.
struct Stream {
    consumer: lapin::Consumer,
    ended: Option<BrokerError>,
    /// Deliveries of a batch that is not complete yet.
    gathered: VecDeque<Delivery>,
}

/// Stands for the end of a wait; never seen outside [`Consumer::next_batch`].
fn nothing_more() -> BrokerError {
    BrokerError::Lost("no further delivery".into())
}

/// How much a batch takes of what has arrived: at least one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// Most messages.
    pub messages: usize,
    /// No further message once the bodies have so many bytes.
    pub bytes: usize,
    /// How long further messages are waited for while it is smaller.
    pub linger: Duration,
}

/// When deliveries were taken, as far back as the prefetch.
#[derive(Debug)]
struct Taken {
    prefetch: usize,
    /// Of the latest deliveries, oldest first: how many were taken together, and when.
    batches: VecDeque<(usize, Instant)>,
    /// When it was seen last that none waited.
    none_waited: Instant,
}

impl Taken {
    fn new(prefetch: u16) -> Self {
        Self { prefetch: prefetch.into(), batches: VecDeque::new(), none_waited: Instant::now() }
    }

    fn none_waits(&mut self) {
        self.none_waited = Instant::now();
        self.batches.clear();
    }

    fn take(&mut self, deliveries: usize) {
        self.batches.push_back((deliveries, Instant::now()));
        // Only the batch matters in which the delivery was that is one prefetch behind.
        let mut later: usize = self.batches.iter().skip(1).map(|(deliveries, _)| deliveries).sum();
        while later >= self.prefetch {
            self.batches.pop_front();
            later -= self.batches.front().map_or(0, |(deliveries, _)| *deliveries);
        }
    }

    fn held_at_most(&self) -> Duration {
        let taken: usize = self.batches.iter().map(|(deliveries, _)| deliveries).sum();
        let since = self.batches.front().filter(|_| taken > self.prefetch).map_or(self.none_waited, |(_, at)| *at);
        since.max(self.none_waited).elapsed()
    }
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
    check_queue: String,
    dead_queue: String,
    /// The value of `x-pointsd-source` on copies.
    source: Option<Arc<str>>,
    stream: tokio::sync::Mutex<Stream>,
    tracker: Mutex<Tracker>,
    /// Held while an acknowledgement is sent, so that prefixes leave in rising order.
    acknowledging: tokio::sync::Mutex<()>,
    publisher: Arc<Publisher>,
    blocked: Blocked,
    topology: Arc<Topology>,
    taken: Mutex<Taken>,
}

/// Opens sessions with the broker, one after the other.
pub struct Sessions {
    part: Part,
    settings: BrokerSettings,
    topology: Arc<Topology>,
    queue: String,
    retry: RetryPolicy,
    check_delays: Vec<Delay>,
    /// The value of `x-pointsd-source` on copies.
    source: Option<String>,
    blocked: Blocked,
    /// Whether it is still to be logged that this daemon schedules no checks beside a check queue.
    warns_of_checks: AtomicBool,
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
            topology: Arc::new(Topology::of_part(settings, part)),
            queue: queue.clone(),
            retry: settings.retry.policy.clone(),
            check_delays: settings.check_delays(),
            source: of_source
                .filter(|source| matches!(source.kind, SourceKind::Notification(_)))
                .map(|source| source.name.clone()),
            blocked: Blocked::default(),
            warns_of_checks: AtomicBool::new(part == Part::Credits && !settings.pay_status.is_some()),
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
        self.warn_of_checks(&connection).await?;
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
            check_queue: settings.check_queue.clone(),
            dead_queue: settings.dead_queue.clone(),
            stream: tokio::sync::Mutex::new(Stream { consumer, ended: None, gathered: VecDeque::new() }),
            tracker: Mutex::new(tracker),
            acknowledging: tokio::sync::Mutex::new(()),
            publisher,
            blocked: Arc::clone(&self.blocked),
            topology: Arc::clone(&self.topology),
            taken: Mutex::new(Taken::new(prefetch)),
        })
    }
}

impl Sessions {
    /// A check queue that exists belongs to daemons with a payment source. Logged once.
    async fn warn_of_checks(&self, connection: &Connection) -> Result<(), BrokerError> {
        if self.warns_of_checks.swap(false, Ordering::Relaxed) {
            let queue = &self.settings.check_queue;
            let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
            if passive(&channel, queue).await.is_ok() {
                events::ChecksNotScheduled { queue }.emit();
            }
        }
        Ok(())
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
    /// not sound, or when a queue is gone; `Ok` when told to stop. It must be asked: it tells of an alarm only who publishes.
    pub async fn watch(&self, pulse: &Pulse, stop: &CancellationToken) -> Result<(), BrokerError> {
        let mut proofs = 0_u32;
        loop {
            pulse.beat();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                alarm = self.publisher.alarm() => return Err(alarm),
                () = tokio::time::sleep(PROOF_INTERVAL) => {}
            }
            proofs = proofs.wrapping_add(1);
            // The session of the credits looks after the check queues, too.
            let looks = self.part != Part::Checks && proofs.is_multiple_of(PROOFS_BEFORE_LOOK);
            // On its own: a proof that is cut off would leave a channel that no worker can use any more.
            let (publisher, topology) = (Arc::clone(&self.publisher), Arc::clone(&self.topology));
            let proof = tokio::spawn(async move {
                publisher.prove().await?;
                if looks { topology.restore_on(publisher.connection()).await } else { Ok(()) }
            });
            match stop.run_until_cancelled(proof).await {
                None => return Ok(()),
                Some(proven) => proven.unwrap_or_else(|panicked| Err(BrokerError::Lost(panicked.to_string())))?,
            }
        }
    }

    /// The longest that a delivery which waits to be taken may have been held: it cannot have come before the delivery
    /// was taken that is one prefetch ahead of it, nor while none waited.
    pub fn held_at_most(&self) -> Duration {
        locked(&self.taken).held_at_most()
    }

    fn tracker(&self) -> MutexGuard<'_, Tracker> {
        locked(&self.tracker)
    }

    /// Waits for a delivery and takes it together with whatever else has arrived, within `size`.
    ///
    /// Cancel safe: what was gathered by then is the beginning of the next batch.
    pub async fn next_batch(&self, size: BatchSize) -> Result<Vec<Delivered>, BrokerError> {
        let mut stream = self.stream.lock().await;
        if stream.gathered.is_empty() {
            let first = if let Some(next) = stream.next().now_or_never() {
                next?
            } else {
                locked(&self.taken).none_waits();
                stream.next().await?
            };
            stream.gathered.push_back(first);
        }
        let until = tokio::time::Instant::now() + size.linger;
        let mut bytes: usize = stream.gathered.iter().map(|delivery| delivery.data.len()).sum();
        while stream.gathered.len() < size.messages && bytes < size.bytes {
            let next = match stream.next().now_or_never() {
                None if size.linger.is_zero() => break,
                None => tokio::time::timeout_at(until, stream.next()).await.unwrap_or_else(|_| Err(nothing_more())),
                Some(next) => next,
            };
            match next {
                Ok(delivery) => {
                    bytes = bytes.saturating_add(delivery.data.len());
                    stream.gathered.push_back(delivery);
                }
                // Whatever ends the stream here is told to the next caller.
                Err(_) => break,
            }
        }
        // From here on nothing is awaited.
        let gathered = std::mem::take(&mut stream.gathered);
        let mut batch = Vec::with_capacity(gathered.len());
        let mut tracker = self.tracker();
        for delivery in gathered {
            match tracker.delivered(delivery.delivery_tag) {
                Some(token) => batch.push(self.delivered(token, delivery)),
                None => stream.ended = Some(BrokerError::Lost("a delivery tag does not count up by one".into())),
            }
        }
        locked(&self.taken).take(batch.len());
        events::InFlight { part: self.part, deliveries: tracker.in_flight() }.emit();
        Ok(batch)
    }

    fn delivered(&self, token: Token, mut delivery: Delivery) -> Delivered {
        copy::distrust_producers(delivery.exchange.as_str(), &mut delivery.properties);
        let (origin, source) = match self.part {
            Part::Checks => (self.origin(&delivery), copy::source(&delivery.properties).map(Arc::from)),
            Part::Credits | Part::Source(_) | Part::Relay => (Origin::Foreign, self.source.clone()),
        };
        Delivered { token, delivery: Box::new(delivery), origin, source }
    }

    /// Of a message in the check queue.
    fn origin(&self, delivery: &Delivery) -> Origin {
        let is_delay_queue =
            |queue: &String| queue.strip_prefix(&self.queue).is_some_and(|rest| rest.starts_with(".delay."));
        if copy::is_check_message(&delivery.properties) {
            Origin::Checks
        } else if copy::is_sent_by_us(&delivery.properties) || copy::source(&delivery.properties).is_some() {
            Origin::Ours
        } else {
            match copy::bound_queue(&delivery.properties).filter(is_delay_queue) {
                Some(queue) => Origin::FormerBinding(queue),
                None => Origin::Foreign,
            }
        }
    }

    fn queue_of(&self, destination: Destination) -> &str {
        match destination {
            Destination::Retry(step) => &self.retry_queues[step.index()],
            Destination::Check(wait) => &self.check_delay_queues[wait.index()],
            Destination::CheckQueue => &self.check_queue,
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
        while let Some(delivery) = stream.gathered.pop_front() {
            let Some(token) = self.tracker().delivered(delivery.delivery_tag) else { break };
            unsettled.push(self.delivered(token, delivery));
        }
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
impl Deliveries for Consumer {
    type Message = Delivered;

    async fn forward(&self, copies: &[Forward<'_, Delivered>], pulse: &Pulse) -> Result<Confirmed, Outage> {
        let now = jiff::Timestamp::now().to_string();
        let mut frame = self.publisher.header_frame();
        let copies: Vec<Outgoing<'_>> = copies
            .iter()
            .map(|copy| {
                let original = &copy.message.delivery;
                let marks = Marks::of(copy, &self.queue, copy.message.source(), &now);
                let properties = copy::copied(&original.properties, &marks, &copy.body, &mut frame);
                let body = match copy.body {
                    CopyBody::Original => &original.data[..],
                    CopyBody::Checks(body) | CopyBody::Points(body) => body,
                };
                Outgoing::to_queue(self.queue_of(copy.to), body, properties)
            })
            .collect();
        self.publisher.publish_all(&copies, pulse).await.map_err(BrokerError::into_outage)
    }

    async fn schedule(&self, checks: &[FirstChecks], pulse: &Pulse) -> Result<Confirmed, Outage> {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let messages: Vec<Outgoing<'_>> = checks
            .iter()
            .map(|FirstChecks { wait, body }| {
                let queue = self.queue_of(Destination::Check(*wait));
                Outgoing::to_queue(queue, body, copy::first_checks(&self.queue, seconds))
            })
            .collect();
        self.publisher.publish_all(&messages, pulse).await.map_err(BrokerError::into_outage)
    }

    async fn settle(&self, done: Vec<Delivered>) {
        let _order = self.acknowledging.lock().await;
        let prefix = {
            let mut tracker = self.tracker();
            for delivered in done {
                tracker.settle(delivered.token);
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
