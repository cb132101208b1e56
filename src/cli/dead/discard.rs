//! `pointsd dead drop`

use super::{Audit, BEGUN, Exit, Filter, Output, UsageError, Walk, clock, printable, renew_all, stop_on_signals};
use crate::{
    broker::HeldLetter,
    config::Settings,
    domain::check_message::{self, BadCheck},
    parked::Groups,
};
use anyhow::Context as _;
use serde::Serialize;
use std::{
    io::{self, IsTerminal},
    time::Duration,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Everything that lies in the dead queue now.
    #[arg(long)]
    all: bool,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// So many are removed between two looks whether a signal has come.
const AT_A_TIME: usize = 500;

/// How long an answer is waited for: the broker takes deliveries back that are held for half an hour.
const TIME_TO_ANSWER: Duration = Duration::from_secs(600);

#[derive(Debug, Serialize)]
struct Report {
    selected: u64,
    dropped: u64,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let selection = arguments.filter.or_all(arguments.all)?;
    if !arguments.yes && !io::stdin().is_terminal() {
        return Err(UsageError("there is no terminal to ask; give --yes to drop for good".into()).into());
    }
    let now = clock::now(settings, &selection, output).await?;
    let mut walk = Walk::begin(settings, output).await?;
    let (mut tags, mut groups) = (Vec::new(), Groups::default());
    let (mut payments, mut shared, mut looked_at) = (0, Vec::new(), false);
    while let Some((found, parked)) = walk.next().await? {
        if selection.takes(&parked, now) {
            tags.push(found.tag());
            looked_at |= found.times_given_back() > 0;
            groups.add(&parked);
            payments += parked.payment_ids.len().max(1);
            let concerns_others =
                || parked.payment_ids.iter().any(|id| !selection.names(id)) || has_unreadable_checks(&found);
            if arguments.filter.selects_by_payment() && concerns_others() {
                shared.push(parked.message_id.clone());
            }
        } else {
            walk.release(found).await?;
        }
    }
    if !shared.is_empty() {
        walk.end(output).await?;
        if looked_at {
            renew_all(settings, output).await?;
        }
        let selected = tags.len() as u64;
        let end = "refused: about other payments, too";
        Audit { action: "drop", selection: &selection, selected: Some(selected), removed: 0, end, requeue_id: None }
            .tell(settings);
        if arguments.json {
            output.json(&Report { selected, dropped: 0 })?;
        }
        let ids: Vec<&str> = shared.iter().map(|id| id.as_deref().unwrap_or("(none)")).collect();
        output.complain(&format!(
            "nothing is dropped: these messages are about other payments, too; select them by --message-id, or without \
             --payment, to drop them whole: {}",
            printable(&ids.join(", "))
        ));
        return Ok(Exit::Failed);
    }
    // They are held while the person thinks: what is dropped is what was counted.
    let agreed = tags.is_empty() || arguments.yes || ask(settings, groups, (tags.len(), payments), output).await?;
    let mut report = Report { selected: tags.len() as u64, dropped: 0 };
    let audit = |removed, end: &str| {
        let selected = tags.len() as u64;
        Audit { action: "drop", selection: &selection, selected: Some(selected), removed, end, requeue_id: None }
            .tell(settings);
    };
    let stop = stop_on_signals()?;
    let seen = if agreed {
        audit(0, BEGUN);
        let mut dropped = Ok(());
        for some in tags.chunks(AT_A_TIME).take_while(|_| !stop.is_cancelled()) {
            dropped = walk.queue.remove(some, &mut report.dropped).await;
            if dropped.is_err() {
                break;
            }
        }
        let certain = || {
            let dropped = report.dropped;
            format!("{dropped} messages are dropped for certain; to drop the others, run it again, which is harmless")
        };
        let ended = dropped.context("broker").and(walk.end(output).await).with_context(certain);
        let end = match &ended {
            Err(error) => format!("{error:#}"),
            Ok(_) if stop.is_cancelled() => "interrupted".into(),
            Ok(_) => "done".into(),
        };
        audit(report.dropped, &end);
        ended?
    } else {
        let seen = walk.end(output).await?;
        audit(0, "not agreed to");
        seen
    };
    if looked_at && report.dropped < report.selected {
        renew_all(settings, output).await?;
    }
    if arguments.json {
        output.json(&report)?;
    } else {
        output.line(&format!("dropped {} of {} selected messages", report.dropped, report.selected))?;
    }
    Ok(if report.dropped == report.selected { seen } else { Exit::Failed })
}

/// Whether it has checks whose payments are not known.
fn has_unreadable_checks(found: &HeldLetter) -> bool {
    let is_unreadable = |check: &Result<_, BadCheck>| check.as_ref().is_err_and(|bad| bad.payment_id.is_none());
    found.is_check_message() && check_message::parse(found.body()).is_ok_and(|checks| checks.iter().any(is_unreadable))
}

async fn ask(
    settings: &Settings,
    groups: Groups,
    (messages, payments): (usize, usize),
    output: &mut Output,
) -> anyhow::Result<bool> {
    for group in groups.sorted() {
        output.ask(&format!("{:>8}  {}", group.messages, printable(&group.reason)));
    }
    let about = if payments > messages { format!(" about {payments} payments") } else { String::new() };
    let queue = &settings.broker.dead_queue;
    output.ask(&format!("drop these {messages} messages{about} of {queue} for good? Type yes:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    if let Ok(answer) = tokio::time::timeout(TIME_TO_ANSWER, answer).await {
        return Ok(answer??.trim() == "yes");
    }
    output.complain("no answer: nothing is dropped");
    Ok(false)
}
