//! A look through the dead queue: messages are taken and held, those that a command removes are acknowledged, and the
//! others go back when the look ends.
//!
//! RabbitMQ lets a consumer of a quorum queue hold 2000 deliveries, so a longer queue takes several consumers. Each has a
//! channel of its own: to acknowledge one delivery, a channel searches through all that it holds. Each look counts as a
//! delivery; a message that has been looked at before is renewed instead of given back (ADR 9).

use super::{
    BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT,
    connect::connect,
    declare::{self, passive, with_channel},
    found::HeldLetter,
    lenient,
    publish::Publisher,
    renewal::Renewals,
    trust, within,
};
use crate::broker::{BrokerSettings, found::Tag};
use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use lapin::{
    Channel, Connection,
    message::Delivery,
    options::{
        BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicGetOptions, BasicNackOptions, BasicQosOptions,
    },
    types::FieldTable,
};
use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

/// Most deliveries that one consumer holds: the most that a quorum queue gives it.
const PER_CONSUMER: u16 = 2000;

/// After so long without a delivery the queue is asked whether it has more.
const SILENCE: Duration = Duration::from_millis(500);

/// Questions to the queue after which acknowledgements of the same channel are certain ([`DeadQueue::confirm`]).
const QUESTIONS: u32 = 3;

/// A look at the dead queue.
pub struct DeadQueue {
    connection: Connection,
    queue: String,
    parts: Vec<Part>,
    deliveries: SelectAll<BoxStream<'static, (usize, Option<lapin::Result<Delivery>>)>>,
    /// Taken, and not handed out yet. Whether a consumer brought it, or a question.
    received: VecDeque<(usize, Delivery, bool)>,
    /// Handed out so far, without the copies that this look has made.
    arrived: u64,
    /// How many of them may have been there when this look began; `None` until all that were have arrived.
    beginning: Option<u64>,
    /// Of those: taken and not removed.
    held: u64,
    waiting: u32,
    readers: u32,
    renewals: Renewals,
}

/// A channel with one consumer.
struct Part {
    channel: Channel,
    consumer: String,
    /// Deliveries of the consumer that are not removed.
    held: u64,
    /// Removed because they are renewed, and not certain yet.
    renewed: u64,
}

/// What a look found out at its end.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Closed {
    /// Messages that the queue should have again and has not.
    pub vanished: u64,
    /// Messages that were given back although they had been looked at before, and why.
    pub not_renewed: Option<(u64, BrokerError)>,
}

impl DeadQueue {
    /// Connects and counts the waiting messages. Takes nothing yet.
    pub async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let (connection, _) = connect(settings, "dead queue").await?;
        let declared = with_channel(&connection, async |channel| passive(channel, &settings.dead_queue).await);
        let declared = match declared.await {
            Ok(declared) => declared,
            Err(error) => {
                declare::close(&connection).await;
                return Err(error);
            }
        };
        Ok(Self {
            connection,
            queue: settings.dead_queue.clone(),
            parts: Vec::new(),
            deliveries: SelectAll::new(),
            received: VecDeque::new(),
            arrived: 0,
            beginning: (declared.message_count() == 0).then_some(0),
            held: 0,
            waiting: declared.message_count(),
            readers: declared.consumer_count(),
            renewals: Renewals::new(settings),
        })
    }

    /// How many messages were there when this look began, without those that another reader holds.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// What a person should know before: another reader holds messages back.
    pub fn remark(&self) -> Option<String> {
        (self.readers > 0)
            .then(|| format!("{} other reader(s) of {}: what they hold is not seen here", self.readers, self.queue))
    }

    /// The next of the messages that were there when this look began; `None` when there are no more of them.
    ///
    /// A message can take seconds on its way (headers of 128 KiB, nested a thousand deep, on a busy machine), so silence says
    /// nothing: the queue is asked.
    pub async fn next(&mut self) -> Result<Option<HeldLetter>, BrokerError> {
        loop {
            if self.beginning.is_none() && self.arrived >= u64::from(self.waiting) {
                self.end_the_beginning().await?;
            }
            if self.beginning.is_some_and(|beginning| self.arrived >= beginning) {
                return Ok(None);
            }
            let mut found = self.next_within(SILENCE).await?;
            if found.is_none() {
                self.receive_everything().await?;
                found = self.next_now().await?;
            }
            match found {
                None => return Ok(None),
                Some(found) if found.tag.was_there => return Ok(Some(found)),
                // A copy of this look, which goes back when the look ends.
                Some(_) => {}
            }
        }
    }

    /// As many messages have arrived as there were. Through several consumers they come in no order, so that some of them may
    /// be newer, and some of those that were there still on their way: the queue has handed them out before the newer ones.
    async fn end_the_beginning(&mut self) -> Result<(), BrokerError> {
        self.receive_everything().await?;
        while let Some(delivery) = self.deliveries.next().now_or_never() {
            let (part, delivery) = self.accept(delivery)?;
            self.received.push_back((part, delivery, true));
        }
        let renewals = &self.renewals;
        let is_original = |(_, delivery, _): &&(usize, Delivery, bool)| !renewals.has_made(&delivery.properties);
        let on_their_way = self.received.iter().filter(is_original).count();
        self.beginning = Some(self.arrived + on_their_way as u64);
        Ok(())
    }

    /// The next message; `None` when none has come for `patience`.
    pub async fn next_within(&mut self, patience: Duration) -> Result<Option<HeldLetter>, BrokerError> {
        if let Some(found) = self.next_now().await? {
            return Ok(Some(found));
        }
        match tokio::time::timeout(patience, self.deliveries.next()).await {
            Err(_) => Ok(None),
            Ok(delivery) => {
                let (part, delivery) = self.accept(delivery)?;
                Ok(Some(self.hold(part, delivery, true)))
            }
        }
    }

    /// The next message, if it is here already.
    pub async fn next_now(&mut self) -> Result<Option<HeldLetter>, BrokerError> {
        self.make_room().await?;
        if let Some((part, delivery, consumed)) = self.received.pop_front() {
            return Ok(Some(self.hold(part, delivery, consumed)));
        }
        let Some(delivery) = self.deliveries.next().now_or_never() else { return Ok(None) };
        let (part, delivery) = self.accept(delivery)?;
        Ok(Some(self.hold(part, delivery, true)))
    }

    /// Returns when everything is here that the queue has given to this look. `basic.get` is answered by the queue itself,
    /// when it has passed everything on to the channel; `basic.qos` by the channel, when it has sent all of that to us.
    async fn receive_everything(&mut self) -> Result<(), BrokerError> {
        for part in 0..self.parts.len() {
            self.ask(part).await?;
            let qos = self.parts[part].channel.basic_qos(PER_CONSUMER, BasicQosOptions { global: false });
            within(CONFIRM_TIMEOUT, "basic.qos", qos).await?;
        }
        Ok(())
    }

    /// What a consumer has brought.
    fn accept(
        &mut self,
        delivery: Option<(usize, Option<lapin::Result<Delivery>>)>,
    ) -> Result<(usize, Delivery), BrokerError> {
        match delivery {
            Some((part, Some(Ok(delivery)))) => {
                self.parts[part].held += 1;
                Ok((part, delivery))
            }
            Some((_, Some(Err(error)))) => Err(error.into()),
            Some((_, None)) | None => {
                Err(BrokerError::Lost(format!("the consumer was cancelled (is {} gone?)", self.queue)))
            }
        }
    }

    fn hold(&mut self, part: usize, mut delivery: Delivery, consumed: bool) -> HeldLetter {
        let is_copy = self.renewals.has_made(&delivery.properties);
        self.arrived += u64::from(!is_copy);
        let was_there = !is_copy && self.beginning.is_none_or(|beginning| self.arrived <= beginning);
        self.held += u64::from(was_there);
        let unreadable = lenient::take(&mut delivery.properties);
        trust::distrust_producers(delivery.exchange.as_str(), &mut delivery.properties);
        let tag = Tag { part, delivery: delivery.delivery_tag, was_there, consumed };
        HeldLetter { properties: delivery.properties, unreadable, body: delivery.data, tag }
    }

    /// Adds a consumer when those that there are hold all that they can. One after the other: messages arrive in the order
    /// of the queue.
    async fn make_room(&mut self) -> Result<(), BrokerError> {
        if self.parts.iter().any(|part| part.held < u64::from(PER_CONSUMER)) {
            return Ok(());
        }
        let channel = within(STEP_TIMEOUT, "channel.open", self.connection.create_channel()).await?;
        // For each consumer of its own: a quorum queue refuses a limit for the whole channel.
        let qos = channel.basic_qos(PER_CONSUMER, BasicQosOptions { global: false });
        within(STEP_TIMEOUT, "basic.qos", qos).await?;
        let index = self.parts.len();
        let tag = format!("pointsd-dead-{index}");
        let consume = channel.basic_consume(
            self.queue.as_str().into(),
            tag.as_str().into(),
            // Manual acknowledgement; other readers are not locked out.
            BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false },
            FieldTable::default(),
        );
        let consumer = within(STEP_TIMEOUT, "basic.consume", consume).await?;
        let deliveries = consumer.map(move |delivery| (index, Some(delivery)));
        // The end of one consumer must be seen also while others go on.
        self.deliveries.push(deliveries.chain(stream::once(async move { (index, None) })).boxed());
        self.parts.push(Part { channel, consumer: tag, held: 0, renewed: 0 });
        Ok(())
    }

    /// Takes messages out of the queue for good, and adds to `removed` those that are certain to be gone, also when it fails
    /// in the middle.
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
            // One at a time: what lies between them stays.
            let channel = &self.parts[tag.part].channel;
            let ack = channel.basic_ack(tag.delivery, BasicAckOptions { multiple: false });
            within(STEP_TIMEOUT, "basic.ack", ack).await?;
            self.parts[tag.part].held -= u64::from(tag.consumed);
            self.held -= u64::from(tag.was_there);
        }
        Ok(())
    }

    /// Returns when the queue has taken all acknowledgements of a channel.
    ///
    /// AMQP has no answer to an acknowledgement, and a channel passes on only so many to a quorum queue before it hears of
    /// the first, keeps the rest for later, and forgets them when it closes. `basic.get` is answered by the queue itself,
    /// after everything that the channel has passed on before: the first answer settles what was passed on; before the
    /// second one the channel has received the queue's reports on that, upon which it passes on the rest; the third settles
    /// the rest. A message that comes with an answer is one more that is held.
    async fn confirm(&mut self, part: usize) -> Result<(), BrokerError> {
        for _ in 0..QUESTIONS {
            self.ask(part).await?;
        }
        Ok(())
    }

    /// Asks the queue itself something, in turn with all that this channel has passed on to it.
    async fn ask(&mut self, part: usize) -> Result<(), BrokerError> {
        let channel = &self.parts[part].channel;
        let get = channel.basic_get(self.queue.as_str().into(), BasicGetOptions { no_ack: false });
        if let Some(message) = within(CONFIRM_TIMEOUT, "basic.get", get).await? {
            self.received.push_back((part, message.delivery, false));
        }
        Ok(())
    }

    /// Lets go of a message that is not needed any more. One that has been looked at before is replaced by a confirmed copy,
    /// whose deliveries count from zero; the others go back when the look ends.
    pub async fn release(&mut self, found: HeldLetter) -> Result<(), BrokerError> {
        if self.renewals.take(found) { self.renew().await } else { Ok(()) }
    }

    async fn renew(&mut self) -> Result<(), BrokerError> {
        let tags = self.renewals.publish(&self.queue).await;
        for tag in &tags {
            self.parts[tag.part].renewed += 1;
        }
        // Not confirmed here: a question could fetch one of the copies before the messages that were there.
        self.acknowledge(&tags).await
    }

    /// Ends the look: everything that is held goes back to the queue.
    pub async fn close(mut self) -> Result<Closed, BrokerError> {
        let done = self.give_back().await;
        self.renewals.close().await;
        declare::close(&self.connection).await;
        let vanished = done?;
        Ok(Closed { vanished, not_renewed: self.renewals.failed.take() })
    }

    async fn give_back(&mut self) -> Result<u64, BrokerError> {
        self.renew().await?;
        let mut renewed = 0;
        for part in 0..self.parts.len() {
            if self.parts[part].renewed > 0 {
                self.confirm(part).await?;
                renewed += self.parts[part].renewed;
            }
        }
        // One after the other: they go back in their order.
        for Part { channel, consumer, .. } in &self.parts {
            let cancel = channel.basic_cancel(consumer.as_str().into(), BasicCancelOptions { nowait: false });
            within(CONFIRM_TIMEOUT, "basic.cancel", cancel).await?;
            // All that the channel holds. Since RabbitMQ 4.3 a nack counts towards no delivery limit; a channel that is
            // closed over deliveries does.
            let nack = channel.basic_nack(0, BasicNackOptions { multiple: true, requeue: true });
            within(STEP_TIMEOUT, "basic.nack", nack).await?;
            within(STEP_TIMEOUT, "channel.close", channel.close(200, "done".into())).await?;
        }
        let back = self.held + renewed;
        // Who looks next must find everything.
        let ready = tokio::time::timeout(STEP_TIMEOUT, self.put_back()).await;
        let counted = self.readers == 0 && !self.parts.is_empty();
        Ok(match ready {
            Ok(Ok(ready)) if counted => back.saturating_sub(ready.into()),
            _ => 0,
        })
    }

    /// Returns when our consumers are gone, and with them what they held: how many messages wait then.
    async fn put_back(&self) -> Result<u32, BrokerError> {
        with_channel(&self.connection, async |channel| {
            loop {
                let declared = passive(channel, &self.queue).await?;
                if declared.consumer_count() <= self.readers {
                    return Ok(declared.message_count());
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

impl Publisher {
    /// Whether a queue is there.
    pub async fn has_queue(&self, queue: &str) -> Result<bool, BrokerError> {
        // On a channel of its own, which a refusal closes.
        match with_channel(self.connection(), async |channel| passive(channel, queue).await).await {
            Ok(_) => Ok(true),
            Err(BrokerError::Topology(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}
