//! The rate of requests to the gateway: lowered after refusals, raised while there are none. Pure: the time is a
//! parameter.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

const SECOND: Duration = Duration::from_secs(1);

/// The longest `Retry-After` that is applied; a longer one is shortened to it.
const LONGEST_WAIT: Duration = Duration::from_secs(5 * 60);

/// The lowest limit, in requests per second.
const LEAST: f64 = 1.0;

/// The limit, in requests per second, above which the rate is unlimited again.
const MOST: f64 = 100_000.0;

/// The factor by which the limit grows every second.
const GROWTH: f64 = 1.1;

/// The rate of requests to one gateway.
#[derive(Debug, Default)]
pub(in crate::pay_status) struct Rate {
    /// The limit in requests per second; `None` until the first refusal.
    limit: Option<f64>,
    /// The time up to which the growth of the limit is included.
    grown_at: Option<Instant>,
    /// The time at which the limit was last lowered.
    lowered_at: Option<Instant>,
    /// The time at which the next request may begin.
    next: Option<Instant>,
    /// The end of a `Retry-After`.
    retry_at: Option<Instant>,
    /// The times of the requests that began in the last second.
    begun: VecDeque<Instant>,
    /// The times of the answers in the last second.
    answered: VecDeque<Instant>,
}

impl Rate {
    /// Begins a request, if one may begin now. The error is the time at which to try again.
    pub(super) fn begin(&mut self, now: Instant) -> Result<(), Instant> {
        self.grow(now);
        if let Some(at) = self.next.max(self.retry_at).filter(|at| *at > now) {
            return Err(at);
        }
        self.next = self.limit.map(|limit| now + interval(limit));
        push_recent(&mut self.begun, now);
        Ok(())
    }

    /// Counts a request that was answered.
    pub(super) fn answered(&mut self, now: Instant) {
        push_recent(&mut self.answered, now);
    }

    /// Returns whether a request was answered at or after `since`, which is at most a second before the start of a
    /// request.
    pub(super) fn has_answered_since(&self, since: Instant) -> bool {
        self.answered.back().is_some_and(|at| *at >= since)
    }

    /// Counts a request that was refused, and lowers the rate. `begun` is when the request began; a request that began
    /// before the last change is no evidence against the new rate.
    pub(super) fn refused(&mut self, begun: Instant, now: Instant, retry_after: Option<Duration>) {
        self.grow(now);
        if let Some(wait) = retry_after.filter(|wait| !wait.is_zero()) {
            self.retry_at = self.retry_at.max(Some(now + wait.min(LONGEST_WAIT)));
        }
        let is_news = |lowered: Instant| begun >= lowered && now.saturating_duration_since(lowered) >= SECOND;
        if !self.lowered_at.is_none_or(is_news) {
            return;
        }
        let before = match self.limit {
            None => count_last_second(&self.answered, now),
            // A limit that was not reached permits more requests than the gateway was seen to accept.
            Some(limit) => limit.min(count_last_second(&self.begun, now)),
        };
        let limit = (before / 2.0).max(LEAST);
        self.limit = Some(limit);
        self.grown_at = Some(now);
        self.lowered_at = Some(now);
        self.next = Some(now + interval(limit));
    }

    /// Returns how long the gateway asks to wait from now on.
    pub(super) fn retry_after(&self, now: Instant) -> Option<Duration> {
        self.retry_at?.checked_duration_since(now).filter(|wait| !wait.is_zero())
    }

    fn grow(&mut self, now: Instant) {
        let (Some(limit), Some(since)) = (self.limit, self.grown_at) else { return };
        let seconds = u32::try_from(now.saturating_duration_since(since).as_secs()).unwrap_or(u32::MAX);
        if seconds == 0 {
            return;
        }
        let grown = limit * GROWTH.powf(f64::from(seconds));
        self.limit = (grown < MOST).then_some(grown);
        self.grown_at = Some(since + SECOND * seconds);
    }
}

/// Returns the time between two requests.
fn interval(limit: f64) -> Duration {
    SECOND.div_f64(limit.max(LEAST))
}

/// Adds a time, and removes those older than a second.
fn push_recent(moments: &mut VecDeque<Instant>, now: Instant) {
    while moments.front().is_some_and(|at| now.saturating_duration_since(*at) > SECOND) {
        moments.pop_front();
    }
    moments.push_back(now);
}

/// Returns the number of times within the last second.
fn count_last_second(moments: &VecDeque<Instant>, now: Instant) -> f64 {
    let count = moments.iter().rev().take_while(|at| now.saturating_duration_since(**at) <= SECOND).count();
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }

    /// Returns a rate that was limited at `now`, after `answered` answers within the last second.
    fn limited(now: Instant, answered: usize) -> Rate {
        let mut rate = Rate::default();
        for _ in 0..answered {
            rate.begin(now).unwrap();
            rate.answered(now);
        }
        rate.refused(now, now, None);
        rate
    }

    /// Returns the limit, rounded to one decimal.
    fn limit(rate: &Rate) -> Option<f64> {
        rate.limit.map(|limit| (limit * 10.0).round() / 10.0)
    }

    #[test]
    fn nothing_is_limited_before_the_first_refusal() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        for _ in 0..10_000 {
            assert_eq!(rate.begin(now), Ok(()));
        }
    }

    #[test]
    fn the_first_refusal_takes_half_of_what_was_answered_in_the_last_second() {
        let now = Instant::now();
        assert_eq!(limit(&limited(now, 40)), Some(20.0));
        assert_eq!(limit(&limited(now, 1)), Some(1.0));
        assert_eq!(limit(&limited(now, 0)), Some(1.0));
        let mut rate = Rate::default();
        (0..40).for_each(|_| rate.answered(now));
        rate.answered(now + ms(1500));
        rate.refused(now + ms(1600), now + ms(1600), None);
        assert_eq!(limit(&rate), Some(1.0), "older answers do not count");
    }

    #[test]
    fn requests_are_spaced_by_the_rate() {
        let now = Instant::now();
        let mut rate = limited(now, 20);
        assert_eq!(rate.begin(now), Err(now + ms(100)));
        assert_eq!(rate.begin(now + ms(100)), Ok(()));
        assert_eq!(rate.begin(now + ms(150)), Err(now + ms(200)));
        assert_eq!(rate.begin(now + ms(500)), Ok(()));
        assert_eq!(rate.begin(now + ms(501)), Err(now + ms(600)), "unused time is not accumulated");
    }

    #[test]
    fn the_rate_is_halved_at_most_once_a_second_and_never_below_one() {
        let now = Instant::now();
        let mut rate = limited(now, 80);
        assert_eq!(limit(&rate), Some(40.0));
        let mut at = now;
        for (after, expected) in [(10, 40.0), (999, 40.0)] {
            rate.refused(now + ms(after), now + ms(after), None);
            assert_eq!(limit(&rate), Some(expected), "{after} ms");
        }
        for _ in 0..10 {
            at += ms(1000);
            (0..80).for_each(|_| push_recent(&mut rate.begun, at));
            let before = rate.limit.unwrap() * GROWTH;
            rate.refused(at, at, None);
            assert!((rate.limit.unwrap() - (before / 2.0).max(1.0)).abs() < 0.001, "{rate:?}");
        }
        assert_eq!(limit(&rate), Some(1.0));
    }

    #[test]
    fn a_refusal_of_a_request_from_before_the_change_does_not_lower_the_rate() {
        let now = Instant::now();
        let mut rate = limited(now, 80);
        rate.refused(now.checked_sub(ms(1)).unwrap(), now + ms(3000), None);
        assert_eq!(limit(&rate), Some(53.2), "grown for three seconds");
    }

    #[test]
    fn a_limit_that_was_not_reached_is_no_measure() {
        let now = Instant::now();
        let mut rate = limited(now, 80);
        let later = now + ms(30_000);
        for _ in 0..6 {
            push_recent(&mut rate.begun, later);
        }
        rate.refused(later, later, None);
        assert_eq!(limit(&rate), Some(3.0));
    }

    #[test]
    fn the_rate_grows_by_a_tenth_a_second_until_there_is_no_limit() {
        let now = Instant::now();
        let mut rate = limited(now, 20);
        for (after, expected) in [(999, Some(10.0)), (1000, Some(11.0)), (2500, Some(12.1)), (3000, Some(13.3))] {
            rate.grow(now + ms(after));
            assert_eq!(limit(&rate), expected, "{after} ms");
        }
        rate.grow(now + ms(600_000));
        assert_eq!(limit(&rate), None);
    }

    #[test]
    fn a_retry_after_stops_all_requests_and_is_cut_at_five_minutes() {
        let now = Instant::now();
        let mut rate = Rate::default();
        rate.refused(now, now, Some(Duration::from_secs(7)));
        rate.refused(now, now, Some(Duration::from_secs(2)));
        assert_eq!(rate.begin(now + ms(6999)), Err(now + ms(7000)));
        assert_eq!(rate.retry_after(now + ms(5000)), Some(ms(2000)));
        assert_eq!(rate.retry_after(now + ms(7000)), None);
        assert_eq!(rate.begin(now + ms(7000)), Ok(()));
        rate.refused(now, now, Some(Duration::from_secs(86_400)));
        assert_eq!(rate.retry_after(now), Some(LONGEST_WAIT));
    }

    #[test]
    fn an_answer_counts_from_its_moment_on() {
        let (mut rate, now) = (Rate::default(), Instant::now());
        assert!(!rate.has_answered_since(now));
        rate.answered(now);
        assert!(rate.has_answered_since(now) && !rate.has_answered_since(now + ms(1)));
    }

    /// A gateway that admits twenty requests in each second of its clock, and a client with sixteen connections.
    #[test]
    fn six_hundred_requests_pass_a_service_that_admits_twenty_a_second_with_few_refusals() {
        let start = Instant::now();
        let (mut rate, mut admitted) = (Rate::default(), Vec::<u32>::new());
        let (mut done, mut refusals, mut now) = (0, 0, start);
        while done < 600 {
            // Each request takes 5 ms, sixteen at a time.
            for _ in 0..16 {
                if rate.begin(now).is_err() {
                    break;
                }
                let second = usize::try_from((now - start).as_secs()).unwrap();
                admitted.resize(admitted.len().max(second + 1), 0);
                if admitted[second] < 20 {
                    admitted[second] += 1;
                    done += 1;
                    rate.answered(now + ms(5));
                } else {
                    refusals += 1;
                    rate.refused(now, now + ms(5), None);
                }
            }
            now += ms(5);
        }
        let took = (now - start).as_secs();
        assert!(refusals < 100 && (30..60).contains(&took), "{refusals} refusals in {took} s");
    }
}
