//! The options that select dead letters.

use crate::{
    cli::UsageError,
    dead_letters::Selection,
    domain::dead_letter::{DELIVERY_LIMIT, Reason, UNKNOWN},
};
use clap::builder::PossibleValuesParser;
use std::time::Duration;

/// Which messages.
#[derive(Debug, clap::Args)]
pub(super) struct Filter {
    /// Select this reason; can be given several times.
    #[arg(long, value_parser = reasons())]
    reason: Vec<String>,
    /// Select this payment; can be given several times. Also finds malformed messages whose payment ID can be read.
    #[arg(long, value_name = "PAYMENT", allow_hyphen_values = true)]
    payment: Vec<String>,
    /// Select this message ID; can be given several times.
    #[arg(long, value_name = "ID", allow_hyphen_values = true)]
    message_id: Vec<String>,
    /// Select messages whose error contains this text.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    error: Option<String>,
    /// Select messages whose first failure is older than this by the clock of the ledger's database, for example "2h" or "1day".
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    older_than: Option<Duration>,
    /// Select messages whose first failure is newer than this, by the same clock.
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    newer_than: Option<Duration>,
}

/// The reasons that a message can have.
fn reasons() -> PossibleValuesParser {
    PossibleValuesParser::new(Reason::ALL.map(Reason::label).into_iter().chain([DELIVERY_LIMIT, UNKNOWN]))
}

impl Filter {
    /// The selection; everything without a filter.
    pub(super) fn selection(&self) -> Selection {
        Selection {
            reasons: self.reason.clone(),
            payments: self.payment.clone(),
            message_ids: self.message_id.clone(),
            error: self.error.clone(),
            older_than: self.older_than,
            newer_than: self.newer_than,
        }
    }

    /// The selection for a command that removes messages: everything only with `--all`.
    pub(super) fn selection_or_all(&self, all: bool) -> Result<Selection, UsageError> {
        let selection = self.selection();
        match (selection.is_everything(), all) {
            (false, true) => Err(UsageError("--all cannot be given together with a filter".into())),
            (true, false) => Err(UsageError(
                "no messages are selected: give --reason, --payment, --message-id, --error, --older-than, --newer-than or --all"
                    .into(),
            )),
            _ => Ok(selection),
        }
    }
}
