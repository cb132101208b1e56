//! Sending dead letters back to the queues from which they were consumed.
//!
//! Each message is published, confirmed and then removed: whenever the process dies, the message is in the dead queue, in the
//! queue that it is sent to, or in both.
//!
//! The broker takes deliveries back that are held for half an hour, so a long run consists of rounds: each takes what it can
//! send in ten minutes and releases the rest. The first round fixes the selection, message by message.

mod options;
mod pending;
mod rate;
mod report;
mod rounds;
mod run;
mod send;
mod targets;

pub use options::{MAX_CANARY_WAIT, RequeueOptions};
pub use report::RequeueReport;

use super::{
    audit::{Audit, BEGUN},
    clock,
    environment::Environment,
    error::DeadLetterError,
    reporter::Reporter,
};
use jiff::Timestamp;
use run::Run;
use tokio_util::sync::CancellationToken;

/// Sends the selected dead letters back. `stop` ends it between two steps. A failure after the start is in the report, which
/// has the numbers that are certain.
pub async fn requeue(
    environment: Environment<'_>,
    options: &RequeueOptions,
    stop: CancellationToken,
    reporter: &mut dyn Reporter,
) -> Result<RequeueReport, DeadLetterError> {
    let RequeueOptions { selection, dry_run, .. } = options;
    let settings = environment.settings;
    let now = clock::now(environment, selection, reporter).await?;
    let report = RequeueReport { requeue_id: new_id(), dry_run: *dry_run, ..RequeueReport::default() };
    if !dry_run {
        let requeue_id = Some(report.requeue_id.as_str());
        Audit { action: "requeue", selection, selected: None, removed: 0, end: BEGUN, requeue_id }.log(settings);
    }
    let mut run = Run::new(settings, options, now, stop, report);
    let done = rounds::run_rounds(&mut run, reporter).await;
    reporter.end();
    let mut report = run.finish();
    report.failure = done.err().map(|error| report.failed_with(error));
    Audit {
        action: "requeue",
        selection,
        selected: Some(report.selected),
        removed: report.sent,
        end: &report.end(),
        requeue_id: Some(&report.requeue_id),
    }
    .log(settings);
    Ok(report)
}

/// Returns an ID that no other run has.
fn new_id() -> String {
    let now = Timestamp::now();
    format!("{}-{:09}-{}", now.strftime("%Y%m%dT%H%M%SZ"), now.subsec_nanosecond(), std::process::id())
}
