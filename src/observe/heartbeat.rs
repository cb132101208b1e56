//! Heartbeats of the daemon's tasks: the systemd watchdog is pinged while no task is stalled.
//!
//! A task has a maximum duration for each of its steps and beats before each step. A task whose step is overdue is stalled,
//! whatever it waits for.

use crate::unpoisoned::lock;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

/// The name of each task and the time at which its current step is due.
type Tasks = BTreeMap<u64, (&'static str, Instant)>;

/// The heartbeats of all running tasks.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Tasks>>);

impl Heartbeats {
    fn lock(&self) -> MutexGuard<'_, Tasks> {
        lock(&self.0)
    }

    /// Adds a task whose steps take at most `step`. The task counts until its heartbeat is dropped.
    pub fn begin(&self, name: &'static str, step: Duration) -> Heartbeat {
        let mut tasks = self.lock();
        let number = tasks.last_key_value().map_or(0, |(number, _)| number + 1);
        tasks.insert(number, (name, Instant::now() + step));
        drop(tasks);
        Heartbeat { heartbeats: self.clone(), number, step }
    }

    /// The stalled task whose step is overdue for the longest time, with that time.
    pub fn stalled(&self) -> Option<(&'static str, Duration)> {
        let now = Instant::now();
        let tasks = self.lock();
        let overdue = tasks.values().filter_map(|(name, due)| Some((*name, now.checked_duration_since(*due)?)));
        overdue.max_by_key(|(_, overdue)| *overdue)
    }
}

/// The heartbeat of one task.
#[derive(Debug)]
pub struct Heartbeat {
    heartbeats: Heartbeats,
    number: u64,
    step: Duration,
}

impl Heartbeat {
    /// Begins a step of the task.
    pub fn beat(&self) {
        if let Some((_, due)) = self.heartbeats.lock().get_mut(&self.number) {
            *due = Instant::now() + self.step;
        }
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        self.heartbeats.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_stuck_when_a_step_is_late_and_only_while_it_lives() {
        let heartbeats = Heartbeats::default();
        let running = heartbeats.begin("running", Duration::from_secs(60));
        assert_eq!(heartbeats.stalled(), None);
        let late = heartbeats.begin("late", Duration::ZERO);
        assert_eq!(heartbeats.stalled().map(|(name, _)| name), Some("late"));
        running.beat();
        drop(late);
        assert_eq!(heartbeats.stalled(), None);
    }
}
