//! What the ledger and a payment table need of a database, whatever it is for: where it is, how it is connected to,
//! what can go wrong and whose fault that is, and a deadline for every call.

use scheduled_thread_pool::ScheduledThreadPool;
use std::sync::Arc;

mod deadline;
mod error;
pub(crate) mod postgres;
mod session;
pub(crate) mod sqlite;
mod url;

/// The thread that makes a pool's connections. One each instead of the three of r2d2, and not one for all: a server that does
/// not answer must not keep another pool from its own.
fn connecting_thread() -> Arc<ScheduledThreadPool> {
    Arc::new(ScheduledThreadPool::builder().num_threads(1).thread_name_pattern("r2d2-worker-{}").build())
}

pub use deadline::WithDeadline;
pub use error::DatabaseError;
pub use url::{DatabaseUrl, DatabaseUrlError, PostgresUri};
