//! Deleting a delay queue that is no longer configured, without losing the messages in it.

use super::{
    Binding, BrokerError, STEP_TIMEOUT, Topology,
    connect::connect,
    declare::{self, declare_passively},
    within,
};
use crate::{
    broker::{BrokerSettings, Plan},
    domain::retry::Delay,
};
use lapin::{Channel, options::QueueDeleteOptions};
use std::time::Duration;

/// The interval at which the queue is inspected.
const INSPECTION_INTERVAL: Duration = Duration::from_secs(1);

/// The number of consecutive inspections that must find the queue empty and its target queue present: a message that
/// has waited is on its way to the target, and not counted, until it is confirmed there.
const EMPTY_INSPECTIONS: u32 = 10;

impl Topology {
    /// Unbinds a delay queue, waits until it has been empty for a while, and deletes it. `waiting` receives the number
    /// of messages that are still in it. Fails if the queue is in use or is no delay queue of pointsd.
    pub async fn retire(&self, plan: &Plan, queue: &str, mut waiting: impl FnMut(u32)) -> Result<(), BrokerError> {
        let back_to = self.find_target(plan, queue)?;
        let (connection, _) = connect(&plan.broker, "topology").await?;
        let retire = async |channel: &Channel| self.retire_on(channel, (queue, back_to), &mut waiting).await;
        let retired = declare::with_channel(&connection, retire).await;
        declare::close_connection(&connection).await;
        retired
    }

    /// The queue to which the messages of a delay queue return. Fails if the delay queue cannot be retired.
    fn find_target<'a>(&self, plan: &'a Plan, queue: &str) -> Result<&'a str, BrokerError> {
        let refused = |why: &str| Err(BrokerError::Topology(format!("queue {queue} {why}")));
        if self.queues.iter().any(|needed| needed.name == queue) {
            return refused("is in use; first remove its delay from the configuration and restart the daemons");
        }
        let BrokerSettings { credit_queue, check_queue, .. } = &plan.broker;
        let mut places = vec![(credit_queue, "retry"), (check_queue, "retry"), (check_queue, "delay")];
        places.extend(plan.sources.iter().map(|source| (&source.queue, "retry")));
        for &(back_to, kind) in &places {
            let delay = queue.strip_prefix(&format!("{back_to}.{kind}."));
            if delay.and_then(Delay::parse).is_some() {
                return Ok(back_to);
            }
        }
        let names: Vec<String> = places.iter().map(|(back_to, kind)| format!("{back_to}.{kind}.<delay>")).collect();
        refused(&format!("is not a delay queue; must be {}", names.join(" or ")))
    }

    /// The number of messages that wait in the queue. Fails if uncounted messages are possible, because the queue has a
    /// consumer or its target queue is missing. AMQP shows no other cause.
    async fn count_waiting(channel: &Channel, (queue, back_to): (&str, &str)) -> Result<u32, BrokerError> {
        declare_passively(channel, back_to).await?;
        let declared = declare_passively(channel, queue).await?;
        if declared.consumer_count() > 0 {
            return Err(BrokerError::Topology(format!("queue {queue} has a consumer, which may hold messages")));
        }
        Ok(declared.message_count())
    }

    async fn retire_on(
        &self,
        channel: &Channel,
        place: (&str, &str),
        waiting: &mut impl FnMut(u32),
    ) -> Result<(), BrokerError> {
        let mut messages = Self::count_waiting(channel, place).await?;
        let queue = place.0;
        // An earlier build may have bound it to the exchange of points messages; a missing binding is no error.
        for Binding { exchange, key, declare, .. } in &self.bindings {
            let (exchange, queue, key) = (exchange.clone(), queue.to_owned(), key.clone());
            self.unbind(channel, &Binding { exchange, queue, key, declare: *declare }).await?;
        }
        let mut empty = 0;
        while empty < EMPTY_INSPECTIONS {
            waiting(messages);
            tokio::time::sleep(INSPECTION_INTERVAL).await;
            messages = Self::count_waiting(channel, place).await?;
            empty = if messages == 0 { empty + 1 } else { 0 };
        }
        // Quorum queues refuse both conditions; the loop above has checked that the queue is empty.
        let options = QueueDeleteOptions { if_unused: false, if_empty: false, nowait: false };
        within(STEP_TIMEOUT, "queue.delete", channel.queue_delete(queue.into(), options)).await?;
        Ok(())
    }
}
