//! The audit lines of the use cases.

use super::selection::Selection;
use crate::{
    config::Settings,
    observe::events::{self, Event as _},
};

/// The end of the line that a use case logs before it removes the first message.
pub(super) const BEGUN: &str = "begun";

/// One audit line.
pub(super) struct Audit<'a> {
    /// The command.
    pub(super) action: &'a str,
    /// Which messages are selected.
    pub(super) selection: &'a Selection,
    /// The number of selected messages; `None` while it is unknown.
    pub(super) selected: Option<u64>,
    /// The number of messages that were removed from the dead queue.
    pub(super) removed: u64,
    /// How the command ended.
    pub(super) end: &'a str,
    /// The run of a requeue.
    pub(super) requeue_id: Option<&'a str>,
}

impl Audit<'_> {
    /// Logs the line, with the user who runs the command.
    pub(super) fn log(self, settings: &Settings) {
        events::DeadQueueAudit {
            who: &user(),
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

/// Logs the audit line of a command that removed nothing and is done.
pub(super) fn log_inspection(settings: &Settings, action: &str, selection: &Selection, selected: u64) {
    Audit { action, selection, selected: Some(selected), removed: 0, end: "done", requeue_id: None }.log(settings);
}

/// Returns the user and the host of this process, and the user who called `sudo`.
fn user() -> String {
    let unknown = |_| "unknown".to_owned();
    let user = whoami::username().unwrap_or_else(unknown);
    let host = whoami::hostname().unwrap_or_else(unknown);
    match std::env::var("SUDO_USER") {
        Ok(sudo) => format!("{user}@{host} (sudo by {sudo})"),
        Err(_) => format!("{user}@{host}"),
    }
}
