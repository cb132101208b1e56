//! The opening, the findings and the end of a session with the broker.

use crate::{
    broker::{BrokerError, Delivered},
    domain::failure::Outage,
    pipeline::work::Interrupted,
};
use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The way in which a session starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// Starts with the prefetch of the queue.
    Full,
    /// Takes this number of deliveries in total, after an outage. If the dependency fails again, only these are
    /// requeued, which the broker counts against each.
    Limited(u16),
    /// Takes one message at a time until one is processed quickly, because deliveries were held for too long.
    Slow,
    /// Starts with this number of deliveries, to test whether a payment source whose probes fail works for other
    /// payments.
    Trial(u16),
}

impl Opening {
    /// The first opening after an outage.
    pub(super) const ONE: Self = Self::Limited(1);

    /// The opening after a session with this opening that ended in order: twice as many deliveries, up to a full
    /// session with the prefetch.
    pub(super) fn widened(self, prefetch: u16) -> Self {
        match self {
            Self::Limited(deliveries) | Self::Trial(deliveries) => match deliveries.saturating_mul(2) {
                next if next < prefetch => Self::Limited(next),
                _ => Self::Full,
            },
            Self::Slow | Self::Full => Self::Full,
        }
    }
}

/// The reason for the end of a session. All deliveries are settled or requeued.
pub(super) enum Ended {
    /// The daemon stops, or the session has answered the question for which it was opened.
    InOrder,
    /// Nothing was delivered for a long time.
    Idle,
    /// Deliveries were held for too long.
    HeldTooLong,
    /// A dependency does not work.
    Outage {
        outage: Outage,
        /// The lifetime of the session.
        lived: Duration,
        /// The progress of the session.
        progress: Progress,
    },
}

/// The progress of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The session could not be opened, or the broker delivered nothing: no delivery was spent.
    TookNothing,
    /// Messages were delivered and none was settled.
    SettledNothing,
    /// A message was processed and settled.
    Settled,
}

/// The findings that the workers of a session share.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Deliveries were held for too long.
    pub(super) held_too_long: AtomicBool,
    /// Nothing was delivered for [`Ended::Idle`].
    pub(super) idle: AtomicBool,
    /// A message was delivered.
    pub(super) taken: AtomicBool,
    /// A message was processed and settled.
    pub(super) settled: AtomicBool,
    /// The time of the last committed transaction.
    pub(super) committed: Mutex<Option<Instant>>,
}

impl Findings {
    pub(super) fn progress(&self) -> Progress {
        match (self.taken.load(Ordering::Relaxed), self.settled.load(Ordering::Relaxed)) {
            (_, true) => Progress::Settled,
            (true, false) => Progress::SettledNothing,
            (false, false) => Progress::TookNothing,
        }
    }
}

/// Converts an error of the broker to an interruption without unsettled deliveries.
pub(super) fn broker_lost(error: BrokerError) -> Interrupted<Delivered> {
    Interrupted { outage: Some(error.into_outage()), unsettled: Vec::new() }
}
