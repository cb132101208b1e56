//! `pointsd dead requeue`

use super::{Exit, Output, filter::Filter, reporter::TerminalReporter};
use crate::{
    app::signals::stop_on_signals,
    dead_letters::{Environment, MAX_CANARY_WAIT, RequeueOptions, RequeueReport, requeue},
    domain::printable::printable,
};
use std::{num::NonZeroU32, time::Duration};

#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Select all messages that are in the dead queue now.
    #[arg(long)]
    all: bool,
    /// Print what would be sent, and send nothing.
    #[arg(long)]
    dry_run: bool,
    /// Send at most this number of messages.
    #[arg(long)]
    limit: Option<u64>,
    /// Send at most this number of messages per second; the default is as fast as the broker confirms.
    #[arg(long)]
    rate: Option<NonZeroU32>,
    /// Send this number of messages first, and wait whether one of them returns; 0 for none.
    #[arg(long, default_value_t = 10)]
    canary: u64,
    /// How long to wait for the first messages to return.
    #[arg(long, default_value = "3s", value_parser = canary_wait)]
    canary_wait: Duration,
    /// Continue when a message returns.
    #[arg(long)]
    keep_going: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

fn canary_wait(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(wait) if wait <= MAX_CANARY_WAIT => Ok(wait),
        Ok(_) => Err(format!("must be at most {}", humantime::format_duration(MAX_CANARY_WAIT))),
        Err(error) => Err(error.to_string()),
    }
}

pub(super) async fn run(
    environment: Environment<'_>,
    arguments: &Arguments,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let options = RequeueOptions {
        selection: arguments.filter.selection_or_all(arguments.all)?,
        dry_run: arguments.dry_run,
        limit: arguments.limit,
        rate: arguments.rate,
        canary: arguments.canary,
        canary_wait: arguments.canary_wait,
        keep_going: arguments.keep_going,
    };
    let stop = stop_on_signals(|_| {})?;
    let report = requeue(environment, &options, stop, &mut TerminalReporter::new(output)).await?;
    if arguments.json {
        output.json(&report)?;
    } else {
        print(&report, output)?;
    }
    let exit = if report.is_complete() { Exit::Done } else { Exit::Failed };
    match report.failure {
        Some(error) => Err(error.into()),
        None => Ok(exit),
    }
}

fn print(report: &RequeueReport, output: &mut Output) -> anyhow::Result<()> {
    let RequeueReport { requeue_id, selected, sent, returned, unseen, stopped, dry_run, .. } = report;
    for group in &report.groups {
        output.line(&format!("{:>8}  {}", group.messages, printable(&group.reason)))?;
    }
    for (reason, messages) in &report.not_sendable_reasons {
        output.line(&format!("{messages:>8}  not sendable: {reason}"))?;
    }
    if *unseen > 0 {
        output.line(&format!("{unseen} messages were not seen: another reader holds or has removed them"))?;
    }
    if *dry_run {
        return Ok(output.line(&format!("would send {selected} messages back (dry run)"))?);
    }
    output
        .line(&format!("sent {sent} of {selected} messages back, {returned} of them came back (run {requeue_id})"))?;
    if let Some(stopped) = stopped {
        let rest = if sent < selected { "; messages that were not sent are still in the dead queue" } else { "" };
        output.line(&format!("stopped: {stopped}{rest}"))?;
    }
    Ok(())
}
