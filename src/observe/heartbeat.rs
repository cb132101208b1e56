//! Whether the daemon's loops turn: what the watchdog of systemd is told.
//!
//! A loop says before each step how long that step may take at most; one that is late is stuck, whatever it waits for.

use crate::unpoisoned::lock;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant},
};

type Loops = BTreeMap<u64, (&'static str, Instant)>;

/// All loops that are turning.
#[derive(Debug, Clone, Default)]
pub struct Heartbeats(Arc<Mutex<Loops>>);

impl Heartbeats {
    fn lock(&self) -> MutexGuard<'_, Loops> {
        lock(&self.0)
    }

    /// A new loop, whose steps take at most `step`. It counts until its heartbeat is dropped.
    pub fn begin(&self, name: &'static str, step: Duration) -> Heartbeat {
        let mut loops = self.lock();
        let number = loops.last_key_value().map_or(0, |(number, _)| number + 1);
        loops.insert(number, (name, Instant::now() + step));
        drop(loops);
        Heartbeat { heartbeats: self.clone(), number, step }
    }

    /// The loop that is most late, and by how much.
    pub fn stuck(&self) -> Option<(&'static str, Duration)> {
        let now = Instant::now();
        let loops = self.lock();
        let late = loops.values().filter_map(|(name, due)| Some((*name, now.checked_duration_since(*due)?)));
        late.max_by_key(|(_, late)| *late)
    }
}

/// One loop's.
#[derive(Debug)]
pub struct Heartbeat {
    heartbeats: Heartbeats,
    number: u64,
    step: Duration,
}

impl Heartbeat {
    /// A step begins.
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
        let turning = heartbeats.begin("turning", Duration::from_secs(60));
        assert_eq!(heartbeats.stuck(), None);
        let stuck = heartbeats.begin("stuck", Duration::ZERO);
        assert_eq!(heartbeats.stuck().map(|(name, _)| name), Some("stuck"));
        turning.beat();
        drop(stuck);
        assert_eq!(heartbeats.stuck(), None);
    }
}
