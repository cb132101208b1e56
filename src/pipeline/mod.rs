//! The pipelines of points messages and checks.
//!
//! - [`credit`] is the path of a points message: parse, commit, schedule, forward, settle.
//! - [`check`] is the path of a check: parse, look up, apply, forward, settle.
//! - [`batch`] and [`work`] run the work of a batch: retry it, then split the batch until the failing item is alone.
//! - `forward` publishes check messages and copies until the broker has confirmed them.
//! - [`locked_rows`] and `lock_search` find locked rows of the ledger and keep other messages from waiting for them.
//! - [`ports`] has the traits that the ledger, the payment source and the broker implement.

pub mod batch;
pub mod check;
pub mod credit;
mod forward;
mod lock_search;
pub mod locked_rows;
pub mod ports;
pub mod settings;
pub mod work;
