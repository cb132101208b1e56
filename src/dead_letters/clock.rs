//! The clock that measures ages: that of the ledger's database, which all daemons share. The clock of this machine may be wrong.

use super::{environment::Environment, error::DeadLetterError, reporter::Reporter, selection::Selection};
use crate::ledger::Ledger;
use jiff::Timestamp;

/// From this difference on, in seconds, a difference between the clocks is reported.
const REPORTED_SKEW_SECONDS: f64 = 1.0;

/// Returns the time for the criteria of age; the time of this machine if the selection has none.
pub(super) async fn now(
    environment: Environment<'_>,
    selection: &Selection,
    reporter: &mut dyn Reporter,
) -> Result<Timestamp, DeadLetterError> {
    if !selection.depends_on_age() {
        return Ok(Timestamp::now());
    }
    let asked = Timestamp::now();
    let answer = environment.ledger.call(Ledger::now).await.map_err(DeadLetterError::Clock)?;
    let answered = Timestamp::now();
    let ours = asked + answered.duration_since(asked) / 2;
    let skew = Timestamp::try_from(answer).map_err(DeadLetterError::ClockRange)?.duration_since(ours);
    if skew.as_secs_f64().abs() >= REPORTED_SKEW_SECONDS {
        reporter.note(&format!(
            "note: the ledger's clock differs from this machine's by {:+.1} s; ages are measured by the ledger's clock",
            skew.as_secs_f64()
        ));
    }
    Ok(Timestamp::now() + skew)
}
