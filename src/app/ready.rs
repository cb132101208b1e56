//! The ledger at the start: waited for while it is down or its schema is not made yet, given up where waiting cannot help.

use super::{App, writer_lock};
use crate::{
    database::{DatabaseError, WithDeadline},
    domain::{
        component::Component,
        failure::{Dependency, Outage},
    },
    ledger::{Ledger, Probe, SchemaState, WriterLock},
    observe::events::{self, Event as _},
    pauses,
};
use anyhow::anyhow;

/// A newer program has made the schema. A restart would not help.
#[derive(Debug, thiserror::Error)]
#[error("ledger: {0}")]
pub struct NewerSchema(String);

/// Why the ledger cannot be used yet.
enum NotReady {
    /// It may pass: it is waited for.
    Waits(Outage),
    /// It will not pass.
    Ends(anyhow::Error),
}

impl App {
    /// Returns when the ledger has answered and its schema is right. `lock`: that of a SQLite ledger.
    pub(super) async fn ledger_ready(&self, lock: &mut Option<WriterLock>) -> anyhow::Result<()> {
        loop {
            match self.prepared(lock).await {
                Ok(()) => {
                    self.status.resume(Component::Credits, Dependency::Ledger);
                    return Ok(());
                }
                Err(NotReady::Ends(error)) => return Err(error),
                Err(NotReady::Waits(outage)) => {
                    self.status.pause(Component::Credits, &outage);
                    self.pause(pauses::between_probes()).await;
                }
            }
        }
    }

    async fn prepared(&self, lock: &mut Option<WriterLock>) -> Result<(), NotReady> {
        let auto_migrate = self.settings.ledger.auto_migrate;
        if lock.is_none() {
            // Not taken for a look: `pointsd migrate` needs it.
            if !auto_migrate {
                usable(&self.ledger.call(Ledger::schema).await?)?;
            }
            let taken = writer_lock(&self.settings.ledger.url);
            *lock = taken.map_err(|error| NotReady::waits(format!("{error:#}")))?;
        }
        let state = prepare(&self.ledger, auto_migrate).await?;
        usable(&state).inspect_err(|_| *lock = None)
    }
}

impl NotReady {
    fn waits(reason: String) -> Self {
        Self::Waits(Outage { dependency: Dependency::Ledger, reason })
    }
}

impl From<DatabaseError> for NotReady {
    fn from(error: DatabaseError) -> Self {
        match error {
            // While the daemon runs the same is an outage: no message is to blame for it.
            DatabaseError::Unusable(_) | DatabaseError::Pooled => Self::Ends(anyhow!("ledger: {error}")),
            error => Self::Waits(error.into_outage(Dependency::Ledger)),
        }
    }
}

/// Whether the daemon can work with a schema, or waits for another one.
fn usable(state: &SchemaState) -> Result<(), NotReady> {
    match (state, problem(state)) {
        (_, None) => Ok(()),
        (SchemaState::Newer(_), Some(problem)) => Err(NotReady::Ends(NewerSchema(problem).into())),
        (_, Some(problem)) => Err(NotReady::waits(problem)),
    }
}

/// Asks for the schema, brings it up to date where that is wanted, and proves that the ledger takes writes.
pub async fn prepare(ledger: &WithDeadline<dyn Ledger>, auto_migrate: bool) -> Result<SchemaState, DatabaseError> {
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

/// Why a schema cannot be worked with, and what to do: the same words wherever one is needed.
fn problem(state: &SchemaState) -> Option<String> {
    Some(match state {
        SchemaState::Current => return None,
        SchemaState::Missing => "there is no pointsd schema in this database; run `pointsd migrate`".into(),
        SchemaState::Outdated(missing) => {
            format!("the schema is outdated (missing {}); run `pointsd migrate`", missing.join(", "))
        }
        SchemaState::Newer(unknown) => format!(
            "the schema is newer than this pointsd {} (it has {}); install the version that made it",
            env!("CARGO_PKG_VERSION"),
            unknown.join(", ")
        ),
    })
}

/// For commands: none of them waits.
pub fn refuse_unless_current(state: &SchemaState) -> anyhow::Result<()> {
    match problem(state) {
        None => Ok(()),
        Some(problem) => Err(anyhow!("ledger: {problem}")),
    }
}
