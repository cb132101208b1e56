//! An inspection of the dead queue: every message that was in it at the start, once.

use super::{error::DeadLetterError, reporter::Reporter};
use crate::{
    broker::{Closed, DeadQueue, HeldLetter, Tag},
    config::Settings,
    domain::dead_letter::DeadLetter,
};
use std::time::Duration;

/// A walk through all messages that were in the dead queue when it began.
pub struct Walk<'a> {
    settings: &'a Settings,
    /// Boxed, because the futures of the use cases hold it.
    queue: Box<DeadQueue>,
    unseen: u32,
    other_readers: bool,
}

/// What a walk found out about the dead queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[must_use]
pub struct Inspection {
    /// The number of messages that were in the queue and were not seen.
    pub unseen: u64,
    /// Whether another reader held messages at the start, which were not seen.
    pub other_readers: bool,
    /// The number of messages that the queue should have after the walk and does not have.
    pub vanished: u64,
    /// The number of messages that were inspected before and could not be renewed by a copy.
    pub not_renewed: u64,
}

impl Inspection {
    /// Whether the walk saw every message and returned it.
    pub fn is_complete(self) -> bool {
        self == Self::default()
    }
}

impl<'a> Walk<'a> {
    /// Connects to the dead queue and counts its messages.
    pub async fn begin(settings: &'a Settings, reporter: &mut dyn Reporter) -> Result<Self, DeadLetterError> {
        let queue = Box::new(DeadQueue::open(&settings.broker).await?);
        let remark = queue.remark();
        if let Some(remark) = &remark {
            reporter.note(&format!("note: {remark}"));
        }
        Ok(Self { settings, unseen: queue.waiting(), other_readers: remark.is_some(), queue })
    }

    /// Returns the next message that was in the queue at the start, or `None` when there are no more.
    pub async fn next(&mut self) -> Result<Option<(HeldLetter, DeadLetter)>, DeadLetterError> {
        let Some(held) = self.queue.next().await? else { return Ok(None) };
        // Some of the last may have arrived later: nothing distinguishes them.
        self.unseen = self.unseen.saturating_sub(1);
        let letter = self.describe(&held);
        Ok(Some((held, letter)))
    }

    /// Returns the next message, also a newer one, or `None` when none arrives for `patience`. A patience of zero takes only
    /// what has arrived already.
    pub async fn next_within(
        &mut self,
        patience: Duration,
    ) -> Result<Option<(HeldLetter, DeadLetter)>, DeadLetterError> {
        let next =
            if patience.is_zero() { self.queue.next_now().await } else { self.queue.next_within(patience).await };
        Ok(next?.map(|held| {
            let letter = self.describe(&held);
            (held, letter)
        }))
    }

    /// Releases a message that is not needed any more; it returns to the queue at the end of the walk.
    pub async fn release(&mut self, held: HeldLetter) -> Result<(), DeadLetterError> {
        Ok(self.queue.release(held).await?)
    }

    /// Removes messages from the queue, and adds the number of those that are certain to be removed to `removed`, also when it
    /// fails.
    pub async fn remove(&mut self, tags: &[Tag], removed: &mut u64) -> Result<(), DeadLetterError> {
        Ok(self.queue.remove(tags, removed).await?)
    }

    /// The number of messages that were in the queue at the start and were not seen so far.
    pub fn unseen(&self) -> u64 {
        self.unseen.into()
    }

    /// Whether another reader held messages at the start.
    pub fn has_other_readers(&self) -> bool {
        self.other_readers
    }

    /// Ends the walk: everything that is held returns to the queue. Reports messages that vanished or could not be renewed.
    pub async fn close(self, reporter: &mut dyn Reporter) -> Result<Inspection, DeadLetterError> {
        let (unseen, other_readers) = (self.unseen(), self.other_readers);
        let Closed { vanished, not_renewed } = self.queue.close().await?;
        if vanished > 0 {
            reporter.note(&format!(
                "{vanished} messages vanished from the dead queue during this inspection: the broker dropped them at its \
                 delivery limit (check the policies), or another reader took them"
            ));
        }
        if let Some((messages, error)) = &not_renewed {
            reporter.note(&format!(
                "{messages} messages were inspected before and could not be renewed by a copy: {error}; each further \
                 inspection counts as a delivery, and the broker drops a message at its delivery limit"
            ));
        }
        Ok(Inspection { unseen, other_readers, vanished, not_renewed: not_renewed.map_or(0, |(messages, _)| messages) })
    }

    /// Ends the walk as [`Self::close`] does, and reports messages that were not seen.
    pub async fn end(self, reporter: &mut dyn Reporter) -> Result<Inspection, DeadLetterError> {
        let unseen = self.unseen();
        if unseen > 0 {
            reporter.note(&format!("{unseen} messages were not seen: another reader holds or has removed them"));
        }
        self.close(reporter).await
    }

    /// What a message says about itself, with its payments.
    fn describe(&self, held: &HeldLetter) -> DeadLetter {
        let letter = held.dead_letter();
        // A message that the broker moved has no header of its source, only the queue in which it died.
        let of_queue = || self.settings.source_of_queue(letter.source_queue.as_deref()?).map(str::to_owned);
        let source = held.source().or_else(of_queue);
        let mut payment_ids = self.settings.payments_of(held.is_check_message(), source.as_deref(), held.body());
        let payment_id = if payment_ids.len() == 1 { payment_ids.pop() } else { None };
        DeadLetter { payment_id, payment_ids, ..letter }
    }
}

/// Renews the messages that another walk held until its end: walks through the queue once and releases everything.
pub(super) async fn renew_all(settings: &Settings, reporter: &mut dyn Reporter) -> Result<(), DeadLetterError> {
    let mut walk = Walk::begin(settings, reporter).await?;
    while let Some((held, _)) = walk.next().await? {
        walk.release(held).await?;
    }
    let _ = walk.end(reporter).await?;
    Ok(())
}
