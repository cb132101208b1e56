//! Settling the held dead letters of a session: removing, renewing and returning them.

use super::{DeadQueue, Part};
use crate::broker::{
    BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT,
    declare::{close_connection, declare_passively, with_channel},
    found::{HeldLetter, Tag},
    within,
};
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicNackOptions};
use std::{collections::BTreeMap, time::Duration};

/// The number of queries after which the acknowledgements of the same channel are certain ([`DeadQueue::confirm`]).
const QUERIES: u32 = 3;

/// The result of closing a session.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// The number of messages that should have returned to the queue and are missing.
    pub vanished: u64,
    /// The number of messages that were returned instead of renewed, and the reason.
    pub not_renewed: Option<(u64, BrokerError)>,
}

impl DeadQueue {
    /// Removes messages from the queue and adds the number of certain removals to `removed`, also if an error occurs
    /// midway.
    pub async fn remove(&mut self, tags: &[Tag], removed: &mut u64) -> Result<(), BrokerError> {
        let mut by_part: BTreeMap<usize, Vec<Tag>> = BTreeMap::new();
        for tag in tags {
            by_part.entry(tag.part).or_default().push(*tag);
        }
        for (part, tags) in by_part {
            self.acknowledge(&tags).await?;
            self.confirm(part).await?;
            *removed += tags.len() as u64;
        }
        Ok(())
    }

    async fn acknowledge(&mut self, tags: &[Tag]) -> Result<(), BrokerError> {
        for tag in tags {
            // One at a time: the messages between them stay.
            let channel = &self.parts[tag.part].channel;
            let ack = channel.basic_ack(tag.delivery, BasicAckOptions { multiple: false });
            within(STEP_TIMEOUT, "basic.ack", ack).await?;
            self.parts[tag.part].held -= u64::from(tag.consumed);
            self.held -= u64::from(tag.was_there);
        }
        Ok(())
    }

    /// Waits until the queue has processed all acknowledgements of a channel.
    ///
    /// AMQP has no answer to an acknowledgement. A channel passes only a limited number of them to a quorum queue
    /// before the queue confirms the first, keeps the rest for later, and drops them when it closes. The queue answers
    /// `basic.get` after everything that the channel has passed to it before. The first answer proves the
    /// acknowledgements that were passed; before the second one, the channel has received the reports of the queue and
    /// passes the rest; the third proves the rest. A message in an answer is held, too.
    async fn confirm(&mut self, part: usize) -> Result<(), BrokerError> {
        for _ in 0..QUERIES {
            self.query_queue(part).await?;
        }
        Ok(())
    }

    /// Releases a message that is no longer needed. A message that was inspected before is replaced by a confirmed
    /// copy, whose deliveries count from zero; the others return to the queue when the session closes.
    pub async fn release(&mut self, found: HeldLetter) -> Result<(), BrokerError> {
        if self.renewals.keep_if_due(found) { self.renew().await } else { Ok(()) }
    }

    async fn renew(&mut self) -> Result<(), BrokerError> {
        let tags = self.renewals.publish(&self.queue).await;
        for tag in &tags {
            self.parts[tag.part].renewed += 1;
        }
        // Not confirmed here: a query could return one of the copies before the initial messages.
        self.acknowledge(&tags).await
    }

    /// Closes the session: all held messages return to the queue.
    pub async fn close(mut self) -> Result<Closed, BrokerError> {
        let returned = self.return_held().await;
        self.renewals.close().await;
        close_connection(&self.connection).await;
        let vanished = returned?;
        Ok(Closed { vanished, not_renewed: self.renewals.failed.take() })
    }

    /// Requeues all held messages, and returns the number of those that are missing afterwards.
    async fn return_held(&mut self) -> Result<u64, BrokerError> {
        self.renew().await?;
        let mut renewed = 0;
        for part in 0..self.parts.len() {
            if self.parts[part].renewed > 0 {
                self.confirm(part).await?;
                renewed += self.parts[part].renewed;
            }
        }
        // One channel after the other, so that the messages keep their order.
        for Part { channel, consumer, .. } in &self.parts {
            let cancel = channel.basic_cancel(consumer.as_str().into(), BasicCancelOptions { nowait: false });
            within(CONFIRM_TIMEOUT, "basic.cancel", cancel).await?;
            // Returns all messages of the channel. Since RabbitMQ 4.3 a nack does not count towards the delivery limit;
            // closing a channel with unsettled deliveries does.
            let nack = channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            within(STEP_TIMEOUT, "basic.nack", nack).await?;
            within(STEP_TIMEOUT, "channel.close", channel.close(200, "done".into())).await?;
        }
        let expected = self.held + renewed;
        // The next session must find all messages.
        let ready = tokio::time::timeout(STEP_TIMEOUT, self.wait_until_returned()).await;
        let counted = self.readers == 0 && !self.parts.is_empty();
        Ok(match ready {
            Ok(Ok(ready)) if counted => expected.saturating_sub(ready.into()),
            _ => 0,
        })
    }

    /// Waits until the consumers of this session are closed and their messages are returned. Returns the number of
    /// waiting messages.
    async fn wait_until_returned(&self) -> Result<u32, BrokerError> {
        with_channel(&self.connection, async |channel| {
            loop {
                let declared = declare_passively(channel, &self.queue).await?;
                if declared.consumer_count() <= self.readers {
                    return Ok(declared.message_count());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}
