//! The parts of the daemon that work on their own.

/// What consumes, each on its own: only what needs a dependency pauses when that is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// The credit queue.
    Credits,
    /// The check queue.
    Checks,
    /// The queue of a source, by the source's name.
    Source(&'static str),
    /// None: the outbox is relayed.
    Relay,
}

impl Component {
    /// Of a source. Its name is kept for the life of the process: sources are configured once.
    pub fn source(name: &str) -> Self {
        Self::Source(name.to_owned().leak())
    }

    /// The metrics' `queue` label; of the relay, which has no queue, its name in the log.
    pub fn label(self) -> &'static str {
        match self {
            Self::Credits => "credit",
            Self::Checks => "check",
            Self::Source(name) => name,
            Self::Relay => "relay",
        }
    }
}
