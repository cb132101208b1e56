//! The definitions of all metrics: name, type, help text, unit, labels with their values, and the start at zero.
//!
//! The definition of a metric is the only place that names it. Its doc comment is its help text, and its row in
//! `docs/reference/metrics.md`. Only this folder calls the macros of the metrics library; [`super::events`] set the values.

mod metric;
mod queue;

use crate::domain::{check, dead_letter::Reason, failure::Dependency};
use ::metrics::Unit;
use metric::{Counter, Definition, Gauge, Histogram, Metric, Series};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use queue::Queue;

/// Defines metrics and the list of all of them:
/// `NAME: Type = "pointsd_name" [in Unit] [, ["label", …], the series that exist from the start];`
macro_rules! metrics {
    ($(
        $(#[doc = $help:literal])+
        $id:ident: $kind:ident $(($buckets:expr))? = $name:literal $(in $unit:ident)?
            $(, [$($label:literal),+], $series:expr)?;
    )+) => {
        $(
            $(#[doc = $help])+
            pub(super) static $id: Metric<$kind, { <[&str]>::len(&[$($($label),+)?]) }> = Metric {
                kind: $kind $(($buckets))?,
                name: $name,
                help: concat!($($help),+).trim_ascii(),
                unit: metrics!(@unit $($unit)?),
                labels: [$($($label),+)?],
                series: metrics!(@series $($series)?),
            };
        )+
        /// Every metric, in the order of their definitions.
        static ALL: &[&dyn Definition] = &[$(&$id),+];
    };
    (@unit) => { None };
    (@unit $unit:ident) => { Some(Unit::$unit) };
    (@series) => { Series::Fixed(|| vec![[]]) };
    (@series $series:expr) => { $series };
}

metrics! {
    /// Messages settled. In the check queue each check of a check message counts.
    MESSAGES: Counter = "pointsd_messages_total", ["queue", "outcome"], Series::OfQueue(outcomes);
    /// Points credited. A reinstatement counts as credited.
    POINTS_CREDITED: Counter = "pointsd_points_credited_total";
    /// Points reversed. Points credited minus points reversed is the gain of all balances.
    POINTS_REVERSED: Counter = "pointsd_points_reversed_total";
    /// Messages parked in the dead queue by the daemon.
    DEAD_LETTERED: Counter = "pointsd_dead_lettered_total", ["reason"],
        Series::Fixed(|| Reason::ALL.map(|reason| [reason.label()]).into());
    /// Duration of a transaction of the ledger, by what it commits.
    COMMIT_DURATION: Histogram(&DURATIONS) = "pointsd_commit_duration_seconds" in Seconds, ["work"],
        Series::Fixed(|| Work::ALL.map(|work| [work.label()]).into());
    /// Credits in one transaction of the ledger.
    BATCH_SIZE: Histogram(&SIZES) = "pointsd_batch_size";
    /// Age of a message when it is settled, by its `timestamp` (whole seconds), if it has one.
    END_TO_END: Histogram(&AGES) = "pointsd_end_to_end_seconds" in Seconds;
    /// Deliveries taken and not yet settled.
    IN_FLIGHT: Gauge = "pointsd_in_flight", ["queue"], Series::OfQueue(|queue| vec![[queue.label]]);
    /// Time since the oldest unsettled delivery was taken. 0 without one.
    OLDEST_IN_FLIGHT: Gauge = "pointsd_oldest_in_flight_seconds" in Seconds, ["queue"],
        Series::OfQueue(|queue| vec![[queue.label]]);
    /// Checks of payments, including look-ups of notifications, by the status found and the step taken.
    CHECKS: Counter = "pointsd_checks_total", ["status", "step"], Series::Fixed(checks);
    /// Credits that count and that no check has found paid, up to a million. Counted every 15 seconds with a payment source.
    UNVERIFIED_CREDITS: Gauge = "pointsd_unverified_credits";
    /// Unverified credits that are older than the whole schedule of checks plus one hour and that no check has parked.
    OVERDUE_CREDITS: Gauge = "pointsd_overdue_credits";
    /// 1 with a payment source. 0 without: credits are not checked.
    PAYMENT_SOURCE_CONFIGURED: Gauge = "pointsd_payment_source_configured";
    /// Rows of the outbox that are not published yet, up to a million. Counted every 5 seconds.
    OUTBOX_ROWS: Gauge = "pointsd_outbox_rows";
    /// Age of the oldest row of the outbox. 0 without rows.
    OUTBOX_OLDEST: Gauge = "pointsd_outbox_oldest_seconds" in Seconds;
    /// 1 while the daemon waits for the dependency, otherwise 0.
    PAUSED: Gauge = "pointsd_paused", ["dependency"],
        Series::Fixed(|| Dependency::ALL.map(|dependency| [dependency.label()]).into());
    /// 1 while the credit queue's session with the broker is connected, otherwise 0.
    BROKER_CONNECTED: Gauge = "pointsd_broker_connected";
    /// How far the clock of the ledger's server is ahead of the daemon's (negative: behind). Compared every minute.
    CLOCK_SKEW: Gauge = "pointsd_clock_skew_seconds" in Seconds;
    /// Messages whose `timestamp` was in the future by the daemon's clock.
    CLOCK_SKEW_MESSAGES: Counter = "pointsd_clock_skew_messages_total";
    /// Always 1. The label has the version.
    BUILD_INFO: Gauge = "pointsd_build_info", ["version"], Series::Fixed(|| vec![[VERSION]]);
}

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Buckets of durations: from a commit on a fast disk to the longest wait before a deadline.
const DURATIONS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Buckets of ages, up to a backlog of a day. The resolution of AMQP timestamps is one second.
const AGES: [f64; 9] = [1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];
/// Buckets of batch sizes.
const SIZES: [f64; 11] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10_000.0];

/// The work of a ledger transaction: the values of the label `work`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// A batch of credits.
    Credits,
    /// A batch of checks.
    Checks,
}

impl Work {
    const ALL: [Self; 2] = [Self::Credits, Self::Checks];

    /// The value of the label.
    pub(super) fn label(self) -> &'static str {
        match self {
            Self::Credits => "credits",
            Self::Checks => "checks",
        }
    }
}

fn outcomes(queue: &Queue) -> Vec<[&'static str; 2]> {
    queue.outcomes.iter().map(|outcome| [queue.label, outcome]).collect()
}

fn checks() -> Vec<[&'static str; 2]> {
    check::possible().into_iter().map(|(status, step)| [status.label(), step.label()]).collect()
}

fn builder() -> Result<PrometheusBuilder, BuildError> {
    ALL.iter().filter_map(|metric| metric.buckets()).try_fold(PrometheusBuilder::new(), |builder, (name, buckets)| {
        builder.set_buckets_for_metric(Matcher::Full(name.into()), buckets)
    })
}

/// Registers every metric and creates its series. A counter that begins with its first event hides it from `rate()`.
fn start() {
    for metric in ALL {
        metric.describe();
        metric.start();
        for queue in Queue::of_every_configuration() {
            metric.start_queue(&queue);
        }
    }
    BUILD_INFO.set([VERSION], 1.0);
}

/// Installs the recorder of this process, with every metric. Call it once in a process.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = builder()?.install_recorder()?;
    start();
    metrics_process::Collector::default().describe();
    Ok(handle)
}

/// Creates the series of a notification source at zero: its name is the value of the label `queue`.
pub fn begin_source_at_zero(name: &'static str, outcomes: &'static [&'static str]) {
    for metric in ALL {
        metric.start_queue(&Queue { label: name, outcomes });
    }
}

/// Renders all metrics in the Prometheus text format.
pub fn render(handle: &PrometheusHandle) -> String {
    metrics_process::Collector::default().collect();
    handle.render()
}

/// The metrics that Prometheus would scrape after `work`, which is recorded apart from the rest of the process.
#[cfg(test)]
pub(super) fn rendered_after(work: impl FnOnce()) -> String {
    let recorder = builder().unwrap().build_recorder();
    ::metrics::with_local_recorder(&recorder, || {
        start();
        work();
    });
    recorder.handle().render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::check_outcome::CheckOutcome;

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|found| found == line)
    }

    #[test]
    fn every_series_starts_at_zero_and_with_a_help_text() {
        let text = rendered_after(|| begin_source_at_zero("trade", &CheckOutcome::LABELS_ON_ARRIVAL));
        for line in [
            "# HELP pointsd_commit_duration_seconds Duration of a transaction of the ledger, by what it commits.",
            "# TYPE pointsd_commit_duration_seconds histogram",
            "pointsd_commit_duration_seconds_count{work=\"credits\"} 0",
            "pointsd_commit_duration_seconds_count{work=\"checks\"} 0",
            "pointsd_batch_size_count 0",
            "pointsd_messages_total{queue=\"credit\",outcome=\"exhausted\"} 0",
            "pointsd_messages_total{queue=\"check\",outcome=\"checked\"} 0",
            "pointsd_messages_total{queue=\"trade\",outcome=\"credited\"} 0",
            "pointsd_checks_total{status=\"paid\",step=\"verify\"} 0",
            "pointsd_in_flight{queue=\"trade\"} 0",
            "pointsd_points_credited_total 0",
        ] {
            assert!(has(&text, line), "{line} is not in:\n{text}");
        }
        let help = text.lines().filter(|line| line.starts_with("# HELP pointsd_")).count();
        assert_eq!(help, ALL.len(), "{text}");
    }

    #[test]
    fn a_label_value_that_is_not_listed_is_refused() {
        let is_refused = |work: fn()| std::panic::catch_unwind(|| rendered_after(work)).is_err();
        assert!(is_refused(|| MESSAGES.add(["credit", "checked"], 1)));
        assert!(is_refused(|| MESSAGES.add(["relay", "credited"], 1)));
        assert!(is_refused(|| CHECKS.add(["paid", "reverse_all"], 1)));
        assert!(is_refused(|| DEAD_LETTERED.add(["lost"], 1)));
        assert!(!is_refused(|| MESSAGES.add(["trade", "checked"], 1)));
    }

    #[test]
    fn the_reference_has_the_row_of_every_metric_and_every_label_value() {
        let reference = include_str!("../../../docs/reference/metrics.md");
        for metric in ALL {
            assert!(has(reference, &metric.row()), "docs/reference/metrics.md has no row\n{}", metric.row());
            for (label, value) in metric.label_values().into_iter().filter(|(label, _)| *label != "version") {
                let mut rows = reference.lines().filter(|line| line.starts_with(&format!("| `{label}`")));
                assert!(rows.any(|row| row.contains(&format!("`{value}`"))), "{label} has no value {value}");
            }
        }
        let rows = reference.lines().filter(|line| line.starts_with("| `pointsd_")).count();
        assert_eq!(rows, ALL.len(), "docs/reference/metrics.md has a row too many");
    }
}
