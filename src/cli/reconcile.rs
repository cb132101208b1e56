//! `pointsd reconcile`

use super::{Exit, Output, UsageError, ledger_error, reading};
use crate::{
    app::signals::stop_on_signals,
    broker::{Outgoing, Publisher},
    config::Settings,
    domain::{
        check::Claim,
        check_message::{About, ScheduledCheck, Writer},
        credit::{MAX_POINTS_LIMIT, Points},
        ids::{PaymentId, UserId},
    },
    ledger::{UnverifiedCredit, UnverifiedPage},
};
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::{num::NonZeroU32, time::Duration};
use tokio_util::sync::CancellationToken;

/// Credits that are read together.
const PAGE: i64 = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Send them to the check queue.
    #[arg(long)]
    apply: bool,
    /// Those that are reversed, instead of those that count and were never found paid: after a wrong table or value list.
    #[arg(long)]
    reversed: bool,
    /// Only what was credited (or reversed) longer ago than this. Without it: longer than all checks take, and an hour; with
    /// --reversed any.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only what was credited (or reversed) within this time.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Most credits. Without it 1000 are listed; with --apply all are sent.
    #[arg(long)]
    limit: Option<u64>,
    /// Credits a second, with --apply.
    #[arg(long, default_value = "1000")]
    rate: NonZeroU32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What became of it.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// How many were found, up to the limit.
    found: u64,
    /// Whether there are more.
    more: bool,
    /// How many of them were sent to be checked, each confirmed.
    sent: u64,
    /// How many of them cannot be sent: their ids or points are none that pointsd writes.
    not_sendable: u64,
    /// Listed, without --apply.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<Vec<UnverifiedCredit>>,
    /// Whether credits were left out because their checks may still come. `--older-than` includes them.
    younger_left_out: bool,
    /// Why it did not go on to the end.
    stopped: Option<String>,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    if arguments.apply && !settings.pay_status.is_some() {
        return Err(UsageError("--apply: pay_status.source is \"none\"; nothing would check them".into()).into());
    }
    let ledger = reading(&settings.ledger).await?;
    let publisher =
        if arguments.apply { Some(Publisher::open(&settings.broker).await.context("broker")?) } else { None };
    let stop = stop_on_signals(|_| {})?;
    let progress = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} {pos} sent {per_sec}")
            .unwrap_or_else(|_| ProgressStyle::default_spinner()),
    );
    let mut report = Report { listed: (!arguments.apply).then(Vec::new), ..Report::default() };
    let mut limit = arguments.limit.unwrap_or(if arguments.apply { u64::MAX } else { 1000 });
    let overdue_after = if arguments.reversed { Duration::ZERO } else { settings.compensation.overdue_after() };
    let mut page = UnverifiedPage {
        reversed: arguments.reversed,
        older_than: arguments.older_than.unwrap_or(overdue_after),
        newer_than: arguments.newer_than,
        after: None,
        limit: PAGE,
    };
    let done = loop {
        let asked = page.clone();
        let read = ledger.call_at_leisure(move |ledger| ledger.unverified(&asked)).await;
        let mut credits = match read {
            Ok(credits) => credits,
            Err(error) => break Err(ledger_error(error)),
        };
        let Some(last) = credits.last() else { break Ok(()) };
        page.after = Some((last.since.clone(), last.payment_id.clone()));
        if credits.len() as u64 > limit {
            report.more = true;
            credits.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
        }
        limit -= credits.len() as u64;
        report.found += credits.len() as u64;
        match &publisher {
            Some(publisher) => {
                let sent = send(settings, arguments.rate, publisher, &credits, &mut report, &progress, &stop).await;
                if let Err(error) = sent {
                    break Err(error);
                }
            }
            None => report.listed.get_or_insert_default().extend(credits),
        }
        if report.more {
            break Ok(());
        }
        if stop.is_cancelled() {
            report.stopped = Some("interrupted".into());
            break Ok(());
        }
    };
    if done.is_ok() && arguments.older_than.is_none() && !overdue_after.is_zero() {
        let younger = UnverifiedPage {
            older_than: Duration::ZERO,
            newer_than: Some(overdue_after),
            after: None,
            limit: 1,
            ..page
        };
        let read = ledger.call_at_leisure(move |ledger| ledger.unverified(&younger)).await;
        report.younger_left_out = !read.map_err(ledger_error)?.is_empty();
    }
    progress.finish_and_clear();
    if let Some(publisher) = publisher {
        publisher.close().await;
    }
    if let Err(error) = &done {
        report.stopped = Some(format!("{error:#}"));
    }
    report.print(arguments, overdue_after, output)?;
    done?;
    Ok(if report.stopped.is_none() && report.not_sendable == 0 { Exit::Done } else { Exit::Failed })
}

/// Sends a page, a tenth of a second's worth at a time, in check messages made of what the ledger says. To be interrupted
/// loses nothing: some of them are sent once more the next time.
async fn send(
    settings: &Settings,
    rate: NonZeroU32,
    publisher: &Publisher,
    credits: &[UnverifiedCredit],
    report: &mut Report,
    progress: &ProgressBar,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let together = (rate.get() as usize).div_ceil(10).min(500);
    let takes = Duration::from_secs_f64(f64::from(u32::try_from(together).unwrap_or(u32::MAX)) / f64::from(rate.get()));
    for chunk in credits.chunks(together) {
        let due = tokio::time::Instant::now() + takes;
        let mut writer = Writer::new(settings.check_limits());
        let checks: Vec<ScheduledCheck> = chunk.iter().filter_map(check).collect();
        for check in &checks {
            writer.push(check);
        }
        report.not_sendable += (chunk.len() - checks.len()) as u64;
        let messages: Result<Vec<_>, _> =
            writer.finish().into_iter().map(|body| Outgoing::checks(&settings.broker.check_queue, body)).collect();
        publisher.publish(&messages?).await.context("broker")?;
        report.sent += checks.len() as u64;
        progress.set_position(report.sent);
        if stop.run_until_cancelled(tokio::time::sleep_until(due)).await.is_none() {
            return Ok(());
        }
    }
    Ok(())
}

/// `None` for a credit whose row no check can name: another program wrote it.
fn check(credit: &UnverifiedCredit) -> Option<ScheduledCheck> {
    let claim =
        Claim { user_id: UserId::new(&credit.user_id).ok()?, points: Points::new(credit.points, MAX_POINTS_LIMIT)? };
    Some(ScheduledCheck { payment_id: PaymentId::new(&credit.payment_id).ok()?, about: About::Claim(claim) })
}

impl Report {
    /// `longest`: how long all checks of a credit take.
    fn print(&self, arguments: &Arguments, overdue_after: Duration, output: &mut Output) -> anyhow::Result<()> {
        if arguments.json {
            return output.json(self);
        }
        for UnverifiedCredit { payment_id, user_id, points, since } in self.listed.iter().flatten() {
            output.line(&format!("{since}  payment {payment_id}: {points} points of user {user_id}"))?;
        }
        let what = if arguments.reversed { "reversed" } else { "not found paid by a check" };
        let more = if self.more { " (there are more; --limit)" } else { "" };
        if arguments.apply {
            output.line(&format!("sent {} of {} credits {what} to be checked{more}", self.sent, self.found))?;
        } else {
            output.line(&format!("{} credits {what}{more}", self.found))?;
        }
        if self.younger_left_out {
            output.line(&format!(
                "credits younger than {} are left out, because their checks may still come; if these were lost, \
                 --older-than 1m includes them (a check that is sent twice changes nothing)",
                humantime::format_duration(overdue_after)
            ))?;
        }
        if self.not_sendable > 0 {
            output.line(&format!("{} cannot be sent: their ids or points are not valid", self.not_sendable))?;
        }
        if let Some(stopped) = &self.stopped {
            output.line(&format!("stopped: {stopped}; what is left is found again"))?;
        }
        Ok(())
    }
}
