//! RabbitMQ: connections, topology, consuming and publishing. No code outside this folder uses lapin.
//!
//! The recovery of lapin is off: after any error the whole session (connections, channels, consumer) is opened again,
//! because a partly recovered channel can wait forever (ADR 3).

mod batch;
mod blocked;
mod connect;
mod consume;
mod contents;
mod copy;
mod dead;
mod declare;
mod establish;
mod found;
mod header_frame;
mod header_names;
mod header_values;
mod headers;
mod inequivalence;
mod lenient;
mod outbox_publisher;
mod outgoing;
mod publish;
mod publish_window;
mod renewal;
mod retire;
mod server;
mod sessions;
pub mod settings;
mod topology;
mod trust;
mod unreadable;

pub use batch::{BatchSize, Delivered};
pub use connect::{BrokerUrl, BrokerUrlError, connections_closed};
pub use consume::Consumer;
pub use dead::{Closed, DeadQueue};
pub use found::{HeldLetter, Tag};
pub use outbox_publisher::{EventPublisher, OutboxMessage, PublishResult};
pub use outgoing::Outgoing;
pub use publish::Publisher;
pub use sessions::Sessions;
pub use settings::{
    BrokerSettings, ExchangeType, Identity, Plan, QueueType, SourceKind, SourceSettings, TlsFiles, check_delay_queue,
    retry_queue,
};
pub use topology::{Argument, Binding, Difference, ExchangeSpec, QueueSpec, Topology};

use crate::domain::failure::{Class, Dependency, Outage};
use std::time::Duration;

/// An error of the broker or of the connection to it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No node accepted the connection. Contains the error of each node.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// A connection or channel was closed.
    #[error("lost: {0}")]
    Lost(String),
    /// The broker did not answer a step in time.
    #[error("no answer to {step} within {after:?}")]
    Timeout {
        /// The step.
        step: &'static str,
        /// The deadline.
        after: Duration,
    },
    /// The broker accepts no messages while memory or disk space is low.
    #[error("blocked by an alarm of the broker: {0}")]
    Blocked(String),
    /// A queue or exchange is missing or has other arguments.
    #[error("{0}")]
    Topology(String),
    /// A message was routed to no queue.
    #[error("{returned} of {sent} messages to {target} returned as unroutable: {reason}")]
    Unroutable {
        /// The number of returned messages.
        returned: usize,
        /// The number of published messages.
        sent: usize,
        /// The destination.
        target: String,
        /// The reply text of the broker.
        reason: String,
    },
    /// The broker refused a message (`basic.nack`).
    #[error("the broker refused {nacked} of {sent} messages to {target}")]
    Nacked {
        /// The number of refused messages.
        nacked: usize,
        /// The number of published messages.
        sent: usize,
        /// The destination.
        target: String,
    },
    /// The message cannot be published at all.
    #[error("{0}")]
    Unsendable(String),
}

impl BrokerError {
    /// The error class.
    pub fn class(&self) -> Class {
        match self {
            Self::Connect(_)
            | Self::Lost(_)
            | Self::Timeout { .. }
            | Self::Blocked(_)
            | Self::Topology(_)
            | Self::Unroutable { .. }
            | Self::Nacked { .. } => Class::Outage,
            Self::Unsendable(_) => Class::Permanent,
        }
    }

    /// Converts the error to an outage of the broker.
    pub fn into_outage(self) -> Outage {
        Outage { dependency: Dependency::Broker, reason: self.to_string() }
    }
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        Self::Lost(error_text(&error))
    }
}

/// The error text of the broker if there is one, otherwise that of lapin.
fn error_text(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// Runs a step of the protocol with a deadline; lapin itself has none.
async fn within<T, E: Into<BrokerError>>(
    after: Duration,
    step: &'static str,
    work: impl Future<Output = Result<T, E>>,
) -> Result<T, BrokerError> {
    match tokio::time::timeout(after, work).await {
        Ok(done) => done.map_err(Into::into),
        Err(_) => Err(BrokerError::Timeout { step, after }),
    }
}

/// The deadline of a step to connect, declare, consume or close.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// The deadline for publisher confirms: a quorum queue on a busy disk may be slow.
pub const CONFIRM_TIMEOUT: Duration = Duration::from_secs(30);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_error_has_its_class() {
        let text = || "x".to_owned();
        for (error, class) in [
            (BrokerError::Connect(text()), Class::Outage),
            (BrokerError::Lost(text()), Class::Outage),
            (BrokerError::Timeout { step: "x", after: STEP_TIMEOUT }, Class::Outage),
            (BrokerError::Blocked(text()), Class::Outage),
            (BrokerError::Topology(text()), Class::Outage),
            (BrokerError::Unroutable { returned: 1, sent: 1, target: text(), reason: text() }, Class::Outage),
            (BrokerError::Nacked { nacked: 1, sent: 1, target: text() }, Class::Outage),
            (BrokerError::Unsendable(text()), Class::Permanent),
        ] {
            assert_eq!(error.class(), class, "{error:?}");
        }
    }
}
