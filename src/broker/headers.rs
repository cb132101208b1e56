//! Conversion between AMQP headers and JSON, for message files and for output.

use super::BrokerError;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use serde_json::{Map, Number, Value};

/// Converts a JSON value to the value of a header.
pub(super) fn from_json(value: &Value) -> AMQPValue {
    match value {
        Value::Null => AMQPValue::Void,
        Value::Bool(flag) => AMQPValue::Boolean(*flag),
        Value::Number(number) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => AMQPValue::LongLongInt(integer),
            (None, Some(float)) => AMQPValue::Double(float),
            (None, None) => AMQPValue::LongString(number.to_string().into()),
        },
        Value::String(text) => AMQPValue::LongString(text.as_str().into()),
        Value::Array(items) => AMQPValue::FieldArray(items.iter().map(from_json).collect::<Vec<_>>().into()),
        Value::Object(members) => {
            let mut table = FieldTable::default();
            for (name, value) in members {
                if let Ok(name) = ShortString::try_new(name.as_str()) {
                    table.insert(name, from_json(value));
                }
            }
            AMQPValue::FieldTable(table)
        }
    }
}

/// The maximum nesting of tables and arrays in JSON: deeper values are not written for readers, and few programs parse
/// them.
const MAX_DEPTH: usize = 32;

/// Converts headers to a JSON object. AMQP has more types than JSON: a timestamp becomes RFC 3339, bytes that are not
/// UTF-8 become base64, and numbers lose their width.
pub(super) fn to_json(table: &FieldTable) -> Map<String, Value> {
    table_to_json(table, 0)
}

fn table_to_json(table: &FieldTable, depth: usize) -> Map<String, Value> {
    table.inner().iter().map(|(name, value)| (name.to_string(), value_to_json(value, depth + 1))).collect()
}

fn value_to_json(value: &AMQPValue, depth: usize) -> Value {
    if depth > MAX_DEPTH {
        return Value::String("nested too deeply to be shown".into());
    }
    let float = |number: f64| Number::from_f64(number).map_or_else(|| Value::String(number.to_string()), Value::Number);
    match value {
        AMQPValue::Boolean(flag) => Value::Bool(*flag),
        AMQPValue::ShortShortInt(number) => (*number).into(),
        AMQPValue::ShortShortUInt(number) => (*number).into(),
        AMQPValue::ShortInt(number) => (*number).into(),
        AMQPValue::ShortUInt(number) => (*number).into(),
        AMQPValue::LongInt(number) => (*number).into(),
        AMQPValue::LongUInt(number) => (*number).into(),
        AMQPValue::LongLongInt(number) => (*number).into(),
        AMQPValue::Float(number) => float((*number).into()),
        AMQPValue::Double(number) => float(*number),
        AMQPValue::DecimalValue(decimal) => Value::String(format!("{}e-{}", decimal.value, decimal.scale)),
        AMQPValue::ShortString(text) => Value::String(text.to_string()),
        AMQPValue::LongString(text) => bytes_to_json(text.as_bytes()),
        AMQPValue::ByteArray(bytes) => bytes_to_json(bytes.as_slice()),
        AMQPValue::FieldArray(items) => items.as_slice().iter().map(|item| value_to_json(item, depth + 1)).collect(),
        AMQPValue::Timestamp(seconds) => time(*seconds).map_or(Value::Null, |time| Value::String(time.to_string())),
        AMQPValue::FieldTable(table) => Value::Object(table_to_json(table, depth)),
        AMQPValue::Void => Value::Null,
    }
}

fn bytes_to_json(bytes: &[u8]) -> Value {
    match std::str::from_utf8(bytes) {
        Ok(text) => Value::String(text.to_owned()),
        Err(_) => Value::String(format!("base64:{}", BASE64_STANDARD.encode(bytes))),
    }
}

/// Converts an AMQP timestamp, which is whole seconds since 1970.
pub(super) fn time(seconds: u64) -> Option<jiff::Timestamp> {
    i64::try_from(seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok())
}

/// Converts a text to a short string of AMQP, at most 255 bytes. `what` names the text in the error.
pub(super) fn short(what: &str, text: &str) -> Result<ShortString, BrokerError> {
    ShortString::try_new(text).map_err(|_| BrokerError::Unsendable(format!("{what} has more than 255 bytes")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_shown_as_json_and_plain_ones_come_back_as_they_were() {
        let given = serde_json::json!({
            "text": "支付", "number": -5, "float": 1.5, "flag": true, "nothing": null,
            "list": [1, "a", [false]], "table": {"a": {"b": "c"}}
        });
        let AMQPValue::FieldTable(table) = from_json(&given) else { panic!("an object is a table") };
        assert_eq!(Value::Object(to_json(&table)), given);

        let mut table = FieldTable::default();
        for (name, value) in [
            ("time", AMQPValue::Timestamp(1_700_000_000)),
            ("bytes", AMQPValue::LongString(vec![0xff_u8, 0].into())),
            ("small", AMQPValue::ShortShortUInt(200)),
            ("odd", AMQPValue::Double(f64::NAN)),
        ] {
            table.insert(name.into(), value);
        }
        let shown = serde_json::json!({
            "time": "2023-11-14T22:13:20Z", "bytes": "base64:/wA=", "small": 200, "odd": "NaN"
        });
        assert_eq!(Value::Object(to_json(&table)), shown);
    }
}
