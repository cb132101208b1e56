//! `pointsd dead list|show|requeue|export|drop`: the arguments and the output. The work is in [`crate::dead_letters`].

mod age;
mod drop;
mod export;
mod filter;
mod list;
mod reporter;
mod requeue;
mod show;

use super::{Exit, Output, UsageError, guarded, require_current_schema};
use crate::{
    app::logging,
    config::Settings,
    dead_letters::{self, Environment, Inspection},
    domain::dead_letter::DeadLetter,
    ledger::Access,
};
use anyhow::Context as _;
use reporter::TerminalReporter;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Count the messages by reason and error, or list each message. Changes nothing.
    List(list::Arguments),
    /// Show whole messages: headers, body, and the current state of the ledger. Changes nothing.
    Show(show::Arguments),
    /// Send messages back to the queues that they came from. A message leaves the dead queue after its copy is confirmed.
    ///
    /// The selection is fixed at the start: a message that fails again in the meantime is not sent twice. The command stops when a
    /// message that it has sent returns to the dead queue. Exit status 1 if it stopped or could not send everything.
    Requeue(requeue::Arguments),
    /// Write messages as JSON Lines, which `publish` and `replay` can read. Changes nothing.
    Export(export::Arguments),
    /// Delete messages from the dead queue permanently. Asks first.
    ///
    /// `dead list` with the same filters shows what would be dropped.
    Drop(drop::Arguments),
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    logging::install(&settings.log).context("log.format = \"journald\": cannot connect to the journal")?;
    let ledger = guarded(&settings.ledger, Access::Read);
    let environment = Environment { settings, ledger: &ledger };
    match &arguments.action {
        Action::List(arguments) => list::run(environment, arguments, output).await,
        Action::Show(arguments) => show::run(environment, arguments, output).await,
        Action::Requeue(arguments) => requeue::run(environment, arguments, output).await,
        Action::Export(arguments) => export::run(environment, arguments, output).await,
        Action::Drop(arguments) => drop::run(environment, arguments, output).await,
    }
}

/// Returns the dead letters of one payment.
pub(super) async fn of_payment(
    settings: &Settings,
    payment_id: &str,
    output: &mut Output,
) -> anyhow::Result<Vec<DeadLetter>> {
    Ok(dead_letters::list_payment(settings, payment_id, &mut TerminalReporter::new(output)).await?)
}

/// The exit status of a command that only inspects the dead queue.
fn exit_of(inspection: Inspection) -> Exit {
    if inspection.is_complete() { Exit::Done } else { Exit::Failed }
}
