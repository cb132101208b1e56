//! `pointsd dead list`

use super::{Audit, Exit, Filter, Output, Walk, age, clock, printable};
use crate::{
    config::Settings,
    parked::{Group, Groups, Parked},
};
use jiff::Timestamp;
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// A line for each message instead of the counts.
    #[arg(long)]
    each: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let selection = arguments.filter.selection();
    let now = clock::now(settings, &selection, output).await?;
    let mut walk = Walk::begin(settings, output).await?;
    let (mut groups, mut each, mut messages) = (Groups::default(), Vec::new(), 0);
    while let Some((found, parked)) = walk.next().await? {
        walk.release(found).await?;
        if selection.takes(&parked, now) {
            messages += 1;
            groups.add(&parked);
            if arguments.each {
                each.push(parked);
            }
        }
    }
    let exit = walk.end(output).await?;
    each.sort_by_key(|parked| parked.first_failed_at);
    Audit {
        action: "list",
        selection: &selection,
        selected: Some(messages),
        removed: 0,
        end: "done",
        requeue_id: None,
    }
    .tell(settings);
    print(settings, arguments, Listed { messages, groups, each }, now, output)?;
    Ok(exit)
}

struct Listed {
    messages: u64,
    groups: Groups,
    each: Vec<Parked>,
}

fn print(
    settings: &Settings,
    arguments: &Arguments,
    listed: Listed,
    now: Timestamp,
    output: &mut Output,
) -> anyhow::Result<()> {
    let queue = &settings.broker.dead_queue;
    let Listed { messages, groups, each } = listed;
    if arguments.json {
        #[derive(Serialize)]
        struct Json<'a, T> {
            queue: &'a str,
            messages: u64,
            #[serde(flatten)]
            what: T,
        }
        #[derive(Serialize)]
        #[serde(rename_all = "lowercase")]
        enum What {
            Each(Vec<Parked>),
            Groups(Vec<Group>),
        }
        let what = if arguments.each { What::Each(each) } else { What::Groups(groups.sorted()) };
        return output.json(&Json { queue, messages, what });
    }
    for parked in &each {
        output.line(&line(parked, now))?;
    }
    if !arguments.each {
        for group in groups.sorted() {
            for line in group_lines(&group, now) {
                output.line(&line)?;
            }
        }
    }
    Ok(output.line(&format!("{messages} messages in {queue}"))?)
}

/// A reason, and below it what happened, the most frequent first.
fn group_lines(group: &Group, now: Timestamp) -> Vec<String> {
    let first = group.first_error.as_deref().map(printable).unwrap_or_default();
    let span = |oldest, newest| format!("oldest {}, newest {}", age(oldest, now), age(newest, now));
    let mut lines = vec![format!(
        "{:>8}  {:<14}  {}  first: {first}",
        group.messages,
        printable(&group.reason),
        span(group.oldest, group.newest),
    )];
    // One error is the first one.
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

fn line(parked: &Parked, now: Timestamp) -> String {
    let or_dash = |text: &Option<String>| text.as_deref().map_or_else(|| "-".to_owned(), printable);
    format!(
        "{:<14}  payment {}  message {}  {} ago  attempts {}  from {}  {}",
        printable(&parked.reason),
        or_dash(&parked.payments()),
        or_dash(&parked.message_id),
        age(parked.first_failed_at, now),
        parked.attempts,
        or_dash(&parked.source_queue),
        or_dash(&parked.error),
    )
}
