//! `pointsd verify`: prove that the ledger is consistent.

use super::{Exit, Output, ledger_error, reading};
use crate::{
    config::Settings,
    ledger::{Ledger, Verification},
};
use serde::Serialize;

#[derive(Serialize)]
struct Report<'a> {
    #[serde(flatten)]
    verification: &'a Verification,
    /// Whether a payment source is configured, so that credits are checked.
    credits_checked: bool,
}

pub(super) async fn run(settings: &Settings, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    // Opening the ledger has a deadline; the proof has none, because it reads the whole ledger.
    let ledger = reading(&settings.ledger).await?;
    let report = ledger.call_at_leisure(Ledger::verify).await.map_err(ledger_error)?;
    let credits_checked = settings.pay_status.is_some();
    if json {
        output.json(&Report { verification: &report, credits_checked })?;
    } else {
        for finding in &report.findings {
            output.line(&format!("{}: must be {}, is {}", finding.subject, finding.expected, finding.found))?;
        }
        if !credits_checked {
            output.line("credits are not checked: pay_status.source is \"none\"")?;
        }
        let verdict = match report.violations {
            0 => "ledger consistent".to_owned(),
            1 => "1 violation".to_owned(),
            many => format!("{many} violations"),
        };
        output.line(&format!(
            "{} credits ({} not found paid by a check), {} adjustments, {} users, {} points: {verdict}",
            report.credits, report.unverified, report.adjustments, report.users, report.points
        ))?;
    }
    Ok(if report.violations == 0 { Exit::Done } else { Exit::Failed })
}
