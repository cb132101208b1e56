//! Whether the daemon's loops turn: what the watchdog of systemd is told.
//!
//! A loop says before each step how long that step may take at most; one that is late is stuck, whatever it waits for.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

type Loops = BTreeMap<u64, (&'static str, Instant)>;

/// All loops that are turning.
#[derive(Debug, Clone, Default)]
pub struct Pulses(Arc<Mutex<Loops>>);

impl Pulses {
    fn lock(&self) -> MutexGuard<'_, Loops> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A new loop, whose steps take at most `step`. It counts until its pulse is dropped.
    pub fn begin(&self, name: &'static str, step: Duration) -> Pulse {
        let mut loops = self.lock();
        let number = loops.last_key_value().map_or(0, |(number, _)| number + 1);
        loops.insert(number, (name, Instant::now() + step));
        drop(loops);
        Pulse { pulses: self.clone(), number, step }
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
pub struct Pulse {
    pulses: Pulses,
    number: u64,
    step: Duration,
}

impl Pulse {
    /// A step begins.
    pub fn beat(&self) {
        if let Some((_, due)) = self.pulses.lock().get_mut(&self.number) {
            *due = Instant::now() + self.step;
        }
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.pulses.lock().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_is_stuck_when_a_step_is_late_and_only_while_it_lives() {
        let pulses = Pulses::default();
        let turning = pulses.begin("turning", Duration::from_secs(60));
        assert_eq!(pulses.stuck(), None);
        let stuck = pulses.begin("stuck", Duration::ZERO);
        assert_eq!(pulses.stuck().map(|(name, _)| name), Some("stuck"));
        turning.beat();
        drop(stuck);
        assert_eq!(pulses.stuck(), None);
    }
}
