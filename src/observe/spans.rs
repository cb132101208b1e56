//! Spans: the context that the log lines of a batch share.

use crate::domain::component::Component;
use tracing::{Span, info_span};

/// The span of a batch: every log line within it has the queue and the number of messages.
///
/// A batch has one span, so that a message costs nothing.
pub fn batch(component: Component, size: usize) -> Span {
    info_span!("batch", queue = component.label(), size)
}
