//! Publish, confirm, then remove: whenever this dies, a message is in the dead queue, in the queue that it came from, or
//! in both; never in none.
//!
//! The broker takes deliveries back that are held for half an hour, so a long run goes in rounds: each takes what it can
//! send in ten minutes, and lets go of everything else. What is meant is fixed in the first round, message by message.

use super::{Arguments, Report};
use crate::{
    broker::{BrokerError, HeldLetter, Outgoing, Publisher, Tag},
    cli::{
        Output,
        dead::{Walk, complain_of, parked, printable},
    },
    config::Settings,
    parked::{Groups, Parked, Selection},
};
use anyhow::Context as _;
use indicatif::{ProgressBar, ProgressStyle};
use jiff::Timestamp;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    time::Duration,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Most messages that are published and confirmed together.
const CHUNK: usize = 500;

/// Most bytes of messages that are kept in memory.
const MOST_BYTES: usize = 64 * 1024 * 1024;

/// How long deliveries are held at most.
const ROUND: Duration = Duration::from_secs(600);

/// How long the broker has to put back what a round has let go of.
const BETWEEN_ROUNDS: Duration = Duration::from_secs(1);

/// After so many rounds that find nothing of what is left, somebody else has taken it.
const MOST_EMPTY_ROUNDS: u32 = 5;

/// How long what comes back is looked out for after the last message.
const LAST_LOOK: Duration = Duration::from_secs(1);

/// A run on its way.
pub(super) struct Run<'a> {
    settings: &'a Settings,
    arguments: &'a Arguments,
    selection: &'a Selection,
    stop: CancellationToken,
    now: Timestamp,
    report: Report,
    /// What was meant in the first round and is not sent yet, by fingerprint.
    frozen: Option<HashMap<u64, u32>>,
    /// Of this round: what of this run lies in the dead queue again.
    came_back: u64,
    groups: Groups,
    /// Whether the queues are there that messages go back to.
    targets: BTreeMap<String, bool>,
    progress: ProgressBar,
    /// How many rounds in a row have found nothing of what is left.
    empty_rounds: u32,
    /// When the next chunk may go, by the rate.
    next_due: Instant,
}

/// A message that is sent in this round.
struct Chosen {
    found: HeldLetter,
    target: String,
}

impl<'a> Run<'a> {
    pub(super) fn new(
        settings: &'a Settings,
        arguments: &'a Arguments,
        selection: &'a Selection,
        now: Timestamp,
        stop: CancellationToken,
        report: Report,
    ) -> Self {
        Self {
            settings,
            arguments,
            selection,
            stop,
            now,
            report,
            frozen: None,
            came_back: 0,
            groups: Groups::default(),
            targets: BTreeMap::new(),
            progress: ProgressBar::hidden(),
            empty_rounds: 0,
            next_due: Instant::now(),
        }
    }

    /// What became of it, and what was meant.
    pub(super) fn finish(self) -> (Report, Groups) {
        self.progress.finish_and_clear();
        (self.report, self.groups)
    }

    /// One after the other, until everything is sent or something stops it.
    pub(super) async fn rounds(&mut self, output: &mut Output) -> anyhow::Result<()> {
        let publisher = Publisher::open(&self.settings.broker).await.context("broker")?;
        let done = loop {
            match self.round(&publisher, output).await {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        publisher.close().await;
        done
    }

    /// Looks through the whole queue, sends what it takes, lets go of the rest. `true`: there is more to be sent.
    async fn round(&mut self, publisher: &Publisher, output: &mut Output) -> anyhow::Result<bool> {
        let begun = Instant::now();
        let mut walk = Walk::begin(self.settings, output).await?;
        self.came_back = 0;
        let first = self.frozen.is_none();
        let mut frozen = self.frozen.take().unwrap_or_default();
        let (mut chosen, mut bytes) = (Vec::new(), 0);
        while let Some((found, parked)) = walk.next().await? {
            if self.stop.is_cancelled() {
                break;
            }
            anyhow::ensure!(begun.elapsed() < ROUND, "to look through the dead queue takes longer than {ROUND:?}");
            let fingerprint = fingerprint(&found, &parked);
            if self.is_ours(&parked) {
                self.stop_for(&parked);
            } else if first && self.is_meant(&parked, publisher).await? {
                self.report.selected += 1;
                self.groups.add(&parked);
                *frozen.entry(fingerprint).or_default() += 1;
            }
            let room = chosen.len() < self.most_in_a_round() && (bytes == 0 || bytes + found.size() <= MOST_BYTES);
            match &parked.source_queue {
                Some(target) if room && !self.arguments.dry_run && take_one(&mut frozen, fingerprint) => {
                    bytes += found.size();
                    chosen.push(Chosen { found, target: target.clone() });
                }
                _ => walk.release(found).await?,
            }
        }
        if first && !self.arguments.dry_run {
            self.progress = ProgressBar::new(self.report.selected).with_style(
                ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}")
                    .unwrap_or_else(|_| ProgressStyle::default_bar()),
            );
        }
        let nothing_found = chosen.is_empty();
        self.frozen = Some(frozen);
        if first && !self.stop.is_cancelled() {
            self.report.unseen = walk.left.into();
            self.report.other_readers = !walk.alone;
        }
        let mut removed = HashSet::new();
        let sent = self.send(&chosen, &mut removed, &mut walk, publisher).await;
        if sent.is_ok() {
            for Chosen { found, .. } in chosen {
                if !removed.contains(&found.tag()) {
                    walk.release(found).await?;
                }
            }
        }
        let closed = walk.queue.close().await.context("broker");
        sent?;
        let closed = closed?;
        complain_of(&closed, output);
        self.report.vanished += closed.vanished;
        self.report.not_renewed += closed.not_renewed.map_or(0, |(messages, _)| messages);
        if self.report.stopped.is_none() && self.stop.is_cancelled() {
            self.report.stopped = Some("interrupted".into());
        }
        let left: u32 = self.frozen.iter().flat_map(HashMap::values).sum();
        if left == 0 || self.report.stopped.is_some() || self.arguments.dry_run {
            return Ok(false);
        }
        self.empty_rounds = if nothing_found { self.empty_rounds + 1 } else { 0 };
        if self.empty_rounds > MOST_EMPTY_ROUNDS {
            self.report.stopped = Some(format!("{left} of them are not there any more: somebody else has taken them"));
            return Ok(false);
        }
        // The broker puts back what was let go of.
        tokio::time::sleep(BETWEEN_ROUNDS).await;
        Ok(true)
    }

    /// Whether a message of the first round is to be sent.
    async fn is_meant(&mut self, parked: &Parked, publisher: &Publisher) -> anyhow::Result<bool> {
        let selected = self.selection.takes(parked, self.now) && !self.is_enough();
        Ok(selected && self.target(parked, publisher).await?.is_some())
    }

    fn is_ours(&mut self, parked: &Parked) -> bool {
        let ours = parked.requeue_id.as_deref() == Some(&self.report.requeue_id);
        self.came_back += u64::from(ours);
        self.report.returned = self.report.returned.max(self.came_back);
        ours
    }

    /// Something that was sent has come back: nothing more is sent, unless it was asked for.
    fn stop_for(&mut self, parked: &Parked) -> bool {
        if self.arguments.keep_going {
            return false;
        }
        let Parked { reason, error, .. } = parked;
        let error = error.as_deref().unwrap_or_default();
        self.report.stopped = Some(format!("what was sent comes back: {}: {}", printable(reason), printable(error)));
        true
    }

    fn is_enough(&self) -> bool {
        self.arguments.limit.is_some_and(|limit| self.report.selected >= limit)
    }

    fn most_in_a_round(&self) -> usize {
        self.arguments.rate.map_or(usize::MAX, |rate| {
            usize::try_from(u64::from(rate.get()) * ROUND.as_secs() / 2).unwrap_or(usize::MAX)
        })
    }

    /// Where a message goes back to; `None`, and counted, when that cannot be.
    async fn target(&mut self, parked: &Parked, publisher: &Publisher) -> anyhow::Result<Option<String>> {
        let Some(queue) = &parked.source_queue else {
            self.not_sendable("nothing says which queue it came from".into());
            return Ok(None);
        };
        let there = if let Some(there) = self.targets.get(queue) {
            *there
        } else {
            let there = *queue != self.settings.broker.dead_queue
                && !queue.starts_with("amq.")
                && (1..=255).contains(&queue.len())
                && publisher.has_queue(queue).await.context("broker")?;
            self.targets.insert(queue.clone(), there);
            there
        };
        if there {
            return Ok(Some(queue.clone()));
        }
        self.not_sendable(format!("the queue that it came from is not there: {}", printable(queue)));
        Ok(None)
    }

    fn not_sendable(&mut self, why: String) {
        self.report.not_sendable += 1;
        *self.report.not_sendable_reasons.entry(why).or_default() += 1;
    }

    async fn send(
        &mut self,
        chosen: &[Chosen],
        removed: &mut HashSet<Tag>,
        walk: &mut Walk<'_>,
        publisher: &Publisher,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + ROUND;
        let mut rest = chosen;
        while !rest.is_empty() && self.report.stopped.is_none() && !self.stop.is_cancelled() {
            if Instant::now() > deadline {
                // The broker would take them back soon; the next round finds them again.
                let frozen = self.frozen.get_or_insert_default();
                for Chosen { found, .. } in rest {
                    *frozen.entry(fingerprint(found, &parked(self.settings, found))).or_default() += 1;
                }
                return Ok(());
            }
            let (chunk, later) = rest.split_at(self.chunk().min(rest.len()));
            self.send_chunk(chunk, removed, walk, publisher).await?;
            rest = later;
            let last = rest.is_empty();
            let canaries = self.report.sent <= self.arguments.canary;
            let wait = if canaries && (last || self.report.sent == self.arguments.canary) {
                self.arguments.canary_wait
            } else if last {
                LAST_LOOK
            } else {
                Duration::ZERO
            };
            let due = self.until_due(chunk.len());
            self.look_out(wait.max(due), walk).await?;
        }
        Ok(())
    }

    /// How many go together now: the canaries alone, then by the rate, ten times a second.
    fn chunk(&self) -> usize {
        let canaries = self.arguments.canary.saturating_sub(self.report.sent);
        let most = self.arguments.rate.map_or(CHUNK, |rate| (rate.get() as usize).div_ceil(10).min(CHUNK));
        if canaries > 0 { usize::try_from(canaries).unwrap_or(most).min(most) } else { most }
    }

    /// How long until the next chunk may go, after one of so many messages. What was waited for longer than that is not
    /// made up for.
    fn until_due(&mut self, messages: usize) -> Duration {
        let Some(rate) = self.arguments.rate else { return Duration::ZERO };
        let now = Instant::now();
        #[expect(clippy::cast_precision_loss, reason = "a wait, not a count")]
        let takes = Duration::from_secs_f64(messages as f64 / f64::from(rate.get()));
        self.next_due = self.next_due.max(now) + takes;
        self.next_due.saturating_duration_since(now)
    }

    /// Publish, confirm, then remove.
    async fn send_chunk(
        &mut self,
        chunk: &[Chosen],
        removed: &mut HashSet<Tag>,
        walk: &mut Walk<'_>,
        publisher: &Publisher,
    ) -> anyhow::Result<()> {
        let mut by_target: BTreeMap<&str, Vec<&HeldLetter>> = BTreeMap::new();
        for Chosen { found, target } in chunk {
            by_target.entry(target).or_default().push(found);
        }
        for (target, found) in by_target {
            // Together only what goes to one queue: one that takes nothing must not hinder the others.
            let requeued = found.iter().map(|found| found.requeued(publisher, target, &self.report.requeue_id));
            let messages: Vec<Outgoing<'_>> = requeued.collect();
            let begun = found.len() as u64;
            self.report.uncertain += begun;
            let sent = publisher.publish(&messages).await;
            match sent {
                Ok(()) => {
                    let tags: Vec<Tag> = found.iter().map(|found| found.tag()).collect();
                    let before = self.report.sent;
                    let done = walk.queue.remove(&tags, &mut self.report.sent).await;
                    self.report.uncertain -= self.report.sent - before;
                    done.context("broker")?;
                    removed.extend(tags);
                    self.progress.set_position(self.report.sent);
                }
                Err(error @ (BrokerError::Unroutable { .. } | BrokerError::Nacked { .. })) => {
                    self.report.uncertain -= begun;
                    for _ in &found {
                        self.not_sendable(printable(&error.to_string()));
                    }
                }
                Err(error) => return Err(error).context("broker"),
            }
        }
        Ok(())
    }

    /// Watches the dead queue for what this run has sent.
    async fn look_out(&mut self, wait: Duration, walk: &mut Walk<'_>) -> anyhow::Result<()> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let found = if left.is_zero() {
                walk.queue.next_now().await.context("broker")?
            } else {
                let waited = self.stop.run_until_cancelled(walk.queue.next_within(left)).await;
                match waited {
                    None => return Ok(()),
                    Some(found) => found.context("broker")?,
                }
            };
            let Some(found) = found else {
                if left.is_zero() {
                    return Ok(());
                }
                continue;
            };
            let parked = parked(self.settings, &found);
            walk.release(found).await?;
            if self.is_ours(&parked) && self.stop_for(&parked) {
                return Ok(());
            }
        }
    }
}

/// Tells messages apart: everything that a requeue and a new failure would change is in it.
fn fingerprint(found: &HeldLetter, parked: &Parked) -> u64 {
    let mut hasher = DefaultHasher::new();
    found.body().hash(&mut hasher);
    (&parked.message_id, &parked.reason, &parked.source_queue, &parked.requeue_id).hash(&mut hasher);
    parked.first_failed_at.map(Timestamp::as_nanosecond).hash(&mut hasher);
    hasher.finish()
}

fn take_one(frozen: &mut HashMap<u64, u32>, fingerprint: u64) -> bool {
    let Some(count) = frozen.get_mut(&fingerprint) else { return false };
    *count -= 1;
    if *count == 0 {
        frozen.remove(&fingerprint);
    }
    true
}
