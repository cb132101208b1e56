//! `pointsd dead requeue`: what is asked for, and the account of it. [`rounds`] does it.

mod rounds;

use super::{Audit, BEGUN, Exit, Filter, Output, clock, printable, stop_on_signals};
use crate::{config::Settings, parked::Groups};
use jiff::Timestamp;
use rounds::Run;
use serde::Serialize;
use std::{collections::BTreeMap, num::NonZeroU32, time::Duration};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(in crate::cli::dead) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Everything that lies in the dead queue now.
    #[arg(long)]
    all: bool,
    /// Say what would be sent, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Most messages that are sent.
    #[arg(long)]
    limit: Option<u64>,
    /// Messages a second; without it as fast as the broker confirms.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    /// Send so many first, and wait whether they come back. 0: none.
    #[arg(long, default_value_t = 10)]
    canary: u64,
    /// How long to wait for the canaries.
    #[arg(long, default_value = "3s", value_parser = short_wait)]
    canary_wait: Duration,
    /// Go on also when something comes back.
    #[arg(long)]
    keep_going: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Deliveries are held meanwhile, which the broker bears for half an hour.
fn short_wait(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(wait) if wait <= Duration::from_secs(300) => Ok(wait),
        Ok(_) => Err("must be at most 5m".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// What became of the run.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// As in `x-pointsd-requeue-id`.
    requeue_id: String,
    selected: u64,
    /// Whose copy is confirmed in its queue, and that are certain to be gone from the dead queue.
    sent: u64,
    /// Whose copy was published, and that may still be in the dead queue, too.
    uncertain: u64,
    /// Of those, how many came back to the dead queue while it was looked at.
    returned: u64,
    /// Not sent, because it is not known where to, or the queue is not there.
    not_sendable: u64,
    /// Of them how many for which reason.
    not_sendable_reasons: BTreeMap<String, u64>,
    /// Messages that were there and could not be looked at.
    unseen: u64,
    /// Whether somebody else held messages when it began: they were not seen.
    other_readers: bool,
    /// Messages that the dead queue should have after the run, and has not.
    vanished: u64,
    /// Messages that looks have counted up, and that could not be renewed.
    not_renewed: u64,
    /// Why it did not go on to the end.
    stopped: Option<String>,
    dry_run: bool,
}

pub(in crate::cli::dead) async fn run(
    settings: &Settings,
    arguments: &Arguments,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let selection = arguments.filter.or_all(arguments.all)?;
    let now = clock::now(settings, &selection, output).await?;
    let stop = stop_on_signals()?;
    let report = Report { requeue_id: new_id(), dry_run: arguments.dry_run, ..Report::default() };
    if !arguments.dry_run {
        let requeue_id = Some(report.requeue_id.as_str());
        Audit { action: "requeue", selection: &selection, selected: None, removed: 0, end: BEGUN, requeue_id }
            .tell(settings);
    }
    let mut run = Run::new(settings, arguments, &selection, now, stop, report);
    let done = run.rounds(output).await;
    let (report, groups) = run.finish();
    let done = done.map_err(|error| error.context(report.certain()));
    let end = match (&done, &report.stopped) {
        (Err(error), _) => format!("{error:#}"),
        (Ok(()), Some(stopped)) => stopped.clone(),
        (Ok(()), None) if arguments.dry_run => "dry run".into(),
        (Ok(()), None) => "done".into(),
    };
    Audit {
        action: "requeue",
        selection: &selection,
        selected: Some(report.selected),
        removed: report.sent,
        end: &end,
        requeue_id: Some(&report.requeue_id),
    }
    .tell(settings);
    report.print(arguments.json, groups, output)?;
    done?;
    let whole = report.stopped.is_none()
        && report.not_sendable == 0
        && report.returned == 0
        && report.unseen == 0
        && report.vanished == 0
        && report.not_renewed == 0
        && !report.other_readers;
    Ok(if whole { Exit::Done } else { Exit::Failed })
}

/// Which no other run has.
fn new_id() -> String {
    let now = Timestamp::now();
    format!("{}-{:09}-{}", now.strftime("%Y%m%dT%H%M%SZ"), now.subsec_nanosecond(), std::process::id())
}

impl Report {
    /// What is certain after a failure.
    fn certain(&self) -> String {
        let Self { sent, uncertain, .. } = self;
        format!(
            "{sent} messages are sent back and gone from the dead queue, that is certain; {uncertain} more were published \
             and may be in both queues; nothing is lost, and running it again is harmless: a payment is credited once"
        )
    }

    fn print(&self, json: bool, groups: Groups, output: &mut Output) -> anyhow::Result<()> {
        if json {
            return output.json(self);
        }
        for group in groups.sorted() {
            output.line(&format!("{:>8}  {}", group.messages, printable(&group.reason)))?;
        }
        for (why, messages) in &self.not_sendable_reasons {
            output.line(&format!("{messages:>8}  not sendable: {why}"))?;
        }
        if self.unseen > 0 {
            let unseen = self.unseen;
            output.line(&format!("{unseen} messages were not seen: another reader holds or has removed them"))?;
        }
        let Self { requeue_id, selected, sent, returned, stopped, dry_run, .. } = self;
        if *dry_run {
            return Ok(output.line(&format!("would send {selected} messages back (dry run)"))?);
        }
        output.line(&format!(
            "sent {sent} of {selected} messages back, {returned} of them came back (run {requeue_id})"
        ))?;
        if let Some(stopped) = stopped {
            output.line(&format!("stopped: {stopped}; what was not sent is still in the dead queue"))?;
        }
        Ok(())
    }
}
