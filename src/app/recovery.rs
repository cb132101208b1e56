//! Opening sessions one after the other, and recovering from an outage: first probes, which cost no delivery, then a
//! session with one delivery, then sessions with twice as many deliveries each.

use super::{App, SLACK};
use crate::{
    app::{
        queue_consumer::QueueConsumer,
        session::{Ended, Opening, Progress},
    },
    domain::failure::{Dependency, Outage},
    observe::events::{self, Event as _},
    pauses::{self, OutageBackoff},
};
use std::time::{Duration, Instant};

/// How long probes of the payment source fail before a trial session, and the interval between trial sessions.
const TRIAL_INTERVAL: Duration = Duration::from_secs(60);

/// The lifetime from which on the end of a session is not caused by the condition for which it was opened.
const LONG_SESSION: Duration = Duration::from_secs(60);

impl App {
    /// Opens sessions one after the other until the daemon stops.
    pub(super) async fn keep_consuming(&self, queue: &QueueConsumer) {
        let (mut opening, mut slow, mut backoff) = (Opening::Full, false, OutageBackoff::default());
        let mut trials = Trials::default();
        while !self.stop.is_cancelled() {
            match self.run_session(queue, opening).await {
                Ended::InOrder => {
                    slow &= opening != Opening::Slow;
                    opening = if slow { Opening::Slow } else { opening.widened(queue.prefetch) };
                    trials = Trials::default();
                    backoff.reset();
                }
                // Nothing was learnt about any dependency: the next session has the same opening.
                Ended::Idle => events::SessionRenewed { queue: queue.sessions.queue() }.emit(),
                Ended::HeldTooLong => {
                    events::HeldTooLong { queue: queue.sessions.queue() }.emit();
                    slow = true;
                    opening = Opening::Slow;
                }
                Ended::Outage { outage, lived, progress } => {
                    // A trial session may last long if the payment source does not answer.
                    if !matches!(opening, Opening::Trial(_)) && lived > LONG_SESSION {
                        trials = Trials::default();
                    }
                    let pause = match progress {
                        Progress::Settled => {
                            backoff.reset();
                            Duration::ZERO
                        }
                        Progress::SettledNothing => backoff.next_pause(),
                        Progress::TookNothing => pauses::between_probes(),
                    };
                    let recovered = self.wait_for_recovery(queue, outage, pause, &mut trials);
                    let Some(next) = self.until_stopped(recovered).await else { break };
                    opening = match next {
                        Opening::Limited(_) if slow => Opening::Slow,
                        next => next,
                    };
                }
            }
        }
    }

    /// Waits after an outage: first for `pause`, and then until a probe succeeds. The broker is probed by the next
    /// session, and the brake waits for a person. Returns the opening of the next session.
    async fn wait_for_recovery(
        &self,
        queue: &QueueConsumer,
        outage: Outage,
        pause: Duration,
        trials: &mut Trials,
    ) -> Opening {
        let (component, mut outage, mut pause) = (queue.component(), outage, pause);
        loop {
            if let Some((brake, released)) = queue.brake() {
                // The brake determines the pause, whatever has ended the session.
                if outage.dependency != brake.dependency {
                    self.status.resume(component, outage.dependency);
                }
                self.status.pause(component, &brake);
                released.await;
                self.status.resume(component, brake.dependency);
                return Opening::Full;
            }
            self.status.pause(component, &outage);
            self.pause(pause).await;
            pause = pauses::between_probes();
            let Some(probed) = self.probe(queue, outage.dependency).await else { return Opening::ONE };
            match probed {
                Ok(()) => {
                    *trials = Trials::default();
                    self.status.resume(component, outage.dependency);
                    return Opening::ONE;
                }
                // The payment of a probe may fail although others work: trial sessions process other payments, rarely
                // and few at first, because each failure requeues deliveries, which counts towards their limit. The
                // pause is reported until a trial succeeds.
                Err(again) if again.dependency == Dependency::PayStatus => match trials.next(Instant::now()) {
                    Some(deliveries) => return Opening::Trial(deliveries),
                    None => outage = again,
                },
                Err(again) => {
                    if again.dependency != outage.dependency {
                        self.status.resume(component, outage.dependency);
                    }
                    outage = again;
                }
            }
        }
    }

    /// Probes whether a dependency works again for this queue; `None` if only a session can show it.
    async fn probe(&self, queue: &QueueConsumer, dependency: Dependency) -> Option<Result<(), Outage>> {
        let heartbeat = |step| self.heartbeats.begin("probe", step + SLACK);
        match (dependency, queue.pipeline.max_probe_duration()) {
            (Dependency::Ledger, _) => {
                let _heartbeat = heartbeat(self.settings.ledger.timeout);
                Some(queue.pipeline.probe_ledger().await)
            }
            (Dependency::PayStatus, Some(max_duration)) => {
                let _heartbeat = heartbeat(max_duration);
                Some(queue.pipeline.probe_source().await)
            }
            (Dependency::Broker, _) | (Dependency::PayStatus, None) => None,
        }
    }

    /// Waits for a pause with a heartbeat that allows for it.
    pub(super) async fn pause(&self, pause: Duration) {
        let _heartbeat = self.heartbeats.begin("outage", pause + SLACK);
        tokio::time::sleep(pause).await;
    }
}

/// The trial sessions that are opened although probes of the payment source fail.
#[derive(Debug, Default)]
struct Trials {
    /// The time of the last trial; before the first trial, of the first failed probe.
    since: Option<Instant>,
    begun: u32,
}

impl Trials {
    /// Records a failed probe. Once a minute, returns the number of deliveries for a trial session, twice as many each
    /// time.
    fn next(&mut self, now: Instant) -> Option<u16> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < TRIAL_INTERVAL {
            return None;
        }
        self.since = Some(now);
        self.begun += 1;
        Some(1_u16.checked_shl(self.begun - 1).filter(|deliveries| *deliveries > 0).unwrap_or(u16::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_whose_probes_fail_is_tried_once_a_minute_with_ever_more_deliveries() {
        let begun = Instant::now();
        let mut trials = Trials::default();
        let tried = |seconds: u64| trials.next(begun + Duration::from_secs(seconds));
        let deliveries: Vec<Option<u16>> = [0, 59, 60, 70, 119, 120, 180, 900].map(tried).to_vec();
        assert_eq!(deliveries, [None, None, Some(1), None, None, Some(2), Some(4), Some(8)]);
        let later: Vec<Option<u16>> =
            (20..40).map(|minutes| trials.next(begun + Duration::from_secs(minutes * 60))).collect();
        assert_eq!(later.last(), Some(&Some(u16::MAX)));
    }
}
