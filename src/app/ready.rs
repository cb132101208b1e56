//! The ledger at the start: waited for while it is down, given up where waiting cannot help.

use super::App;
use crate::{
    backoff,
    database::{DatabaseError, Guarded},
    ledger::{Ledger, Probe, SchemaState},
    observe::{events, status::Part},
    pipeline::ports::Dependency,
};
use anyhow::bail;

impl App {
    /// Returns when the ledger has answered and its schema is right.
    pub(super) async fn ledger_ready(&self) -> anyhow::Result<()> {
        loop {
            match prepare(&self.ledger, self.settings.ledger.auto_migrate).await {
                Ok(state) => {
                    refuse_unless_current(&state)?;
                    self.status.resume(Part::Credits, Dependency::Ledger);
                    return Ok(());
                }
                // It will not pass. While the daemon runs the same is an outage: no message is to blame for it.
                Err(error @ (DatabaseError::Unusable(_) | DatabaseError::Pooled)) => bail!("ledger: {error}"),
                Err(error) => {
                    self.status.pause(Part::Credits, &error.into_outage(Dependency::Ledger));
                    self.pause(backoff::between_probes()).await;
                }
            }
        }
    }
}

/// Asks for the schema, brings it up to date where that is wanted, and proves that the ledger takes writes.
pub async fn prepare(ledger: &Guarded<dyn Ledger>, auto_migrate: bool) -> Result<SchemaState, DatabaseError> {
    let mut state = ledger.call(Ledger::schema).await?;
    if auto_migrate && matches!(state, SchemaState::Missing | SchemaState::Outdated(_)) {
        let versions = ledger.call_at_leisure(Ledger::migrate).await?;
        events::Migrated { versions: &versions }.emit();
        state = ledger.call(Ledger::schema).await?;
    }
    if state == SchemaState::Current {
        ledger.call(|ledger| ledger.probe(Probe::Credits)).await?;
    }
    Ok(state)
}

/// The same words wherever a schema is needed.
pub fn refuse_unless_current(state: &SchemaState) -> anyhow::Result<()> {
    match state {
        SchemaState::Current => Ok(()),
        SchemaState::Missing => bail!("ledger: there is no pointsd schema in this database; run `pointsd migrate`"),
        SchemaState::Outdated(missing) => {
            bail!("ledger: the schema is outdated (missing {}); run `pointsd migrate`", missing.join(", "))
        }
        SchemaState::Newer(unknown) => bail!(
            "ledger: the schema is newer than this pointsd {} (it has {}); install the version that made it",
            env!("CARGO_PKG_VERSION"),
            unknown.join(", ")
        ),
    }
}
