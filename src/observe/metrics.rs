//! Every metric there is: its name and its help text. Nothing else names one.

#![allow(clippy::disallowed_macros, reason = "this is the place for them")]

use crate::domain::{
    check, check_outcome::CheckOutcome, component::Component, dead_letter::Reason, failure::Dependency,
    outcome::Outcome,
};
use ::metrics::{Unit, describe_counter, describe_gauge, describe_histogram};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};

/// Messages settled, by `queue` and `outcome`.
pub const MESSAGES: &str = "pointsd_messages_total";
/// Points credited.
pub const POINTS_CREDITED: &str = "pointsd_points_credited_total";
/// Points taken back.
pub const POINTS_REVERSED: &str = "pointsd_points_reversed_total";
/// Checks done, by `status` and `step`.
pub const CHECKS: &str = "pointsd_checks_total";
/// Credits that no check has found paid.
pub const UNVERIFIED_CREDITS: &str = "pointsd_unverified_credits";
/// Credits that should have been verified or reversed by now.
pub const OVERDUE_CREDITS: &str = "pointsd_overdue_credits";
/// Whether credits are checked.
pub const PAYMENT_SOURCE_CONFIGURED: &str = "pointsd_payment_source_configured";
/// Rows of the outbox that are not published yet.
pub const OUTBOX_ROWS: &str = "pointsd_outbox_rows";
/// The age of the oldest of them.
pub const OUTBOX_OLDEST_SECONDS: &str = "pointsd_outbox_oldest_seconds";
/// Copies confirmed in the dead queue, by `reason`.
pub const DEAD_LETTERED: &str = "pointsd_dead_lettered_total";
/// Seconds a ledger transaction took.
pub const COMMIT_SECONDS: &str = "pointsd_commit_seconds";
/// Credits in a ledger transaction.
pub const BATCH_SIZE: &str = "pointsd_batch_size";
/// Seconds from a message's timestamp to its settlement.
pub const END_TO_END_SECONDS: &str = "pointsd_end_to_end_seconds";
/// How far the clock of the ledger's server is ahead of ours.
pub const CLOCK_SKEW: &str = "pointsd_clock_skew_seconds";
/// Messages whose timestamp is in the future.
pub const CLOCK_SKEW_MESSAGES: &str = "pointsd_clock_skew_messages_total";
/// Deliveries taken and not yet settled, by `queue`.
pub const IN_FLIGHT: &str = "pointsd_in_flight";
/// Seconds since the oldest delivery was taken that is not settled, by `queue`.
pub const OLDEST_IN_FLIGHT_SECONDS: &str = "pointsd_oldest_in_flight_seconds";
/// Whether the daemon waits for a `dependency`.
pub const PAUSED: &str = "pointsd_paused";
/// Whether the connections to the broker stand.
pub const BROKER_CONNECTED: &str = "pointsd_broker_connected";
/// Always 1; the version is a label.
pub const BUILD_INFO: &str = "pointsd_build_info";

/// Seconds: from a commit on a fast disk to the longest wait before a deadline.
const SECONDS: [f64; 13] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// Seconds, up to a backlog of a day. AMQP's timestamps are whole seconds: nothing finer can be told.
const AGES: [f64; 9] = [1.0, 2.0, 5.0, 15.0, 60.0, 300.0, 1800.0, 7200.0, 86_400.0];
/// Credits.
const SIZES: [f64; 11] = [1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 10_000.0];

/// Installs the recorder of this process and describes every metric. Once a process.
pub fn install() -> Result<PrometheusHandle, BuildError> {
    let handle = PrometheusBuilder::new()
        .set_buckets_for_metric(Matcher::Full(COMMIT_SECONDS.into()), &SECONDS)?
        .set_buckets_for_metric(Matcher::Full(END_TO_END_SECONDS.into()), &AGES)?
        .set_buckets_for_metric(Matcher::Full(BATCH_SIZE.into()), &SIZES)?
        .install_recorder()?;
    describe();
    begin_at_zero();
    Ok(handle)
}

fn describe() {
    describe_counter!(MESSAGES, "Messages settled, by queue and outcome.");
    describe_counter!(POINTS_CREDITED, "Points credited, and those that were given again after a reversal.");
    describe_counter!(POINTS_REVERSED, "Points taken back because their payment is not paid.");
    describe_counter!(CHECKS, "Checks of payments, by the status that the source told and the step that was done.");
    describe_gauge!(UNVERIFIED_CREDITS, "Credits that count and that no check has found paid; told up to a million.");
    describe_gauge!(OVERDUE_CREDITS, "Unverified credits older than all their checks take, and parked by none.");
    describe_gauge!(PAYMENT_SOURCE_CONFIGURED, "1 with a payment source; 0 without: credits are not checked.");
    describe_gauge!(OUTBOX_ROWS, "Messages of the outbox that are not published yet; told up to a million.");
    describe_gauge!(OUTBOX_OLDEST_SECONDS, Unit::Seconds, "Age of the oldest of them; 0 while there is none.");
    describe_counter!(DEAD_LETTERED, "Messages parked in the dead queue, by reason.");
    describe_histogram!(COMMIT_SECONDS, Unit::Seconds, "Time that a transaction of the ledger took.");
    describe_histogram!(BATCH_SIZE, "Credits in one transaction of the ledger.");
    describe_histogram!(END_TO_END_SECONDS, Unit::Seconds, "Age of a message, by its timestamp, when it was settled.");
    describe_gauge!(CLOCK_SKEW, Unit::Seconds, "How far the ledger's clock is ahead of the daemon's.");
    describe_counter!(CLOCK_SKEW_MESSAGES, "Messages whose timestamp was in the future by the daemon's clock.");
    describe_gauge!(IN_FLIGHT, "Deliveries taken and not yet settled, by queue.");
    describe_gauge!(
        OLDEST_IN_FLIGHT_SECONDS,
        Unit::Seconds,
        "Time since the oldest unsettled delivery was taken, by queue."
    );
    describe_gauge!(PAUSED, "1 while the daemon waits for a dependency, else 0.");
    describe_gauge!(BROKER_CONNECTED, "1 while connected to the broker, else 0.");
    describe_gauge!(BUILD_INFO, "Always 1; the version is a label.");
    metrics_process::Collector::default().describe();
}

/// A counter that begins with its first event hides that event from `rate()`.
fn begin_at_zero() {
    for outcome in Outcome::LABELS {
        ::metrics::counter!(MESSAGES, "queue" => Component::Credits.label(), "outcome" => outcome).absolute(0);
    }
    for outcome in CheckOutcome::LABELS {
        ::metrics::counter!(MESSAGES, "queue" => Component::Checks.label(), "outcome" => outcome).absolute(0);
    }
    for (status, step) in check::possible() {
        ::metrics::counter!(CHECKS, "status" => status.label(), "step" => step.label()).absolute(0);
    }
    for reason in Reason::ALL {
        ::metrics::counter!(DEAD_LETTERED, "reason" => reason.label()).absolute(0);
    }
    for dependency in Dependency::ALL {
        ::metrics::gauge!(PAUSED, "dependency" => dependency.label()).set(0.0);
    }
    ::metrics::counter!(POINTS_CREDITED).absolute(0);
    ::metrics::counter!(POINTS_REVERSED).absolute(0);
    ::metrics::gauge!(CLOCK_SKEW).set(0.0);
    ::metrics::counter!(CLOCK_SKEW_MESSAGES).absolute(0);
    ::metrics::gauge!(UNVERIFIED_CREDITS).set(0.0);
    ::metrics::gauge!(OVERDUE_CREDITS).set(0.0);
    ::metrics::gauge!(PAYMENT_SOURCE_CONFIGURED).set(0.0);
    ::metrics::gauge!(OUTBOX_ROWS).set(0.0);
    ::metrics::gauge!(OUTBOX_OLDEST_SECONDS).set(0.0);
    ::metrics::gauge!(IN_FLIGHT, "queue" => Component::Credits.label()).set(0.0);
    ::metrics::gauge!(IN_FLIGHT, "queue" => Component::Checks.label()).set(0.0);
    for queue in [Component::Credits.label(), Component::Checks.label()] {
        ::metrics::gauge!(OLDEST_IN_FLIGHT_SECONDS, "queue" => queue).set(0.0);
    }
    ::metrics::gauge!(BROKER_CONNECTED).set(0.0);
    ::metrics::gauge!(BUILD_INFO, "version" => env!("CARGO_PKG_VERSION")).set(1.0);
}

/// The same for a source, under its name.
pub fn begin_source_at_zero(name: &'static str, outcomes: &[&'static str]) {
    for outcome in outcomes {
        ::metrics::counter!(MESSAGES, "queue" => name, "outcome" => *outcome).absolute(0);
    }
    ::metrics::gauge!(IN_FLIGHT, "queue" => name).set(0.0);
    ::metrics::gauge!(OLDEST_IN_FLIGHT_SECONDS, "queue" => name).set(0.0);
}

/// The text that Prometheus scrapes.
pub fn render(handle: &PrometheusHandle) -> String {
    metrics_process::Collector::default().collect();
    handle.render()
}
