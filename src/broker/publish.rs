//! Publishing without loss: messages are persistent, mandatory and confirmed, in windows.

use super::{
    BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT,
    connect::connect,
    declare::{declare_passively, with_channel},
    header_frame::HeaderFrame,
    outgoing::Outgoing,
    publish_window::{
        Unsent, check_confirmations, publish_confirmed, results_by_message, start_publishes, window_size,
    },
    within,
};
use crate::{
    broker::BrokerSettings,
    observe::heartbeat::Heartbeat,
    pipeline::ports::{CONFIRMING_TIME, Confirmed},
    unpoisoned::lock,
};
use futures_util::{Stream, StreamExt, stream::FuturesUnordered};
use lapin::{BasicProperties, Channel, Confirmation, Connection, Event, options::ConfirmSelectOptions};
use std::{
    sync::{Mutex, MutexGuard},
    time::Duration,
};
use tokio::{sync::watch, time::Instant};

/// The interval at which a wait for confirms beats its heartbeat.
const BEAT_INTERVAL: Duration = Duration::from_secs(5);

/// The name of a queue that cannot exist: names that begin with `amq.` are reserved for the broker.
const IMPOSSIBLE_QUEUE: &str = "amq.pointsd-nowhere";

/// A separate connection for publishing: during an alarm the broker blocks publishing connections, and acknowledgements
/// must still pass on the other connection.
pub struct Publisher {
    connection: Connection,
    /// The idle channels. A channel publishes one window at a time, because lapin attaches a returned message to the
    /// next confirm of any message. A channel with missing confirms is not reused: they could arrive later and be
    /// attributed to another window.
    channels: Mutex<Vec<Channel>>,
    /// The reason of the current alarm of the broker.
    blocked: watch::Receiver<Option<String>>,
}

impl Publisher {
    /// Connects and enables publisher confirms.
    pub async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        Self::open_for(settings, "publisher").await
    }

    /// Opens a publisher for a purpose, which names the connection and limits concurrent attempts to connect.
    pub(super) async fn open_for(settings: &BrokerSettings, purpose: &str) -> Result<Self, BrokerError> {
        let (connection, _) = connect(settings, purpose).await?;
        let (alarms, blocked) = watch::channel(None);
        tokio::spawn(watch_alarms(connection.events_listener(), alarms));
        let channel = open_confirm_channel(&connection).await?;
        Ok(Self { connection, channels: Mutex::new(vec![channel]), blocked })
    }

    /// Proves that the broker accepts messages, by publishing a message that must be returned. The broker reports an
    /// alarm only to connections that publish (RabbitMQ, "Blocked Connection Notifications"), and does not answer
    /// during it.
    pub(super) async fn prove(&self) -> Result<(), BrokerError> {
        let probe = Outgoing::to_queue(IMPOSSIBLE_QUEUE, &[], BasicProperties::default());
        match self.publish(&[probe]).await {
            Ok(()) | Err(BrokerError::Unroutable { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// The error if an alarm of the broker blocks this connection.
    pub(super) fn is_blocked(&self) -> Option<BrokerError> {
        let reason = self.blocked.borrow().clone().filter(|_| self.connection.status().connected())?;
        Some(BrokerError::Blocked(reason))
    }

    /// Waits until an alarm of the broker blocks the connection; forever if the connection closes before.
    pub(super) async fn wait_for_alarm(&self) -> BrokerError {
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

    /// The room for properties in a frame of the negotiated size.
    pub(super) fn header_frame(&self) -> HeaderFrame {
        HeaderFrame::new(usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX))
    }

    /// Checks that the headers of a message fit into a frame; otherwise the broker would close the connection.
    pub fn check(&self, message: &Outgoing<'_>) -> Result<(), BrokerError> {
        let has_no_headers = message.properties.headers().as_ref().is_none_or(|table| table.inner().is_empty());
        if has_no_headers || self.header_frame().fits(&message.properties) {
            return Ok(());
        }
        Err(BrokerError::Unsendable("the headers do not fit into the broker's frame_max".into()))
    }

    /// Publishes messages. `Ok`: all of them are confirmed in a queue. After an error, each of them may be in its queue
    /// or not.
    pub async fn publish(&self, messages: &[Outgoing<'_>]) -> Result<(), BrokerError> {
        tokio::select! {
            published = self.publish_windows(messages) => published,
            // The broker would confirm the messages only after the alarm, which may last long.
            alarm = self.wait_for_alarm() => Err(alarm),
        }
    }

    /// Publishes windows one after the other, each with exclusive use of a channel and a separate deadline.
    async fn publish_windows(&self, messages: &[Outgoing<'_>]) -> Result<(), BrokerError> {
        let mut rest = messages;
        while !rest.is_empty() {
            let channel = self.take_channel().await?;
            let (window, later) = rest.split_at(window_size(rest));
            let confirmations = within(CONFIRM_TIMEOUT, "basic.publish", publish_confirmed(&channel, window)).await?;
            self.return_channel(channel);
            check_confirmations(window, confirmations)?;
            rest = later;
        }
        Ok(())
    }

    /// Publishes at most [`super::publish_window::WINDOW`] messages and returns for each whether it is confirmed in a
    /// queue, or the reason. `patience`: the deadline for the others once one of them is confirmed, at least
    /// [`CONFIRM_TIMEOUT`].
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
            let channel = self.take_channel().await?;
            let started = Instant::now();
            let classify = |error| Unsent::classify(error, self.connection.status().connected());
            let timed_out = || Unsent::Broker(BrokerError::Timeout { step: "basic.publish", after: CONFIRM_TIMEOUT });
            let publishes = tokio::time::timeout_at(started + CONFIRM_TIMEOUT, start_publishes(&channel, window)).await;
            let publishes = publishes.map_err(|_| timed_out())?.map_err(classify)?;
            let mut pending: FuturesUnordered<_> = publishes
                .into_iter()
                .enumerate()
                .map(|(index, confirm)| async move { (index, confirm.await) })
                .collect();
            let mut confirmations: Vec<Option<Confirmation>> = window.iter().map(|_| None).collect();
            let (mut limit, mut last_beat) = (CONFIRM_TIMEOUT, started);
            // The results of other queues count although one queue does not answer.
            while started.elapsed() <= limit {
                match tokio::time::timeout(BEAT_INTERVAL, pending.next()).await {
                    Ok(None) => break,
                    Ok(Some((index, confirmation))) => {
                        confirmations[index] = Some(confirmation.map_err(classify)?);
                        limit = patience.max(CONFIRM_TIMEOUT);
                    }
                    Err(_) => {}
                }
                if last_beat.elapsed() >= BEAT_INTERVAL {
                    heartbeat.beat();
                    last_beat = Instant::now();
                }
            }
            if confirmations.iter().all(Option::is_none) {
                return Err(Unsent::Silent);
            }
            // A late confirm on a reused channel would be attributed to another window.
            if confirmations.iter().all(Option::is_some) {
                self.return_channel(channel);
            }
            Ok(results_by_message(window, confirmations))
        };
        tokio::select! {
            published = publish => published,
            alarm = self.wait_for_alarm() => Err(Unsent::Broker(alarm)),
        }
    }

    /// Publishes messages in windows and returns for each whether it is confirmed in a queue, or the reason. After an
    /// error, it is unknown which messages are in their queues. Late confirms are awaited as long as other messages
    /// were confirmed, because publishing again would duplicate the messages. After a window without any confirm, no
    /// further window is published.
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
                    let results = window.iter().zip(each).map(|(message, each)| {
                        each.map_err(|reason| format!("a message to {}: {reason}", message.target()))
                    });
                    confirmed.extend(results);
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

    /// Takes a channel that no other window uses.
    async fn take_channel(&self) -> Result<Channel, BrokerError> {
        loop {
            let idle = self.idle_channels().pop();
            match idle {
                // A refusal may have closed the channel.
                Some(channel) if channel.status().connected() => return Ok(channel),
                Some(_) => {}
                None => return open_confirm_channel(&self.connection).await,
            }
        }
    }

    fn return_channel(&self, channel: Channel) {
        self.idle_channels().push(channel);
    }

    /// Closes the connection in order, as far as the broker answers. A blocked connection cannot write and is not
    /// closed.
    pub async fn close(&self) {
        if self.is_blocked().is_some() {
            return;
        }
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.connection.close(200, "done".into())).await;
    }
}

async fn open_confirm_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
    let confirm = channel.confirm_select(ConfirmSelectOptions { nowait: false });
    within(STEP_TIMEOUT, "confirm.select", confirm).await?;
    Ok(channel)
}

impl Publisher {
    /// Whether a queue exists.
    pub async fn has_queue(&self, queue: &str) -> Result<bool, BrokerError> {
        // The check needs a separate channel, which an error closes.
        match with_channel(self.connection(), async |channel| declare_passively(channel, queue).await).await {
            Ok(_) => Ok(true),
            Err(BrokerError::Topology(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

/// Stores the latest alarm state of the broker until the connection closes.
async fn watch_alarms(events: impl Stream<Item = Event>, alarms: watch::Sender<Option<String>>) {
    let mut events = std::pin::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Event::ConnectionBlocked(reason) => {
                alarms.send_replace(Some(reason));
            }
            Event::ConnectionUnblocked => {
                alarms.send_replace(None);
            }
            // Errors of the connection are reported by the operations on it.
            _ => {}
        }
    }
}
