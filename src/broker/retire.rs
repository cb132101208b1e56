//! Taking a delay queue away that is no longer configured, without losing what waits in it.

use super::{
    BrokerError, STEP_TIMEOUT, Topology,
    connect::connect,
    topology::{self, passive},
    within,
};
use crate::{config::BrokerSettings, domain::retry::Delay};
use lapin::{Channel, Connection, options::QueueDeleteOptions, types::FieldTable};
use std::time::Duration;

/// How often the queue is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// For so many looks in a row nothing may be seen in it, and its way back must be open: what has waited is on that way,
/// unseen, until it is confirmed there.
const EMPTY_LOOKS: u32 = 10;

impl Topology {
    /// Unbinds a delay queue, waits until it has been empty for a while, and deletes it. `waiting` is told how many
    /// messages are still in it. An error when the queue is one that is needed, or none of ours.
    pub async fn retire(
        &self,
        settings: &BrokerSettings,
        queue: &str,
        mut waiting: impl FnMut(u32),
    ) -> Result<(), BrokerError> {
        self.refuse_to_retire(settings, queue)?;
        let (connection, _) = connect(settings, "topology").await?;
        let retired = self.retire_on(&connection, queue, &mut waiting).await;
        topology::close(&connection).await;
        retired
    }

    fn refuse_to_retire(&self, settings: &BrokerSettings, queue: &str) -> Result<(), BrokerError> {
        let refused = |why: &str| Err(BrokerError::Topology(format!("queue {queue} {why}")));
        if self.queues.iter().any(|needed| needed.name == queue) {
            return refused("is in use; take its delay out of the configuration first, and restart the daemons");
        }
        let delay = queue.strip_prefix(&format!("{}.retry.", settings.credit_queue));
        match delay.and_then(Delay::parse) {
            Some(_) => Ok(()),
            None => refused(&format!("is no delay queue; must be {}.retry.<delay>", settings.credit_queue)),
        }
    }

    /// How many messages are seen in the queue. An error when something holds others unseen: a consumer, or a credit queue
    /// that is not there to take them. AMQP tells no more than that.
    async fn look(&self, channel: &Channel, queue: &str) -> Result<u32, BrokerError> {
        passive(channel, &self.binding.queue).await?;
        let there = passive(channel, queue).await?;
        if there.consumer_count() > 0 {
            return Err(BrokerError::Topology(format!("queue {queue} has a consumer, which may hold messages of it")));
        }
        Ok(there.message_count())
    }

    async fn retire_on(
        &self,
        connection: &Connection,
        queue: &str,
        waiting: &mut impl FnMut(u32),
    ) -> Result<(), BrokerError> {
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        let mut messages = self.look(&channel, queue).await?;
        let unbind = channel.queue_unbind(
            queue.into(),
            self.exchange.as_str().into(),
            self.binding.key.as_str().into(),
            FieldTable::default(),
        );
        within(STEP_TIMEOUT, "queue.unbind", unbind).await?;
        let mut empty = 0;
        while empty < EMPTY_LOOKS {
            waiting(messages);
            tokio::time::sleep(LOOK).await;
            messages = self.look(&channel, queue).await?;
            empty = if messages == 0 { empty + 1 } else { 0 };
        }
        // Quorum queues refuse both conditions; the emptiness was seen above.
        let options = QueueDeleteOptions { if_unused: false, if_empty: false, nowait: false };
        within(STEP_TIMEOUT, "queue.delete", channel.queue_delete(queue.into(), options)).await?;
        Ok(())
    }
}
