//! `pointsd publish FILE`: publish recorded messages.

use super::{Exit, Output, input::Input};
use crate::{
    broker::{BrokerError, Outgoing, Publisher},
    config::Settings,
    message_file::MessageLine,
};
use anyhow::Context as _;
use serde::Serialize;
use std::path::PathBuf;

/// Number of messages that are read, published and confirmed together.
const CHUNK: usize = 500;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// JSON Lines file with one message per line; - is standard input.
    file: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// The result of publishing the lines.
#[derive(Debug, Default, Serialize)]
struct Report {
    published: u64,
    bad_lines: Vec<BadLine>,
}

#[derive(Debug, Serialize)]
struct BadLine {
    line: u64,
    error: String,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let mut input = Input::open(&arguments.file)?;
    let publisher = Publisher::open(&settings.broker).await.context("broker")?;
    let mut report = Report::default();
    let stopped = loop {
        let lines = input.read_lines(CHUNK)?;
        let Some((first, last)) = lines.first().zip(lines.last()).map(|(first, last)| (first.number, last.number))
        else {
            break None;
        };
        let mut messages = Vec::with_capacity(lines.len());
        for line in lines {
            let number = line.number;
            match build_outgoing(settings, line).and_then(|message| publisher.check(&message).map(|()| message)) {
                Ok(message) => messages.push(message),
                Err(error) => report.bad_lines.push(BadLine { line: number, error: error.to_string() }),
            }
        }
        match publisher.publish(&messages).await {
            Ok(()) => report.published += messages.len() as u64,
            Err(error) => break Some((first, last, error)),
        }
    };
    input.finish();
    publisher.close().await;
    report.print(arguments.json, output)?;
    if let Some((first, last, error)) = stopped {
        let hint = match error {
            BrokerError::Unroutable { .. } => {
                "; check the bindings: `pointsd topology declare` declares the queues and bindings of pointsd"
            }
            _ => "",
        };
        let stopped = format!("stopped: lines {first} to {last} are not all confirmed; all earlier lines are");
        return Err(anyhow::anyhow!("{error}{hint}").context(stopped));
    }
    Ok(if report.bad_lines.is_empty() { Exit::Done } else { Exit::Failed })
}

/// Builds the message of a line.
fn build_outgoing(settings: &Settings, line: MessageLine) -> Result<Outgoing<'static>, BrokerError> {
    let recorded = line.message.map_err(|error| BrokerError::Unsendable(error.to_string()))?;
    if recorded.is_check_message() {
        return Outgoing::checks(&settings.broker.check_queue, recorded.body);
    }
    let routing_key = recorded.routing_key.as_deref().unwrap_or(&settings.broker.routing_key);
    let message_id = recorded.message_id.as_deref();
    let exchange = &settings.broker.exchange;
    Outgoing::new(exchange, routing_key, recorded.body, message_id, &recorded.headers)
}

impl Report {
    fn print(&self, json: bool, output: &mut Output) -> anyhow::Result<()> {
        if json {
            return output.json(self);
        }
        for BadLine { line, error } in &self.bad_lines {
            output.line(&format!("line {line}: not published: {error}"))?;
        }
        Ok(output.line(&format!("published {}, each confirmed", self.published))?)
    }
}
