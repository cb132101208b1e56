//! The daemon's state, as `/readyz`, systemd and the gauges tell it.

use super::{
    events, metrics,
    systemd::{self, News},
};
use crate::pipeline::ports::{Dependency, Outage};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
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
    /// How long nothing has been committed, of each queue whose deliveries wait for too long.
    stalled: BTreeMap<Part, Duration>,
}

#[derive(Debug)]
struct Pause {
    since: Instant,
    reason: String,
    /// When the log last said so, and with which reason.
    logged: Instant,
    logged_reason: String,
}

/// A pause is logged again when its reason has changed, but not more often than this: two reasons may take turns.
const BETWEEN_REASONS: Duration = Duration::from_secs(10);

/// A pause whose reason stays the same is logged this often.
const BETWEEN_REMINDERS: Duration = Duration::from_secs(300);

impl Pause {
    fn new(reason: &str) -> Self {
        let now = Instant::now();
        Self { since: now, reason: reason.to_owned(), logged: now, logged_reason: reason.to_owned() }
    }

    /// Whether it is to be logged again.
    fn is_due(&self, now: Instant) -> bool {
        let age = now.duration_since(self.logged);
        age >= BETWEEN_REMINDERS || (self.reason != self.logged_reason && age >= BETWEEN_REASONS)
    }
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A dependency is down for a part. Logged at its beginning, whichever part meets it first, when its reason changes, and
    /// from time to time.
    pub fn pause(&self, part: Part, outage: &Outage) {
        let Outage { dependency, reason } = outage;
        let mut state = self.lock();
        if part == Part::Credits {
            state.consuming = false;
        }
        let parts = &mut state.paused[*dependency as usize];
        let is_first = parts.is_empty();
        let first = parts.first_key_value().map(|(part, _)| *part);
        if let Some(pause) = parts.get_mut(&part) {
            let is_changed = pause.reason != *reason;
            pause.reason.clone_from(reason);
            // One part speaks for all.
            if first == Some(part) && pause.is_due(Instant::now()) {
                pause.logged = Instant::now();
                pause.logged_reason.clone_from(reason);
                events::StillPaused { dependency: *dependency, reason, after: pause.since.elapsed() }.emit();
            }
            if !is_changed {
                return;
            }
        } else {
            if is_first {
                events::Paused { dependency: *dependency, reason }.emit();
            }
            parts.insert(part, Pause::new(reason));
        }
        state.tell();
    }

    /// How long deliveries of a part have waited while nothing was committed, if that is too long.
    pub fn stalled(&self, part: Part, time: Option<Duration>) {
        let mut state = self.lock();
        let before = match time {
            Some(time) => state.stalled.insert(part, time),
            None => state.stalled.remove(&part),
        };
        match (before, time) {
            (None, Some(time)) => events::Stalled { part, time }.emit(),
            (Some(_), None) => events::StallEnded { part }.emit(),
            (None, None) | (Some(_), Some(_)) => return,
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
        let stalled = self
            .stalled
            .get(&part)
            .map(|time| format!("ledger: no commit for {} s while deliveries wait", time.as_secs()));
        let reasons: Vec<String> = reasons.into_iter().chain(stalled).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn others_paused(&self) -> Option<String> {
        let mut parts: Vec<Part> =
            self.paused.iter().flat_map(BTreeMap::keys).chain(self.stalled.keys()).copied().collect();
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
    fn a_stall_makes_it_unready_until_something_is_committed() {
        let status = Status::default();
        status.consuming(Part::Credits, "q", "b");
        status.stalled(Part::Credits, Some(Duration::from_secs(31)));
        assert_eq!(status.not_ready().as_deref(), Some("ledger: no commit for 31 s while deliveries wait"));
        status.stalled(Part::Credits, None);
        assert_eq!(status.not_ready(), None);
        status.stalled(Part::Source("shop"), Some(Duration::from_secs(40)));
        let others = status.others_paused();
        assert_eq!(others.as_deref(), Some("source shop paused: ledger: no commit for 40 s while deliveries wait"));
        assert_eq!(status.not_ready(), None);
    }

    #[test]
    fn a_pause_is_logged_again_when_its_reason_changes_and_every_five_minutes() {
        let mut pause = Pause::new("refused");
        let after = |seconds| pause.logged + Duration::from_secs(seconds);
        assert!(!pause.is_due(after(299)) && pause.is_due(after(300)));
        let (soon, later) = (after(9), after(10));
        pause.reason = "no password".into();
        assert!(!pause.is_due(soon) && pause.is_due(later));
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
