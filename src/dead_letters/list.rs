//! Listing and counting dead letters.

use super::{
    audit::log_inspection,
    clock,
    environment::Environment,
    error::DeadLetterError,
    groups::{Group, Groups},
    reporter::Reporter,
    selection::Selection,
    walk::{Inspection, Walk},
};
use crate::{config::Settings, domain::dead_letter::DeadLetter};
use jiff::Timestamp;

/// What to list.
#[derive(Debug, Clone, Default)]
pub struct ListOptions {
    /// Which dead letters.
    pub selection: Selection,
    /// Whether to return each of them, besides the counts.
    pub each: bool,
}

/// The selected dead letters.
#[derive(Debug)]
pub struct ListReport {
    /// The number of selected dead letters.
    pub messages: u64,
    /// The counts by reason and error, the largest first.
    pub groups: Vec<Group>,
    /// The dead letters by the time of their first failure; empty unless [`ListOptions::each`] is set.
    pub each: Vec<DeadLetter>,
    /// The time that ages are measured at.
    pub now: Timestamp,
    /// Whether every message was seen.
    pub inspection: Inspection,
}

/// Lists the selected dead letters. Changes nothing.
pub async fn list(
    environment: Environment<'_>,
    options: &ListOptions,
    reporter: &mut dyn Reporter,
) -> Result<ListReport, DeadLetterError> {
    let now = clock::now(environment, &options.selection, reporter).await?;
    let mut walk = Walk::begin(environment.settings, reporter).await?;
    let (mut groups, mut each, mut messages) = (Groups::default(), Vec::new(), 0);
    while let Some((held, letter)) = walk.next().await? {
        walk.release(held).await?;
        if options.selection.matches(&letter, now) {
            messages += 1;
            groups.add(&letter);
            if options.each {
                each.push(letter);
            }
        }
    }
    let inspection = walk.end(reporter).await?;
    each.sort_by_key(|letter| letter.first_failed_at);
    log_inspection(environment.settings, "list", &options.selection, messages);
    Ok(ListReport { messages, groups: groups.sorted(), each, now, inspection })
}

/// Returns the dead letters that are about one payment. Writes no audit line.
pub async fn list_payment(
    settings: &Settings,
    payment_id: &str,
    reporter: &mut dyn Reporter,
) -> Result<Vec<DeadLetter>, DeadLetterError> {
    let mut walk = Walk::begin(settings, reporter).await?;
    let mut letters = Vec::new();
    while let Some((held, letter)) = walk.next().await? {
        walk.release(held).await?;
        if letter.concerns(payment_id) {
            letters.push(letter);
        }
    }
    let _ = walk.end(reporter).await?;
    Ok(letters)
}
