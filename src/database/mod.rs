//! Database access for the ledger and the payment table: URLs, connections, errors with their classes, and a deadline
//! for every call.

use scheduled_thread_pool::ScheduledThreadPool;
use std::sync::Arc;

mod deadline;
mod error;
pub(crate) mod postgres;
mod session;
pub(crate) mod sqlite;
mod url;

/// Returns the thread that opens a pool's connections: one thread per pool instead of the three of r2d2, and not one
/// for all pools, because a server that does not respond must not block another pool.
fn connecting_thread() -> Arc<ScheduledThreadPool> {
    Arc::new(ScheduledThreadPool::builder().num_threads(1).thread_name_pattern("r2d2-worker-{}").build())
}

pub use deadline::WithDeadline;
pub use error::DatabaseError;
pub use url::{DatabaseUrl, DatabaseUrlError, PostgresUri};
