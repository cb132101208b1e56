//! The components of the daemon, which work independently.

/// A component of the daemon. During an outage only the components that need the failed dependency pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The consumer of the credit queue.
    Credits,
    /// The consumer of the check queue.
    Checks,
    /// The consumer of a notification source's queue, by the source's name.
    Source(&'static str),
    /// The relay, which consumes no queue: it publishes the outbox.
    Relay,
}

impl Component {
    /// Creates the component of a notification source. Its name is kept until the process ends: sources are configured
    /// once.
    pub fn source(name: &str) -> Self {
        Self::Source(name.to_owned().leak())
    }

    /// Returns the value of the metrics' `queue` label. For the relay, which has no queue, returns its name in the log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Credits => "credit",
            Self::Checks => "check",
            Self::Source(name) => name,
            Self::Relay => "relay",
        }
    }
}
