//! Deliveries, and the batches in which workers take them from the consumed stream.

use super::{BrokerError, header_values, lenient::Unreadable};
use crate::{
    domain::ack_tracker::Token,
    pipeline::ports::{Message, Origin},
};
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// A delivery with the token that settles it.
#[derive(Debug)]
pub struct Delivered {
    pub(super) token: Token,
    /// Boxed: it is large, and its owner is moved from step to step.
    pub(super) delivery: Box<Delivery>,
    pub(super) origin: Origin,
    pub(super) source: Option<Arc<str>>,
    /// Set if lapin cannot decode the message. Such a message is parked and never part of a batch.
    pub(super) unreadable: Option<Unreadable>,
}

/// The beginning of the year 9999 in seconds since 1970: far in the future, and representable by every clock.
const YEAR_9999: u64 = 253_370_764_800;

impl Message for Delivered {
    fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    fn sent_at(&self) -> Option<SystemTime> {
        // Some clients write 0 for a missing time. A time beyond the range of the clock is still in the future.
        let seconds = (*self.delivery.properties.timestamp()).filter(|seconds| *seconds > 0)?;
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(seconds.min(YEAR_9999)))
    }

    fn retries_taken(&self) -> u32 {
        header_values::retries_taken(&self.delivery.properties)
    }

    fn checks_done(&self) -> u32 {
        header_values::checks_done(&self.delivery.properties)
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

/// The maximum size of a batch, which has at least one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchSize {
    /// The maximum number of messages.
    pub messages: usize,
    /// No message is added once the bodies have this many bytes.
    pub bytes: usize,
    /// How long a smaller batch waits for further messages.
    pub linger: Duration,
}

/// The times at which deliveries were taken, as far back as the prefetch.
#[derive(Debug)]
pub(super) struct DeliveryTimes {
    prefetch: usize,
    /// The latest batches, oldest first: the number of deliveries, and the time.
    batches: VecDeque<(usize, Instant)>,
    /// When the stream last had no waiting delivery.
    empty_at: Instant,
    /// The batches with unsettled deliveries, oldest first: the last delivery tag, and the time.
    unsettled: VecDeque<(u64, Instant)>,
    /// When the last delivery was taken, or the session began.
    last_taken: Instant,
}

impl DeliveryTimes {
    pub(super) fn new(prefetch: u16) -> Self {
        Self {
            prefetch: prefetch.into(),
            batches: VecDeque::new(),
            empty_at: Instant::now(),
            unsettled: VecDeque::new(),
            last_taken: Instant::now(),
        }
    }

    /// Records that no delivery waits.
    pub(super) fn record_empty(&mut self) {
        self.empty_at = Instant::now();
        self.batches.clear();
    }

    /// Records that deliveries were taken together.
    pub(super) fn record_batch(&mut self, deliveries: usize) {
        self.last_taken = Instant::now();
        self.batches.push_back((deliveries, self.last_taken));
        // Older batches than the one with the delivery that is one prefetch behind have no effect.
        let mut later: usize = self.batches.iter().skip(1).map(|(deliveries, _)| deliveries).sum();
        while later >= self.prefetch {
            self.batches.pop_front();
            later -= self.batches.front().map_or(0, |(deliveries, _)| *deliveries);
        }
    }

    /// How long nothing was delivered.
    pub(super) fn idle_for(&self) -> Duration {
        self.last_taken.elapsed()
    }

    /// Records that deliveries were taken and are unsettled; `last` is the delivery tag of the last one.
    pub(super) fn record_unsettled(&mut self, last: u64) {
        self.unsettled.push_back((last, Instant::now()));
    }

    /// When the oldest unsettled delivery was taken. `oldest_open`: its delivery tag.
    pub(super) fn oldest_taken_at(&mut self, oldest_open: Option<u64>) -> Option<Instant> {
        let Some(oldest_open) = oldest_open else {
            self.unsettled.clear();
            return None;
        };
        while self.unsettled.front().is_some_and(|(last, _)| *last < oldest_open) {
            self.unsettled.pop_front();
        }
        self.unsettled.front().map(|(_, at)| *at)
    }

    /// The longest time that a waiting delivery can have been held.
    pub(super) fn held_at_most(&self) -> Duration {
        let taken: usize = self.batches.iter().map(|(deliveries, _)| deliveries).sum();
        let since = self.batches.front().filter(|_| taken > self.prefetch).map_or(self.empty_at, |(_, at)| *at);
        since.max(self.empty_at).elapsed()
    }
}

/// The reason for the end of a stream of deliveries.
#[derive(Debug, Clone)]
pub(super) enum StreamEnd {
    /// This session or the broker cancelled the consumer.
    Cancelled,
    /// The channel or the connection ended.
    Lost(BrokerError),
}

/// The consumed stream and the reason for its end: lapin reports the end once, and every worker needs it.
pub(super) struct Stream {
    consumer: lapin::Consumer,
    pub(super) ended: Option<StreamEnd>,
    /// The deliveries of an incomplete batch.
    pub(super) gathered: VecDeque<Delivery>,
}

impl Stream {
    pub(super) fn new(consumer: lapin::Consumer) -> Self {
        Self { consumer, ended: None, gathered: VecDeque::new() }
    }

    pub(super) async fn next(&mut self) -> Result<Delivery, StreamEnd> {
        if let Some(ended) = &self.ended {
            return Err(ended.clone());
        }
        let ended = match self.consumer.next().await {
            Some(Ok(delivery)) => return Ok(delivery),
            Some(Err(error)) => StreamEnd::Lost(error.into()),
            None => StreamEnd::Cancelled,
        };
        self.ended = Some(ended.clone());
        Err(ended)
    }

    /// Waits for a delivery and gathers it together with the others that have arrived. Calls `on_empty` if no delivery
    /// waits. Cancel safe.
    pub(super) async fn gather(&mut self, size: BatchSize, on_empty: impl FnOnce()) -> Result<(), StreamEnd> {
        if self.gathered.is_empty() {
            let first = if let Some(next) = self.next().now_or_never() {
                next?
            } else {
                on_empty();
                self.next().await?
            };
            self.gathered.push_back(first);
        }
        let until = tokio::time::Instant::now() + size.linger;
        let mut bytes: usize = self.gathered.iter().map(|delivery| delivery.data.len()).sum();
        while self.gathered.len() < size.messages && bytes < size.bytes {
            let next = match self.next().now_or_never() {
                None if size.linger.is_zero() => break,
                None => match tokio::time::timeout_at(until, self.next()).await {
                    Ok(next) => next,
                    Err(_) => break,
                },
                Some(next) => next,
            };
            // The next caller receives the reason for the end.
            let Ok(delivery) = next else { break };
            bytes = bytes.saturating_add(delivery.data.len());
            self.gathered.push_back(delivery);
        }
        Ok(())
    }
}
