//! `pointsd replay FILE`

use super::{Exit, Output, announcing, ledger_error};
use crate::{
    app,
    cli::input::Input,
    config::Settings,
    domain::{credit::Outcome, retry::RetryPolicy},
    ledger::Access,
    observe::{pulse::Pulses, status::Part},
    pipeline::{
        credit::CreditPipeline,
        ports::{CreditLedger, Decided, Deliveries, Forward, Message, Outage},
        stages::{Interrupted, Turn},
    },
    recorded::Line,
};
use anyhow::Context as _;
use async_trait::async_trait;
use serde::Serialize;
use std::{
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};
use tokio_util::sync::CancellationToken;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// JSON Lines, one message a line; - is standard input.
    file: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let mut input = Input::open(&arguments.file)?;
    let _lock = app::writer_lock(&settings.ledger.url)?;
    let ledger = Arc::new(announcing(&settings.ledger, Access::Write, &settings.events));
    let state = app::prepare(&ledger, settings.ledger.auto_migrate).await.map_err(ledger_error)?;
    app::refuse_unless_current(&state)?;
    let pipeline = CreditPipeline {
        part: Part::Credits,
        format: settings.message,
        ledger: ledger as Arc<dyn CreditLedger>,
        immediate_attempts: settings.retry.immediate_attempts,
        // There is no queue to wait in: what still fails is told, and the file can be replayed again.
        retry: RetryPolicy::default(),
    };
    // No watchdog, and no stop but the process's end: a person watches.
    let pulse = Pulses::default().begin("replay", Duration::from_secs(60));
    let never = CancellationToken::new();
    let tape = Tape::default();
    loop {
        let lines = input.lines(settings.ledger.batch_max)?;
        let Some(last) = lines.last().map(|line| line.number) else { break };
        let messages = lines.into_iter().filter_map(|line| tape.message(line)).collect();
        let turn = Turn { pulse: &pulse, stop: &never };
        if let Err(Interrupted { outage: Some(outage), .. }) = pipeline.process(&tape, messages, &turn).await {
            tape.finish().print(arguments.json, output)?;
            return Err(outage).with_context(|| {
                format!("stopped at or before line {last}; replay the file again when this is mended, it changes nothing that is credited")
            });
        }
    }
    input.finish();
    tape.finish().print(arguments.json, output)
}

/// A line on its way through the pipeline.
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

    fn retries_taken(&self) -> u32 {
        0
    }

    fn checks_done(&self) -> u32 {
        0
    }

    fn label(&self) -> String {
        format!("line {}", self.number)
    }
}

/// The file as a source of deliveries: there is no queue to settle, only an account to give.
#[derive(Default)]
struct Tape(Mutex<Account>);

/// What became of the lines.
#[derive(Debug, Default, Serialize)]
struct Account {
    credited: u64,
    duplicate: u64,
    conflict: u64,
    malformed: u64,
    rejected: u64,
    exhausted: u64,
    bad_lines: Vec<BadLine>,
}

#[derive(Debug, Serialize)]
struct BadLine {
    line: u64,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_id: Option<String>,
    error: String,
}

impl Tape {
    /// A line's message; a line that is none is accounted for at once.
    fn message(&self, line: Line) -> Option<Replayed> {
        let number = line.number;
        match line.message {
            Ok(recorded) => Some(Replayed { number, body: recorded.body }),
            Err(error) => {
                self.account(|account| {
                    account.malformed += 1;
                    let error = error.to_string();
                    account.bad_lines.push(BadLine { line: number, outcome: "malformed", payment_id: None, error });
                });
                None
            }
        }
    }

    fn account(&self, change: impl FnOnce(&mut Account)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn finish(&self) -> Account {
        let mut account = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        account.bad_lines.sort_by_key(|bad| bad.line);
        account
    }
}

#[async_trait]
impl Deliveries<Outcome> for Tape {
    type Message = Replayed;

    async fn forward(&self, copies: &[Forward<'_, Replayed>]) -> Result<(), Outage> {
        self.account(|account| {
            account.bad_lines.extend(copies.iter().map(|copy| BadLine {
                line: copy.message.number,
                outcome: copy.to.label(),
                payment_id: copy.payment_id.map(ToString::to_string),
                error: {
                    let error = copy.error.as_deref().unwrap_or_default();
                    match copy.standing {
                        Some(standing) => format!("{error}: user {}, {} points", standing.user_id, standing.points),
                        None => error.to_owned(),
                    }
                },
            }));
        });
        Ok(())
    }

    async fn settle(&self, done: Vec<Decided<Replayed, Outcome>>) {
        self.account(|account| {
            for decided in done {
                *match decided.outcome {
                    Outcome::Credited => &mut account.credited,
                    Outcome::Duplicate => &mut account.duplicate,
                    Outcome::Conflict(_) => &mut account.conflict,
                    Outcome::Malformed(_) => &mut account.malformed,
                    Outcome::Rejected(_) => &mut account.rejected,
                    // Without a delay to wait for there is no retry: the two are one here.
                    Outcome::Retry { .. } | Outcome::Exhausted { .. } => &mut account.exhausted,
                } += 1;
            }
        });
    }
}

impl Account {
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
        }
        Ok(if self.bad_lines.is_empty() { Exit::Done } else { Exit::Failed })
    }
}
