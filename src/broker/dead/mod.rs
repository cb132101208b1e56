//! A session of a command with the dead queue: dead letters are received and held, removed ones are acknowledged, and
//! the others return to the queue when the session closes.
//!
//! RabbitMQ allows a consumer of a quorum queue to hold 2000 deliveries, so a longer queue requires several consumers.
//! Each has a separate channel: to acknowledge one delivery, a channel searches all deliveries that it holds. Each
//! session counts as a delivery; a message that was inspected before is renewed instead of returned (ADR 9).

mod settle;

pub use settle::Closed;

use super::{
    BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT,
    connect::connect,
    declare::{close_connection, declare_passively, with_channel},
    found::{HeldLetter, Tag},
    lenient,
    renewal::Renewals,
    settings::BrokerSettings,
    trust, within,
};
use futures_util::{
    FutureExt, StreamExt,
    stream::{self, BoxStream, SelectAll},
};
use lapin::{
    Channel, Connection,
    message::Delivery,
    options::{BasicConsumeOptions, BasicGetOptions, BasicQosOptions},
    types::FieldTable,
};
use std::{collections::VecDeque, time::Duration};

/// The maximum number of deliveries that one consumer holds, which is the limit of a quorum queue.
const MAX_HELD_PER_CONSUMER: u16 = 2000;

/// The time without a delivery after which the queue is queried for more messages.
const MAX_SILENCE: Duration = Duration::from_millis(500);

/// A session with the dead queue.
pub struct DeadQueue {
    connection: Connection,
    queue: String,
    parts: Vec<Part>,
    deliveries: SelectAll<BoxStream<'static, (usize, Option<lapin::Result<Delivery>>)>>,
    /// The deliveries that are received and not returned by `next` yet: channel, delivery, and whether a consumer
    /// received it (otherwise a query did).
    received: VecDeque<(usize, Delivery, bool)>,
    /// The number of messages held so far, without the copies that this session has published.
    arrived: u64,
    /// How many of them may have been in the queue when the session opened; `None` until all of those have arrived.
    initial_count: Option<u64>,
    /// How many of the initial messages are held and not removed.
    held: u64,
    waiting: u32,
    readers: u32,
    renewals: Renewals,
}

/// A channel with one consumer of the dead queue.
struct Part {
    channel: Channel,
    consumer: String,
    /// The deliveries of the consumer that are not removed.
    held: u64,
    /// The renewed messages whose acknowledgement is not confirmed yet.
    renewed: u64,
}

impl DeadQueue {
    /// Connects and counts the waiting messages, without receiving any.
    pub async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let (connection, _) = connect(settings, "dead queue").await?;
        let declared =
            with_channel(&connection, async |channel| declare_passively(channel, &settings.dead_queue).await);
        let declared = match declared.await {
            Ok(declared) => declared,
            Err(error) => {
                close_connection(&connection).await;
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
            initial_count: (declared.message_count() == 0).then_some(0),
            held: 0,
            waiting: declared.message_count(),
            readers: declared.consumer_count(),
            renewals: Renewals::new(settings),
        })
    }

    /// The number of messages in the queue when the session opened, without those that another consumer holds.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// A remark for the operator if other consumers hold messages.
    pub fn remark(&self) -> Option<String> {
        (self.readers > 0).then(|| {
            format!("{} other reader(s) of {}: the messages that they hold are not shown", self.readers, self.queue)
        })
    }

    /// Returns the next message that was in the queue when the session opened; `None` after the last one.
    ///
    /// A message can take seconds to arrive (headers of 128 KiB, nested a thousand levels deep, on a busy machine).
    /// Silence therefore does not prove that the queue is empty, and the queue is queried.
    pub async fn next(&mut self) -> Result<Option<HeldLetter>, BrokerError> {
        loop {
            if self.initial_count.is_none() && self.arrived >= u64::from(self.waiting) {
                self.fix_initial_count().await?;
            }
            if self.initial_count.is_some_and(|initial| self.arrived >= initial) {
                return Ok(None);
            }
            let mut found = self.next_within(MAX_SILENCE).await?;
            if found.is_none() {
                self.receive_everything().await?;
                found = self.next_now().await?;
            }
            match found {
                None => return Ok(None),
                Some(found) if found.tag.was_there => return Ok(Some(found)),
                // A copy of this session, which returns to the queue when the session closes.
                Some(_) => {}
            }
        }
    }

    /// Determines the initial count when the counted number of messages has arrived. Several consumers receive messages
    /// in no common order: some of the messages may be newer, and some initial ones still in transit. The queue has
    /// sent those before the newer ones.
    async fn fix_initial_count(&mut self) -> Result<(), BrokerError> {
        self.receive_everything().await?;
        while let Some(delivery) = self.deliveries.next().now_or_never() {
            let (part, delivery) = self.accept(delivery)?;
            self.received.push_back((part, delivery, true));
        }
        let renewals = &self.renewals;
        let is_original = |(_, delivery, _): &&(usize, Delivery, bool)| !renewals.is_own_copy(&delivery.properties);
        let in_transit = self.received.iter().filter(is_original).count();
        self.initial_count = Some(self.arrived + in_transit as u64);
        Ok(())
    }

    /// Returns the next message; `None` if none arrives within `patience`.
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

    /// Returns the next message if it has already arrived.
    pub async fn next_now(&mut self) -> Result<Option<HeldLetter>, BrokerError> {
        self.make_room().await?;
        if let Some((part, delivery, consumed)) = self.received.pop_front() {
            return Ok(Some(self.hold(part, delivery, consumed)));
        }
        let Some(delivery) = self.deliveries.next().now_or_never() else { return Ok(None) };
        let (part, delivery) = self.accept(delivery)?;
        Ok(Some(self.hold(part, delivery, true)))
    }

    /// Receives everything that the queue has sent to this session. The queue answers `basic.get` after it has passed
    /// everything to the channel; the channel answers `basic.qos` after it has sent all of that to the client.
    async fn receive_everything(&mut self) -> Result<(), BrokerError> {
        for part in 0..self.parts.len() {
            self.query_queue(part).await?;
            let qos = self.parts[part].channel.basic_qos(MAX_HELD_PER_CONSUMER, BasicQosOptions { global: false });
            within(CONFIRM_TIMEOUT, "basic.qos", qos).await?;
        }
        Ok(())
    }

    /// Counts a delivery of a consumer as held.
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
            Some((_, None)) | None => Err(BrokerError::Lost(format!(
                "the broker cancelled the consumer of {} (the queue may have been deleted)",
                self.queue
            ))),
        }
    }

    /// Converts a delivery to a held dead letter.
    fn hold(&mut self, part: usize, mut delivery: Delivery, consumed: bool) -> HeldLetter {
        let is_copy = self.renewals.is_own_copy(&delivery.properties);
        self.arrived += u64::from(!is_copy);
        let was_there = !is_copy && self.initial_count.is_none_or(|initial| self.arrived <= initial);
        self.held += u64::from(was_there);
        let unreadable = lenient::take_mark(&mut delivery.properties);
        trust::distrust_producers(delivery.exchange.as_str(), &mut delivery.properties);
        let tag = Tag { part, delivery: delivery.delivery_tag, was_there, consumed };
        HeldLetter { properties: delivery.properties, unreadable, body: delivery.data, tag }
    }

    /// Adds a consumer if the existing ones hold as many messages as they can. Consumers are added one by one, so that
    /// messages arrive in the order of the queue.
    async fn make_room(&mut self) -> Result<(), BrokerError> {
        if self.parts.iter().any(|part| part.held < u64::from(MAX_HELD_PER_CONSUMER)) {
            return Ok(());
        }
        let channel = within(STEP_TIMEOUT, "channel.open", self.connection.create_channel()).await?;
        // Set per consumer: a quorum queue refuses a limit for the whole channel.
        let qos = channel.basic_qos(MAX_HELD_PER_CONSUMER, BasicQosOptions { global: false });
        within(STEP_TIMEOUT, "basic.qos", qos).await?;
        let index = self.parts.len();
        let tag = format!("pointsd-dead-{index}");
        let consume = channel.basic_consume(
            self.queue.as_str().into(),
            tag.as_str().into(),
            // Manual acknowledgement; other consumers remain possible.
            BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false },
            FieldTable::default(),
        );
        let consumer = within(STEP_TIMEOUT, "basic.consume", consume).await?;
        let deliveries = consumer.map(move |delivery| (index, Some(delivery)));
        // The end of one consumer must be noticed while others continue.
        self.deliveries.push(deliveries.chain(stream::once(async move { (index, None) })).boxed());
        self.parts.push(Part { channel, consumer: tag, held: 0, renewed: 0 });
        Ok(())
    }

    /// Queries the queue, which answers after it has processed everything that this channel has passed to it.
    async fn query_queue(&mut self, part: usize) -> Result<(), BrokerError> {
        let channel = &self.parts[part].channel;
        let get = channel.basic_get(self.queue.as_str().into(), BasicGetOptions { no_ack: false });
        if let Some(message) = within(CONFIRM_TIMEOUT, "basic.get", get).await? {
            self.received.push_back((part, message.delivery, false));
        }
        Ok(())
    }
}
