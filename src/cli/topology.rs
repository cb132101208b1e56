//! `pointsd topology [print|declare|check|retire]`

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
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Debug, Clone, clap::Subcommand)]
enum Action {
    /// Show what is needed, without asking the broker (the default).
    Print,
    /// Make what is missing.
    Declare,
    /// Compare the broker with what is needed, changing nothing. Exit status 1 when something is missing or different.
    Check,
    /// Delete a delay queue that is no longer configured, after everything in it has gone back to its queue. That can
    /// take as long as the delay; to interrupt it loses nothing.
    Retire {
        /// As in points.credit.retry.5s
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
                output.line(&format!("queue {queue} is deleted"))?;
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
                    output.line("the exchange and the queues are as configured")?;
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
    let of_somebody = |declare: bool| if declare { "" } else { " (not declared)" };
    for ExchangeSpec { name, kind, declare } in &topology.exchanges {
        output.line(&format!("exchange {name}: {}, durable{}", kind.as_str(), of_somebody(*declare)))?;
    }
    for QueueSpec { name, purpose, arguments, declare, contents: _ } in &topology.queues {
        output.line(&format!("queue {name}: durable; {purpose}{}", of_somebody(*declare)))?;
        for (argument, value) in arguments {
            output.line(&format!("    {argument} = {}", serde_json::to_string(value)?))?;
        }
    }
    for Binding { exchange, queue, key, declare } in &topology.bindings {
        let whose = of_somebody(*declare);
        output.line(&format!("binding: exchange {exchange} -> queue {queue}, key {key}{whose}"))?;
    }
    Ok(Exit::Done)
}
