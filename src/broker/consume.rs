//! Consuming with manual acknowledgement: natural batches in, prefixes of acknowledgements out.

use super::{
    BrokerError, STEP_TIMEOUT,
    batch::{BatchSize, Delivered, Stream, StreamEnd, Taken},
    blocked::Blocked,
    connect::BrokerUrl,
    copy::{self, CopyHeaders},
    header_values, lenient,
    outgoing::Outgoing,
    publish::Publisher,
    topology::Topology,
    trust,
    unreadable::UnreadableOnes,
    within,
};
use crate::{
    domain::{
        ack_tracker::{AckTracker, Token},
        component::Component,
        failure::Outage,
        settlement::Destination,
    },
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
    pipeline::ports::{Confirmed, CopyBody, Deliveries, FirstChecks, Forward, Message, Origin},
    unpoisoned::lock,
};
use async_trait::async_trait;
use lapin::{
    Channel, Connection,
    message::Delivery,
    options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions},
};
use std::{
    sync::{
        Arc, Mutex, MutexGuard,
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
pub(super) const CONSUMER_TAG: &str = "pointsd";

/// A session with the broker: consuming on one connection, publishing copies on another. After any loss it is thrown away and
/// opened anew.
pub struct Consumer {
    pub(super) connection: Connection,
    pub(super) channel: Channel,
    pub(super) node: BrokerUrl,
    pub(super) component: Component,
    pub(super) queue: String,
    /// By the step that they are for.
    pub(super) retry_queues: Vec<String>,
    /// By the delay that they are for.
    pub(super) check_delay_queues: Vec<String>,
    pub(super) check_queue: String,
    pub(super) dead_queue: String,
    /// The value of `x-pointsd-source` on copies.
    pub(super) source: Option<Arc<str>>,
    pub(super) stream: tokio::sync::Mutex<Stream>,
    /// Whether it takes no more deliveries than the prefetch in all: the broker sends more with each acknowledgement, so the
    /// consumer is cancelled before the first.
    pub(super) limited: bool,
    pub(super) has_cancelled: AtomicBool,
    pub(super) tracker: Mutex<AckTracker>,
    /// Held while an acknowledgement is sent, so that prefixes leave in rising order.
    pub(super) acknowledging: tokio::sync::Mutex<()>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) blocked: Blocked,
    pub(super) topology: Arc<Topology>,
    pub(super) taken: Mutex<Taken>,
    pub(super) unreadable: UnreadableOnes,
}

impl Consumer {
    /// The node that it is connected to.
    pub fn node(&self) -> &BrokerUrl {
        &self.node
    }

    /// An error when the broker takes no messages any more, because of an alarm or because the publishing connection is
    /// not sound, or when a queue is gone; `Ok` when told to stop. It must be asked: it tells of an alarm only who publishes.
    /// Parks what lapin cannot decode, as it arrives.
    pub async fn watch(&self, heartbeat: &Heartbeat, stop: &CancellationToken) -> Result<(), Outage> {
        let mut proofs = 0_u32;
        let mut next_proof = Instant::now() + PROOF_INTERVAL;
        loop {
            heartbeat.beat();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                alarm = self.publisher.alarm() => return Err(alarm.into_outage()),
                () = self.unreadable.arrived() => {
                    self.unreadable.park(self, heartbeat).await?;
                    continue;
                }
                () = tokio::time::sleep_until(next_proof.into()) => next_proof = Instant::now() + PROOF_INTERVAL,
            }
            proofs = proofs.wrapping_add(1);
            // The session of the credits looks after the check queues, too.
            let looks = self.component != Component::Checks && proofs.is_multiple_of(PROOFS_BEFORE_LOOK);
            // On its own: a proof that is cut off would leave a channel that no worker can use any more.
            let (publisher, topology) = (Arc::clone(&self.publisher), Arc::clone(&self.topology));
            let proof = tokio::spawn(async move {
                publisher.prove().await?;
                if looks { topology.restore_on(publisher.connection()).await } else { Ok(()) }
            });
            match stop.run_until_cancelled(proof).await {
                None => return Ok(()),
                Some(proven) => proven
                    .unwrap_or_else(|panicked| Err(BrokerError::Lost(panicked.to_string())))
                    .map_err(BrokerError::into_outage)?,
            }
        }
    }

    /// The longest that a delivery which waits to be taken may have been held: it cannot have come before the delivery
    /// was taken that is one prefetch ahead of it, nor while none waited.
    pub fn held_at_most(&self) -> Duration {
        lock(&self.taken).held_at_most()
    }

    /// Whether something was delivered that no worker was given, because it cannot be decoded.
    pub fn met_unreadable(&self) -> bool {
        self.unreadable.have_arrived()
    }

    /// When the oldest delivery was taken that is not settled; `None` without one.
    pub fn oldest_in_flight(&self) -> Option<Instant> {
        let oldest_open = self.tracker().oldest_open();
        lock(&self.taken).oldest(oldest_open)
    }

    fn tracker(&self) -> MutexGuard<'_, AckTracker> {
        lock(&self.tracker)
    }

    /// Waits for a delivery and takes it together with whatever else has arrived, within `size`. `None` when a session with a
    /// limit takes no more.
    ///
    /// Cancel safe: what was gathered by then is the beginning of the next batch.
    pub async fn next_batch(&self, size: BatchSize) -> Result<Option<Vec<Delivered>>, BrokerError> {
        let mut stream = self.stream.lock().await;
        loop {
            match stream.gather(size, || lock(&self.taken).none_waits()).await {
                Ok(()) => {}
                Err(StreamEnd::Cancelled) if self.has_cancelled.load(Ordering::Relaxed) => return Ok(None),
                Err(StreamEnd::Cancelled) => {
                    return Err(BrokerError::Lost(format!(
                        "the broker cancelled the consumer of {} (the queue was deleted, or its node left)",
                        self.queue
                    )));
                }
                Err(StreamEnd::Lost(error)) => return Err(error),
            }
            // Until the next turn nothing is awaited.
            let gathered = std::mem::take(&mut stream.gathered);
            let (count, last) = (gathered.len(), gathered.back().map_or(0, |delivery| delivery.delivery_tag));
            let mut batch = Vec::with_capacity(count);
            let mut tracker = self.tracker();
            for delivery in gathered {
                let Some(token) = tracker.delivered(delivery.delivery_tag) else {
                    let reason = "a delivery tag does not count up by one".to_owned();
                    stream.ended = Some(StreamEnd::Lost(BrokerError::Lost(reason)));
                    continue;
                };
                match self.delivered(token, delivery) {
                    unreadable if unreadable.unreadable.is_some() => self.unreadable.add(unreadable),
                    readable => batch.push(readable),
                }
            }
            let mut taken = lock(&self.taken);
            taken.take(count);
            taken.opened(last);
            // As often as something is taken: what is settled is forgotten.
            taken.oldest(tracker.oldest_open());
            drop(taken);
            events::InFlight { component: self.component, deliveries: tracker.in_flight() }.emit();
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
        }
    }

    fn delivered(&self, token: Token, mut delivery: Delivery) -> Delivered {
        let unreadable = lenient::take(&mut delivery.properties);
        trust::distrust_producers(delivery.exchange.as_str(), &mut delivery.properties);
        let (origin, source) = match self.component {
            Component::Checks => {
                (self.origin(&delivery), header_values::read_source(&delivery.properties).map(Arc::from))
            }
            Component::Credits | Component::Source(_) | Component::Relay => (Origin::Foreign, self.source.clone()),
        };
        Delivered { token, delivery: Box::new(delivery), origin, source, unreadable }
    }

    /// Of a message in the check queue.
    fn origin(&self, delivery: &Delivery) -> Origin {
        let is_delay_queue =
            |queue: &String| queue.strip_prefix(&self.queue).is_some_and(|rest| rest.starts_with(".delay."));
        if trust::is_check_message(&delivery.properties) {
            Origin::Checks
        } else if trust::is_sent_by_us(&delivery.properties)
            || header_values::read_source(&delivery.properties).is_some()
        {
            Origin::Ours
        } else {
            match header_values::read_bound_queue(&delivery.properties).filter(is_delay_queue) {
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
            *lock(&self.blocked) = Some(Arc::clone(&self.publisher));
        } else {
            self.publisher.close().await;
        }
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.connection.close(200, "done".into())).await;
        self.tracker().channel_opened();
        events::InFlight { component: self.component, deliveries: 0 }.emit();
    }

    async fn stop_and_give_back(&self, mut unsettled: Vec<Delivered>) -> usize {
        if !self.has_cancelled.swap(true, Ordering::Relaxed) && self.cancel().await.is_err() {
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
        unsettled.extend(self.unreadable.take());
        self.give_back(unsettled).await
    }

    async fn cancel(&self) -> lapin::Result<()> {
        // What has arrived by the answer is still handed out.
        self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions { nowait: false }).await
    }

    /// Before each settlement: a session with a limit takes nothing in exchange for it.
    async fn keep_limit(&self) {
        if self.limited && !self.has_cancelled.swap(true, Ordering::Relaxed) {
            // A channel that does not take it has ended or will: so will the session.
            let _ = tokio::time::timeout(STEP_TIMEOUT, self.cancel()).await;
        }
    }

    /// Gives deliveries back to the queue, while the others go on. Returns how many.
    pub async fn give_back(&self, unsettled: Vec<Delivered>) -> usize {
        let _order = self.acknowledging.lock().await;
        self.keep_limit().await;
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
        events::InFlight { component: self.component, deliveries: self.tracker().in_flight() }.emit();
        // What was settled behind a delivery that has just gone back can be acknowledged now.
        let prefix = self.tracker().settled_prefix();
        if let Some(tag) = prefix {
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let _ = tokio::time::timeout(STEP_TIMEOUT, ack).await;
        }
        given_back
    }

    /// For each copy whether it is confirmed, or why not.
    pub(super) async fn publish_copies(
        &self,
        copies: &[Forward<'_, Delivered>],
        heartbeat: &Heartbeat,
    ) -> Result<Confirmed, BrokerError> {
        let now = jiff::Timestamp::now().to_string();
        let mut frame = self.publisher.header_frame();
        let copies: Vec<Outgoing<'_>> = copies
            .iter()
            .map(|copy| {
                let original = &copy.message.delivery;
                let marks = CopyHeaders::new(copy, &self.queue, copy.message.source(), &now);
                let mut properties = copy::forwarded_properties(&original.properties, &marks, &copy.body, &mut frame);
                if let Some(unreadable) = &copy.message.unreadable {
                    properties = lenient::with_raw(&properties, unreadable, &mut frame);
                }
                let body = match copy.body {
                    CopyBody::Original => &original.data[..],
                    CopyBody::Checks(body) | CopyBody::Points(body) => body,
                };
                Outgoing::to_queue(self.queue_of(copy.to), body, properties)
            })
            .collect();
        self.publisher.publish_all(&copies, heartbeat).await
    }
}

#[async_trait]
impl Deliveries for Consumer {
    type Message = Delivered;

    async fn forward(&self, copies: &[Forward<'_, Delivered>], heartbeat: &Heartbeat) -> Result<Confirmed, Outage> {
        self.publish_copies(copies, heartbeat).await.map_err(BrokerError::into_outage)
    }

    async fn schedule(&self, checks: &[FirstChecks], heartbeat: &Heartbeat) -> Result<Confirmed, Outage> {
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let messages: Vec<Outgoing<'_>> = checks
            .iter()
            .map(|FirstChecks { wait, body }| {
                let queue = self.queue_of(Destination::Check(*wait));
                Outgoing::to_queue(queue, body, copy::first_check_properties(&self.queue, seconds))
            })
            .collect();
        self.publisher.publish_all(&messages, heartbeat).await.map_err(BrokerError::into_outage)
    }

    async fn settle(&self, done: Vec<Delivered>) {
        let _order = self.acknowledging.lock().await;
        self.keep_limit().await;
        let prefix = {
            let mut tracker = self.tracker();
            for delivered in done {
                tracker.settle(delivered.token);
            }
            events::InFlight { component: self.component, deliveries: tracker.in_flight() }.emit();
            tracker.settled_prefix()
        };
        if let Some(tag) = prefix {
            // A channel that does not take it has ended or will: the stream tells, and the messages come again.
            let ack = self.channel.basic_ack(tag, BasicAckOptions { multiple: true });
            let _ = tokio::time::timeout(STEP_TIMEOUT, ack).await;
        }
    }
}
