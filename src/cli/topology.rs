//! `pointsd topology [print|declare|check|retire]`: print, declare or check what pointsd needs at the broker.

use super::{Exit, Output};
use crate::{
    broker::{Binding, ExchangeSpec, QueueSpec, Topology},
    config::Settings,
};
use anyhow::Context as _;
use indicatif::ProgressBar;
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    action: Option<Action>,
    /// Print JSON instead of text.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Print what is needed, without connecting to the broker (the default).
    Print,
    /// Declare what is missing at the broker.
    Declare,
    /// Compare the broker with what is needed; change nothing. Exit status 1 if something is missing or different.
    Check,
    /// Delete a delay queue that is no longer configured, after all of its messages have returned to their queue. This
    /// can take as long as the delay. An interruption loses no message.
    Retire {
        /// Name of the delay queue, for example points.credit.retry.5s
        queue: String,
    },
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let topology = Topology::of(&settings.plan());
    match arguments.action.as_ref().unwrap_or(&Action::Print) {
        Action::Print => print(&topology, arguments.json, output),
        Action::Declare => {
            topology.declare(&settings.broker).await.context("broker")?;
            print(&topology, arguments.json, output)
        }
        Action::Retire { queue } => {
            let progress = ProgressBar::new_spinner();
            let waiting = |messages| {
                progress.set_message(format!("{messages} messages wait in {queue}"));
                progress.tick();
            };
            topology.retire(&settings.plan(), queue, waiting).await.context("broker")?;
            progress.finish_and_clear();
            if arguments.json {
                output.json(&json!({ "deleted": queue }))?;
            } else {
                output.line(&format!("queue {queue} deleted"))?;
            }
            Ok(Exit::Done)
        }
        Action::Check => {
            let differences = topology.check(&settings.broker).await.context("broker")?;
            if arguments.json {
                output.json(&differences)?;
            } else {
                for difference in &differences {
                    let kind = if difference.harmless { "note" } else { "difference" };
                    output.line(&format!("{kind}: {}: {}", difference.subject, difference.problem))?;
                }
                if differences.is_empty() {
                    output.line("the exchanges and queues are as configured")?;
                }
                output.line("not checked, because AMQP does not show them: bindings and policies")?;
            }
            let harmless = differences.iter().all(|difference| difference.harmless);
            Ok(if harmless { Exit::Done } else { Exit::Failed })
        }
    }
}

fn print(topology: &Topology, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    if json {
        output.json(topology)?;
        return Ok(Exit::Done);
    }
    let undeclared_note = |declare: bool| if declare { "" } else { " (not declared)" };
    for ExchangeSpec { name, kind, declare } in &topology.exchanges {
        output.line(&format!("exchange {name}: {}, durable{}", kind.as_str(), undeclared_note(*declare)))?;
    }
    for QueueSpec { name, purpose, arguments, declare, contents: _ } in &topology.queues {
        output.line(&format!("queue {name}: durable; {purpose}{}", undeclared_note(*declare)))?;
        for (argument, value) in arguments {
            output.line(&format!("    {argument} = {}", serde_json::to_string(value)?))?;
        }
    }
    for Binding { exchange, queue, key, declare } in &topology.bindings {
        let note = undeclared_note(*declare);
        output.line(&format!("binding: exchange {exchange} -> queue {queue}, key {key}{note}"))?;
    }
    Ok(Exit::Done)
}
