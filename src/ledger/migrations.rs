//! The schema's versions: what the database has against what is embedded here.

use crate::database::DatabaseError;
use diesel::{
    backend::Backend,
    migration::{Migration, MigrationSource, MigrationVersion},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

/// For PostgreSQL.
pub(super) const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
/// For SQLite.
pub(super) const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// How a ledger's schema stands to what this program needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaState {
    /// As needed.
    Current,
    /// No migration was ever run.
    Missing,
    /// These migrations are missing.
    Outdated(Vec<String>),
    /// It has migrations that this program does not know: a newer one made it.
    Newer(Vec<String>),
}

/// Compares the versions that a database has with the embedded ones.
pub(super) fn state<DB: Backend>(
    source: &EmbeddedMigrations,
    applied: &[String],
) -> Result<SchemaState, DatabaseError> {
    let known = versions::<DB>(source)?;
    let of = |these: &[String], without: &[String]| -> Vec<String> {
        these.iter().filter(|version| !without.contains(version)).cloned().collect()
    };
    let (missing, unknown) = (of(&known, applied), of(applied, &known));
    Ok(if applied.is_empty() {
        SchemaState::Missing
    } else if !unknown.is_empty() {
        SchemaState::Newer(unknown)
    } else if !missing.is_empty() {
        SchemaState::Outdated(missing)
    } else {
        SchemaState::Current
    })
}

fn versions<DB: Backend>(source: &EmbeddedMigrations) -> Result<Vec<String>, DatabaseError> {
    let migrations: Vec<Box<dyn Migration<DB>>> = source.migrations().map_err(|error| failed(&*error))?;
    let mut versions: Vec<String> =
        migrations.iter().map(|migration| migration.name().version().as_owned().to_string()).collect();
    versions.sort();
    Ok(versions)
}

/// Runs what is missing.
pub(super) fn run<DB: Backend>(
    connection: &mut impl MigrationHarness<DB>,
    source: EmbeddedMigrations,
) -> Result<Vec<String>, DatabaseError> {
    let versions = connection.run_pending_migrations(source).map_err(|error| failed(&*error))?;
    Ok(versions.iter().map(MigrationVersion::to_string).collect())
}

fn failed(error: &(dyn std::error::Error + Send + Sync + 'static)) -> DatabaseError {
    match error.downcast_ref::<diesel::result::Error>() {
        Some(error) => DatabaseError::Database(error.to_string()),
        None => DatabaseError::Database(format!("a migration failed: {error}")),
    }
}
