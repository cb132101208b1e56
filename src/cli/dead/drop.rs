//! `pointsd dead drop`

use super::{Exit, Output, UsageError, exit_of, filter::Filter, reporter::TerminalReporter};
use crate::{
    app::signals::stop_on_signals,
    dead_letters::{DropCandidates, DropReport, Environment, HeldSelection, MAX_HOLD, select_for_drop},
    domain::printable::printable,
};
use std::io::{self, IsTerminal};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Select all messages that are in the dead queue now.
    #[arg(long)]
    all: bool,
    /// Do not ask for confirmation.
    #[arg(long)]
    yes: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    environment: Environment<'_>,
    arguments: &Arguments,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let selection = arguments.filter.selection_or_all(arguments.all)?;
    if !arguments.yes && !io::stdin().is_terminal() {
        let error = "there is no terminal to ask for confirmation; give --yes to drop the messages permanently";
        return Err(UsageError(error.into()).into());
    }
    let held = match select_for_drop(environment, &selection, &mut TerminalReporter::new(output)).await? {
        DropCandidates::Held(held) => held,
        DropCandidates::Shared { report, message_ids } => {
            return refuse(arguments, report, &message_ids, output);
        }
    };
    let agreed =
        held.messages() == 0 || arguments.yes || ask(&environment.settings.broker.dead_queue, &held, output).await?;
    // Not before: until then a signal ends the process at once.
    let stop = stop_on_signals(|_| {})?;
    let reporter = &mut TerminalReporter::new(output);
    let report = if agreed { held.remove(&stop, reporter).await? } else { held.release(reporter).await? };
    let DropReport { selected, dropped, inspection } = report;
    if arguments.json {
        output.json(&report)?;
    } else {
        output.line(&format!("dropped {dropped} of {selected} selected messages"))?;
    }
    Ok(if dropped == selected { exit_of(inspection) } else { Exit::Failed })
}

/// Reports messages that are about other payments, too.
fn refuse(
    arguments: &Arguments,
    report: DropReport,
    message_ids: &[Option<String>],
    output: &mut Output,
) -> anyhow::Result<Exit> {
    if arguments.json {
        output.json(&report)?;
    }
    let ids: Vec<&str> = message_ids.iter().map(|id| id.as_deref().unwrap_or("(none)")).collect();
    output.complain(&format!(
        "nothing is dropped: these messages are about other payments, too; select them by --message-id, or without \
         --payment, to drop them whole: {}",
        printable(&ids.join(", "))
    ));
    Ok(Exit::Failed)
}

/// Asks for confirmation. Without an answer in time the messages are not dropped.
async fn ask(queue: &str, held: &HeldSelection<'_>, output: &mut Output) -> anyhow::Result<bool> {
    for group in held.groups() {
        output.ask(&format!("{:>8}  {}", group.messages, printable(&group.reason)));
    }
    let (messages, payments) = (held.messages(), held.payments());
    let about = if payments > messages { format!(" about {payments} payments") } else { String::new() };
    output.ask(&format!("Permanently drop {messages} messages{about} from {queue}? Type yes:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    if let Ok(answer) = tokio::time::timeout(MAX_HOLD, answer).await {
        return Ok(answer??.trim() == "yes");
    }
    output.complain("no answer: nothing is dropped");
    Ok(false)
}
