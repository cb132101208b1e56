//! `pointsd reconcile`: list credits that no check has found paid, and send them to be checked.

use super::{Exit, Output, UsageError, ledger_error, reading};
use crate::{
    app::signals::stop_on_signals,
    broker::{Outgoing, Publisher},
    config::Settings,
    database::WithDeadline,
    domain::{
        check::Claim,
        check_message::{About, ScheduledCheck, Writer},
        credit::{MAX_POINTS_LIMIT, Points},
        ids::{PaymentId, UserId},
    },
    ledger::{Ledger, UnverifiedCredit, UnverifiedPage},
};
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use std::{num::NonZeroU32, time::Duration};
use tokio_util::sync::CancellationToken;

/// Number of credits that are read together.
const PAGE: i64 = 1000;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Send the credits to the check queue.
    #[arg(long)]
    apply: bool,
    /// Select reversed credits instead of those that count and that no check has found paid, for example after a wrong
    /// payment table or value list.
    #[arg(long)]
    reversed: bool,
    /// Select only credits that were credited (or reversed) longer ago than this. The default is the duration of all
    /// checks plus one hour; with --reversed there is no minimum.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Select only credits that were credited (or reversed) within this time.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
    /// Maximum number of credits. Without it 1000 are listed; with --apply all are sent.
    #[arg(long)]
    limit: Option<u64>,
    /// Number of credits sent per second, with --apply.
    #[arg(long, default_value = "1000")]
    rate: NonZeroU32,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// The result of the command.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Number of credits found, up to the limit.
    found: u64,
    /// Whether more credits exist.
    more: bool,
    /// Number of credits that were sent to be checked, with a confirm for each.
    sent: u64,
    /// Number of credits that cannot be sent, because their IDs or points are not valid in pointsd.
    not_sendable: u64,
    /// The credits found; present without `--apply`.
    #[serde(skip_serializing_if = "Option::is_none")]
    listed: Option<Vec<UnverifiedCredit>>,
    /// Whether credits were left out because their checks may still be waiting. `--older-than` includes them.
    younger_left_out: bool,
    /// The reason why the command did not reach the end.
    stopped: Option<String>,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    if arguments.apply && !settings.pay_status.is_some() {
        return Err(UsageError(
            "--apply: pay_status.source is \"none\"; there is no payment source to check the credits".into(),
        )
        .into());
    }
    let ledger = reading(&settings.ledger).await?;
    let publisher =
        if arguments.apply { Some(Publisher::open(&settings.broker).await.context("broker")?) } else { None };
    let overdue_after = if arguments.reversed { Duration::ZERO } else { settings.compensation.overdue_after() };
    let page = UnverifiedPage {
        reversed: arguments.reversed,
        older_than: arguments.older_than.unwrap_or(overdue_after),
        newer_than: arguments.newer_than,
        after: None,
        limit: PAGE,
    };
    let reconciliation = Reconciliation {
        settings,
        arguments,
        ledger: &ledger,
        publisher: publisher.as_ref(),
        progress: ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{spinner} {pos} sent {per_sec}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        ),
        stop: stop_on_signals(|_| {})?,
    };
    let mut report = Report { listed: (!arguments.apply).then(Vec::new), ..Report::default() };
    let mut done = reconciliation.process_pages(page.clone(), &mut report).await;
    if done.is_ok() && arguments.older_than.is_none() && !overdue_after.is_zero() {
        let younger = UnverifiedPage {
            older_than: Duration::ZERO,
            newer_than: Some(overdue_after),
            after: None,
            limit: 1,
            ..page
        };
        let read = ledger.call_at_leisure(move |ledger| ledger.unverified(&younger)).await;
        // The report is printed also if this fails.
        done = read.map(|credits| report.younger_left_out = !credits.is_empty()).map_err(ledger_error);
    }
    reconciliation.progress.finish_and_clear();
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

/// One run of the command.
struct Reconciliation<'a> {
    settings: &'a Settings,
    arguments: &'a Arguments,
    ledger: &'a WithDeadline<dyn Ledger>,
    /// The connection for sending; `None` without `--apply`.
    publisher: Option<&'a Publisher>,
    progress: ProgressBar,
    stop: CancellationToken,
}

impl Reconciliation<'_> {
    /// Reads the credits page by page, and lists or sends them.
    async fn process_pages(&self, mut page: UnverifiedPage, report: &mut Report) -> anyhow::Result<()> {
        let mut limit = self.arguments.limit.unwrap_or(if self.arguments.apply { u64::MAX } else { 1000 });
        loop {
            let requested = page.clone();
            let read = self.ledger.call_at_leisure(move |ledger| ledger.unverified(&requested)).await;
            let mut credits = read.map_err(ledger_error)?;
            let Some(last) = credits.last() else { return Ok(()) };
            page.after = Some((last.since.clone(), last.payment_id.clone()));
            if credits.len() as u64 > limit {
                report.more = true;
                credits.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
            }
            limit -= credits.len() as u64;
            report.found += credits.len() as u64;
            match self.publisher {
                Some(publisher) => self.send_page(publisher, &credits, report).await?,
                None => report.listed.get_or_insert_default().extend(credits),
            }
            if report.more {
                return Ok(());
            }
            if self.stop.is_cancelled() {
                report.stopped = Some("interrupted".into());
                return Ok(());
            }
        }
    }

    /// Sends the credits of a page in check messages with the user and points of the ledger, at the configured rate.
    /// After an interruption nothing is lost: the next run sends some of the credits again.
    async fn send_page(
        &self,
        publisher: &Publisher,
        credits: &[UnverifiedCredit],
        report: &mut Report,
    ) -> anyhow::Result<()> {
        let rate = self.arguments.rate.get();
        // The credits of a tenth of a second.
        let together = (rate as usize).div_ceil(10).min(500);
        let takes = Duration::from_secs_f64(f64::from(u32::try_from(together).unwrap_or(u32::MAX)) / f64::from(rate));
        for chunk in credits.chunks(together) {
            let due = tokio::time::Instant::now() + takes;
            let mut writer = Writer::new(self.settings.check_limits());
            let checks: Vec<ScheduledCheck> = chunk.iter().filter_map(build_check).collect();
            for check in &checks {
                writer.push(check);
            }
            report.not_sendable += (chunk.len() - checks.len()) as u64;
            let check_queue = &self.settings.broker.check_queue;
            let messages: Result<Vec<_>, _> =
                writer.finish().into_iter().map(|body| Outgoing::checks(check_queue, body)).collect();
            publisher.publish(&messages?).await.context("broker")?;
            report.sent += checks.len() as u64;
            self.progress.set_position(report.sent);
            if self.stop.run_until_cancelled(tokio::time::sleep_until(due)).await.is_none() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// Builds the check of a credit; `None` for a row of another program whose IDs or points are not valid in pointsd.
fn build_check(credit: &UnverifiedCredit) -> Option<ScheduledCheck> {
    let claim =
        Claim { user_id: UserId::new(&credit.user_id).ok()?, points: Points::new(credit.points, MAX_POINTS_LIMIT)? };
    Some(ScheduledCheck { payment_id: PaymentId::new(&credit.payment_id).ok()?, about: About::Claim(claim) })
}

impl Report {
    /// Prints the report. `overdue_after` is the age up to which the checks of a credit may still be waiting.
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
                "credits younger than {} are left out, because their checks may still be waiting; if their checks were \
                 lost, --older-than 1m includes them (a check that is sent twice changes nothing)",
                humantime::format_duration(overdue_after)
            ))?;
        }
        if self.not_sendable > 0 {
            output.line(&format!("{} credits cannot be sent: their IDs or points are not valid", self.not_sendable))?;
        }
        if let Some(stopped) = &self.stopped {
            output.line(&format!("stopped: {stopped}; run the command again for the remaining credits"))?;
        }
        Ok(())
    }
}
