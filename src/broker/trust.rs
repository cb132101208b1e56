//! Whether the own headers of a message are genuine: only pointsd may set `x-pointsd-` headers and the content type of
//! a check message (`docs/reference/headers.md`).

use super::header_names::{OUR_PREFIX, REQUEUE_ID, SOURCE_QUEUE};
use crate::domain::check_message::CONTENT_TYPE;
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};

/// The content type of points messages.
pub(super) const JSON: &str = "application/json";

/// Removes own headers (`x-pointsd-`) and the content type of a check message from a message that pointsd did not
/// publish.
///
/// pointsd published a message if it was published to the default exchange, which producers must not write to, and if
/// the broker has since dead-lettered it only from queues that it reached in the same way
/// (`docs/reference/headers.md`).
pub(super) fn distrust_producers(exchange: &str, properties: &mut BasicProperties) {
    if !is_published_by_us(exchange, properties) {
        strip_own_headers(properties);
    }
}

/// Removes own headers and the content type of a check message, whatever the exchange.
pub(super) fn strip_own_headers(properties: &mut BasicProperties) {
    let is_check_message = is_check_message(properties);
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    let forged = headers.is_some_and(|headers| headers.keys().any(|name| name.as_str().starts_with(OUR_PREFIX)));
    if forged {
        let mut kept = FieldTable::default();
        for (name, value) in headers.into_iter().flatten().filter(|(name, _)| !name.as_str().starts_with(OUR_PREFIX)) {
            kept.insert(name.clone(), value.clone());
        }
        *properties = std::mem::take(properties).with_headers(kept);
    }
    if is_check_message {
        *properties = std::mem::take(properties).with_content_type(JSON.into());
    }
}

/// The own headers among `headers`.
pub(super) fn own_headers(headers: &FieldTable) -> FieldTable {
    let mut own = FieldTable::default();
    for (name, value) in headers.inner().iter().filter(|(name, _)| name.as_str().starts_with(OUR_PREFIX)) {
        own.insert(name.clone(), value.clone());
    }
    own
}

fn is_published_by_us(exchange: &str, properties: &BasicProperties) -> bool {
    if !exchange.is_empty() {
        return false;
    }
    let Some(deaths) = properties.headers().as_ref().and_then(|headers| headers.inner().get("x-death")) else {
        return true;
    };
    let AMQPValue::FieldArray(deaths) = deaths else { return false };
    deaths.as_slice().iter().all(|death| match death {
        AMQPValue::FieldTable(death) => match death.inner().get("exchange") {
            Some(AMQPValue::LongString(exchange)) => exchange.as_bytes().is_empty(),
            _ => false,
        },
        _ => false,
    })
}

/// Whether the body is a check message. To be called after [`distrust_producers`].
pub(super) fn is_check_message(properties: &BasicProperties) -> bool {
    properties.content_type().as_ref().is_some_and(|it| it.as_str() == CONTENT_TYPE)
}

/// Whether a daemon or `pointsd dead requeue` has published the message. To be called after [`distrust_producers`].
pub(super) fn is_sent_by_us(properties: &BasicProperties) -> bool {
    let headers = properties.headers().as_ref().map(FieldTable::inner);
    headers.is_some_and(|headers| headers.contains_key(SOURCE_QUEUE) || headers.contains_key(REQUEUE_ID))
}
