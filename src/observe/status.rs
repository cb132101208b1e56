//! The daemon's state, as `/readyz`, systemd and the gauges tell it.

use super::{
    events, metrics,
    systemd::{self, News},
};
use crate::pipeline::ports::{Dependency, Outage};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Shared by everything that changes or tells the state.
#[derive(Debug, Default)]
pub struct Status(Mutex<State>);

/// What consumes, each on its own: only what needs a dependency pauses when that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The credit queue.
    Credits,
    /// The check queue.
    Checks,
    /// The queue of a source, by the source's name.
    Source(&'static str),
    /// None: the outbox is relayed.
    Relay,
}

impl Part {
    /// Of a source. Its name is kept for the life of the process: sources are configured once.
    pub fn source(name: &str) -> Self {
        Self::Source(name.to_owned().leak())
    }

    /// The metrics' `queue` label; of the relay, which has no queue, its name in the log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Credits => metrics::CREDIT_QUEUE,
            Self::Checks => metrics::CHECK_QUEUE,
            Self::Source(name) => name,
            Self::Relay => "relay",
        }
    }
}

#[derive(Debug, Default)]
struct State {
    consuming: bool,
    stopping: bool,
    ready_told: bool,
    /// The nodes that were told last.
    nodes: BTreeMap<Part, String>,
    /// By dependency.
    paused: [BTreeMap<Part, Pause>; Dependency::ALL.len()],
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    reason: String,
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A dependency is down for a part. Told once at its beginning, whichever part meets it first, and again when the
    /// reason changes.
    pub fn pause(&self, part: Part, outage: &Outage) {
        let Outage { dependency, reason } = outage;
        let mut state = self.lock();
        if part == Part::Credits {
            state.consuming = false;
        }
        let parts = &mut state.paused[*dependency as usize];
        match parts.get_mut(&part) {
            Some(pause) if pause.reason == *reason => return,
            Some(pause) => {
                pause.reason.clone_from(reason);
                events::StillPaused { dependency: *dependency, reason }.emit();
            }
            None => {
                if parts.is_empty() {
                    events::Paused { dependency: *dependency, reason }.emit();
                }
                parts.insert(part, Pause { since: Instant::now(), reason: reason.clone() });
            }
        }
        state.tell();
    }

    /// A dependency works for a part. Told when it works for every part.
    pub fn resume(&self, part: Part, dependency: Dependency) {
        let mut state = self.lock();
        let parts = &mut state.paused[dependency as usize];
        if let Some(pause) = parts.remove(&part) {
            if parts.is_empty() {
                events::Resumed { dependency, after: pause.since.elapsed() }.emit();
            }
            state.tell();
        }
    }

    /// Whether a part waits for a dependency.
    pub fn is_paused(&self, part: Part, dependency: Dependency) -> bool {
        self.lock().paused[dependency as usize].contains_key(&part)
    }

    /// A part's queue is consumed.
    pub fn consuming(&self, part: Part, queue: &str, broker: &str) {
        let mut state = self.lock();
        if part == Part::Credits {
            state.consuming = true;
        }
        if state.nodes.get(&part).is_none_or(|node| node != broker) {
            state.nodes.insert(part, broker.to_owned());
            events::Consuming { queue, broker }.emit();
        }
        state.tell();
    }

    /// The daemon leaves.
    pub fn stopping(&self) {
        let mut state = self.lock();
        state.consuming = false;
        state.stopping = true;
        state.tell();
    }

    /// `None` when the credit queue is consumed, otherwise why not, in one line.
    pub fn not_ready(&self) -> Option<String> {
        self.lock().not_ready()
    }

    /// What pauses beside the credit queue, and why, in one line.
    pub fn others_paused(&self) -> Option<String> {
        self.lock().others_paused()
    }
}

impl State {
    fn reasons(&self, part: Part) -> Option<String> {
        let paused = Dependency::ALL.iter().zip(&self.paused);
        let reasons: Vec<String> = paused
            .filter_map(|(dependency, parts)| Some(format!("{dependency}: {}", parts.get(&part)?.reason)))
            .collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn others_paused(&self) -> Option<String> {
        let mut parts: Vec<Part> = self.paused.iter().flat_map(BTreeMap::keys).copied().collect();
        parts.sort_unstable();
        parts.dedup();
        let others = parts.into_iter().filter(|part| *part != Part::Credits);
        let told: Vec<String> = others
            .filter_map(|part| {
                let reasons = self.reasons(part)?;
                Some(match part {
                    Part::Credits | Part::Checks => format!("checks paused: {reasons}"),
                    Part::Source(name) => format!("source {name} paused: {reasons}"),
                    Part::Relay => format!("outbox paused: {reasons}"),
                })
            })
            .collect();
        (!told.is_empty()).then(|| told.join("; "))
    }

    fn not_ready(&self) -> Option<String> {
        if self.stopping {
            return Some("stopping".into());
        }
        self.reasons(Part::Credits).or_else(|| (!self.consuming).then(|| "starting".into()))
    }

    /// Tells systemd.
    fn tell(&mut self) {
        let reason = self.not_ready();
        let ready = reason.is_none();
        let consuming = || match self.others_paused() {
            None => "consuming".into(),
            Some(others) => format!("consuming; {others}"),
        };
        systemd::tell(News::Status(reason.map_or_else(consuming, |reason| format!("waiting: {reason}"))));
        if self.stopping {
            systemd::tell(News::Stopping);
        } else if ready && !self.ready_told {
            self.ready_told = systemd::tell(News::Ready);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_every_dependency_of_the_credits_and_their_queue() {
        let status = Status::default();
        let outage = |dependency, reason: &str| Outage { dependency, reason: reason.into() };
        assert_eq!(status.not_ready().as_deref(), Some("starting"));
        status.consuming(Part::Credits, "q", "b");
        assert_eq!(status.not_ready(), None);
        status.pause(Part::Credits, &outage(Dependency::Ledger, "full"));
        status.pause(Part::Credits, &outage(Dependency::Broker, "gone"));
        assert_eq!(status.not_ready().as_deref(), Some("ledger: full; broker: gone"));
        status.resume(Part::Credits, Dependency::Ledger);
        assert_eq!(status.not_ready().as_deref(), Some("broker: gone"));
        status.resume(Part::Credits, Dependency::Broker);
        assert_eq!(status.not_ready().as_deref(), Some("starting"), "not before it consumes again");
        status.consuming(Part::Credits, "q", "b");
        assert_eq!(status.not_ready(), None);
        status.stopping();
        assert_eq!(status.not_ready().as_deref(), Some("stopping"));
    }

    #[test]
    fn checks_that_pause_are_told_and_do_not_touch_readiness() {
        let status = Status::default();
        status.consuming(Part::Credits, "q", "b");
        status.pause(Part::Checks, &Outage { dependency: Dependency::PayStatus, reason: "down".into() });
        status.pause(Part::Source("shop"), &Outage { dependency: Dependency::Broker, reason: "no queue".into() });
        let told = "checks paused: pay_status: down; source shop paused: broker: no queue";
        assert_eq!((status.not_ready(), status.others_paused().as_deref()), (None, Some(told)));
        status.resume(Part::Checks, Dependency::PayStatus);
        status.resume(Part::Source("shop"), Dependency::Broker);
        assert_eq!(status.others_paused(), None);
    }
}
