//! How a session with the broker begins, what its workers find out, and how it ends.

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

/// How a session begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Opening {
    /// With the prefetch of its line.
    Full,
    /// After an outage: with so many deliveries in all. If the dependency fails again, only these are given back, which the
    /// broker counts against each.
    Limited(u16),
    /// One message at a time until one takes little time: deliveries were held for too long.
    Slow,
    /// With so many deliveries, to find out whether a payment source whose probes fail works for others.
    Trial(u16),
}

impl Opening {
    /// The opening after an outage.
    pub(super) const ONE: Self = Self::Limited(1);

    /// The opening after a session with this one that ended in order: twice as many deliveries, and in the end those of a line
    /// with this prefetch.
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

/// Why a session ended. Everything is settled or given back.
pub(super) enum Ended {
    /// The daemon was told to stop, or the session has found out what it was opened for.
    InOrder,
    /// Deliveries were held for too long.
    HeldTooLong,
    /// Something is down.
    Outage {
        outage: Outage,
        /// How long the session was in use.
        lived: Duration,
        /// How far it came.
        progress: Progress,
    },
}

/// How far a session came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    /// The broker did not let it begin, or delivered nothing: it cost no delivery.
    TookNothing,
    /// Nothing of what was delivered was settled.
    SettledNothing,
    /// Something had its effect, and was settled.
    Settled,
}

/// What the workers of a session find out together.
#[derive(Debug, Default)]
pub(super) struct Findings {
    /// Deliveries were held for too long.
    pub(super) held_too_long: AtomicBool,
    /// Something was delivered.
    pub(super) taken: AtomicBool,
    /// Something had its effect, and was settled.
    pub(super) settled: AtomicBool,
    /// When a transaction was committed last.
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

pub(super) fn broker_lost(error: BrokerError) -> Interrupted<Delivered> {
    Interrupted { outage: Some(error.into_outage()), unsettled: Vec::new() }
}
