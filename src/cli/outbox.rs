//! `pointsd outbox list|retry|drop`: list, retry or drop the events that are not published yet.

use super::{Exit, Output, UsageError, ledger_error, reading};
use crate::{
    config::Settings,
    database::WithDeadline,
    domain::printable::printable,
    ledger::{self, Listed, Outbox, RowSelection, Summary},
};
use serde::Serialize;
use serde_json::json;
use std::{
    io::{self, IsTerminal},
    sync::Arc,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, clap::Subcommand)]
enum Action {
    /// Count the messages that are not published yet, and list the first of them; change nothing.
    List {
        /// List only held messages and the messages that wait behind them.
        #[arg(long)]
        held: bool,
        /// Maximum number of messages to list.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(0..=10_000))]
        limit: i64,
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Retry held messages now. An ID retries every held message with its key.
    Retry {
        #[command(flatten)]
        which: SelectionArguments,
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
    /// Delete messages from the outbox: they are never published. Asks for confirmation first.
    Drop {
        #[command(flatten)]
        which: SelectionArguments,
        /// Do not ask for confirmation.
        #[arg(long)]
        yes: bool,
        /// Print JSON instead of text.
        #[arg(long)]
        json: bool,
    },
}

/// The selection of messages.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct SelectionArguments {
    /// IDs of the messages, as `list` prints them.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// Select all held messages.
    #[arg(long)]
    held: bool,
    /// Select all messages.
    #[arg(long)]
    all: bool,
}

impl SelectionArguments {
    fn selection(&self) -> RowSelection {
        match (self.held, self.all) {
            (true, _) => RowSelection::Held,
            (_, true) => RowSelection::All,
            _ => RowSelection::Ids(self.ids.clone()),
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    summary: Summary,
    messages: Vec<Listed>,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    // Opening the ledger checks the schema first; its error names the command to run.
    reading(&settings.ledger).await?;
    let (url, timeout) = (settings.ledger.url.clone(), settings.ledger.timeout);
    let outbox = WithDeadline::new(move || -> Arc<dyn Outbox> { ledger::open_outbox(&url, timeout) }, timeout);
    match &arguments.action {
        Action::List { held, limit, json } => {
            let (held, limit) = (*held, *limit);
            let summary = outbox.call(Outbox::summary).await.map_err(ledger_error)?;
            let messages =
                outbox.call_at_leisure(move |outbox| outbox.list(held, limit)).await.map_err(ledger_error)?;
            print_list(Report { summary, messages }, *json, output)
        }
        Action::Retry { which, json } => {
            let selection = which.selection();
            let retried = outbox.call_at_leisure(move |outbox| outbox.retry(&selection)).await.map_err(ledger_error)?;
            report("tried_again", "retried", retried, which, *json, output)
        }
        Action::Drop { which, yes, json } => {
            let selection = which.selection();
            if !yes && !confirm_drop(&selection, &outbox, output).await? {
                return Ok(Exit::Failed);
            }
            let dropped =
                outbox.call_at_leisure(move |outbox| outbox.drop_rows(&selection)).await.map_err(ledger_error)?;
            report("dropped", "dropped", dropped, which, *json, output)
        }
    }
}

fn print_list(report: Report, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    if json {
        output.json(&report)?;
        return Ok(Exit::Done);
    }
    let Report { summary: Summary { rows, held, oldest_seconds }, messages } = report;
    for message in &messages {
        output.line(&format_message(message))?;
    }
    let age = oldest_seconds.map_or_else(String::new, |seconds| format!(", the oldest is {seconds:.0} s old"));
    output.line(&format!("{rows} messages in the outbox{age}; {held} of them are held"))?;
    Ok(Exit::Done)
}

/// Returns the line of a message.
fn format_message(message: &Listed) -> String {
    let Listed { id, message_id, exchange, routing_key, key, attempts, last_error, created_at, next_try_at, .. } =
        message;
    let key = key.as_ref().map_or_else(String::new, |key| format!("  key {}", printable(key)));
    let state = match (next_try_at, last_error) {
        (None, _) => String::new(),
        (Some(at), None) => format!("  waits for an earlier message until {at}"),
        (Some(at), Some(error)) => format!("  attempts {attempts}, next at {at}: {}", printable(error)),
    };
    let (exchange, routing_key, message_id) = (printable(exchange), printable(routing_key), printable(message_id));
    format!("{id}  {created_at}  exchange {exchange}  {routing_key}{key}  message {message_id}{state}")
}

/// Prints the number of changed messages. Returns [`Exit::Failed`] if a selected ID does not exist or, for a retry, is
/// not held.
fn report(
    key: &str,
    action: &str,
    rows: usize,
    which: &SelectionArguments,
    json: bool,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    if json {
        output.json(&json!({ key: rows }))?;
    } else {
        output.line(&format!("{action} {rows} messages"))?;
    }
    Ok(if rows < which.ids.len() { Exit::Failed } else { Exit::Done })
}

/// Asks for confirmation on the terminal.
async fn confirm_drop(
    selection: &RowSelection,
    outbox: &WithDeadline<dyn Outbox>,
    output: &mut Output,
) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(UsageError(
            "there is no terminal to ask for confirmation; give --yes to delete the messages".into(),
        )
        .into());
    }
    let summary = outbox.call(Outbox::summary).await.map_err(ledger_error)?;
    let messages = match selection {
        RowSelection::All => summary.rows.to_string(),
        RowSelection::Held => summary.held.to_string(),
        RowSelection::Ids(ids) => ids.len().to_string(),
    };
    output.ask(&format!("Delete {messages} messages from the outbox permanently? Type yes:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    Ok(answer.await??.trim() == "yes")
}
