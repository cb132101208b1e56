//! `pointsd replay FILE`: credit recorded messages without a broker.

use super::{Exit, Output, ledger_error, open_ledger_with_events};
use crate::{
    app,
    cli::input::Input,
    config::Settings,
    domain::{component::Component, outcome::Outcome, retry::RetryPolicy},
    ledger::Access,
    message_file::MessageLine,
    observe::heartbeat::Heartbeats,
    pipeline::{
        credit::{Committed, CreditPipeline, Decided},
        ports::{CreditLedger, Forward, Message},
        work::BatchContext,
    },
};
use anyhow::Context as _;
use serde::Serialize;
use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// JSON Lines file with one message per line; - is standard input.
    file: PathBuf,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let mut input = Input::open(&arguments.file)?;
    let _lock = app::writer_lock(&settings.ledger.url)?;
    let ledger = Arc::new(open_ledger_with_events(&settings.ledger, Access::Write, &settings.events));
    let state = app::prepare(&ledger, settings.ledger.auto_migrate).await.map_err(ledger_error)?;
    app::refuse_unless_current(&state)?;
    let pipeline = CreditPipeline {
        locked: Arc::default(),
        component: Component::Credits,
        format: settings.message,
        ledger: ledger as Arc<dyn CreditLedger>,
        immediate_attempts: settings.retry.immediate_attempts,
        // No delayed retries, because there is no delay queue: failed lines are reported, and the file can be replayed
        // again.
        retry: RetryPolicy::default(),
        checks: None,
    };
    // There is no watchdog, and only the end of the process stops the command: a person watches it.
    let heartbeat = Heartbeats::default().begin("replay", Duration::from_secs(60));
    let never = CancellationToken::new();
    let mut report = Report::default();
    loop {
        let lines = input.read_lines(settings.ledger.batch_max)?;
        let Some(last) = lines.last().map(|line| line.number) else { break };
        let messages = lines.into_iter().filter_map(|line| report.take_message(line)).collect();
        let Committed { decided, outage, .. } =
            pipeline.commit(messages, &BatchContext { heartbeat: &heartbeat, stop: &never }).await;
        report.add(&decided);
        if settings.pay_status.is_some() && report.credited + report.duplicate > 0 && !arguments.json {
            report.next = Some("some credits are not checked: run `pointsd reconcile --older-than 0s --apply`");
        }
        if let Some(outage) = outage {
            report.print(arguments.json, output)?;
            return Err(outage).with_context(|| {
                format!(
                    "stopped at or before line {last}; replay the file again after the outage: lines that are already \
                     credited are duplicates"
                )
            });
        }
    }
    input.finish();
    report.print(arguments.json, output)
}

/// The message of a line.
#[derive(Debug)]
struct Replayed {
    number: u64,
    body: Vec<u8>,
}

impl Message for Replayed {
    fn body(&self) -> &[u8] {
        &self.body
    }

    fn sent_at(&self) -> Option<SystemTime> {
        None
    }

    fn label(&self) -> String {
        format!("line {}", self.number)
    }
}

/// The results of the lines.
#[derive(Debug, Default, Serialize)]
struct Report {
    credited: u64,
    duplicate: u64,
    conflict: u64,
    malformed: u64,
    rejected: u64,
    exhausted: u64,
    bad_lines: Vec<BadLine>,
    /// The command that must be run next.
    #[serde(skip)]
    next: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct BadLine {
    line: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_id: Option<String>,
    error: String,
}

impl Report {
    /// Returns the message of a line; counts a line without a points message as malformed.
    fn take_message(&mut self, line: MessageLine) -> Option<Replayed> {
        let number = line.number;
        let error = match line.message {
            Ok(recorded) if recorded.is_check_message() => {
                "is a check message; `pointsd publish` publishes it to the check queue".into()
            }
            Ok(recorded) => return Some(Replayed { number, body: recorded.body }),
            Err(error) => error.to_string(),
        };
        self.malformed += 1;
        self.bad_lines.push(BadLine { line: number, outcome: "malformed", payment_id: None, error });
        None
    }

    /// Adds the outcomes of a batch.
    fn add(&mut self, decided: &[Decided<Replayed>]) {
        for decided in decided {
            *match decided.outcome {
                Outcome::Credited => &mut self.credited,
                Outcome::Duplicate { .. } => &mut self.duplicate,
                Outcome::Conflict(_) => &mut self.conflict,
                Outcome::Malformed(_) => &mut self.malformed,
                Outcome::Rejected(_) => &mut self.rejected,
                // Without delayed retries `Retry` does not occur.
                Outcome::Retry { .. } | Outcome::Exhausted { .. } => &mut self.exhausted,
            } += 1;
        }
        self.bad_lines.extend(decided.iter().filter_map(Decided::forward).map(|copy| BadLine::of(&copy)));
        self.bad_lines.sort_by_key(|bad| bad.line);
    }

    fn print(&self, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
        if json {
            output.json(self)?;
        } else {
            for BadLine { line, outcome, payment_id, error } in &self.bad_lines {
                let payment = payment_id.as_ref().map(|id| format!(" payment {id}:")).unwrap_or_default();
                output.line(&format!("line {line}: {outcome}:{payment} {error}"))?;
            }
            let Self { credited, duplicate, conflict, malformed, rejected, exhausted, .. } = self;
            output.line(&format!(
                "credited {credited}, duplicate {duplicate}, conflict {conflict}, malformed {malformed}, \
                 rejected {rejected}, exhausted {exhausted}"
            ))?;
            if let Some(next) = self.next {
                output.line(next)?;
            }
        }
        Ok(if self.bad_lines.is_empty() { Exit::Done } else { Exit::Failed })
    }
}

impl BadLine {
    fn of(copy: &Forward<'_, Replayed>) -> Self {
        let error = copy.error.as_deref().unwrap_or_default();
        Self {
            line: copy.message.number,
            outcome: copy.to.label(),
            payment_id: copy.payment_id.map(ToString::to_string),
            error: match copy.recorded {
                Some(recorded) => format!("{error}: user {}, {} points", recorded.user_id, recorded.points),
                None => error.to_owned(),
            },
        }
    }
}
