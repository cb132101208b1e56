//! Taking a delay queue away that is no longer configured, without losing what waits in it.

use super::{
    Binding, BrokerError, STEP_TIMEOUT, Topology,
    connect::connect,
    declare::{self, passive},
    within,
};
use crate::{
    broker::{BrokerSettings, Plan},
    domain::retry::Delay,
};
use lapin::{Channel, options::QueueDeleteOptions};
use std::time::Duration;

/// How often the queue is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// For so many looks in a row nothing may be seen in it, and its way back must be open: what has waited is on that way,
/// unseen, until it is confirmed there.
const EMPTY_LOOKS: u32 = 10;

impl Topology {
    /// Unbinds a delay queue, waits until it has been empty for a while, and deletes it. `waiting` is told how many
    /// messages are still in it. An error when the queue is one that is needed, or none of ours.
    pub async fn retire(&self, plan: &Plan, queue: &str, mut waiting: impl FnMut(u32)) -> Result<(), BrokerError> {
        let back_to = self.goes_back_to(plan, queue)?;
        let (connection, _) = connect(&plan.broker, "topology").await?;
        let retire = async |channel: &Channel| self.retire_on(channel, (queue, back_to), &mut waiting).await;
        let retired = declare::with_channel(&connection, retire).await;
        declare::close(&connection).await;
        retired
    }

    /// Where what waits in a delay queue goes that can be retired.
    fn goes_back_to<'a>(&self, plan: &'a Plan, queue: &str) -> Result<&'a str, BrokerError> {
        let refused = |why: &str| Err(BrokerError::Topology(format!("queue {queue} {why}")));
        if self.queues.iter().any(|needed| needed.name == queue) {
            return refused("is in use; take its delay out of the configuration first, and restart the daemons");
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
        refused(&format!("is no delay queue; must be {}", names.join(" or ")))
    }

    /// How many messages are seen in the queue. An error when something holds others unseen: a consumer, or a queue that
    /// is not there to take them. AMQP tells no more than that.
    async fn look(channel: &Channel, (queue, back_to): (&str, &str)) -> Result<u32, BrokerError> {
        passive(channel, back_to).await?;
        let there = passive(channel, queue).await?;
        if there.consumer_count() > 0 {
            return Err(BrokerError::Topology(format!("queue {queue} has a consumer, which may hold messages of it")));
        }
        Ok(there.message_count())
    }

    async fn retire_on(
        &self,
        channel: &Channel,
        place: (&str, &str),
        waiting: &mut impl FnMut(u32),
    ) -> Result<(), BrokerError> {
        let mut messages = Self::look(channel, place).await?;
        let queue = place.0;
        // An earlier build may have bound it to wherever points messages come from; a binding that is not there is as good.
        for Binding { exchange, key, declare, .. } in &self.bindings {
            let (exchange, queue, key) = (exchange.clone(), queue.to_owned(), key.clone());
            self.unbind(channel, &Binding { exchange, queue, key, declare: *declare }).await?;
        }
        let mut empty = 0;
        while empty < EMPTY_LOOKS {
            waiting(messages);
            tokio::time::sleep(LOOK).await;
            messages = Self::look(channel, place).await?;
            empty = if messages == 0 { empty + 1 } else { 0 };
        }
        // Quorum queues refuse both conditions; the emptiness was seen above.
        let options = QueueDeleteOptions { if_unused: false, if_empty: false, nowait: false };
        within(STEP_TIMEOUT, "queue.delete", channel.queue_delete(queue.into(), options)).await?;
        Ok(())
    }
}
