//! The versions of the schema: a comparison of the database with the embedded migrations.

use crate::database::DatabaseError;
use diesel::{
    backend::Backend,
    migration::{Migration, MigrationSource, MigrationVersion},
};
use diesel_migrations::{EmbeddedMigrations, MigrationHarness, embed_migrations};

/// The migrations for PostgreSQL.
pub(super) const POSTGRES: EmbeddedMigrations = embed_migrations!("migrations/postgres");
/// The migrations for SQLite.
pub(super) const SQLITE: EmbeddedMigrations = embed_migrations!("migrations/sqlite");

/// The state of a ledger's schema, compared with the schema that this program needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SchemaState {
    /// The schema is the one that this program needs.
    Current,
    /// No migration was ever run.
    Missing,
    /// These migrations are missing.
    Outdated(Vec<String>),
    /// The database has these migrations, which this program does not contain: a newer version has run them.
    Newer(Vec<String>),
}

/// Compares the versions that a database has with the embedded ones.
pub(super) fn state<DB: Backend>(
    source: &EmbeddedMigrations,
    applied: &[String],
) -> Result<SchemaState, DatabaseError> {
    let known = known_versions::<DB>(source)?;
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

fn known_versions<DB: Backend>(source: &EmbeddedMigrations) -> Result<Vec<String>, DatabaseError> {
    let migrations: Vec<Box<dyn Migration<DB>>> = source.migrations().map_err(|error| migration_error(&*error))?;
    let mut versions: Vec<String> =
        migrations.iter().map(|migration| migration.name().version().as_owned().to_string()).collect();
    versions.sort();
    Ok(versions)
}

/// Runs the missing migrations. Returns their names.
pub(super) fn run<DB: Backend>(
    connection: &mut impl MigrationHarness<DB>,
    source: EmbeddedMigrations,
) -> Result<Vec<String>, DatabaseError> {
    let versions = connection.run_pending_migrations(source).map_err(|error| migration_error(&*error))?;
    Ok(versions.iter().map(MigrationVersion::to_string).collect())
}

fn migration_error(error: &(dyn std::error::Error + Send + Sync + 'static)) -> DatabaseError {
    match error.downcast_ref::<diesel::result::Error>() {
        Some(error) => DatabaseError::Database(error.to_string()),
        None => DatabaseError::Database(format!("a migration failed: {error}")),
    }
}
