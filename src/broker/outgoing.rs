//! The messages that pointsd publishes.

use super::{
    BrokerError, copy, header_names,
    headers::{self, short},
};
use crate::domain::check_message::CONTENT_TYPE;
use lapin::{
    BasicProperties,
    types::{FieldTable, ShortString},
};
use std::{borrow::Cow, time::SystemTime};

/// A message that pointsd publishes.
#[derive(Debug, Clone, PartialEq)]
pub struct Outgoing<'a> {
    pub(super) exchange: ShortString,
    pub(super) routing_key: ShortString,
    pub(super) body: Cow<'a, [u8]>,
    pub(super) properties: BasicProperties,
}

impl<'a> Outgoing<'a> {
    /// Creates a JSON message with the current time. `given`: its headers, of which those that the broker interprets
    /// and own headers of an earlier failure are left out.
    pub fn new(
        exchange: &str,
        routing_key: &str,
        body: Vec<u8>,
        message_id: Option<&str>,
        given: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, BrokerError> {
        let mut table = FieldTable::default();
        for (name, value) in given
            .iter()
            .filter(|(name, _)| !header_names::is_broker_header(name) && !header_names::describes_failure(name))
        {
            table.insert(short("a header's name", name)?, headers::from_json(value));
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
        Ok(Self { exchange: short("the exchange", exchange)?, routing_key, body: body.into(), properties })
    }

    /// Creates the message of an outbox row. The row may have been published before; the message has the current time.
    pub(super) fn from_outbox_row(
        exchange: &str,
        routing_key: &str,
        body: &'a [u8],
        message_id: &str,
        headers: &serde_json::Map<String, serde_json::Value>,
    ) -> Result<Self, BrokerError> {
        let message = Self::new(exchange, routing_key, Vec::new(), Some(message_id), headers)?;
        Ok(Self { body: body.into(), ..message })
    }

    /// Creates a check message for the check queue, which is checked at once.
    pub fn checks(check_queue: &str, body: Vec<u8>) -> Result<Self, BrokerError> {
        let none = serde_json::Map::new();
        let message = Self::new("", check_queue, body, None, &none)?;
        let properties = message.properties.with_content_type(CONTENT_TYPE.into());
        Ok(Self { properties, ..message })
    }

    /// Creates a message for a queue, published to the default exchange.
    pub(super) fn to_queue(queue: &str, body: &'a [u8], properties: BasicProperties) -> Self {
        Self { exchange: "".into(), routing_key: queue.into(), body: body.into(), properties }
    }

    /// The destination, for error texts.
    pub(super) fn target(&self) -> String {
        if self.exchange.as_str().is_empty() {
            format!("queue {}", self.routing_key)
        } else {
            format!("exchange {} with key {}", self.exchange, self.routing_key)
        }
    }
}
