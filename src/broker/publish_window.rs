//! One window of publishes: its size, its publishes and the evaluation of its confirms.

use super::{BrokerError, outgoing::Outgoing};
use crate::pipeline::ports::Confirmed;
use lapin::{Channel, Confirmation, PublisherConfirm, options::BasicPublishOptions, protocol::AMQPErrorKind};

/// The maximum number of publishes that wait for their confirms at a time.
pub(super) const WINDOW: usize = 500;

/// The maximum total size of the bodies in a window, unless a single body is larger. Bytes.
const WINDOW_BYTES: usize = 8 * 1024 * 1024;

/// The reason why the messages of a window are not all confirmed.
#[derive(Debug)]
pub(super) enum Unsent {
    /// The broker closed the channel because of one message: its exchange is missing or refuses write access.
    Refused(String),
    /// No message was confirmed in time: the queues or the whole broker do not answer.
    Silent,
    /// An error that affects every message.
    Broker(BrokerError),
}

impl From<BrokerError> for Unsent {
    fn from(error: BrokerError) -> Self {
        Self::Broker(error)
    }
}

impl Unsent {
    /// Classifies an error of lapin. A soft error closes a channel, a hard error the connection (AMQP 0-9-1, "Reply
    /// codes"). The error may arrive while other messages are being published, which then find the channel closed.
    pub(super) fn classify(error: lapin::Error, connected: bool) -> Self {
        match error.kind() {
            lapin::ErrorKind::InvalidChannelState(..) if connected => Self::Refused(error.to_string()),
            lapin::ErrorKind::ProtocolError(amqp) if matches!(amqp.kind(), AMQPErrorKind::Soft(_)) => {
                Self::Refused(amqp.get_message().to_string())
            }
            _ => Self::Broker(error.into()),
        }
    }
}

/// The number of messages in the next window, at least one.
pub(super) fn window_size(messages: &[Outgoing<'_>]) -> usize {
    let mut bytes = 0;
    let fit = messages.iter().take(WINDOW).take_while(|message| {
        bytes += message.body.len();
        bytes <= WINDOW_BYTES
    });
    fit.count().max(1)
}

/// Publishes a window and waits for its confirms: all publishes come first, so that the window takes one round trip.
pub(super) async fn publish_confirmed(channel: &Channel, window: &[Outgoing<'_>]) -> lapin::Result<Vec<Confirmation>> {
    let mut confirmations = Vec::with_capacity(window.len());
    for confirm in start_publishes(channel, window).await? {
        confirmations.push(confirm.await?);
    }
    Ok(confirmations)
}

/// Publishes a window without waiting for its confirms.
pub(super) async fn start_publishes(
    channel: &Channel,
    window: &[Outgoing<'_>],
) -> lapin::Result<Vec<PublisherConfirm>> {
    let mut pending = Vec::with_capacity(window.len());
    for message in window {
        let publishing = channel.basic_publish(
            message.exchange.clone(),
            message.routing_key.clone(),
            // Mandatory: a message that reaches no queue is returned. RabbitMQ does not support immediate.
            BasicPublishOptions { mandatory: true, immediate: false },
            &message.body,
            message.properties.clone(),
        );
        pending.push(publishing.await?);
    }
    Ok(pending)
}

/// Checks the confirms of a window. An unroutable message is first returned and then confirmed (RabbitMQ, "Publisher
/// Confirms"): a window with one fails.
pub(super) fn check_confirmations(
    window: &[Outgoing<'_>],
    confirmations: Vec<Confirmation>,
) -> Result<(), BrokerError> {
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

/// The result of each message of a window. lapin attaches a returned message to the next confirm of any message: the
/// message is identified by its ID and destination.
pub(super) fn results_by_message(window: &[Outgoing<'_>], confirmations: Vec<Option<Confirmation>>) -> Confirmed {
    let mut results: Confirmed = Vec::with_capacity(window.len());
    let mut returned = Vec::new();
    for confirmation in confirmations {
        results.push(match &confirmation {
            Some(confirmation) if confirmation.is_ack() => Ok(()),
            Some(_) => Err("refused by the broker".into()),
            None => Err("not confirmed by the broker in time".into()),
        });
        returned.extend(confirmation.and_then(Confirmation::take_message));
    }
    for message in returned {
        let delivery = &message.delivery;
        let identity = (delivery.properties.message_id().as_ref(), &delivery.exchange, &delivery.routing_key);
        for (sent, result) in window.iter().zip(&mut results) {
            if (sent.properties.message_id().as_ref(), &sent.exchange, &sent.routing_key) == identity {
                *result = Err(format!("reached no queue: {}", message.reply_text));
            }
        }
    }
    results
}
