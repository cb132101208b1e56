//! Sessions one after the other, and the way from an outage to the next session: probes, which cost no delivery, and then a
//! session that begins with one delivery, and sessions that take twice as many each.

use super::{
    App, SLACK,
    consume::{Ended, Opening, Progress},
};
use crate::{
    app::queue_consumer::Line,
    domain::failure::{Dependency, Outage},
    observe::events,
    pauses::{self, Pace},
};
use std::time::{Duration, Instant};

/// How long probes of the payment source fail before a session is tried all the same, and between two of those.
const BETWEEN_TRIALS: Duration = Duration::from_secs(60);

/// A session that lived so long did not fail by what it was opened for.
const LONG_SESSION: Duration = Duration::from_secs(60);

impl App {
    /// One session after the other, until the daemon is told to stop.
    pub(super) async fn keep_consuming(&self, line: &Line) {
        let (mut opening, mut slow, mut pace) = (Opening::Full, false, Pace::default());
        let mut trials = Trials::default();
        while !self.stop.is_cancelled() {
            match self.consume(line, opening).await {
                Ended::InOrder => {
                    slow &= opening != Opening::Slow;
                    opening = if slow { Opening::Slow } else { opening.widened(line.prefetch) };
                    trials = Trials::default();
                    pace.reset();
                }
                Ended::HeldTooLong => {
                    events::HeldTooLong { queue: line.sessions.queue() }.emit();
                    slow = true;
                    opening = Opening::Slow;
                }
                Ended::Outage { outage, lived, progress } => {
                    // A trial takes its time where nothing is answered.
                    if !matches!(opening, Opening::Trial(_)) && lived > LONG_SESSION {
                        trials = Trials::default();
                    }
                    let pause = match progress {
                        Progress::Settled => {
                            pace.reset();
                            Duration::ZERO
                        }
                        Progress::SettledNothing => pace.next_pause(),
                        Progress::TookNothing => pauses::between_probes(),
                    };
                    let recovered = self.recovered(line, outage, pause, &mut trials);
                    let Some(next) = self.until_stopped(recovered).await else { break };
                    opening = match next {
                        Opening::Limited(_) if slow => Opening::Slow,
                        next => next,
                    };
                }
            }
        }
    }

    /// Waits after an outage: `pause`, and then until a probe is answered. The broker is probed by consuming again, and
    /// a brake waits for a person. Returns how the next session begins.
    async fn recovered(&self, line: &Line, outage: Outage, pause: Duration, trials: &mut Trials) -> Opening {
        let (component, mut outage, mut pause) = (line.component(), outage, pause);
        loop {
            if let Some((brake, released)) = line.brake() {
                // It is what is waited for, whatever else has ended the session.
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
            let Some(probed) = self.probe(line, outage.dependency).await else { return Opening::ONE };
            match probed {
                Ok(()) => {
                    *trials = Trials::default();
                    self.status.resume(component, outage.dependency);
                    return Opening::ONE;
                }
                // What a probe asks for may fail for reasons of its own: others are tried, seldom and few at first, because
                // each time deliveries go back, which counts against them. The pause is reported until that has gone well.
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

    /// Whether a dependency works again for this queue; `None` where only a session can tell.
    async fn probe(&self, line: &Line, dependency: Dependency) -> Option<Result<(), Outage>> {
        let pulse = |step| self.pulses.begin("probe", step + SLACK);
        match (dependency, line.pipeline.longest_probe()) {
            (Dependency::Ledger, _) => {
                let _pulse = pulse(self.settings.ledger.timeout);
                Some(line.pipeline.probe_ledger().await)
            }
            (Dependency::PayStatus, Some(longest)) => {
                let _pulse = pulse(longest);
                Some(line.pipeline.probe_source().await)
            }
            (Dependency::Broker, _) | (Dependency::PayStatus, None) => None,
        }
    }

    /// Waits, and shows meanwhile that the loop turns.
    pub(super) async fn pause(&self, pause: Duration) {
        let _pulse = self.pulses.begin("outage", pause + SLACK);
        tokio::time::sleep(pause).await;
    }
}

/// Sessions that are tried although probes of the payment source fail.
#[derive(Debug, Default)]
struct Trials {
    /// When the last one was; at first, when a probe failed first.
    since: Option<Instant>,
    begun: u32,
}

impl Trials {
    /// A probe has failed. Once a minute: with how many deliveries a session is tried, each time twice as many.
    fn next(&mut self, now: Instant) -> Option<u16> {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) < BETWEEN_TRIALS {
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
