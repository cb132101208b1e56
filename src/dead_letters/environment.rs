//! What the use cases work with.

use crate::{config::Settings, database::WithDeadline, ledger::Ledger};

/// The settings and the ledger of a use case.
#[derive(Clone, Copy)]
pub struct Environment<'a> {
    /// The configuration.
    pub settings: &'a Settings,
    /// The ledger, opened for reading. A use case calls it only if it needs the clock or a payment.
    pub ledger: &'a WithDeadline<dyn Ledger>,
}
