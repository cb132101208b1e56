//! The definition of one metric, and the calls that register and set it.

#![allow(clippy::disallowed_macros, reason = "the only file that may call them")]

use super::queue::Queue;
use ::metrics::{KeyName, Recorder, SharedString, Unit, counter, gauge, histogram, with_recorder};

/// The combinations of label values that a metric can have. Each exists from the start, at zero.
#[derive(Debug, Clone, Copy)]
pub(super) enum Series<const N: usize> {
    /// The same in every configuration.
    Fixed(fn() -> Vec<[&'static str; N]>),
    /// Those of each consumed queue. The first label is `queue`.
    OfQueue(fn(&Queue) -> Vec<[&'static str; N]>),
}

/// A metric with `N` labels: its whole definition.
#[derive(Debug)]
pub(in crate::observe) struct Metric<K, const N: usize> {
    pub(super) kind: K,
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    pub(super) unit: Option<Unit>,
    pub(super) labels: [&'static str; N],
    pub(super) series: Series<N>,
}

/// A metric that only increases.
#[derive(Debug)]
pub(in crate::observe) struct Counter;

/// A metric that can take any value.
#[derive(Debug)]
pub(in crate::observe) struct Gauge;

/// A metric that counts values in buckets, whose upper bounds it has.
#[derive(Debug)]
pub(in crate::observe) struct Histogram(pub(super) &'static [f64]);

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
    pub(in crate::observe) fn add(&self, values: [&'static str; N], count: u64) {
        counter!(self.name, &self.series(values)).increment(count);
    }
}

impl<const N: usize> Metric<Gauge, N> {
    /// Sets the gauge of one series.
    pub(in crate::observe) fn set(&self, values: [&'static str; N], value: f64) {
        gauge!(self.name, &self.series(values)).set(value);
    }
}

impl<const N: usize> Metric<Histogram, N> {
    /// Records values in one series.
    pub(in crate::observe) fn record(&self, values: [&'static str; N], samples: impl IntoIterator<Item = f64>) {
        let series = histogram!(self.name, &self.series(values));
        for sample in samples {
            series.record(sample);
        }
    }
}

/// The differences between the types of metrics.
pub(super) trait Kind: Sync {
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
pub(super) trait Definition: Sync {
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
