//! The state of the daemon, which `/readyz`, systemd and the gauges show.

use super::{
    events::{self, Event as _},
    systemd::{self, Notice},
};
use crate::{
    domain::{
        component::Component,
        failure::{Dependency, Outage},
    },
    unpoisoned::lock,
};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// The state of the daemon, shared by all components.
#[derive(Debug, Default)]
pub struct Status(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    consuming: bool,
    stopping: bool,
    /// Whether systemd was notified that the daemon is ready.
    ready_notified: bool,
    /// The node from which each component was last logged to consume.
    nodes: BTreeMap<Component, String>,
    /// The pauses of the components, by dependency.
    paused: [BTreeMap<Component, Pause>; Dependency::ALL.len()],
    /// The time without a commit, of each stalled component.
    stalled: BTreeMap<Component, Duration>,
}

/// The pause of one component because of one dependency.
#[derive(Debug)]
struct Pause {
    since: Instant,
    reason: String,
    /// The time and the reason of the last log line.
    logged: Instant,
    logged_reason: String,
}

/// The minimum time between two log lines of a pause whose reason changes: two reasons may alternate.
const BETWEEN_REASONS: Duration = Duration::from_secs(10);

/// The time between two log lines of a pause whose reason stays the same.
const BETWEEN_REMINDERS: Duration = Duration::from_secs(300);

impl Pause {
    fn new(reason: &str) -> Self {
        let now = Instant::now();
        Self { since: now, reason: reason.to_owned(), logged: now, logged_reason: reason.to_owned() }
    }

    /// Whether another log line is due.
    fn is_due(&self, now: Instant) -> bool {
        let age = now.duration_since(self.logged);
        age >= BETWEEN_REMINDERS || (self.reason != self.logged_reason && age >= BETWEEN_REASONS)
    }
}

impl Status {
    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.0)
    }

    /// Pauses a component because of an outage. The outage is logged when its first component pauses, when its reason changes,
    /// and every five minutes.
    pub fn pause(&self, component: Component, outage: &Outage) {
        let Outage { dependency, reason } = outage;
        let mut state = self.lock();
        if component == Component::Credits {
            state.consuming = false;
        }
        let components = &mut state.paused[*dependency as usize];
        let is_first = components.is_empty();
        let first = components.first_key_value().map(|(component, _)| *component);
        if let Some(pause) = components.get_mut(&component) {
            let is_changed = pause.reason != *reason;
            pause.reason.clone_from(reason);
            // The first component logs for all.
            if first == Some(component) && pause.is_due(Instant::now()) {
                pause.logged = Instant::now();
                pause.logged_reason.clone_from(reason);
                events::StillPaused { dependency: *dependency, reason, paused: pause.since.elapsed() }.emit();
            }
            if !is_changed {
                return;
            }
        } else {
            if is_first {
                events::Paused { dependency: *dependency, reason }.emit();
            }
            components.insert(component, Pause::new(reason));
        }
        state.notify_systemd();
    }

    /// Sets the time that deliveries of a component have waited without a commit; `None` if the component is not stalled.
    pub fn stalled(&self, component: Component, waited: Option<Duration>) {
        let mut state = self.lock();
        let before = match waited {
            Some(waited) => state.stalled.insert(component, waited),
            None => state.stalled.remove(&component),
        };
        match (before, waited) {
            (None, Some(waited)) => events::Stalled { component, waited }.emit(),
            (Some(_), None) => events::StallEnded { component }.emit(),
            (None, None) | (Some(_), Some(_)) => return,
        }
        state.notify_systemd();
    }

    /// Resumes a component: the dependency works for it. Logged when no component is paused because of the dependency.
    pub fn resume(&self, component: Component, dependency: Dependency) {
        let mut state = self.lock();
        let components = &mut state.paused[dependency as usize];
        if let Some(pause) = components.remove(&component) {
            if components.is_empty() {
                events::Resumed { dependency, paused: pause.since.elapsed() }.emit();
            }
            state.notify_systemd();
        }
    }

    /// Whether a component is paused because of a dependency.
    pub fn is_paused(&self, component: Component, dependency: Dependency) -> bool {
        self.lock().paused[dependency as usize].contains_key(&component)
    }

    /// Records that a component consumes its queue from a node of the broker.
    pub fn consuming(&self, component: Component, queue: &str, broker: &str) {
        let mut state = self.lock();
        if component == Component::Credits {
            state.consuming = true;
        }
        if state.nodes.get(&component).is_none_or(|node| node != broker) {
            state.nodes.insert(component, broker.to_owned());
            events::Consuming { queue, broker }.emit();
        }
        state.notify_systemd();
    }

    /// Records that the daemon is stopping.
    pub fn stopping(&self) {
        let mut state = self.lock();
        state.consuming = false;
        state.stopping = true;
        state.notify_systemd();
    }

    /// The reason why the daemon is not ready, in one line; `None` if it is ready.
    pub fn not_ready(&self) -> Option<String> {
        self.lock().not_ready()
    }

    /// The other components that are paused, with their reasons, in one line.
    pub fn others_paused(&self) -> Option<String> {
        self.lock().others_paused()
    }
}

impl State {
    fn reasons(&self, component: Component) -> Option<String> {
        let paused = Dependency::ALL.iter().zip(&self.paused);
        let reasons: Vec<String> = paused
            .filter_map(|(dependency, components)| {
                Some(format!("{dependency}: {}", components.get(&component)?.reason))
            })
            .collect();
        let stalled = self
            .stalled
            .get(&component)
            .map(|time| format!("ledger: no commit for {} s while deliveries wait", time.as_secs()));
        let reasons: Vec<String> = reasons.into_iter().chain(stalled).collect();
        (!reasons.is_empty()).then(|| reasons.join("; "))
    }

    fn others_paused(&self) -> Option<String> {
        let mut components: Vec<Component> =
            self.paused.iter().flat_map(BTreeMap::keys).chain(self.stalled.keys()).copied().collect();
        components.sort_unstable();
        components.dedup();
        let others = components.into_iter().filter(|component| *component != Component::Credits);
        let paused: Vec<String> = others
            .filter_map(|component| {
                let reasons = self.reasons(component)?;
                Some(match component {
                    Component::Credits | Component::Checks => format!("checks paused: {reasons}"),
                    Component::Source(name) => format!("source {name} paused: {reasons}"),
                    Component::Relay => format!("outbox paused: {reasons}"),
                })
            })
            .collect();
        (!paused.is_empty()).then(|| paused.join("; "))
    }

    fn not_ready(&self) -> Option<String> {
        if self.stopping {
            return Some("stopping".into());
        }
        self.reasons(Component::Credits).or_else(|| (!self.consuming).then(|| "starting".into()))
    }

    /// Notifies systemd of the state.
    fn notify_systemd(&mut self) {
        let reason = self.not_ready();
        let ready = reason.is_none();
        let consuming = || match self.others_paused() {
            None => "consuming".into(),
            Some(others) => format!("consuming; {others}"),
        };
        systemd::notify(Notice::Status(reason.map_or_else(consuming, |reason| format!("waiting: {reason}"))));
        if self.stopping {
            systemd::notify(Notice::Stopping);
        } else if ready && !self.ready_notified {
            self.ready_notified = systemd::notify(Notice::Ready);
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
        status.consuming(Component::Credits, "q", "b");
        assert_eq!(status.not_ready(), None);
        status.pause(Component::Credits, &outage(Dependency::Ledger, "full"));
        status.pause(Component::Credits, &outage(Dependency::Broker, "gone"));
        assert_eq!(status.not_ready().as_deref(), Some("ledger: full; broker: gone"));
        status.resume(Component::Credits, Dependency::Ledger);
        assert_eq!(status.not_ready().as_deref(), Some("broker: gone"));
        status.resume(Component::Credits, Dependency::Broker);
        assert_eq!(status.not_ready().as_deref(), Some("starting"), "not ready before it consumes again");
        status.consuming(Component::Credits, "q", "b");
        assert_eq!(status.not_ready(), None);
        status.stopping();
        assert_eq!(status.not_ready().as_deref(), Some("stopping"));
    }

    #[test]
    fn a_stall_makes_it_unready_until_something_is_committed() {
        let status = Status::default();
        status.consuming(Component::Credits, "q", "b");
        status.stalled(Component::Credits, Some(Duration::from_secs(31)));
        assert_eq!(status.not_ready().as_deref(), Some("ledger: no commit for 31 s while deliveries wait"));
        status.stalled(Component::Credits, None);
        assert_eq!(status.not_ready(), None);
        status.stalled(Component::Source("shop"), Some(Duration::from_secs(40)));
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
        status.consuming(Component::Credits, "q", "b");
        status.pause(Component::Checks, &Outage { dependency: Dependency::PayStatus, reason: "down".into() });
        status.pause(Component::Source("shop"), &Outage { dependency: Dependency::Broker, reason: "no queue".into() });
        let expected = "checks paused: pay_status: down; source shop paused: broker: no queue";
        assert_eq!((status.not_ready(), status.others_paused().as_deref()), (None, Some(expected)));
        status.resume(Component::Checks, Dependency::PayStatus);
        status.resume(Component::Source("shop"), Dependency::Broker);
        assert_eq!(status.others_paused(), None);
    }
}
