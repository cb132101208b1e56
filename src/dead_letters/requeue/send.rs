//! Sending the messages of one round: publish, confirm, then remove.

use super::{pending::Fingerprint, run::Run};
use crate::{
    broker::{BrokerError, HeldLetter, Outgoing, Publisher, Tag},
    dead_letters::{error::DeadLetterError, reporter::Reporter, walk::Walk},
    domain::printable::printable,
};
use std::{
    collections::{BTreeMap, HashSet},
    time::Duration,
};
use tokio::time::Instant;

/// How long to watch for returning messages after the last one is sent.
const LAST_WATCH: Duration = Duration::from_secs(1);

/// A message that is sent in this round.
pub(super) struct RoundLetter {
    pub(super) held: HeldLetter,
    pub(super) target: String,
    pub(super) fingerprint: Fingerprint,
}

/// Sends messages, chunk by chunk, for at most `max_duration`. Adds those that are removed from the dead queue to `removed`. What
/// is not sent in time is pending again.
pub(super) async fn send(
    run: &mut Run<'_>,
    letters: &[RoundLetter],
    max_duration: Duration,
    walk: &mut Walk<'_>,
    publisher: &Publisher,
    removed: &mut HashSet<Tag>,
    reporter: &mut dyn Reporter,
) -> Result<(), DeadLetterError> {
    let deadline = Instant::now() + max_duration;
    let mut rest = letters;
    while !rest.is_empty() && !run.is_over() {
        if Instant::now() > deadline {
            // The broker would soon take the deliveries back. The next round finds the messages again.
            for letter in rest {
                run.pending.add(letter.fingerprint);
            }
            return Ok(());
        }
        let size = run.rate.next_chunk(run.report.sent).min(rest.len());
        let (chunk, later) = rest.split_at(size);
        send_chunk(run, chunk, walk, publisher, removed).await?;
        reporter.advance(run.report.sent);
        rest = later;
        let wait = watch_time(run, rest.is_empty()).max(run.rate.until_due(chunk.len()));
        watch(run, wait, walk).await?;
    }
    Ok(())
}

/// How long to watch for returning messages after a chunk.
fn watch_time(run: &Run<'_>, is_last: bool) -> Duration {
    let (sent, canary) = (run.report.sent, run.options.canary);
    if sent == canary || (sent < canary && is_last) {
        run.options.canary_wait
    } else if is_last {
        LAST_WATCH
    } else {
        Duration::ZERO
    }
}

/// Publishes a chunk, waits for the confirms, then removes the messages from the dead queue.
async fn send_chunk(
    run: &mut Run<'_>,
    chunk: &[RoundLetter],
    walk: &mut Walk<'_>,
    publisher: &Publisher,
    removed: &mut HashSet<Tag>,
) -> Result<(), DeadLetterError> {
    let mut by_target: BTreeMap<&str, Vec<&HeldLetter>> = BTreeMap::new();
    for RoundLetter { held, target, .. } in chunk {
        by_target.entry(target).or_default().push(held);
    }
    for (target, letters) in by_target {
        // One queue at a time: a queue that accepts nothing must not hinder the others.
        let requeued = letters.iter().map(|held| held.requeued(publisher, target, &run.report.requeue_id));
        let messages: Vec<Outgoing<'_>> = requeued.collect();
        let published = letters.len() as u64;
        run.report.uncertain += published;
        match publisher.publish(&messages).await {
            Ok(()) => {
                let tags: Vec<Tag> = letters.iter().map(|held| held.tag()).collect();
                let before = run.report.sent;
                let done = walk.remove(&tags, &mut run.report.sent).await;
                run.report.uncertain -= run.report.sent - before;
                done?;
                removed.extend(tags);
            }
            Err(error @ (BrokerError::Unroutable { .. } | BrokerError::Nacked { .. })) => {
                run.report.uncertain -= published;
                for _ in &letters {
                    run.report.count_not_sendable(printable(&error.to_string()));
                }
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Watches the dead queue for messages that this run has sent, until `wait` is over or the run stops.
async fn watch(run: &mut Run<'_>, wait: Duration, walk: &mut Walk<'_>) -> Result<(), DeadLetterError> {
    let until = Instant::now() + wait;
    let stop = run.stop.clone();
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let next = if left.is_zero() {
            walk.next_within(Duration::ZERO).await
        } else {
            match stop.run_until_cancelled(walk.next_within(left)).await {
                None => return Ok(()),
                Some(next) => next,
            }
        };
        match next? {
            None if left.is_zero() => return Ok(()),
            None => {}
            Some((held, letter)) => {
                walk.release(held).await?;
                if run.note_if_returned(&letter) && run.report.stopped.is_some() {
                    return Ok(());
                }
            }
        }
    }
}
