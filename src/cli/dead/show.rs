//! `pointsd dead show`

use super::{Exit, Output, exit_of, filter::Filter, reporter::TerminalReporter, require_current_schema};
use crate::{
    dead_letters::{CurrentRecord, Environment, ShowOptions, ShownLetter, show},
    domain::printable::printable,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Show at most this number of messages.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    environment: Environment<'_>,
    arguments: &Arguments,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let schema = require_current_schema(environment.ledger).await;
    let options = ShowOptions {
        selection: arguments.filter.selection(),
        limit: arguments.limit as usize,
        ledger_problem: schema.err().map(|error| format!("{error:#}")),
    };
    let report = show(environment, &options, &mut TerminalReporter::new(output)).await?;
    if arguments.json {
        output.json(&report.letters)?;
    } else {
        for line in report.letters.iter().flat_map(lines) {
            output.line(&line)?;
        }
    }
    if report.more > 0 {
        output.complain(&format!("{} more; --limit shows more at a time", report.more));
    }
    if report.letters.is_empty() {
        output.complain(&format!("no message in {} is selected", environment.settings.broker.dead_queue));
        return Ok(Exit::Failed);
    }
    Ok(exit_of(report.inspection))
}

fn lines(shown: &ShownLetter) -> Vec<String> {
    let ShownLetter { letter, headers, body, body_base64, message, ledger_now } = shown;
    let or_none = |text: &Option<String>| text.as_deref().map_or_else(|| "none".to_owned(), printable);
    let version = |user: &str, points: i64| format!("user {}, {points} points", printable(user));
    let mut lines = vec![
        format!("{}: payment {}", printable(&letter.reason), or_none(&letter.payments())),
        format!("  error           {}", or_none(&letter.error)),
        format!("  message id      {}", or_none(&letter.message_id)),
        format!("  consumed from   {}", or_none(&letter.source_queue)),
        format!(
            "  failed first    {}, delayed retries {}",
            letter.first_failed_at.map_or_else(|| "unknown".to_owned(), |at| at.to_string()),
            letter.attempts
        ),
    ];
    if let Some(message) = message {
        lines.push(format!("  the message     {}", version(&message.user_id, message.points)));
    }
    if let Some(ledger) = &letter.ledger {
        lines.push(format!("  the ledger then {}", version(&ledger.user_id, ledger.points)));
    }
    lines.push(match ledger_now {
        CurrentRecord { record: Some(record), .. } => {
            format!("  the ledger now  {}, {}", version(&record.user_id, record.points), record.state)
        }
        CurrentRecord { record: None, not_asked: None } => "  the ledger now  payment not found".to_owned(),
        CurrentRecord { not_asked: Some(reason), .. } => format!("  the ledger now  not asked: {}", printable(reason)),
    });
    for (name, value) in headers {
        lines.push(format!("  header          {} = {}", printable(name), printable(&value.to_string())));
    }
    lines.push(match (body, body_base64) {
        (Some(body), _) => format!("  body            {}", printable(body)),
        (None, base64) => format!("  body (base64)   {}", base64.as_deref().unwrap_or_default()),
    });
    lines
}
