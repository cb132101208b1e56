//! The errors of the use cases.

use crate::{broker::BrokerError, database::DatabaseError};
use std::{io, path::PathBuf, time::Duration};

/// Why a use case failed.
#[derive(Debug, thiserror::Error)]
pub enum DeadLetterError {
    /// The broker failed.
    #[error("broker: {0}")]
    Broker(BrokerError),
    /// The clock of the ledger's database cannot be read.
    #[error("ages are measured by the ledger's clock: ledger: {0}")]
    Clock(DatabaseError),
    /// The ledger's database reports a time that cannot be represented.
    #[error("ages are measured by the ledger's clock: {0}")]
    ClockRange(jiff::Error),
    /// Inspecting the dead queue takes longer than deliveries may be held.
    #[error("inspecting the dead queue takes longer than {0:?}")]
    SlowInspection(Duration),
    /// The export cannot be written.
    #[error("{0}")]
    Write(io::Error),
    /// The temporary file of an export cannot be created.
    #[error("cannot create {}: {error}", file.display())]
    CreateFile {
        /// The temporary file.
        file: PathBuf,
        /// The reason.
        error: io::Error,
    },
    /// The export was not completed, and its file does not exist.
    #[error("nothing is exported to {}: {error}", file.display())]
    NotExported {
        /// The file of the export.
        file: PathBuf,
        /// The reason.
        error: Box<DeadLetterError>,
    },
    /// A requeue failed after it had begun.
    #[error(
        "{sent} messages are certain to be sent back and removed from the dead queue; {uncertain} more were published and may \
         be in both queues; no message is lost, and running the command again is harmless, because a payment is credited \
         once: {error}"
    )]
    Requeue {
        /// The number of messages that are sent and removed from the dead queue.
        sent: u64,
        /// The number of messages that were published and may still be in the dead queue.
        uncertain: u64,
        /// The reason.
        error: Box<DeadLetterError>,
    },
    /// A drop failed after it had begun.
    #[error(
        "{dropped} messages are certain to be dropped; run the command again to drop the others, which is harmless: {error}"
    )]
    Drop {
        /// The number of messages that are removed.
        dropped: u64,
        /// The reason.
        error: Box<DeadLetterError>,
    },
}

impl From<BrokerError> for DeadLetterError {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

impl From<io::Error> for DeadLetterError {
    fn from(error: io::Error) -> Self {
        Self::Write(error)
    }
}
