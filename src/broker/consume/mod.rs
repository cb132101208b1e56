//! A session with the broker: consuming a queue in batches, with manual acknowledgement.

mod settle;

use super::{
    BrokerError,
    batch::{BatchSize, Delivered, DeliveryTimes, Stream, StreamEnd},
    blocked::Blocked,
    connect::BrokerUrl,
    header_values, lenient,
    publish::Publisher,
    topology::Topology,
    trust,
    unreadable::UnreadableDeliveries,
};
use crate::{
    domain::{
        ack_tracker::{AckTracker, Token},
        component::Component,
        failure::Outage,
    },
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
    pipeline::ports::Origin,
    unpoisoned::lock,
};
use lapin::{Channel, Connection, message::Delivery};
use std::{
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};
use tokio_util::sync::CancellationToken;

/// The interval at which a session proves that copies can be published.
const PROOF_INTERVAL: Duration = Duration::from_secs(5);

/// The number of proofs between two checks that the queues exist: one check a minute.
const PROOFS_PER_QUEUE_CHECK: u32 = 12;

/// The tag of the consumer, the only one on its channel.
pub(super) const CONSUMER_TAG: &str = "pointsd";

/// A session with the broker, which consumes on one connection and publishes copies on another. After any error it is
/// discarded and a new one is opened.
pub struct Consumer {
    pub(super) connection: Connection,
    pub(super) channel: Channel,
    pub(super) node: BrokerUrl,
    pub(super) component: Component,
    pub(super) queue: String,
    /// The retry delay queues, indexed by retry step.
    pub(super) retry_queues: Vec<String>,
    /// The check delay queues, indexed by delay.
    pub(super) check_delay_queues: Vec<String>,
    pub(super) check_queue: String,
    pub(super) dead_queue: String,
    /// The value of `x-pointsd-source` on copies.
    pub(super) source: Option<Arc<str>>,
    pub(super) stream: tokio::sync::Mutex<Stream>,
    /// Whether the session takes at most `prefetch` deliveries in total: the broker sends more with each
    /// acknowledgement, so the consumer is cancelled before the first.
    pub(super) limited: bool,
    pub(super) has_cancelled: AtomicBool,
    pub(super) tracker: Mutex<AckTracker>,
    /// Locked while an acknowledgement is sent, so that prefixes are sent in ascending order.
    pub(super) acknowledging: tokio::sync::Mutex<()>,
    pub(super) publisher: Arc<Publisher>,
    pub(super) blocked: Blocked,
    pub(super) topology: Arc<Topology>,
    pub(super) delivery_times: Mutex<DeliveryTimes>,
    pub(super) unreadable: UnreadableDeliveries,
}

impl Consumer {
    /// How long nothing was delivered.
    pub fn idle_for(&self) -> Duration {
        lock(&self.delivery_times).idle_for()
    }

    /// The node of the consuming connection.
    pub fn node(&self) -> &BrokerUrl {
        &self.node
    }

    /// Watches the session until `stop`. Fails if the broker no longer accepts messages, because of an alarm or of an
    /// error of the publishing connection, or if a queue is missing. Publishes probes, because the broker reports an
    /// alarm only to connections that publish. Also parks unreadable messages as they arrive.
    pub async fn watch(&self, heartbeat: &Heartbeat, stop: &CancellationToken) -> Result<(), Outage> {
        let mut proofs = 0_u32;
        let mut next_proof = Instant::now() + PROOF_INTERVAL;
        loop {
            heartbeat.beat();
            tokio::select! {
                () = stop.cancelled() => return Ok(()),
                alarm = self.publisher.wait_for_alarm() => return Err(alarm.into_outage()),
                () = self.unreadable.wait_for_arrival() => {
                    self.unreadable.park(self, heartbeat).await?;
                    continue;
                }
                () = tokio::time::sleep_until(next_proof.into()) => next_proof = Instant::now() + PROOF_INTERVAL,
            }
            proofs = proofs.wrapping_add(1);
            // The session of the credits checks the delay queues of checks, too. The check queue is its consumer's.
            let checks_queues = self.component != Component::Checks && proofs.is_multiple_of(PROOFS_PER_QUEUE_CHECK);
            // In a separate task: a cancelled proof would leave a channel that no worker can use again.
            let (publisher, topology) = (Arc::clone(&self.publisher), Arc::clone(&self.topology));
            let proof = tokio::spawn(async move {
                publisher.prove().await?;
                if checks_queues { topology.restore_on(publisher.connection()).await } else { Ok(()) }
            });
            match stop.run_until_cancelled(proof).await {
                None => return Ok(()),
                Some(proven) => proven
                    .unwrap_or_else(|panicked| Err(BrokerError::Lost(panicked.to_string())))
                    .map_err(BrokerError::into_outage)?,
            }
        }
    }

    /// The longest time that a waiting delivery can have been held: it arrived after the delivery that is one prefetch
    /// ahead of it was taken, and after the last time when no delivery waited.
    pub fn held_at_most(&self) -> Duration {
        lock(&self.delivery_times).held_at_most()
    }

    /// Whether an unreadable message was delivered, which no worker receives.
    pub fn met_unreadable(&self) -> bool {
        self.unreadable.have_arrived()
    }

    /// When the oldest unsettled delivery was taken; `None` if all are settled.
    pub fn oldest_in_flight(&self) -> Option<Instant> {
        let oldest_open = self.tracker().oldest_open();
        lock(&self.delivery_times).oldest_taken_at(oldest_open)
    }

    fn tracker(&self) -> MutexGuard<'_, AckTracker> {
        lock(&self.tracker)
    }

    /// Waits for a delivery and takes it together with the others that have arrived, within `size`. `None` if a limited
    /// session takes no further delivery.
    ///
    /// Cancel safe: the deliveries gathered before are the beginning of the next batch.
    pub async fn next_batch(&self, size: BatchSize) -> Result<Option<Vec<Delivered>>, BrokerError> {
        let mut stream = self.stream.lock().await;
        loop {
            match stream.gather(size, || lock(&self.delivery_times).record_empty()).await {
                Ok(()) => {}
                Err(StreamEnd::Cancelled) if self.has_cancelled.load(Ordering::Relaxed) => return Ok(None),
                Err(StreamEnd::Cancelled) => {
                    return Err(BrokerError::Lost(format!(
                        "the broker cancelled the consumer of {} (the queue was deleted, or its node stopped)",
                        self.queue
                    )));
                }
                Err(StreamEnd::Lost(error)) => return Err(error),
            }
            // No await follows in this iteration.
            let gathered = std::mem::take(&mut stream.gathered);
            let (count, last) = (gathered.len(), gathered.back().map_or(0, |delivery| delivery.delivery_tag));
            let mut batch = Vec::with_capacity(count);
            let mut tracker = self.tracker();
            for delivery in gathered {
                let Some(token) = tracker.delivered(delivery.delivery_tag) else {
                    let reason = "delivery tags are not consecutive".to_owned();
                    stream.ended = Some(StreamEnd::Lost(BrokerError::Lost(reason)));
                    continue;
                };
                match self.accept(token, delivery) {
                    unreadable if unreadable.unreadable.is_some() => self.unreadable.add(unreadable),
                    readable => batch.push(readable),
                }
            }
            let mut times = lock(&self.delivery_times);
            times.record_batch(count);
            times.record_unsettled(last);
            // Each time, so that the times of settled deliveries are dropped.
            times.oldest_taken_at(tracker.oldest_open());
            drop(times);
            events::InFlight { component: self.component, deliveries: tracker.in_flight() }.emit();
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
        }
    }

    /// Converts a delivery of lapin to one of the session.
    fn accept(&self, token: Token, mut delivery: Delivery) -> Delivered {
        let unreadable = lenient::take_mark(&mut delivery.properties);
        trust::distrust_producers(delivery.exchange.as_str(), &mut delivery.properties);
        let (origin, source) = match self.component {
            Component::Checks => {
                (self.check_queue_origin(&delivery), header_values::read_source(&delivery.properties).map(Arc::from))
            }
            Component::Credits | Component::Source(_) | Component::Relay => (Origin::Foreign, self.source.clone()),
        };
        Delivered { token, delivery: Box::new(delivery), origin, source, unreadable }
    }

    /// The origin of a message in the check queue.
    fn check_queue_origin(&self, delivery: &Delivery) -> Origin {
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
}
