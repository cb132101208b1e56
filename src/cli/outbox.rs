//! `pointsd outbox list|retry|drop`

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
    /// Count the messages that are not published yet, and list the first of them. Changes nothing.
    List {
        /// Only those that could not be delivered, and what waits behind them.
        #[arg(long)]
        held: bool,
        /// At most so many.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i64).range(0..=10_000))]
        limit: i64,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Have held messages tried again now instead of later. Of each one that is named the whole key.
    Retry {
        #[command(flatten)]
        which: Which,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// Take messages out of the outbox for good: nobody will ever receive them. Asks first.
    Drop {
        #[command(flatten)]
        which: Which,
        /// Do not ask.
        #[arg(long)]
        yes: bool,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Which messages.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Which {
    /// Their ids, as `list` tells them.
    #[arg(value_name = "ID")]
    ids: Vec<i64>,
    /// All that are held.
    #[arg(long)]
    held: bool,
    /// All of them.
    #[arg(long)]
    all: bool,
}

impl Which {
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
    // That the schema is there is looked at first: it says what to do.
    reading(&settings.ledger).await?;
    let (url, timeout) = (settings.ledger.url.clone(), settings.ledger.timeout);
    let outbox = WithDeadline::new(move || -> Arc<dyn Outbox> { ledger::open_outbox(&url, timeout) }, timeout);
    match &arguments.action {
        Action::List { held, limit, json } => {
            let (held, limit) = (*held, *limit);
            let summary = outbox.call(Outbox::summary).await.map_err(ledger_error)?;
            let messages =
                outbox.call_at_leisure(move |outbox| outbox.list(held, limit)).await.map_err(ledger_error)?;
            list(Report { summary, messages }, *json, output)
        }
        Action::Retry { which, json } => {
            let selection = which.selection();
            let tried = outbox.call_at_leisure(move |outbox| outbox.retry(&selection)).await.map_err(ledger_error)?;
            report("tried again", tried, which, *json, output)
        }
        Action::Drop { which, yes, json } => {
            let selection = which.selection();
            if !yes && !agreed(&selection, &outbox, output).await? {
                return Ok(Exit::Failed);
            }
            let dropped =
                outbox.call_at_leisure(move |outbox| outbox.drop_rows(&selection)).await.map_err(ledger_error)?;
            report("dropped", dropped, which, *json, output)
        }
    }
}

fn list(report: Report, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    if json {
        output.json(&report)?;
        return Ok(Exit::Done);
    }
    let Report { summary: Summary { rows, held, oldest_seconds }, messages } = report;
    for message in &messages {
        output.line(&line(message))?;
    }
    let age = oldest_seconds.map_or_else(String::new, |seconds| format!(", the oldest for {seconds:.0} s"));
    output.line(&format!("{rows} messages in the outbox{age}; {held} of them held"))?;
    Ok(Exit::Done)
}

fn line(message: &Listed) -> String {
    let Listed { id, message_id, exchange, routing_key, key, attempts, last_error, created_at, next_try_at, .. } =
        message;
    let key = key.as_ref().map_or_else(String::new, |key| format!("  key {}", printable(key)));
    let state = match (next_try_at, last_error) {
        (None, _) => String::new(),
        (Some(at), None) => format!("  waits for an earlier one until {at}"),
        (Some(at), Some(error)) => format!("  attempts {attempts}, next at {at}: {}", printable(error)),
    };
    let (exchange, routing_key, message_id) = (printable(exchange), printable(routing_key), printable(message_id));
    format!("{id}  {created_at}  exchange {exchange}  {routing_key}{key}  message {message_id}{state}")
}

/// [`Exit::Failed`] when one that was named is not there (any more), or not held.
fn report(what: &str, rows: usize, which: &Which, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    if json {
        output.json(&json!({ what.replace(' ', "_"): rows }))?;
    } else {
        output.line(&format!("{what}: {rows} messages"))?;
    }
    Ok(if rows < which.ids.len() { Exit::Failed } else { Exit::Done })
}

async fn agreed(
    selection: &RowSelection,
    outbox: &WithDeadline<dyn Outbox>,
    output: &mut Output,
) -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        return Err(UsageError("there is no terminal to ask; give --yes to drop for good".into()).into());
    }
    let summary = outbox.call(Outbox::summary).await.map_err(ledger_error)?;
    let messages = match selection {
        RowSelection::All => summary.rows.to_string(),
        RowSelection::Held => summary.held.to_string(),
        RowSelection::Ids(ids) => ids.len().to_string(),
    };
    output.ask(&format!("drop {messages} messages of the outbox for good? Type yes:"));
    let answer = tokio::task::spawn_blocking(|| {
        let mut answer = String::new();
        io::stdin().read_line(&mut answer).map(|_| answer)
    });
    Ok(answer.await??.trim() == "yes")
}
