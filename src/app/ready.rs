//! Preparing the ledger at the start: waiting while it is down or has no schema yet, and failing where waiting cannot
//! help.

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

/// A newer version of pointsd has created the schema, and a restart cannot help.
#[derive(Debug, thiserror::Error)]
#[error("ledger: {0}")]
pub struct NewerSchema(String);

/// The reason why the ledger cannot be used yet.
enum NotReady {
    /// A condition that may pass: the daemon waits.
    Transient(Outage),
    /// A condition that cannot pass: the daemon exits.
    Permanent(anyhow::Error),
}

impl App {
    /// Waits until the ledger answers and has the right schema. `lock`: the lock of a SQLite ledger.
    pub(super) async fn wait_for_ledger(&self, lock: &mut Option<WriterLock>) -> anyhow::Result<()> {
        loop {
            match self.try_prepare(lock).await {
                Ok(()) => {
                    self.status.resume(Component::Credits, Dependency::Ledger);
                    return Ok(());
                }
                Err(NotReady::Permanent(error)) => return Err(error),
                Err(NotReady::Transient(outage)) => {
                    self.status.pause(Component::Credits, &outage);
                    self.pause(pauses::between_probes()).await;
                }
            }
        }
    }

    async fn try_prepare(&self, lock: &mut Option<WriterLock>) -> Result<(), NotReady> {
        let auto_migrate = self.settings.ledger.auto_migrate;
        if lock.is_none() {
            // Not locked only to read the schema: `pointsd migrate` needs the lock.
            if !auto_migrate {
                require_usable(&self.ledger.call(Ledger::schema).await?)?;
            }
            let taken = writer_lock(&self.settings.ledger.url);
            *lock = taken.map_err(|error| NotReady::transient(format!("{error:#}")))?;
        }
        let state = prepare(&self.ledger, auto_migrate).await?;
        require_usable(&state).inspect_err(|_| *lock = None)
    }
}

impl NotReady {
    fn transient(reason: String) -> Self {
        Self::Transient(Outage { dependency: Dependency::Ledger, reason })
    }
}

impl From<DatabaseError> for NotReady {
    fn from(error: DatabaseError) -> Self {
        match error {
            // While the daemon runs, the same error is an outage: it is not caused by a message.
            DatabaseError::Unusable(_) | DatabaseError::Pooled => Self::Permanent(anyhow!("ledger: {error}")),
            error => Self::Transient(error.into_outage(Dependency::Ledger)),
        }
    }
}

/// Requires a schema that the daemon can work with.
fn require_usable(state: &SchemaState) -> Result<(), NotReady> {
    match (state, describe_problem(state)) {
        (_, None) => Ok(()),
        (SchemaState::Newer(_), Some(problem)) => Err(NotReady::Permanent(NewerSchema(problem).into())),
        (_, Some(problem)) => Err(NotReady::transient(problem)),
    }
}

/// Reads the state of the schema, migrates it if `auto_migrate`, and probes that the ledger accepts writes.
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

/// The reason why a schema is unusable, and what to do; the daemon and all commands use this text.
fn describe_problem(state: &SchemaState) -> Option<String> {
    Some(match state {
        SchemaState::Current => return None,
        SchemaState::Missing => "this database has no pointsd schema; run `pointsd migrate`".into(),
        SchemaState::Outdated(missing) => {
            format!("the schema is outdated (missing {}); run `pointsd migrate`", missing.join(", "))
        }
        SchemaState::Newer(unknown) => format!(
            "the schema is newer than this pointsd {} (it has {}); install the version that created it",
            env!("CARGO_PKG_VERSION"),
            unknown.join(", ")
        ),
    })
}

/// Fails unless the schema is current; for commands, which do not wait.
pub fn refuse_unless_current(state: &SchemaState) -> anyhow::Result<()> {
    match describe_problem(state) {
        None => Ok(()),
        Some(problem) => Err(anyhow!("ledger: {problem}")),
    }
}
