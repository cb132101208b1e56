//! `pointsd payment PAYMENT`: print everything known about a payment.

use super::{Exit, Output, UsageError, dead, ledger_error, reading};
use crate::{
    config::Settings,
    domain::{dead_letter::DeadLetter, ids::PaymentId, printable::printable},
    ledger::PaymentRecord,
    pay_status,
    pipeline::ports::{Lookup, PaymentSource, look_up_all},
};
use anyhow::Context as _;
use jiff::Timestamp;
use serde::Serialize;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// Time limit for the look-up at the payment source.
const LOOK_UP_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// ID of the payment.
    #[arg(allow_hyphen_values = true)]
    payment: String,
    /// Also look up the payment at the payment source.
    #[arg(long)]
    live: bool,
    /// Read only the ledger, not the dead queue.
    #[arg(long)]
    ledger_only: bool,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

/// Everything known about a payment.
#[derive(Debug, Serialize)]
struct PaymentReport {
    #[serde(flatten)]
    record: Option<PaymentRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    live: Option<Live>,
    #[serde(skip_serializing_if = "Option::is_none")]
    dead_queue: Option<Dead>,
}

/// The current answer of the payment source.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Live {
    /// A status of `docs/concepts/checks.md`, with the value of the source if it is in no configured list.
    Status {
        status: &'static str,
        said: Option<String>,
    },
    Failed(String),
}

/// The messages of the payment in the dead queue.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Dead {
    Messages(Vec<DeadLetter>),
    NotLookedAt(String),
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let payment =
        PaymentId::new(&arguments.payment).map_err(|error| UsageError(format!("the payment's id {error}")))?;
    let source =
        pay_status::source(&settings.pay_status, settings.ledger.timeout, false, &pay_status::Limits::default())
            .context("pay_status")?;
    let source = match (arguments.live, source) {
        (true, None) => {
            return Err(UsageError(
                "--live: pay_status.source is \"none\"; there is no payment source to query".into(),
            )
            .into());
        }
        (true, source) => source,
        (false, _) => None,
    };
    let ledger = reading(&settings.ledger).await?;
    let id = payment.clone();
    let record = ledger.call(move |ledger| ledger.payment(id.as_str())).await.map_err(ledger_error)?;
    let dead_queue = if arguments.ledger_only {
        None
    } else {
        Some(match dead::of_payment(settings, payment.as_str(), output).await {
            Ok(messages) => Dead::Messages(messages),
            Err(error) => Dead::NotLookedAt(format!("{error:#}")),
        })
    };
    let live = match source {
        Some(source) => Some(query_source(&source, &payment).await),
        None => None,
    };
    let parked = matches!(&dead_queue, Some(Dead::Messages(messages)) if !messages.is_empty());
    let is_at_source = matches!(live, Some(Live::Status { status, .. }) if status != "unknown");
    let known = record.is_some() || parked || is_at_source;
    let report = PaymentReport { record, live, dead_queue };
    if arguments.json {
        if known {
            output.json(&report)?;
        } else {
            output.json(&serde_json::Value::Null)?;
        }
    } else {
        for line in format_report(&payment, &report) {
            output.line(&line)?;
        }
    }
    if known {
        return Ok(Exit::Done);
    }
    output.complain(&format!("payment {payment} not found"));
    Ok(Exit::Failed)
}

/// Looks up the payment at the payment source.
async fn query_source(source: &Arc<dyn PaymentSource>, payment: &PaymentId) -> Live {
    let until = Instant::now() + LOOK_UP_TIMEOUT;
    match look_up_all(&**source, Arc::from([payment.clone()]), until).await.map(|mut answers| answers.pop().flatten()) {
        Ok(Some(Lookup::Known(payment))) => Live::Status { status: payment.status.label(), said: payment.said },
        Ok(Some(Lookup::Failed(error))) => Live::Failed(error),
        Ok(None) => Live::Failed(format!("the payment was not looked up within {LOOK_UP_TIMEOUT:?}")),
        Err(error) => Live::Failed(error.to_string()),
    }
}

/// Returns the lines of the report, in the order of the events.
fn format_report(payment: &PaymentId, report: &PaymentReport) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(record) = &report.record {
        lines.push(format!("payment {payment}: {}", record.state));
        lines.extend(format_history(record));
    } else {
        lines.push(format!("payment {payment}: not in the ledger"));
    }
    match &report.live {
        Some(Live::Status { status, said: None }) => lines.push(format!("  status at the payment source: {status}")),
        Some(Live::Status { status, said: Some(said) }) => {
            lines.push(format!("  status at the payment source: {status} ({said})"));
        }
        Some(Live::Failed(error)) => {
            lines.push(format!("  status at the payment source: not available: {}", printable(error)));
        }
        None => {}
    }
    match &report.dead_queue {
        Some(Dead::Messages(messages)) => lines.extend(messages.iter().map(|message| {
            let since = message.first_failed_at.map_or_else(|| "?".to_owned(), |at| at.to_string());
            let error = message.error.as_deref().unwrap_or_default();
            let from = message.source_queue.as_deref().map(|queue| format!(", from {queue}")).unwrap_or_default();
            format!(
                "  in the dead queue since {since}{}: {}: {}",
                printable(&from),
                printable(&message.reason),
                printable(error)
            )
        })),
        Some(Dead::NotLookedAt(why)) => {
            lines.push(format!("  the dead queue was not searched: {}", printable(why)));
        }
        None => {}
    }
    lines
}

/// Returns the lines of the history of a payment in the ledger, in the order of time.
fn format_history(record: &PaymentRecord) -> Vec<String> {
    let PaymentRecord { user_id, points, credited_at, verified_at, asked_at, adjustments, .. } = record;
    let mut events = vec![(credited_at, format!("credited {points} points to user {user_id}"))];
    events.extend(adjustments.iter().map(|adjustment| {
        let text = format!("{} of {:+} points: {}", adjustment.kind, adjustment.points, adjustment.reason);
        (&adjustment.created_at, text)
    }));
    events.extend(verified_at.iter().map(|at| (at, "last found paid".to_owned())));
    events.extend(asked_at.iter().map(|at| (at, "parked for a person to decide".to_owned())));
    // The sort is stable: the events of one transaction keep the order of the ledger.
    events.sort_by_key(|(at, _)| at.parse::<Timestamp>().ok());
    events.into_iter().map(|(at, text)| format!("  {at}  {text}")).collect()
}
