//! `pointsd migrate`: migrate the schema of the ledger.

use super::{Exit, Output, guarded, ledger_error};
use crate::{
    app,
    config::Settings,
    ledger::{Access, Ledger},
};
use serde_json::json;

pub(super) async fn run(settings: &Settings, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    let _lock = app::writer_lock(&settings.ledger.url)?;
    let ledger = guarded(&settings.ledger, Access::Write);
    let ran = ledger.call_at_leisure(Ledger::migrate).await.map_err(ledger_error)?;
    let state = ledger.call(Ledger::schema).await.map_err(ledger_error)?;
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
