//! Rate limits of log lines: a number of lines per second, and a count of the suppressed ones.

use crate::unpoisoned::lock;
use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

/// The rate limit of one kind of log line in this process.
#[derive(Debug)]
pub struct Limit {
    lines_per_second: u32,
    second: Mutex<Option<Second>>,
}

#[derive(Debug)]
struct Second {
    begun: Instant,
    written: u32,
    suppressed: u64,
}

impl Limit {
    /// Admits at most `lines_per_second` lines in each second. A second begins with its first line.
    pub const fn new(lines_per_second: u32) -> Self {
        Self { lines_per_second, second: Mutex::new(None) }
    }

    /// Admits or suppresses a line: `Some` has the number of lines that were suppressed since the last admitted one, `None`
    /// suppresses this line.
    pub fn admit(&self) -> Option<u64> {
        self.admit_at(Instant::now())
    }

    fn admit_at(&self, now: Instant) -> Option<u64> {
        let mut second = lock(&self.second);
        let current = second.get_or_insert(Second { begun: now, written: 0, suppressed: 0 });
        if now.duration_since(current.begun) >= Duration::from_secs(1) {
            *current = Second { begun: now, written: 0, suppressed: current.suppressed };
        }
        if current.written < self.lines_per_second {
            current.written += 1;
            return Some(std::mem::take(&mut current.suppressed));
        }
        current.suppressed += 1;
        None
    }

    /// The number of suppressed lines that no admitted line has reported, when the second in which they were suppressed is
    /// over.
    pub fn overdue(&self) -> Option<u64> {
        self.overdue_at(Instant::now())
    }

    fn overdue_at(&self, now: Instant) -> Option<u64> {
        let mut second = lock(&self.second);
        let current = second.as_mut()?;
        let is_over = now.duration_since(current.begun) >= Duration::from_secs(1);
        (is_over && current.suppressed > 0).then(|| std::mem::take(&mut current.suppressed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_beyond_the_limit_are_counted_and_the_count_is_reported_once() {
        let limit = Limit::new(2);
        let begun = Instant::now();
        let at = |milliseconds| begun + Duration::from_millis(milliseconds);
        let admitted: Vec<Option<u64>> = [0, 10, 20, 999].map(|time| limit.admit_at(at(time))).to_vec();
        assert_eq!(admitted, [Some(0), Some(0), None, None]);
        assert_eq!(limit.overdue_at(at(999)), None, "the second is not over");
        assert_eq!(limit.admit_at(at(1000)), Some(2));
        assert_eq!(limit.overdue_at(at(5000)), None, "reported already");
        assert_eq!([1100, 1200].map(|time| limit.admit_at(at(time))), [Some(0), None]);
        assert_eq!((limit.overdue_at(at(2000)), limit.overdue_at(at(3000))), (Some(1), None));
    }
}
