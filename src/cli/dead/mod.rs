//! `pointsd dead list|show|requeue|export|drop`

mod clock;
mod discard;
mod export;
mod list;
mod requeue;
mod show;

use super::{Exit, Output, UsageError};
use crate::{
    app::logging,
    broker::{Closed, DeadQueue, HeldLetter},
    config::Settings,
    domain::{dead_letter::Reason, ids::is_invisible},
    observe::events,
    parked::{DELIVERY_LIMIT, Parked, Selection, UNKNOWN},
};
use anyhow::Context as _;
use clap::builder::PossibleValuesParser;
use jiff::Timestamp;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Count what is parked, by reason; or list each message. Changes nothing.
    List(list::Arguments),
    /// Show messages whole: headers, body, what the ledger says now. Changes nothing.
    Show(show::Arguments),
    /// Send messages back to the queue that they came from. Each leaves the dead queue after its copy is confirmed.
    ///
    /// What is meant is fixed at the start: what fails again meanwhile is not taken twice. It stops by itself when
    /// something that it has sent comes back. Exit status 1 when it stopped, or could not send everything.
    Requeue(requeue::Arguments),
    /// Write messages as JSON Lines, as `publish` and `replay` read them. Changes nothing.
    Export(export::Arguments),
    /// Take messages out of the dead queue for good. Asks first.
    ///
    /// `dead list` with the same filters shows what would be dropped.
    Drop(discard::Arguments),
}

/// Which messages.
#[derive(Debug, clap::Args)]
struct Filter {
    /// Only of this reason; may be given several times.
    #[arg(long, value_parser = reasons())]
    reason: Vec<String>,
    /// Only of this payment; may be given several times. A malformed message is found, too, where its payment id can be read.
    #[arg(long, value_name = "PAYMENT", allow_hyphen_values = true)]
    payment: Vec<String>,
    /// Only with this message id; may be given several times.
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    message_id: Vec<String>,
    /// Only what failed with an error that contains this text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    error: Option<String>,
    /// Only what failed first longer ago than this by the ledger database's clock, as in "2h" or "1day".
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Only what failed first within this time, by the same clock.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

/// The reasons that a message can have.
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.map(Reason::label).into_iter().chain([DELIVERY_LIMIT, UNKNOWN]))
}

impl Filter {
    fn selection(&self) -> Selection {
        Selection {
            reasons: self.reason.clone(),
            payments: self.payment.clone(),
            message_ids: self.message_id.clone(),
            error: self.error.clone(),
            older_than: self.older_than,
            newer_than: self.newer_than,
        }
    }

    /// Whether payments are named, and no messages.
    fn selects_by_payment(&self) -> bool {
        !self.payment.is_empty() && self.message_id.is_empty()
    }

    /// For what changes the queue: everything must have been asked for.
    fn or_all(&self, all: bool) -> Result<Selection, UsageError> {
        let Self { reason, payment, message_id, error, older_than, newer_than } = self;
        let narrowed = !(reason.is_empty() && payment.is_empty() && message_id.is_empty())
            || error.is_some()
            || older_than.is_some()
            || newer_than.is_some();
        match (narrowed, all) {
            (true, true) => Err(UsageError("--all is given together with a filter; must be one of them".into())),
            (false, false) => Err(UsageError(
                "which messages? Give --reason, --payment, --message-id, --error, --older-than or --newer-than, or --all".into(),
            )),
            _ => Ok(self.selection()),
        }
    }
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    logging::install(&settings.log).context("log.format = \"journald\": the journal does not answer")?;
    match &arguments.action {
        Action::List(arguments) => list::run(settings, arguments, output).await,
        Action::Show(arguments) => show::run(settings, arguments, output).await,
        Action::Requeue(arguments) => requeue::run(settings, arguments, output).await,
        Action::Export(arguments) => export::run(settings, arguments, output).await,
        Action::Drop(arguments) => discard::run(settings, arguments, output).await,
    }
}

/// The messages of one payment that lie in the dead queue.
pub(super) async fn of_payment(
    settings: &Settings,
    payment_id: &str,
    output: &mut Output,
) -> anyhow::Result<Vec<Parked>> {
    let mut walk = Walk::begin(settings, output).await?;
    let mut messages = Vec::new();
    while let Some((found, parked)) = walk.next().await? {
        walk.release(found).await?;
        if parked.concerns(payment_id) {
            messages.push(parked);
        }
    }
    walk.end(output).await?;
    Ok(messages)
}

/// A look through everything that was in the dead queue when it began.
struct Walk<'a> {
    settings: &'a Settings,
    queue: DeadQueue,
    left: u32,
    /// Whether nobody else held messages when it began: they would not be seen.
    alone: bool,
}

impl<'a> Walk<'a> {
    async fn begin(settings: &'a Settings, output: &mut Output) -> anyhow::Result<Self> {
        let queue = DeadQueue::open(&settings.broker).await.context("broker")?;
        let remark = queue.remark();
        if let Some(remark) = &remark {
            output.complain(&format!("note: {remark}"));
        }
        Ok(Self { settings, left: queue.waiting(), alone: remark.is_none(), queue })
    }

    /// The next message of those; `None` at the end.
    async fn next(&mut self) -> anyhow::Result<Option<(HeldLetter, Parked)>> {
        let Some(found) = self.queue.next().await.context("broker")? else { return Ok(None) };
        // Some of the last may have come since: nothing tells them apart.
        self.left = self.left.saturating_sub(1);
        let parked = parked(self.settings, &found);
        Ok(Some((found, parked)))
    }

    /// Lets go of a message that this command does not need any more.
    async fn release(&mut self, found: HeldLetter) -> anyhow::Result<()> {
        self.queue.release(found).await.context("broker")
    }

    /// Lets go of everything. [`Exit::Failed`] when a message that was there was not seen, or is not there any more.
    async fn end(self, output: &mut Output) -> anyhow::Result<Exit> {
        let (unseen, alone) = (self.left, self.alone);
        let closed = self.queue.close().await.context("broker")?;
        if unseen > 0 {
            output.complain(&format!("{unseen} messages were not seen: another reader holds or has removed them"));
        }
        let whole = complain_of(&closed, output);
        Ok(if unseen == 0 && alone && whole { Exit::Done } else { Exit::Failed })
    }
}

/// What the end of a look has found out. Whether all is well.
fn complain_of(closed: &Closed, output: &mut Output) -> bool {
    let Closed { vanished, not_renewed } = closed;
    if *vanished > 0 {
        output.complain(&format!(
            "{vanished} messages vanished from the dead queue during this look: the broker dropped them at its delivery \
             limit (is there a policy?), or another reader took them"
        ));
    }
    if let Some((messages, error)) = not_renewed {
        output.complain(&format!(
            "{messages} messages were looked at before and could not be renewed by a copy: {error}; each further look \
             counts as a delivery, and the broker drops a message at its delivery limit"
        ));
    }
    *vanished == 0 && not_renewed.is_none()
}

/// Renews what a command has counted up and still held when it ended: one more look, which releases everything.
async fn renew_all(settings: &Settings, output: &mut Output) -> anyhow::Result<Exit> {
    let mut walk = Walk::begin(settings, output).await?;
    while let Some((found, _)) = walk.next().await? {
        walk.release(found).await?;
    }
    walk.end(output).await
}

/// What a message says of itself, and its payment.
fn parked(settings: &Settings, found: &HeldLetter) -> Parked {
    let parked = found.parked();
    // What the broker moved itself says no more than from which queue.
    let of_queue = || settings.source_of_queue(parked.source_queue.as_deref()?).map(str::to_owned);
    let source = found.source().or_else(of_queue);
    let mut payment_ids = settings.payments_of(found.is_check_message(), source.as_deref(), found.body());
    let payment_id = if payment_ids.len() == 1 { payment_ids.pop() } else { None };
    Parked { payment_id, payment_ids, ..parked }
}

/// SIGINT and SIGTERM end a command between two steps: the account is given, and the audit's line. The second one leaves
/// at once, as a kill does: nothing is lost by it.
pub(super) fn stop_on_signals() -> anyhow::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    let stop = CancellationToken::new();
    let token = stop.clone();
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            if token.is_cancelled() {
                std::process::exit(1);
            }
            token.cancel();
        }
    });
    Ok(stop)
}

/// What a command that removes messages says in the audit before the first of them.
const BEGUN: &str = "begun";

/// The audit's line.
struct Audit<'a> {
    action: &'a str,
    selection: &'a Selection,
    /// `None` before it is known.
    selected: Option<u64>,
    removed: u64,
    end: &'a str,
    requeue_id: Option<&'a str>,
}

impl Audit<'_> {
    fn tell(self, settings: &Settings) {
        events::DeadQueueAudit {
            who: &who(),
            action: self.action,
            queue: &settings.broker.dead_queue,
            selection: &self.selection.describe(),
            selected: self.selected,
            removed: self.removed,
            end: self.end,
            requeue_id: self.requeue_id,
        }
        .emit();
    }
}

/// Who runs this, and where: the system's word, and beside it whose `sudo` it is.
fn who() -> String {
    let unknown = |_| "unknown".to_owned();
    let user = whoami::username().unwrap_or_else(unknown);
    let host = whoami::hostname().unwrap_or_else(unknown);
    match std::env::var("SUDO_USER") {
        Ok(sudo) => format!("{user}@{host} (sudo by {sudo})"),
        Err(_) => format!("{user}@{host}"),
    }
}

/// Text of a message for a terminal: in one line, without what a terminal would act on, and with what is not seen made
/// visible.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let hidden = is_invisible(character) || character.is_control();
            let escaped = hidden.then(|| character.escape_default());
            let plain = escaped.is_none().then_some(character);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

/// How long ago, in two units.
fn age(since: Option<Timestamp>, now: Timestamp) -> String {
    let Some(since) = since else { return "?".to_owned() };
    let seconds = u64::try_from(now.duration_since(since).as_secs()).unwrap_or(0);
    let words = humantime::format_duration(Duration::from_secs(seconds)).to_string();
    words.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_made_visible() {
        assert_eq!(printable("a\u{1b}[31m\n\u{9b}\u{202e}支\u{200b}"), "a\\u{1b}[31m\\n\\u{9b}\\u{202e}支\\u{200b}");
    }

    #[test]
    fn ages_are_told_in_two_units() {
        let at = |seconds| Timestamp::from_second(seconds).unwrap();
        for (since, words) in
            [(Some(at(0)), "1day 1h"), (Some(at(90_061)), "0s"), (Some(at(99_999)), "0s"), (None, "?")]
        {
            assert_eq!(age(since, at(90_061)), words);
        }
    }
}
