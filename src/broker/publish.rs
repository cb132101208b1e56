//! Publishing so that nothing is lost: persistent, mandatory, confirmed, in a window.

use super::{BrokerError, CONFIRM_TIMEOUT, STEP_TIMEOUT, connect::connect, copy, copy::HeaderFrame, within};
use crate::config::BrokerSettings;
use lapin::{
    BasicProperties, Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
    types::{AMQPValue, FieldTable, ShortString},
};
use std::time::SystemTime;
use tokio::sync::Mutex;

/// Most publishes that wait for their confirm at a time.
const WINDOW: usize = 500;

/// A message of our own to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing {
    exchange: ShortString,
    routing_key: ShortString,
    body: Vec<u8>,
    properties: BasicProperties,
}

impl Outgoing {
    /// A new JSON message, time-stamped. `headers` are a JSON object.
    pub fn new(
        exchange: &str,
        routing_key: &str,
        body: Vec<u8>,
        message_id: Option<&str>,
        headers: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, BrokerError> {
        let short = |what: &str, text: &str| {
            ShortString::try_new(text).map_err(|_| BrokerError::Unsendable(format!("{what} has more than 255 bytes")))
        };
        let mut table = FieldTable::default();
        for (name, value) in headers {
            table.insert(short("a header's name", name)?, amqp_value(value));
        }
        let seconds = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut properties = BasicProperties::default()
            .with_content_type("application/json".into())
            .with_delivery_mode(copy::PERSISTENT)
            .with_timestamp(seconds)
            .with_headers(table);
        if let Some(message_id) = message_id {
            properties = properties.with_message_id(short("message_id", message_id)?);
        }
        let routing_key = short("routing_key", routing_key)?;
        Ok(Self { exchange: short("the exchange", exchange)?, routing_key, body, properties })
    }

    /// A copy through the default exchange, which routes to the queue of that name.
    pub(super) fn to_queue(queue: &str, body: &[u8], properties: BasicProperties) -> Self {
        Self { exchange: "".into(), routing_key: queue.into(), body: body.to_vec(), properties }
    }

    fn target(&self) -> String {
        if self.exchange.as_str().is_empty() {
            format!("queue {}", self.routing_key)
        } else {
            format!("exchange {} with key {}", self.exchange, self.routing_key)
        }
    }
}

fn amqp_value(value: &serde_json::Value) -> AMQPValue {
    match value {
        serde_json::Value::Null => AMQPValue::Void,
        serde_json::Value::Bool(flag) => AMQPValue::Boolean(*flag),
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => AMQPValue::LongLongInt(integer),
            (None, Some(float)) => AMQPValue::Double(float),
            (None, None) => AMQPValue::LongString(number.to_string().into()),
        },
        serde_json::Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        serde_json::Value::Array(items) => {
            AMQPValue::FieldArray(items.iter().map(amqp_value).collect::<Vec<_>>().into())
        }
        serde_json::Value::Object(members) => {
            let mut table = FieldTable::default();
            for (name, value) in members {
                if let Ok(name) = ShortString::try_new(name.as_str()) {
                    table.insert(name, amqp_value(value));
                }
            }
            AMQPValue::FieldTable(table)
        }
    }
}

/// A connection of its own for publishing: a broker under alarm blocks publishing connections, and acknowledgements
/// must still get through on the other one.
pub struct Publisher {
    connection: Connection,
    /// One window at a time: a message that came back is told with the next confirm, whichever that is, so a window
    /// is judged as a whole.
    channel: Mutex<Channel>,
}

impl Publisher {
    /// Connects and turns confirms on.
    pub async fn open(settings: &BrokerSettings) -> Result<Self, BrokerError> {
        let (connection, _) = connect(settings, "publisher").await?;
        let channel = within(STEP_TIMEOUT, "channel.open", connection.create_channel()).await?;
        let confirm = channel.confirm_select(ConfirmSelectOptions { nowait: false });
        within(STEP_TIMEOUT, "confirm.select", confirm).await?;
        Ok(Self { connection, channel: Mutex::new(channel) })
    }

    /// What tells whether headers fit into the frames that were agreed on.
    pub(super) fn header_frame(&self) -> HeaderFrame {
        HeaderFrame::of(usize::try_from(self.connection.configuration().frame_max()).unwrap_or(usize::MAX))
    }

    /// Sends messages to one exchange and key after the other. `Ok`: the broker is responsible for every one of them,
    /// in a queue. Otherwise any of them may stand there or not, and this publisher is of no more use, unless the
    /// error is that some were unroutable.
    pub async fn publish(&self, messages: &[Outgoing]) -> Result<(), BrokerError> {
        let channel = self.channel.lock().await;
        for window in messages.chunks(WINDOW) {
            self.publish_window(&channel, window).await?;
        }
        Ok(())
    }

    async fn publish_window(&self, channel: &Channel, window: &[Outgoing]) -> Result<(), BrokerError> {
        let mut frame = self.header_frame();
        if window.iter().any(|message| !frame.fits(&message.properties)) {
            return Err(BrokerError::Unsendable("the headers do not fit into the broker's frame_max".into()));
        }
        let confirmations = within(CONFIRM_TIMEOUT, "basic.publish", send(channel, window)).await?;
        let target = || window.first().map(Outgoing::target).unwrap_or_default();
        let (sent, mut nacked, mut returned, mut reason) = (window.len(), 0, 0, String::new());
        for confirmation in confirmations {
            nacked += usize::from(!confirmation.is_ack());
            // An unroutable message is first returned and then confirmed (RabbitMQ, "Publisher Confirms").
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

    /// Closes the connection in order, as far as the broker answers.
    pub async fn close(&self) {
        let _ = tokio::time::timeout(STEP_TIMEOUT, self.connection.close(200, "done".into())).await;
    }
}

/// All publishes first, then all confirms: one round trip for the window.
async fn send(channel: &Channel, window: &[Outgoing]) -> Result<Vec<Confirmation>, BrokerError> {
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
    let mut confirmations = Vec::with_capacity(pending.len());
    for confirm in pending {
        confirmations.push(confirm.await?);
    }
    Ok(confirmations)
}
