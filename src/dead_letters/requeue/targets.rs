//! The queues to which messages are sent back.

use crate::{broker::Publisher, config::Settings, dead_letters::error::DeadLetterError, domain::printable::printable};
use std::collections::BTreeMap;

/// Which queues exist, as far as they were asked for.
#[derive(Debug, Default)]
pub(super) struct Targets(BTreeMap<String, bool>);

impl Targets {
    /// Whether a message of this source queue can be sent back; otherwise the reason why not.
    pub(super) async fn check(
        &mut self,
        settings: &Settings,
        source_queue: Option<&str>,
        publisher: &Publisher,
    ) -> Result<Result<(), String>, DeadLetterError> {
        let Some(queue) = source_queue else { return Ok(Err("nothing says which queue it came from".into())) };
        let exists = if let Some(exists) = self.0.get(queue) {
            *exists
        } else {
            let exists = is_target(settings, queue) && publisher.has_queue(queue).await?;
            self.0.insert(queue.to_owned(), exists);
            exists
        };
        Ok(if exists { Ok(()) } else { Err(format!("the queue that it came from is not there: {}", printable(queue))) })
    }
}

/// Whether a queue of this name may be a target at all.
fn is_target(settings: &Settings, queue: &str) -> bool {
    queue != settings.broker.dead_queue && !queue.starts_with("amq.") && (1..=255).contains(&queue.len())
}
