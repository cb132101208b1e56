//! The definitions of all metrics: name, type, help text, unit, labels with their values, and the start at zero.
//!
//! The definition of a metric is the only place that names it. Its doc comment is its help text, and its row in
//! `docs/reference/metrics.md`. Only this file calls the macros of the metrics library; [`super::events`] set the values.

#![allow(clippy::disallowed_macros, reason = "the only file that may call them")]

use crate::domain::{
    check, check_outcome::CheckOutcome, component::Component, dead_letter::Reason, failure::Dependency,
    outcome::Outcome,
};
use ::metrics::{KeyName, Recorder, SharedString, Unit, counter, gauge, histogram, with_recorder};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

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

/// A consumed queue: the value of the label `queue`, and the outcomes that its messages can have.
#[derive(Debug, Clone, Copy)]
struct Queue {
    label: &'static str,
    outcomes: &'static [&'static str],
}

impl Queue {
    /// The credit queue and the check queue, which exist in every configuration.
    fn of_every_configuration() -> [Self; 2] {
        [
            Self { label: Component::Credits.label(), outcomes: &Outcome::LABELS },
            Self { label: Component::Checks.label(), outcomes: &CheckOutcome::LABELS },
        ]
    }

    /// The queues that a label can belong to. The label of a notification source is its configured name.
    fn with_label(label: &'static str) -> Vec<Self> {
        if label == Component::Relay.label() {
            return Vec::new();
        }
        match Self::of_every_configuration().into_iter().find(|queue| queue.label == label) {
            Some(queue) => vec![queue],
            None => vec![
                Self { label, outcomes: &Outcome::LABELS },
                Self { label, outcomes: &CheckOutcome::LABELS_ON_ARRIVAL },
            ],
        }
    }
}

fn outcomes(queue: &Queue) -> Vec<[&'static str; 2]> {
    queue.outcomes.iter().map(|outcome| [queue.label, outcome]).collect()
}

fn checks() -> Vec<[&'static str; 2]> {
    check::possible().into_iter().map(|(status, step)| [status.label(), step.label()]).collect()
}

/// The combinations of label values that a metric can have. Each exists from the start, at zero.
#[derive(Debug, Clone, Copy)]
enum Series<const N: usize> {
    /// The same in every configuration.
    Fixed(fn() -> Vec<[&'static str; N]>),
    /// Those of each consumed queue. The first label is `queue`.
    OfQueue(fn(&Queue) -> Vec<[&'static str; N]>),
}

/// A metric with `N` labels: its whole definition.
#[derive(Debug)]
pub(super) struct Metric<K, const N: usize> {
    kind: K,
    name: &'static str,
    help: &'static str,
    unit: Option<Unit>,
    labels: [&'static str; N],
    series: Series<N>,
}

/// A metric that only increases.
#[derive(Debug)]
pub(super) struct Counter;

/// A metric that can take any value.
#[derive(Debug)]
pub(super) struct Gauge;

/// A metric that counts values in buckets, whose upper bounds it has.
#[derive(Debug)]
pub(super) struct Histogram(&'static [f64]);

impl<K, const N: usize> Metric<K, N> {
    /// The labels of one series. A value that is not listed is a defect of the definition: a test fails here.
    fn series(&self, values: [&'static str; N]) -> [(&'static str, &'static str); N] {
        debug_assert!(self.lists(&values), "{} does not list {values:?}", self.name);
        std::array::from_fn(|index| (self.labels[index], values[index]))
    }

    fn lists(&self, values: &[&'static str; N]) -> bool {
        match self.series {
            Series::Fixed(list) => list().contains(values),
            Series::OfQueue(list) => {
                let queues = values.first().map_or_else(Vec::new, |label| Queue::with_label(label));
                queues.iter().any(|queue| list(queue).contains(values))
            }
        }
    }
}

impl<const N: usize> Metric<Counter, N> {
    /// Increases the counter of one series.
    pub(super) fn add(&self, values: [&'static str; N], count: u64) {
        counter!(self.name, &self.series(values)).increment(count);
    }
}

impl<const N: usize> Metric<Gauge, N> {
    /// Sets the gauge of one series.
    pub(super) fn set(&self, values: [&'static str; N], value: f64) {
        gauge!(self.name, &self.series(values)).set(value);
    }
}

impl<const N: usize> Metric<Histogram, N> {
    /// Records values in one series.
    pub(super) fn record(&self, values: [&'static str; N], samples: impl IntoIterator<Item = f64>) {
        let series = histogram!(self.name, &self.series(values));
        for sample in samples {
            series.record(sample);
        }
    }
}

/// The differences between the types of metrics.
trait Kind: Sync {
    /// The type in the documents.
    #[cfg(test)]
    const NAME: &'static str;

    fn describe(recorder: &dyn Recorder, name: KeyName, unit: Option<Unit>, help: SharedString);

    /// Creates a series, at zero.
    fn start(name: &'static str, labels: &[(&'static str, &'static str)]);

    fn buckets(&self) -> Option<&'static [f64]> {
        None
    }
}

impl Kind for Counter {
    #[cfg(test)]
    const NAME: &'static str = "counter";

    fn describe(recorder: &dyn Recorder, name: KeyName, unit: Option<Unit>, help: SharedString) {
        recorder.describe_counter(name, unit, help);
    }

    fn start(name: &'static str, labels: &[(&'static str, &'static str)]) {
        counter!(name, labels).absolute(0);
    }
}

impl Kind for Gauge {
    #[cfg(test)]
    const NAME: &'static str = "gauge";

    fn describe(recorder: &dyn Recorder, name: KeyName, unit: Option<Unit>, help: SharedString) {
        recorder.describe_gauge(name, unit, help);
    }

    fn start(name: &'static str, labels: &[(&'static str, &'static str)]) {
        gauge!(name, labels).set(0.0);
    }
}

impl Kind for Histogram {
    #[cfg(test)]
    const NAME: &'static str = "histogram";

    fn describe(recorder: &dyn Recorder, name: KeyName, unit: Option<Unit>, help: SharedString) {
        recorder.describe_histogram(name, unit, help);
    }

    fn start(name: &'static str, labels: &[(&'static str, &'static str)]) {
        // Registered, it is rendered with a count of 0.
        drop(histogram!(name, labels));
    }

    fn buckets(&self) -> Option<&'static [f64]> {
        Some(self.0)
    }
}

/// A definition, whatever the type and the labels of the metric.
trait Definition: Sync {
    /// The buckets of a histogram, with its name.
    fn buckets(&self) -> Option<(&'static str, &'static [f64])>;

    /// Registers the help text and the unit.
    fn describe(&self);

    /// Creates the series that exist in every configuration.
    fn start(&self);

    /// Creates the series of a queue.
    fn start_queue(&self, queue: &Queue);

    /// The row in `docs/reference/metrics.md`.
    #[cfg(test)]
    fn row(&self) -> String;

    /// Every label with every value of it, where the configuration does not name it.
    #[cfg(test)]
    fn label_values(&self) -> Vec<(&'static str, &'static str)>;
}

impl<K: Kind, const N: usize> Definition for Metric<K, N> {
    fn buckets(&self) -> Option<(&'static str, &'static [f64])> {
        Some((self.name, self.kind.buckets()?))
    }

    fn describe(&self) {
        with_recorder(|recorder| K::describe(recorder, self.name.into(), self.unit, self.help.into()));
    }

    fn start(&self) {
        if let Series::Fixed(list) = self.series {
            for values in list() {
                K::start(self.name, &self.series(values));
            }
        }
    }

    fn start_queue(&self, queue: &Queue) {
        if let Series::OfQueue(list) = self.series {
            for values in list(queue) {
                K::start(self.name, &self.series(values));
            }
        }
    }

    #[cfg(test)]
    fn row(&self) -> String {
        let labels: Vec<String> = self.labels.iter().map(|label| format!("`{label}`")).collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{} ", labels.join(", ")) };
        format!("| `{}` | {} | {labels}| {} |", self.name, K::NAME, self.help)
    }

    #[cfg(test)]
    fn label_values(&self) -> Vec<(&'static str, &'static str)> {
        let series = match self.series {
            Series::Fixed(list) => list(),
            Series::OfQueue(list) => Queue::of_every_configuration().iter().flat_map(list).collect(),
        };
        series.into_iter().flat_map(|values| self.series(values)).collect()
    }
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
        let reference = include_str!("../../docs/reference/metrics.md");
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
