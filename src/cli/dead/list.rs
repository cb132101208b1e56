//! `pointsd dead list`

use super::{Exit, Output, age::age, exit_of, filter::Filter, reporter::TerminalReporter};
use crate::{
    dead_letters::{Environment, Group, ListOptions, ListReport, list},
    domain::{dead_letter::DeadLetter, printable::printable},
};
use jiff::Timestamp;
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Print one line per message instead of the counts.
    #[arg(long)]
    each: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(
    environment: Environment<'_>,
    arguments: &Arguments,
    output: &mut Output,
) -> anyhow::Result<Exit> {
    let options = ListOptions { selection: arguments.filter.selection(), each: arguments.each };
    let report = list(environment, &options, &mut TerminalReporter::new(output)).await?;
    let exit = exit_of(report.inspection);
    let queue = &environment.settings.broker.dead_queue;
    if arguments.json {
        print_json(queue, arguments.each, report, output)?;
    } else {
        print(queue, arguments.each, &report, output)?;
    }
    Ok(exit)
}

fn print_json(queue: &str, each: bool, report: ListReport, output: &mut Output) -> anyhow::Result<()> {
    #[derive(Serialize)]
    struct Json<'a> {
        queue: &'a str,
        messages: u64,
        #[serde(flatten)]
        content: Content,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "lowercase")]
    enum Content {
        Each(Vec<DeadLetter>),
        Groups(Vec<Group>),
    }
    let content = if each { Content::Each(report.each) } else { Content::Groups(report.groups) };
    output.json(&Json { queue, messages: report.messages, content })
}

fn print(queue: &str, each: bool, report: &ListReport, output: &mut Output) -> anyhow::Result<()> {
    for letter in &report.each {
        output.line(&letter_line(letter, report.now))?;
    }
    if !each {
        for line in report.groups.iter().flat_map(|group| group_lines(group, report.now)) {
            output.line(&line)?;
        }
    }
    Ok(output.line(&format!("{} messages in {queue}", report.messages))?)
}

/// Formats a reason and, below it, its errors, the most frequent first.
fn group_lines(group: &Group, now: Timestamp) -> Vec<String> {
    let first = group.first_error.as_deref().map(printable).unwrap_or_default();
    let span = |oldest, newest| format!("oldest {}, newest {}", age(oldest, now), age(newest, now));
    let mut lines = vec![format!(
        "{:>8}  {:<14}  {}  first: {first}",
        group.messages,
        printable(&group.reason),
        span(group.oldest, group.newest),
    )];
    // A single error is the first one, which is in the line above.
    if group.errors.len() > 1 {
        lines.extend(group.errors.iter().map(|error| {
            let text = error.error.as_deref().map_or_else(|| "(no error)".to_owned(), printable);
            format!("{:>8}    {text}  ({})", error.messages, span(error.oldest, error.newest))
        }));
    }
    if group.other_errors > 0 {
        lines.push(format!("{:>8}    with other errors", group.other_errors));
    }
    lines
}

fn letter_line(letter: &DeadLetter, now: Timestamp) -> String {
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
    format!(
        "{:<14}  payment {}  message {}  {} ago  attempts {}  from {}  {}",
        printable(&letter.reason),
        or_dash(&letter.payments()),
        or_dash(&letter.message_id),
        age(letter.first_failed_at, now),
        letter.attempts,
        or_dash(&letter.source_queue),
        or_dash(&letter.error),
    )
}
