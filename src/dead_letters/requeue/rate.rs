//! The number of messages that are sent together, and the pauses between them.

use super::options::RequeueOptions;
use std::{num::NonZeroU32, time::Duration};
use tokio::time::Instant;

/// The maximum number of messages that are published and confirmed together.
const MAX_CHUNK: usize = 500;

/// The schedule of sending: the canaries first, then at the rate.
#[derive(Debug)]
pub(super) struct SendRate {
    canary: u64,
    rate: Option<NonZeroU32>,
    /// When the next chunk is due.
    next_due: Instant,
}

impl SendRate {
    /// Starts now.
    pub(super) fn new(options: &RequeueOptions) -> Self {
        Self { canary: options.canary, rate: options.rate, next_due: Instant::now() }
    }

    /// The size of the next chunk after `sent` messages: the canaries alone, then ten chunks per second.
    pub(super) fn next_chunk(&self, sent: u64) -> usize {
        let canaries = self.canary.saturating_sub(sent);
        let max = self.rate.map_or(MAX_CHUNK, |rate| (rate.get() as usize).div_ceil(10).min(MAX_CHUNK));
        if canaries > 0 { usize::try_from(canaries).unwrap_or(max).min(max) } else { max }
    }

    /// The number of messages that can be sent within a time.
    pub(super) fn max_within(&self, time: Duration) -> usize {
        self.rate
            .map_or(usize::MAX, |rate| usize::try_from(u64::from(rate.get()) * time.as_secs()).unwrap_or(usize::MAX))
    }

    /// How long to wait after a chunk until the next one is due. A longer wait before is not made up for.
    pub(super) fn until_due(&mut self, chunk: usize) -> Duration {
        let Some(rate) = self.rate else { return Duration::ZERO };
        let now = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "a wait, not a count")]
        let takes = Duration::from_secs_f64(chunk as f64 / f64::from(rate.get()));
        self.next_due = self.next_due.max(now) + takes;
        self.next_due.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canaries_are_sent_alone_and_the_rest_by_the_rate() {
        for (canary, rate, sent, chunk) in [
            (10, None, 0, 10),
            (10, None, 4, 6),
            (10, None, 10, 500),
            (0, None, 0, 500),
            (0, Some(20), 0, 2),
            (10, Some(20), 0, 2),
            (0, Some(1), 0, 1),
            (0, Some(100_000), 0, 500),
            (1000, None, 0, 500),
        ] {
            let rate = rate.and_then(NonZeroU32::new);
            let options = RequeueOptions { rate, canary, ..RequeueOptions::default() };
            assert_eq!(SendRate::new(&options).next_chunk(sent), chunk, "{options:?} after {sent}");
        }
    }
}
