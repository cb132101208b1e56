//! The rounds of a run.

use super::{
    pending::Fingerprint,
    run::Run,
    send::{RoundLetter, send},
};
use crate::{
    broker::Publisher,
    dead_letters::{error::DeadLetterError, reporter::Reporter, walk::Walk},
    domain::dead_letter::DeadLetter,
};
use std::{collections::HashSet, time::Duration};
use tokio::time::Instant;

/// The maximum number of bytes of messages in memory.
const MAX_BYTES: usize = 64 * 1024 * 1024;

/// The maximum time for inspecting the queue, and again for sending: deliveries are held meanwhile.
const MAX_ROUND: Duration = Duration::from_secs(600);

/// How long the broker has to put back what a round has released.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// After this number of rounds that find no pending message, another reader has taken them.
const MAX_EMPTY_ROUNDS: u32 = 5;

/// Whether a round is the first, which fixes the selection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Round {
    First,
    Later,
}

/// Runs rounds until everything is sent or the run stops.
pub(super) async fn run_rounds(run: &mut Run<'_>, reporter: &mut dyn Reporter) -> Result<(), DeadLetterError> {
    let publisher = Publisher::open(&run.settings.broker).await?;
    let mut round = Round::First;
    let mut empty_rounds = 0;
    let done = loop {
        match run_round(run, round, &publisher, reporter).await {
            Err(error) => break Err(error),
            Ok(0) => empty_rounds += 1,
            Ok(_) => empty_rounds = 0,
        }
        if is_finished(run, empty_rounds) {
            break Ok(());
        }
        round = Round::Later;
        tokio::time::sleep(BETWEEN_ROUNDS).await;
    };
    publisher.close().await;
    done
}

/// Whether nothing is pending any more, or the run stops.
fn is_finished(run: &mut Run<'_>, empty_rounds: u32) -> bool {
    if run.report.stopped.is_none() && run.stop.is_cancelled() {
        run.report.stopped = Some("interrupted".into());
    }
    let pending = run.pending.count();
    if pending == 0 || run.report.stopped.is_some() || run.options.dry_run {
        return true;
    }
    if empty_rounds > MAX_EMPTY_ROUNDS {
        let stopped = format!("{pending} messages are not in the dead queue any more: another reader took them");
        run.report.stopped = Some(stopped);
        return true;
    }
    false
}

/// Walks through the whole queue, sends what the round takes, and releases the rest. Returns how many messages it took.
async fn run_round(
    run: &mut Run<'_>,
    round: Round,
    publisher: &Publisher,
    reporter: &mut dyn Reporter,
) -> Result<usize, DeadLetterError> {
    let mut walk = Walk::begin(run.settings, reporter).await?;
    run.begin_round();
    let letters = take_letters(run, round, &mut walk, publisher).await?;
    if round == Round::First {
        if !run.options.dry_run {
            reporter.begin(run.report.selected);
        }
        if !run.stop.is_cancelled() {
            run.report.unseen = walk.unseen();
            run.report.other_readers = walk.has_other_readers();
        }
    }
    let taken = letters.len();
    let mut removed = HashSet::new();
    let sent = send(run, &letters, MAX_ROUND, &mut walk, publisher, &mut removed, reporter).await;
    if sent.is_ok() {
        for RoundLetter { held, .. } in letters {
            if !removed.contains(&held.tag()) {
                walk.release(held).await?;
            }
        }
    }
    let closed = walk.close(reporter).await;
    sent?;
    let inspection = closed?;
    run.report.vanished += inspection.vanished;
    run.report.not_renewed += inspection.not_renewed;
    Ok(taken)
}

/// Takes the pending messages that one round can send, and releases all others. The first round selects them, too.
async fn take_letters(
    run: &mut Run<'_>,
    round: Round,
    walk: &mut Walk<'_>,
    publisher: &Publisher,
) -> Result<Vec<RoundLetter>, DeadLetterError> {
    let begun = Instant::now();
    let max_letters = run.rate.max_within(MAX_ROUND / 2);
    let (mut letters, mut bytes) = (Vec::new(), 0);
    while let Some((held, letter)) = walk.next().await? {
        if run.stop.is_cancelled() {
            break;
        }
        if begun.elapsed() >= MAX_ROUND {
            return Err(DeadLetterError::SlowInspection(MAX_ROUND));
        }
        let fingerprint = Fingerprint::of(&held, &letter);
        if !run.note_if_returned(&letter) && round == Round::First && is_selected(run, &letter, publisher).await? {
            run.report.selected += 1;
            run.groups.add(&letter);
            run.pending.add(fingerprint);
        }
        let has_room = letters.len() < max_letters && (bytes == 0 || bytes + held.size() <= MAX_BYTES);
        match letter.source_queue {
            Some(target) if has_room && !run.options.dry_run && run.pending.take(fingerprint) => {
                bytes += held.size();
                letters.push(RoundLetter { held, target, fingerprint });
            }
            _ => walk.release(held).await?,
        }
    }
    Ok(letters)
}

/// Whether a message is to be sent. Counts a selected message that cannot be sent.
async fn is_selected(run: &mut Run<'_>, letter: &DeadLetter, publisher: &Publisher) -> Result<bool, DeadLetterError> {
    let is_enough = run.options.limit.is_some_and(|limit| run.report.selected >= limit);
    if is_enough || !run.options.selection.matches(letter, run.now) {
        return Ok(false);
    }
    match run.targets.check(run.settings, letter.source_queue.as_deref(), publisher).await? {
        Ok(()) => Ok(true),
        Err(reason) => {
            run.report.count_not_sendable(reason);
            Ok(false)
        }
    }
}
