//! Publishing so that nothing is lost: persistent, mandatory, confirmed, in a window.

use super::{
    BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT, connect::connect, header_frame::HeaderFrame, outgoing::Outgoing, within,
};
use crate::{
    broker::BrokerSettings,
    observe::heartbeat::Heartbeat,
    pipeline::ports::{CONFIRMING_TIME, Confirmed},
    unpoisoned::lock,
};
use futures_util::{Stream, StreamExt, stream::FuturesUnordered};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, Event, PublisherConfirm,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    protocol::AMQPErrorKind,
};
use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// Most publishes that wait for their confirm at a time.
const WINDOW: usize = 500;

/// Most bytes of bodies in them, unless one alone has more.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// How often a wait for confirms shows that it goes on.
const BEAT: Duration = Duration::from_secs(5);

/// A queue that nobody can declare: names that begin with `amq.` are the broker's.
const NOWHERE: &str = "amq.pointsd-nowhere";

/// A connection of its own for publishing: a broker under alarm blocks publishing connections, and acknowledgements
/// must still get through on the other one.
pub struct Publisher {
    connection: Connection,
    /// Channels that no window uses now. One window at a time on a channel: lapin tells of a message that came back with
    /// the next confirm, whichever that is. A channel whose confirms did not all come is not used again: they might yet,
    /// and would be taken for another's.
    channels: Mutex<Vec<Channel>>,
    /// Why the broker takes nothing now.
    blocked: watch::Receiver<Option<String>>,
}

impl Publisher {
    /// Connects and turns confirms on.
    pub async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        Self::open_for(settings, "publisher").await
    }

    /// The same, by the name of its purpose: attempts of one purpose are never made beside each other.
    pub(super) async fn open_for(settings: &BrokerSettings, purpose: &str) -> Result<Self, BrokerError> {
        let (connection, _) = connect(settings, purpose).await?;
        let (tell, blocked) = watch::channel(None);
        tokio::spawn(watch_alarms(connection.events_listener(), tell));
        let channel = confirming_channel(&connection).await?;
        Ok(Self { connection, channels: Mutex::new(vec![channel]), blocked })
    }

    /// Publishes something that must come back. A broker under alarm does not answer, and tells so: it tells nobody who
    /// does not publish (RabbitMQ, "Blocked Connection Notifications").
    pub(super) async fn prove(&self) -> Result<(), BrokerError> {
        let probe = Outgoing::to_queue(NOWHERE, &[], BasicProperties::default());
        match self.publish(&[probe]).await {
            Ok(()) | Err(BrokerError::Unroutable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Whether the broker takes nothing over this connection now, because of an alarm.
    pub(super) fn is_blocked(&self) -> Option<BrokerError> {
        let reason = self.blocked.borrow().clone().filter(|_| self.connection.status().connected())?;
        Some(BrokerError::Blocked(reason))
    }

    /// Returns when an alarm of the broker blocks the connection; never when the connection ends before.
    pub(super) async fn alarm(&self) -> BrokerError {
        let mut blocked = self.blocked.clone();
        let reason = blocked.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        match reason {
            Some(reason) => BrokerError::Blocked(reason),
            None => std::future::pending().await,
        }
    }

    pub(super) fn connection(&self) -> &Connection {
        &self.connection
    }

    /// What tells whether headers fit into the frames that were agreed on.
    pub(super) fn header_frame(&self) -> HeaderFrame {
        HeaderFrame::new(usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX))
    }

    /// That the broker will take its headers; one that does not fit would cost the connection.
    pub fn check(&self, message: &Outgoing<'_>) -> Result<(), BrokerError> {
        let none = message.properties.headers().as_ref().is_none_or(|table| table.inner().is_empty());
        if none || self.header_frame().fits(&message.properties) {
            return Ok(());
        }
        Err(BrokerError::Unsendable("the headers do not fit into the broker's frame_max".into()))
    }

    /// Sends messages. `Ok`: the broker is responsible for every one of them, in a queue. Otherwise any of them may
    /// stand there or not.
    pub async fn publish(&self, messages: &[Outgoing<'_>]) -> Result<(), BrokerError> {
        tokio::select! {
            published = self.publish_windows(messages) => published,
            // It would be confirmed when the alarm is over, which may be long.
            alarm = self.alarm() => Err(alarm),
        }
    }

    /// Each window has the channel for itself, and a deadline of its own.
    async fn publish_windows(&self, messages: &[Outgoing<'_>]) -> Result<(), BrokerError> {
        let mut rest = messages;
        while !rest.is_empty() {
            let channel = self.channel().await?;
            let (window, later) = rest.split_at(window_size(rest));
            let confirmations = within(CONFIRM_TIMEOUT, "basic.publish", send(&channel, window)).await?;
            self.give_back(channel);
            judge(window, confirmations)?;
            rest = later;
        }
        Ok(())
    }

    /// Sends messages, at most [`WINDOW`]. For each whether it stands in a queue, or why not. `patience`: how long the rest
    /// is waited for once one of them is confirmed, at least [`CONFIRM_TIMEOUT`].
    pub(super) async fn publish_each(
        &self,
        window: &[Outgoing<'_>],
        patience: Duration,
        heartbeat: &Heartbeat,
    ) -> Result<Confirmed, Unsent> {
        if window.is_empty() {
            return Ok(Vec::new());
        }
        let publish = async {
            let channel = self.channel().await?;
            let started = Instant::now();
            let unsent = |error| Unsent::of(error, self.connection.status().connected());
            let late = || Unsent::Broker(BrokerError::Timeout { step: "basic.publish", after: CONFIRM_TIMEOUT });
            let begun = tokio::time::timeout_at(started + CONFIRM_TIMEOUT, begin(&channel, window)).await;
            let begun = begun.map_err(|_| late())?.map_err(unsent)?;
            let mut pending: FuturesUnordered<_> =
                begun.into_iter().enumerate().map(|(index, confirm)| async move { (index, confirm.await) }).collect();
            let mut confirmations: Vec<Option<Confirmation>> = window.iter().map(|_| None).collect();
            let (mut limit, mut beaten) = (CONFIRM_TIMEOUT, started);
            // One queue that does not answer is no reason to forget what the others have said.
            while started.elapsed() <= limit {
                match tokio::time::timeout(BEAT, pending.next()).await {
                    Ok(None) => break,
                    Ok(Some((index, confirmation))) => {
                        confirmations[index] = Some(confirmation.map_err(unsent)?);
                        limit = patience.max(CONFIRM_TIMEOUT);
                    }
                    Err(_) => {}
                }
                if beaten.elapsed() >= BEAT {
                    heartbeat.beat();
                    beaten = Instant::now();
                }
            }
            if confirmations.iter().all(Option::is_none) {
                return Err(Unsent::Silent);
            }
            // A confirm that is still to come would be taken for another's.
            if confirmations.iter().all(Option::is_some) {
                self.give_back(channel);
            }
            Ok(judge_each(window, confirmations))
        };
        tokio::select! {
            published = publish => published,
            alarm = self.alarm() => Err(Unsent::Broker(alarm)),
        }
    }

    /// Sends messages in windows. For each whether it stands confirmed in a queue, or why not. An error concerns all of
    /// them, and leaves open which ones stand there. What is confirmed late is waited for, as long as others were confirmed:
    /// to send it again would double it. After a window of which nothing is confirmed no other one is sent.
    pub(super) async fn publish_all(
        &self,
        messages: &[Outgoing<'_>],
        heartbeat: &Heartbeat,
    ) -> Result<Confirmed, BrokerError> {
        let mut confirmed = Vec::with_capacity(messages.len());
        let mut rest = messages;
        while !rest.is_empty() {
            let (window, later) = rest.split_at(window_size(rest));
            heartbeat.beat();
            match self.publish_each(window, CONFIRMING_TIME, heartbeat).await {
                Ok(each) => {
                    let named = window.iter().zip(each).map(|(message, each)| {
                        each.map_err(|reason| format!("a message to {}: {reason}", message.target()))
                    });
                    confirmed.extend(named);
                }
                Err(Unsent::Broker(error)) => return Err(error),
                Err(Unsent::Refused(reason)) => return Err(BrokerError::Lost(reason)),
                Err(Unsent::Silent) => {
                    let late = BrokerError::Timeout { step: "basic.publish", after: CONFIRM_TIMEOUT };
                    confirmed
                        .extend(rest.iter().map(|message| Err(format!("a message to {}: {late}", message.target()))));
                    break;
                }
            }
            rest = later;
        }
        Ok(confirmed)
    }

    fn idle_channels(&self) -> MutexGuard<'_, Vec<Channel>> {
        lock(&self.channels)
    }

    /// A channel that no other window uses.
    async fn channel(&self) -> Result<Channel, BrokerError> {
        loop {
            let idle = self.idle_channels().pop();
            match idle {
                // A refusal may have ended it.
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => return confirming_channel(&self.connection).await,
            }
        }
    }

    fn give_back(&self, channel: Channel) {
        self.idle_channels().push(channel);
    }

    /// Closes the connection in order, as far as the broker answers. One that is blocked writes nothing more.
    pub async fn close(&self) {
        if self.is_blocked().is_some() {
            return;
        }
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.connection.close(200, "done".into())).await;
    }
}

async fn confirming_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
    let confirm = channel.confirm_select(ConfirmSelectOptions { nowait: false });
    within(STEP_TIMEOUT, "confirm.select", confirm).await?;
    Ok(channel)
}

/// Why a window was not sent, or not all of it.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The broker has ended the channel over one of the messages: its exchange is not there, or may not be written to.
    Refused(String),
    /// None of them was confirmed in time: their queues do not answer, or nobody does.
    Silent,
    /// It concerns every message.
    Broker(BrokerError),
}

impl From<BrokerError> for Unsent {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

impl Unsent {
    /// A soft error ends a channel, a hard one the connection (AMQP 0-9-1, "Reply codes"). It may come while others are still
    /// being sent: they find the channel closed then.
    fn of(error: lapin::Error, connected: bool) -> Self {
        match error.kind() {
            lapin::ErrorKind::InvalidChannelState(..) if connected => Self::Refused(error.to_string()),
            lapin::ErrorKind::ProtocolError(amqp) if matches!(amqp.kind(), AMQPErrorKind::Soft(_)) => {
                Self::Refused(amqp.get_message().to_string())
            }
            _ => Self::Broker(error.into()),
        }
    }
}

/// Keeps what the broker has said last; ends with the connection.
async fn watch_alarms(events: impl Stream<Item = Event>, tell: watch::Sender<Option<String>>) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                tell.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => {
                tell.send_replace(None);
            }
            // A connection that ends tells it by itself.
            _ => {}
        }
    }
}

/// How many of these go together: at least one.
fn window_size(messages: &[Outgoing<'_>]) -> usize {
    let mut bytes = 0;
    let fit = messages.iter().take(WINDOW).take_while(|message| {
        bytes += message.body.len();
        bytes <= WINDOW_BYTES
    });
    fit.count().max(1)
}

/// All publishes first, then all confirms: one round trip for the window.
async fn send(channel: &Channel, window: &[Outgoing<'_>]) -> lapin::Result<Vec<Confirmation>> {
    let mut confirmations = Vec::with_capacity(window.len());
    for confirm in begin(channel, window).await? {
        confirmations.push(confirm.await?);
    }
    Ok(confirmations)
}

async fn begin(channel: &Channel, window: &[Outgoing<'_>]) -> lapin::Result<Vec<PublisherConfirm>> {
    let mut pending = Vec::with_capacity(window.len());
    for message in window {
        let publishing = channel.basic_publish(
            message.exchange.clone(),
            message.routing_key.clone(),
            // Mandatory: a message that reaches no queue comes back. Immediate is not supported by RabbitMQ.
            BasicPublishOptions { mandatory: true, immediate: false },
            &message.body,
            message.properties.clone(),
        );
        pending.push(publishing.await?);
    }
    Ok(pending)
}

/// An unroutable message is first returned and then confirmed (RabbitMQ, "Publisher Confirms"): a window with one is
/// a failure.
fn judge(window: &[Outgoing<'_>], confirmations: Vec<Confirmation>) -> Result<(), BrokerError> {
    let target = || window.first().map(Outgoing::target).unwrap_or_default();
    let (sent, mut nacked, mut returned, mut reason) = (window.len(), 0, 0, String::new());
    for confirmation in confirmations {
        nacked += usize::from(!confirmation.is_ack());
        if let Some(message) = confirmation.take_message() {
            returned += 1;
            reason = message.reply_text.to_string();
        }
    }
    if returned > 0 {
        return Err(BrokerError::Unroutable { returned, sent, target: target(), reason });
    }
    if nacked > 0 {
        return Err(BrokerError::Nacked { nacked, sent, target: target() });
    }
    Ok(())
}

/// The same, message by message. A message that came back is told with whichever confirm comes next: it is known by its id.
fn judge_each(window: &[Outgoing<'_>], confirmations: Vec<Option<Confirmation>>) -> Confirmed {
    let mut results: Confirmed = Vec::with_capacity(window.len());
    let mut returned = Vec::new();
    for confirmation in confirmations {
        results.push(match &confirmation {
            Some(confirmation) if confirmation.is_ack() => Ok(()),
            Some(_) => Err("the broker did not take it".into()),
            None => Err("the broker did not confirm it in time".into()),
        });
        returned.extend(confirmation.and_then(Confirmation::take_message));
    }
    for message in returned {
        let delivery = &message.delivery;
        let of = (delivery.properties.message_id().as_ref(), &delivery.exchange, &delivery.routing_key);
        for (sent, result) in window.iter().zip(&mut results) {
            if (sent.properties.message_id().as_ref(), &sent.exchange, &sent.routing_key) == of {
                *result = Err(format!("it reached no queue: {}", message.reply_text));
            }
        }
    }
    results
}
