//! Looking through the dead queue: everything that lies in it is taken, nothing is acknowledged but what is named, and
//! all the rest goes back when the connection closes.
//!
//! RabbitMQ lets a consumer of a quorum queue hold 2000 deliveries, so a longer queue takes several consumers; they are
//! added as they fill up. Each look counts as a delivery, which the queue's high limit allows for (ADR 9).

use super::{
    BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT,
    connect::connect,
    copy,
    declare::{self, passive},
    headers,
    lenient::{self, RAW, Unreadable},
    outgoing::Outgoing,
    publish::Publisher,
    within,
};
use crate::{
    config::BrokerSettings,
    domain::settlement::Reason,
    parked::{DELIVERY_LIMIT, LedgerVersion, Parked, UNKNOWN},
};
use futures_util::{FutureExt, StreamExt, stream::SelectAll};
use lapin::{
    BasicProperties, Channel, Connection,
    message::Delivery,
    options::{BasicAckOptions, BasicConsumeOptions, BasicQosOptions},
    types::{AMQPValue, FieldTable},
};
use std::{collections::BTreeMap, time::Duration};

/// Most deliveries that one consumer holds: the most that a quorum queue gives it.
const PER_CONSUMER: u16 = 2000;

/// How long the broker has to pass acknowledgements on.
const TIME_FOR_ACKNOWLEDGEMENTS: Duration = Duration::from_secs(1);

/// A look at the dead queue.
pub struct DeadQueue {
    connection: Connection,
    channel: Channel,
    queue: String,
    deliveries: SelectAll<lapin::Consumer>,
    consumers: u64,
    /// Taken and not removed.
    held: u64,
    removed: bool,
    waiting: u32,
    readers: u32,
}

/// A message in the dead queue, held until it is removed or the look ends.
#[derive(Debug)]
pub struct Found {
    delivery: Delivery,
    /// Of one that lapin cannot decode, and that no daemon has parked: the broker moved it, or a producer sent it here.
    unreadable: Option<Unreadable>,
}

/// What removes a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag(u64);

impl DeadQueue {
    /// Connects, and counts what lies there. Takes nothing yet.
    ///
    /// Refused where each look would use up the few deliveries that the queue allows, unless `despite_limit`.
    pub async fn open(settings: &BrokerSettings, despite_limit: bool) -> Result<Self, BrokerError> {
        let (connection, _) = connect(settings, "dead queue").await?;
        let doubt = declare::doubt_about_looking(&connection, &settings.dead_queue).await?;
        if let Some(doubt) = doubt.filter(|_| !despite_limit) {
            declare::close(&connection).await;
            return Err(BrokerError::Topology(format!(
                "queue {} is not known to have an x-delivery-limit of 1000000 (none means 20 since RabbitMQ 4.0): each \
                 look at a message uses up a delivery, and after the last one the broker drops it. Make the queue anew, \
                 or look all the same with --despite-delivery-limit. The broker says: {doubt}",
                settings.dead_queue
            )));
        }
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        let declared = passive(&channel, &settings.dead_queue).await?;
        // For each consumer of its own: a quorum queue refuses a limit for the whole channel.
        let qos = channel.basic_qos(PER_CONSUMER, BasicQosOptions { global: false });
        within(STEP_TIMEOUT, "basic.qos", qos).await?;
        Ok(Self {
            connection,
            channel,
            queue: settings.dead_queue.clone(),
            deliveries: SelectAll::new(),
            consumers: 0,
            held: 0,
            removed: false,
            waiting: declared.message_count(),
            readers: declared.consumer_count(),
        })
    }

    /// How many messages were there when this look began, but for those that another reader holds.
    pub fn waiting(&self) -> u32 {
        self.waiting
    }

    /// What a person should know before: another reader holds messages back.
    pub fn remark(&self) -> Option<String> {
        (self.readers > 0)
            .then(|| format!("{} other reader(s) of {}: what they hold is not seen here", self.readers, self.queue))
    }

    /// The next message; `None` when none has come for `patience`.
    pub async fn next(&mut self, patience: Duration) -> Result<Option<Found>, BrokerError> {
        self.make_room().await?;
        match tokio::time::timeout(patience, self.deliveries.next()).await {
            Err(_) => Ok(None),
            Ok(delivery) => self.take(delivery),
        }
    }

    /// The next message, if it is here already.
    pub async fn next_now(&mut self) -> Result<Option<Found>, BrokerError> {
        self.make_room().await?;
        match self.deliveries.next().now_or_never() {
            None => Ok(None),
            Some(delivery) => self.take(delivery),
        }
    }

    fn take(&mut self, delivery: Option<lapin::Result<Delivery>>) -> Result<Option<Found>, BrokerError> {
        match delivery {
            Some(Ok(mut delivery)) => {
                self.held += 1;
                let unreadable = lenient::take(&mut delivery.properties);
                copy::distrust_producers(delivery.exchange.as_str(), &mut delivery.properties);
                Ok(Some(Found { delivery, unreadable }))
            }
            Some(Err(error)) => Err(error.into()),
            None => Err(BrokerError::Lost(format!("the consumer was cancelled (is {} gone?)", self.queue))),
        }
    }

    /// Another consumer, when those that there are may soon hold all that they can.
    async fn make_room(&mut self) -> Result<(), BrokerError> {
        if self.held + u64::from(PER_CONSUMER) / 2 < self.consumers * u64::from(PER_CONSUMER) {
            return Ok(());
        }
        let consume = self.channel.basic_consume(
            self.queue.as_str().into(),
            format!("pointsd-dead-{}", self.consumers).into(),
            // Manual acknowledgement; other readers are not locked out.
            BasicConsumeOptions { no_local: false, no_ack: false, exclusive: false, nowait: false },
            FieldTable::default(),
        );
        self.deliveries.push(within(STEP_TIMEOUT, "basic.consume", consume).await?);
        self.consumers += 1;
        Ok(())
    }

    /// Whether a message was there when this look began: tags count from 1 in the order of delivery.
    pub fn was_there(&self, tag: Tag) -> bool {
        tag.0 <= u64::from(self.waiting)
    }

    /// Takes messages out of the queue for good, and counts them in `removed`, also when it fails in the middle.
    pub async fn remove(&mut self, tags: &[Tag], removed: &mut u64) -> Result<(), BrokerError> {
        for Tag(tag) in tags {
            // One at a time: what lies between them stays.
            let ack = self.channel.basic_ack(*tag, BasicAckOptions { multiple: false });
            within(STEP_TIMEOUT, "basic.ack", ack).await?;
            self.held -= 1;
            self.removed = true;
            *removed += 1;
        }
        Ok(())
    }

    /// Ends the look: what was removed is gone, everything else goes back to the queue.
    pub async fn close(self) -> Result<(), BrokerError> {
        let closed = self.let_acknowledgements_through().await;
        // The broker puts back what was held after it has answered: who looks next must find it.
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.put_back()).await;
        declare::close(&self.connection).await;
        closed
    }

    /// Returns when our consumers are gone, and with them what they held.
    async fn put_back(&self) -> Result<(), BrokerError> {
        let channel = within(STEP_TIMEOUT, "channel.open", self.connection.create_channel()).await?;
        while passive(&channel, &self.queue).await?.consumer_count() > self.readers {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// A channel passes on only so many acknowledgements to a quorum queue before it hears of the first, keeps the rest
    /// for later, and forgets them when it closes. AMQP has no answer to an acknowledgement: first the channel is asked
    /// something, which it answers after it has read them all, and then it is given time. What is forgotten all the same
    /// is still in the queue, and seen twice.
    async fn let_acknowledgements_through(&self) -> Result<(), BrokerError> {
        if self.removed {
            let asked = self.channel.basic_qos(PER_CONSUMER, BasicQosOptions { global: false });
            within(CONFIRM_TIMEOUT, "basic.qos", asked).await?;
            tokio::time::sleep(TIME_FOR_ACKNOWLEDGEMENTS).await;
        }
        within(STEP_TIMEOUT, "channel.close", self.channel.close(200, "done".into())).await
    }
}

impl Found {
    /// For removing it.
    pub fn tag(&self) -> Tag {
        Tag(self.delivery.delivery_tag)
    }

    /// Its body.
    pub fn body(&self) -> &[u8] {
        &self.delivery.data
    }

    /// Its message id.
    pub fn message_id(&self) -> Option<String> {
        self.delivery.properties.message_id().as_ref().map(ToString::to_string)
    }

    /// Its headers as JSON, all of them.
    pub fn headers(&self) -> serde_json::Map<String, serde_json::Value> {
        let mut headers = self.delivery.properties.headers().as_ref().map(headers::to_json).unwrap_or_default();
        if let Some(unreadable) = &self.unreadable {
            headers.insert(RAW.to_owned(), unreadable.hex().into());
        }
        headers
    }

    /// Roughly what it takes in memory. Bytes.
    pub fn size(&self) -> usize {
        // Headers are bounded by a frame; what they take is seldom more than this.
        self.delivery.data.len() + 2048
    }

    /// The source whose format its body has.
    pub fn source(&self) -> Option<String> {
        copy::source(&self.delivery.properties)
    }

    /// Whether its body is a check message.
    pub fn is_check_message(&self) -> bool {
        copy::is_check_message(&self.delivery.properties)
    }

    /// What it says of itself. The payment is not read here.
    pub fn parked(&self) -> Parked {
        let parked = describe(&self.delivery.properties);
        match &self.unreadable {
            Some(Unreadable { error, .. }) => {
                Parked { reason: Reason::Unreadable.label().to_owned(), error: Some(error.clone()), ..parked }
            }
            None => parked,
        }
    }

    /// As a message for `queue`, without the marks of its failure.
    pub fn requeued<'a>(&'a self, publisher: &Publisher, queue: &str, requeue_id: &str) -> Outgoing<'a> {
        let mut frame = publisher.header_frame();
        Outgoing::to_queue(
            queue,
            &self.delivery.data,
            copy::requeued(&self.delivery.properties, requeue_id, &mut frame),
        )
    }
}

impl Publisher {
    /// Whether a queue is there.
    pub async fn has_queue(&self, queue: &str) -> Result<bool, BrokerError> {
        // On a channel of its own, which a refusal closes.
        let channel = within(STEP_TIMEOUT, "channel.open", self.connection().create_channel()).await?;
        match passive(&channel, queue).await {
            Ok(_) => {
                let _ = tokio::time::timeout(STEP_TIMEOUT, channel.close(200, "done".into())).await;
                Ok(true)
            }
            Err(BrokerError::Topology(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Read from the headers of `docs/headers.md`, and from the broker's own where it moved the message itself.
fn describe(properties: &BasicProperties) -> Parked {
    let none = BTreeMap::new();
    let headers = properties.headers().as_ref().map_or(&none, FieldTable::inner);
    let text = |name: &str| headers.get(name).and_then(as_text);
    let time = |name: &str| text(name).and_then(|text| text.parse().ok());
    let mut parked = Parked {
        reason: text(copy::REASON).unwrap_or_else(|| UNKNOWN.to_owned()),
        payment_id: None,
        payment_ids: Vec::new(),
        message_id: properties.message_id().as_ref().map(ToString::to_string),
        first_failed_at: time(copy::FIRST_FAILED_AT),
        attempts: copy::retries_taken(properties),
        source_queue: text(copy::SOURCE_QUEUE),
        error: text(copy::ERROR),
        ledger: text(copy::LEDGER_USER)
            .zip(headers.get(copy::LEDGER_POINTS).and_then(copy::as_integer))
            .map(|(user_id, points)| LedgerVersion { user_id, points }),
        requeue_id: text(copy::REQUEUE_ID),
    };
    // A copy of ours has no `x-death`: what has one was moved by the broker, after whatever our headers say.
    if let Some(death) = headers.get("x-death").and_then(last_death) {
        if death.reason == DELIVERY_LIMIT {
            DELIVERY_LIMIT.clone_into(&mut parked.reason);
            parked.error = Some(format!("delivered too often from {}", death.queue));
        } else {
            UNKNOWN.clone_into(&mut parked.reason);
            parked.error = Some(format!("dead-lettered by the broker from {} ({})", death.queue, death.reason));
        }
        parked.first_failed_at = parked.first_failed_at.or(death.time);
        parked.source_queue = Some(death.queue);
        parked.ledger = None;
    }
    parked
}

fn as_text(value: &AMQPValue) -> Option<String> {
    match value {
        AMQPValue::LongString(text) => Some(String::from_utf8_lossy(text.as_bytes()).into_owned()),
        AMQPValue::ShortString(text) => Some(text.to_string()),
        _ => None,
    }
}

/// An entry of `x-death`.
struct Death {
    queue: String,
    reason: String,
    time: Option<jiff::Timestamp>,
}

/// The latest one: RabbitMQ puts it first ("Dead Letter Exchanges"). A queue that the broker emptied into the dead queue
/// because of its limit comes before whatever expired on the way there.
fn last_death(value: &AMQPValue) -> Option<Death> {
    let AMQPValue::FieldArray(deaths) = value else { return None };
    let deaths = deaths.as_slice().iter().filter_map(|death| {
        let AMQPValue::FieldTable(death) = death else { return None };
        let of = |name: &str| death.inner().get(name);
        Some(Death {
            queue: as_text(of("queue")?)?,
            reason: as_text(of("reason")?)?,
            time: of("time").and_then(|time| match time {
                AMQPValue::Timestamp(seconds) => headers::time(*seconds),
                _ => None,
            }),
        })
    });
    let mut deaths: Vec<Death> = deaths.collect();
    let limit = deaths.iter().position(|death| death.reason == DELIVERY_LIMIT);
    (!deaths.is_empty()).then(|| deaths.swap_remove(limit.unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::FieldArray;

    fn text(value: &str) -> AMQPValue {
        AMQPValue::LongString(value.into())
    }

    fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
        let mut table = FieldTable::default();
        for (name, value) in entries {
            table.insert((*name).into(), value.clone());
        }
        table
    }

    fn death(queue: &str, reason: &str) -> AMQPValue {
        AMQPValue::FieldTable(table(&[
            ("queue", text(queue)),
            ("reason", text(reason)),
            ("time", AMQPValue::Timestamp(1_700_000_000)),
        ]))
    }

    #[test]
    fn a_message_tells_why_it_is_there() {
        let ours = [
            ("x-pointsd-reason", text("conflict")),
            ("x-pointsd-error", text("why")),
            ("x-pointsd-source-queue", text("q")),
            ("x-pointsd-first-failed-at", text("2026-01-01T00:00:00Z")),
            ("x-pointsd-ledger-user", text("u")),
            ("x-pointsd-ledger-points", AMQPValue::LongLongInt(7)),
            ("x-pointsd-attempt", AMQPValue::LongLongInt(2)),
            ("x-pointsd-requeue-id", text("r")),
        ];
        let properties = BasicProperties::default().with_message_id("m".into()).with_headers(table(&ours));
        let expected = Parked {
            reason: "conflict".into(),
            payment_id: None,
            payment_ids: Vec::new(),
            message_id: Some("m".into()),
            first_failed_at: Some("2026-01-01T00:00:00Z".parse().unwrap()),
            attempts: 2,
            source_queue: Some("q".into()),
            error: Some("why".into()),
            ledger: Some(LedgerVersion { user_id: "u".into(), points: 7 }),
            requeue_id: Some("r".into()),
        };
        assert_eq!(describe(&properties), expected);
        assert_eq!(describe(&BasicProperties::default()).reason, UNKNOWN);
    }

    #[test]
    fn what_the_broker_moved_is_known_by_its_own_header() {
        for (deaths, reason, queue) in [
            (
                vec![death("points.credit", "delivery_limit"), death("points.credit.retry.1s", "expired")],
                DELIVERY_LIMIT,
                "points.credit",
            ),
            (
                vec![death("points.credit.retry.1s", "expired"), death("points.credit", "delivery_limit")],
                DELIVERY_LIMIT,
                "points.credit",
            ),
            (vec![death("theirs", "rejected")], UNKNOWN, "theirs"),
        ] {
            let properties = BasicProperties::default().with_headers(table(&[
                ("x-death", AMQPValue::FieldArray(FieldArray::from(deaths))),
                ("x-pointsd-source-queue", text("made up")),
            ]));
            let parked = describe(&properties);
            assert_eq!((parked.reason.as_str(), parked.source_queue.as_deref()), (reason, Some(queue)));
            assert_eq!(parked.first_failed_at, headers::time(1_700_000_000));
        }
    }
}
