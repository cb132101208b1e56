//! RabbitMQ: connecting, the topology, consuming and publishing. Nothing outside this folder knows lapin.
//!
//! lapin's own recovery stays off: after any loss the whole session (connections, channels, consumer) is built again,
//! because a channel that is half recovered can wait for ever (ADR 3).

mod batch;
mod blocked;
mod connect;
mod consume;
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

/// What can go wrong with the broker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BrokerError {
    /// No node took the connection; what each said.
    #[error("cannot connect: {0}")]
    Connect(String),
    /// A connection or channel ended.
    #[error("lost: {0}")]
    Lost(String),
    /// A step was not answered in time.
    #[error("no answer to {step} within {after:?}")]
    Timeout {
        /// Which.
        step: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The broker takes no publishes while it is low on memory or disk.
    #[error("blocked by an alarm of the broker: {0}")]
    Blocked(String),
    /// A queue or exchange is missing or different.
    #[error("{0}")]
    Topology(String),
    /// A message that must reach a queue reached none.
    #[error("{returned} of {sent} messages to {target} came back unroutable: {reason}")]
    Unroutable {
        /// How many came back.
        returned: usize,
        /// Of how many.
        sent: usize,
        /// Where to.
        target: String,
        /// What the broker says.
        reason: String,
    },
    /// The broker refused to take responsibility for a message.
    #[error("the broker did not take {nacked} of {sent} messages to {target}")]
    Nacked {
        /// How many.
        nacked: usize,
        /// Of how many.
        sent: usize,
        /// Where to.
        target: String,
    },
    /// A message that cannot be sent at all.
    #[error("{0}")]
    Unsendable(String),
}

impl BrokerError {
    /// Whose fault it is: decided here, for every error there is.
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

    /// As an outage.
    pub fn into_outage(self) -> Outage {
        Outage { dependency: Dependency::Broker, reason: self.to_string() }
    }
}

impl From<lapin::Error> for BrokerError {
    fn from(error: lapin::Error) -> Self {
        Self::Lost(told(&error))
    }
}

/// What the broker itself said, where it did; lapin's text otherwise.
fn told(error: &lapin::Error) -> String {
    match error.kind() {
        lapin::ErrorKind::ProtocolError(amqp) => amqp.get_message().to_string(),
        _ => error.to_string(),
    }
}

/// Gives a step of the protocol its deadline: lapin has none of its own.
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

/// For connecting, declaring, consuming and closing.
const STEP_TIMEOUT: Duration = Duration::from_secs(10);

/// How long publisher confirms are waited for: a quorum queue on a busy disk may take its time.
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
