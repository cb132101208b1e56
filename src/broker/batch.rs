//! What is taken from a queue: deliveries, in natural batches.

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

/// A delivery and the right to settle it.
#[derive(Debug)]
pub struct Delivered {
    pub(super) token: Token,
    /// In a box, because it is large and what holds it is handed on from step to step.
    pub(super) delivery: Box<Delivery>,
    pub(super) origin: Origin,
    pub(super) source: Option<Arc<str>>,
    /// Of one that lapin cannot decode. It is parked, and comes into no batch.
    pub(super) unreadable: Option<Unreadable>,
}

/// Its beginning, in seconds since 1970: far in the future, and a time that every clock can say.
const YEAR_9999: u64 = 253_370_764_800;

impl Message for Delivered {
    fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    fn sent_at(&self) -> Option<SystemTime> {
        // Some clients write 0 for none. One beyond what the clock can say is in the future all the same.
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
pub(super) struct Taken {
    prefetch: usize,
    /// Of the latest deliveries, oldest first: how many were taken together, and when.
    batches: VecDeque<(usize, Instant)>,
    /// When it was seen last that none waited.
    none_waited: Instant,
    /// Of the deliveries that are not settled, oldest first: the last tag of those taken together, and when.
    open: VecDeque<(u64, Instant)>,
}

impl Taken {
    pub(super) fn new(prefetch: u16) -> Self {
        Self { prefetch: prefetch.into(), batches: VecDeque::new(), none_waited: Instant::now(), open: VecDeque::new() }
    }

    pub(super) fn none_waits(&mut self) {
        self.none_waited = Instant::now();
        self.batches.clear();
    }

    pub(super) fn take(&mut self, deliveries: usize) {
        self.batches.push_back((deliveries, Instant::now()));
        // Only the batch matters in which the delivery was that is one prefetch behind.
        let mut later: usize = self.batches.iter().skip(1).map(|(deliveries, _)| deliveries).sum();
        while later >= self.prefetch {
            self.batches.pop_front();
            later -= self.batches.front().map_or(0, |(deliveries, _)| *deliveries);
        }
    }

    /// Deliveries were taken; `last` is the tag of the last of them.
    pub(super) fn opened(&mut self, last: u64) {
        self.open.push_back((last, Instant::now()));
    }

    /// When the delivery with this tag was taken, which is the oldest one that is not settled.
    pub(super) fn oldest(&mut self, oldest_open: Option<u64>) -> Option<Instant> {
        let Some(oldest_open) = oldest_open else {
            self.open.clear();
            return None;
        };
        while self.open.front().is_some_and(|(last, _)| *last < oldest_open) {
            self.open.pop_front();
        }
        self.open.front().map(|(_, at)| *at)
    }

    pub(super) fn held_at_most(&self) -> Duration {
        let taken: usize = self.batches.iter().map(|(deliveries, _)| deliveries).sum();
        let since = self.batches.front().filter(|_| taken > self.prefetch).map_or(self.none_waited, |(_, at)| *at);
        since.max(self.none_waited).elapsed()
    }
}

/// How a stream of deliveries ended.
#[derive(Debug, Clone)]
pub(super) enum StreamEnd {
    /// The consumer was cancelled, by this session or by the broker.
    Cancelled,
    /// The channel or the connection ended.
    Lost(BrokerError),
}

/// The consumed stream, and how it ended: lapin reports the end once, and every worker must see it.
pub(super) struct Stream {
    consumer: lapin::Consumer,
    pub(super) ended: Option<StreamEnd>,
    /// Deliveries of a batch that is not complete yet.
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

    /// Waits for a delivery and gathers it together with whatever else has arrived. `none_waits` is called when there is none
    /// yet. Cancel safe.
    pub(super) async fn gather(&mut self, size: BatchSize, none_waits: impl FnOnce()) -> Result<(), StreamEnd> {
        if self.gathered.is_empty() {
            let first = if let Some(next) = self.next().now_or_never() {
                next?
            } else {
                none_waits();
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
            // Whatever ends the stream here is told to the next caller.
            let Ok(delivery) = next else { break };
            bytes = bytes.saturating_add(delivery.data.len());
            self.gathered.push_back(delivery);
        }
        Ok(())
    }
}
