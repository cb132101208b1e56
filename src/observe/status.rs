//! The daemon's state, as `/readyz`, systemd and the gauges tell it.

use super::{
    events,
    systemd::{self, News},
};
use crate::pipeline::ports::{Dependency, Outage};
use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Shared by everything that changes or tells the state.
#[derive(Debug, Default)]
pub struct Status(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    consuming: bool,
    stopping: bool,
    ready_told: bool,
    /// The node that was told last.
    node: String,
    paused: [Option<Pause>; Dependency::ALL.len()],
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

    /// A dependency is down. Told once at its beginning, and again when the reason changes.
    pub fn pause(&self, outage: &Outage) {
        let Outage { dependency, reason } = outage;
        let mut state = self.lock();
        state.consuming = false;
        match &mut state.paused[*dependency as usize] {
            Some(pause) if pause.reason == *reason => return,
            Some(pause) => {
                pause.reason.clone_from(reason);
                events::StillPaused { dependency: *dependency, reason }.emit();
            }
            empty => {
                *empty = Some(Pause { since: Instant::now(), reason: reason.clone() });
                events::Paused { dependency: *dependency, reason }.emit();
            }
        }
        state.tell();
    }

    /// A dependency works.
    pub fn resume(&self, dependency: Dependency) {
        let mut state = self.lock();
        if let Some(pause) = state.paused[dependency as usize].take() {
            events::Resumed { dependency, after: pause.since.elapsed() }.emit();
            state.tell();
        }
    }

    /// The credit queue is consumed.
    pub fn consuming(&self, queue: &str, broker: &str) {
        let mut state = self.lock();
        state.consuming = true;
        if state.node != broker {
            broker.clone_into(&mut state.node);
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

    /// `None` when everything works, otherwise why not, in one line.
    pub fn not_ready(&self) -> Option<String> {
        self.lock().not_ready()
    }
}

impl State {
    fn not_ready(&self) -> Option<String> {
        if self.stopping {
            return Some("stopping".into());
        }
        let paused = Dependency::ALL.iter().zip(&self.paused);
        let reasons: Vec<String> = paused
            .filter_map(|(dependency, pause)| Some(format!("{dependency}: {}", pause.as_ref()?.reason)))
            .collect();
        if !reasons.is_empty() {
            return Some(reasons.join("; "));
        }
        (!self.consuming).then(|| "starting".into())
    }

    /// Tells systemd.
    fn tell(&mut self) {
        let reason = self.not_ready();
        let ready = reason.is_none();
        systemd::tell(News::Status(reason.map_or_else(|| "consuming".into(), |reason| format!("waiting: {reason}"))));
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
    fn readiness_needs_every_dependency_and_the_queue() {
        let status = Status::default();
        let outage = |dependency, reason: &str| Outage { dependency, reason: reason.into() };
        assert_eq!(status.not_ready().as_deref(), Some("starting"));
        status.consuming("q", "b");
        assert_eq!(status.not_ready(), None);
        status.pause(&outage(Dependency::Ledger, "full"));
        status.pause(&outage(Dependency::Broker, "gone"));
        assert_eq!(status.not_ready().as_deref(), Some("ledger: full; broker: gone"));
        status.resume(Dependency::Ledger);
        assert_eq!(status.not_ready().as_deref(), Some("broker: gone"));
        status.resume(Dependency::Broker);
        assert_eq!(status.not_ready().as_deref(), Some("starting"), "not before it consumes again");
        status.consuming("q", "b");
        assert_eq!(status.not_ready(), None);
        status.stopping();
        assert_eq!(status.not_ready().as_deref(), Some("stopping"));
    }
}
