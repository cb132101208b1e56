//! What happens: one struct an occurrence, which emits its log line and its metric together. Identifiers are logged,
//! bodies and secrets never.

mod checks;
mod commits;
mod daemon;
mod messages;
mod outbox;

pub use checks::*;
pub use commits::*;
pub use daemon::*;
pub use messages::*;
pub use outbox::*;

/// Logs how many lines were suppressed, where no later line has said so. Called from time to time.
pub fn report_suppressed() {
    commits::report_suppressed();
    messages::report_suppressed();
}
