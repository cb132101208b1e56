//! The clock that ages are judged by: the ledger database's, which all daemons share. This machine's may be wrong.

use crate::{
    cli::{Output, guarded, ledger_error},
    config::Settings,
    ledger::{Access, Ledger},
    parked::Selection,
};
use anyhow::Context as _;
use jiff::Timestamp;

/// From so much on the difference is reported. Seconds.
const NOTEWORTHY_SKEW: f64 = 1.0;

/// What time it is for `--older-than` and `--newer-than`. Without them nobody is asked.
pub(super) async fn now(settings: &Settings, selection: &Selection, output: &mut Output) -> anyhow::Result<Timestamp> {
    if selection.older_than.is_none() && selection.newer_than.is_none() {
        return Ok(Timestamp::now());
    }
    let ledger = guarded(&settings.ledger, Access::Read);
    let asked = Timestamp::now();
    let answer =
        ledger.call(Ledger::now).await.map_err(ledger_error).context("ages are judged by the ledger's clock")?;
    let answered = Timestamp::now();
    let ours = asked + answered.duration_since(asked) / 2;
    let skew = Timestamp::try_from(answer)?.duration_since(ours);
    if skew.as_secs_f64().abs() >= NOTEWORTHY_SKEW {
        output.complain(&format!(
            "note: the ledger's clock differs from this machine's by {:+.1} s; ages are judged by the ledger's",
            skew.as_secs_f64()
        ));
    }
    Ok(Timestamp::now() + skew)
}
