//! What the ledger and a payment table need of a database, whatever it is for: where it is, how it is connected to,
//! what can go wrong and whose fault that is, and a deadline for every call.

mod error;
mod guarded;
pub(crate) mod postgres;
mod session;
pub(crate) mod sqlite;
mod url;

pub use error::DatabaseError;
pub use guarded::Guarded;
pub use url::{DatabaseUrl, DatabaseUrlError};
