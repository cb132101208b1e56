//! Dropping dead letters: select and hold them, then remove or release them.

use super::{
    audit::{Audit, BEGUN},
    clock,
    environment::Environment,
    error::DeadLetterError,
    groups::{Group, Groups},
    reporter::Reporter,
    selection::Selection,
    walk::{Inspection, Walk, renew_all},
};
use crate::{
    broker::{HeldLetter, Tag},
    config::Settings,
    domain::{
        check_message::{self, BadCheck},
        dead_letter::DeadLetter,
    },
};
use serde::Serialize;
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// The maximum time to hold a selection while a person decides: the broker takes deliveries back that are held for half an
/// hour.
pub const MAX_HOLD: Duration = Duration::from_secs(600);

/// The number of messages that are removed before the stop signal is checked again.
const REMOVED_TOGETHER: usize = 500;

/// The result of a drop.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct DropReport {
    /// The number of selected messages.
    pub selected: u64,
    /// The number of messages that are certain to be removed.
    pub dropped: u64,
    /// Whether every message was seen.
    #[serde(skip)]
    pub inspection: Inspection,
}

/// The messages that a selection finds.
pub enum DropCandidates<'a> {
    /// They are held until the caller removes or releases them.
    Held(HeldSelection<'a>),
    /// Some messages are about payments that are not selected. Everything is released.
    Shared {
        /// The number of selected messages, and that none was dropped.
        report: DropReport,
        /// The message IDs of the messages that are about other payments, too.
        message_ids: Vec<Option<String>>,
    },
}

/// Selected messages that are held. What is dropped is exactly what was counted.
pub struct HeldSelection<'a> {
    settings: &'a Settings,
    selection: &'a Selection,
    walk: Walk<'a>,
    letters: SelectedLetters,
    groups: Vec<Group>,
}

/// The selected messages of a walk.
#[derive(Default)]
struct SelectedLetters {
    tags: Vec<Tag>,
    groups: Groups,
    payments: usize,
    /// Whether one of them was inspected before, so that it must be renewed if it is not removed.
    needs_renewal: bool,
    /// The message IDs of those that are about other payments, too.
    shared: Vec<Option<String>>,
}

/// Selects messages and holds them.
pub async fn select_for_drop<'a>(
    environment: Environment<'a>,
    selection: &'a Selection,
    reporter: &mut dyn Reporter,
) -> Result<DropCandidates<'a>, DeadLetterError> {
    let settings = environment.settings;
    let now = clock::now(environment, selection, reporter).await?;
    let mut walk = Walk::begin(settings, reporter).await?;
    let mut letters = SelectedLetters::default();
    while let Some((held, letter)) = walk.next().await? {
        if selection.matches(&letter, now) {
            letters.add(selection, &held, letter);
        } else {
            walk.release(held).await?;
        }
    }
    let groups = std::mem::take(&mut letters.groups).sorted();
    let message_ids = std::mem::take(&mut letters.shared);
    let held = HeldSelection { settings, selection, walk, letters, groups };
    if message_ids.is_empty() {
        return Ok(DropCandidates::Held(held));
    }
    let report = held.end("refused: about other payments, too", reporter).await?;
    Ok(DropCandidates::Shared { report, message_ids })
}

impl SelectedLetters {
    fn add(&mut self, selection: &Selection, held: &HeldLetter, letter: DeadLetter) {
        self.tags.push(held.tag());
        self.needs_renewal |= held.times_given_back() > 0;
        self.groups.add(&letter);
        self.payments += letter.payment_ids.len().max(1);
        let concerns_others =
            || letter.payment_ids.iter().any(|id| !selection.names_payment(id)) || has_checks_of_unknown_payments(held);
        if selection.is_by_payment() && concerns_others() {
            self.shared.push(letter.message_id);
        }
    }
}

impl HeldSelection<'_> {
    /// The number of messages.
    pub fn messages(&self) -> u64 {
        self.letters.tags.len() as u64
    }

    /// The number of payments that they are about. A message without a readable payment counts as one.
    pub fn payments(&self) -> u64 {
        self.letters.payments as u64
    }

    /// The counts by reason and error, the largest first.
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// Removes the messages from the dead queue. `stop` ends it between two steps.
    pub async fn remove(
        mut self,
        stop: &CancellationToken,
        reporter: &mut dyn Reporter,
    ) -> Result<DropReport, DeadLetterError> {
        let (settings, selected) = (self.settings, self.messages());
        let audit = |selection: &Selection, removed, end: &str| {
            Audit { action: "drop", selection, selected: Some(selected), removed, end, requeue_id: None }.log(settings);
        };
        audit(self.selection, 0, BEGUN);
        let mut dropped = 0;
        let mut removal = Ok(());
        for tags in self.letters.tags.chunks(REMOVED_TOGETHER).take_while(|_| !stop.is_cancelled()) {
            removal = self.walk.remove(tags, &mut dropped).await;
            if removal.is_err() {
                break;
            }
        }
        let ended = self.walk.end(reporter).await;
        let ended = removal.and(ended).map_err(|error| DeadLetterError::Drop { dropped, error: Box::new(error) });
        let end = match &ended {
            Err(error) => error.to_string(),
            Ok(_) if stop.is_cancelled() => "interrupted".into(),
            Ok(_) => "done".into(),
        };
        audit(self.selection, dropped, &end);
        let inspection = ended?;
        if self.letters.needs_renewal && dropped < selected {
            renew_all(settings, reporter).await?;
        }
        Ok(DropReport { selected, dropped, inspection })
    }

    /// Returns the messages to the dead queue, because the person does not agree.
    pub async fn release(self, reporter: &mut dyn Reporter) -> Result<DropReport, DeadLetterError> {
        self.end("not agreed to", reporter).await
    }

    /// Ends without removing anything.
    async fn end(self, end: &str, reporter: &mut dyn Reporter) -> Result<DropReport, DeadLetterError> {
        let (settings, selection, selected) = (self.settings, self.selection, self.messages());
        let inspection = self.walk.end(reporter).await?;
        Audit { action: "drop", selection, selected: Some(selected), removed: 0, end, requeue_id: None }.log(settings);
        if self.letters.needs_renewal && selected > 0 {
            renew_all(settings, reporter).await?;
        }
        Ok(DropReport { selected, dropped: 0, inspection })
    }
}

/// Whether the message has checks whose payments cannot be read.
fn has_checks_of_unknown_payments(held: &HeldLetter) -> bool {
    let is_unreadable = |check: &Result<_, BadCheck>| check.as_ref().is_err_and(|bad| bad.payment_id.is_none());
    held.is_check_message() && check_message::parse(held.body()).is_ok_and(|checks| checks.iter().any(is_unreadable))
}
