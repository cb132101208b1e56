//! The values of headers, read with care: any program can send a header with any name and value.

use super::header_names::{ATTEMPT, CHECK, FIRST_FAILED_AT, SOURCE, TRUNCATED};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable, ShortString},
};
use std::collections::BTreeMap;

/// The number of attempts that are charged to a message ([`ATTEMPT`]); 0 if the header is missing or no valid count.
pub(super) fn retries_taken(properties: &BasicProperties) -> u32 {
    read_counter(properties, ATTEMPT)
}

/// The number of completed checks of a message ([`CHECK`]); 0 if the header is missing or no valid count.
pub(super) fn checks_done(properties: &BasicProperties) -> u32 {
    read_counter(properties, CHECK)
}

fn read_counter(properties: &BasicProperties, name: &str) -> u32 {
    let value = properties.headers().as_ref().and_then(|headers| headers.inner().get(name));
    value.and_then(as_integer).map_or(0, |count| u32::try_from(count.max(0)).unwrap_or(u32::MAX))
}

/// The notification source whose format the body has ([`SOURCE`]).
pub(super) fn read_source(properties: &BasicProperties) -> Option<String> {
    match properties.headers().as_ref()?.inner().get(SOURCE)? {
        AMQPValue::LongString(name) => Some(name.to_string()),
        _ => None,
    }
}

/// The queue from which the broker dead-lettered the message last, if a binding and not the default exchange had routed
/// the message to that queue.
pub(super) fn read_bound_queue(properties: &BasicProperties) -> Option<String> {
    let death = latest_death(properties.headers().as_ref()?.inner())?.inner();
    let text = |name: &str| match death.get(name)? {
        AMQPValue::LongString(text) => Some(text.to_string()),
        _ => None,
    };
    text("exchange").filter(|exchange| !exchange.is_empty())?;
    text("queue")
}

/// The entry of `x-death` for the queue that the broker dead-lettered a message from last: RabbitMQ puts it first
/// ("Dead Letter Exchanges").
fn latest_death(headers: &BTreeMap<ShortString, AMQPValue>) -> Option<&FieldTable> {
    let AMQPValue::FieldArray(deaths) = headers.get("x-death")? else { return None };
    match deaths.as_slice().first()? {
        AMQPValue::FieldTable(death) => Some(death),
        _ => None,
    }
}

/// The value of an integer of any width.
pub(super) fn as_integer(value: &AMQPValue) -> Option<i64> {
    match value {
        AMQPValue::ShortShortInt(number) => Some((*number).into()),
        AMQPValue::ShortShortUInt(number) => Some((*number).into()),
        AMQPValue::ShortInt(number) => Some((*number).into()),
        AMQPValue::ShortUInt(number) => Some((*number).into()),
        AMQPValue::LongInt(number) => Some((*number).into()),
        AMQPValue::LongUInt(number) => Some((*number).into()),
        AMQPValue::LongLongInt(number) => Some(*number),
        _ => None,
    }
}

/// Whether pointsd could have written this value into its header `name`.
pub(super) fn is_plausible(name: &str, value: &AMQPValue) -> bool {
    match name {
        FIRST_FAILED_AT => is_timestamp(value),
        TRUNCATED => matches!(value, AMQPValue::Boolean(true)),
        ATTEMPT | CHECK => as_integer(value).is_some_and(|number| number > 0),
        _ => matches!(value, AMQPValue::LongString(text) if text.len() <= 255),
    }
}

/// Whether a header is a timestamp as pointsd writes it.
fn is_timestamp(value: &AMQPValue) -> bool {
    let AMQPValue::LongString(text) = value else { return false };
    text.len() <= 40 && text.to_string().parse::<jiff::Timestamp>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_that_somebody_else_made_up_is_not_believed_where_it_makes_no_sense() {
        for (value, taken) in [
            (AMQPValue::LongLongInt(i64::MAX), u32::MAX),
            (AMQPValue::LongLongInt(-1), 0),
            (AMQPValue::ShortShortUInt(3), 3),
            (AMQPValue::LongString("3".into()), 0),
            (AMQPValue::Void, 0),
        ] {
            let mut headers = FieldTable::default();
            headers.insert("x-pointsd-attempt".into(), value);
            let properties = BasicProperties::default().with_headers(headers);
            assert_eq!(retries_taken(&properties), taken);
        }
    }
}
