//! `pointsd migrate`

use super::{Exit, Output, ledger_error};
use crate::{
    app,
    config::Settings,
    ledger::{self, Access, Options},
};
use serde_json::json;

pub(super) async fn run(settings: &Settings, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    let _lock = app::writer_lock(&settings.ledger.url)?;
    let options = Options { pool_size: 1, timeout: settings.ledger.timeout, access: Access::Write };
    let ledger = ledger::open(&settings.ledger.url, options);
    // Without the deadline of a credit: a migration of a large ledger takes its time, and a person is watching.
    let work = tokio::task::spawn_blocking(move || {
        let ran = ledger.migrate()?;
        ledger.schema().map(|state| (ran, state))
    });
    let (ran, state) = work.await?.map_err(ledger_error)?;
    app::refuse_unless_current(&state)?;
    if json {
        output.json(&json!({ "migrated": ran }))?;
    } else if ran.is_empty() {
        output.line("the ledger's schema is up to date")?;
    } else {
        output.line(&format!("migrated: {}", ran.join(", ")))?;
    }
    Ok(Exit::Done)
}
