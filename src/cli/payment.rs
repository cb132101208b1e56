//! `pointsd payment PAYMENT`

use super::{Exit, Output, UsageError, ledger_error, reading};
use crate::{config::Settings, domain::ids::PaymentId, ledger::PaymentRecord};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The payment's id.
    #[arg(allow_hyphen_values = true)]
    payment: String,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let payment =
        PaymentId::new(&arguments.payment).map_err(|error| UsageError(format!("the payment's id {error}")))?;
    let ledger = reading(&settings.ledger).await?;
    let id = payment.clone();
    let record = ledger.call(move |ledger| ledger.payment(id.as_str())).await.map_err(ledger_error)?;
    if arguments.json {
        output.json(&record)?;
    } else if let Some(record) = &record {
        for line in story(record) {
            output.line(&line)?;
        }
    }
    if record.is_some() {
        return Ok(Exit::Done);
    }
    output.complain(&format!("payment {payment}: the ledger knows nothing of it"));
    Ok(Exit::Failed)
}

/// What happened to a payment, in order.
fn story(record: &PaymentRecord) -> Vec<String> {
    let PaymentRecord { payment_id, user_id, points, state, credited_at, verified_at, adjustments } = record;
    let mut lines = vec![
        format!("payment {payment_id}: {state}"),
        format!("  {credited_at}  credited {points} points to user {user_id}"),
    ];
    lines.extend(adjustments.iter().map(|adjustment| {
        format!(
            "  {}  {} of {:+} points: {}",
            adjustment.created_at, adjustment.kind, adjustment.points, adjustment.reason
        )
    }));
    lines.extend(verified_at.iter().map(|at| format!("  {at}  last found paid")));
    lines
}
