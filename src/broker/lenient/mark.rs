//! The mark on a message whose content header was replaced: the fault, and the raw properties.

use crate::broker::{
    header_frame::HeaderFrame,
    header_names::{self, RAW},
    trust,
};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use std::{fmt::Write as _, sync::LazyLock};

/// The header that marks an unreadable message between the socket and the consumer. Its value is a secret of this
/// process, a space, and the fault.
pub(super) const MARK: &str = "x-pointsd-unreadable";

/// The secret that distinguishes a genuine mark from a header of that name that a producer has sent.
static SECRET: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().to_string());

/// A message that lapin could not decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::broker) struct Unreadable {
    /// The fault. It contains no value of the message.
    pub(in crate::broker) error: String,
    /// The properties as the broker sent them, or their beginning.
    pub(in crate::broker) raw: Vec<u8>,
}

/// Adds the mark to headers. `whole`: whether the headers and the raw properties are complete.
pub(super) fn insert_mark(headers: &mut FieldTable, error: &str, raw: &[u8], whole: bool) {
    headers.insert(MARK.into(), AMQPValue::LongString(format!("{} {error}", *SECRET).into()));
    headers.insert(RAW.into(), AMQPValue::LongString(raw.into()));
    if !whole {
        headers.insert(header_names::TRUNCATED.into(), AMQPValue::Boolean(true));
    }
}

/// Removes the mark from properties and returns it; `None` if there is none.
pub(in crate::broker) fn take_mark(properties: &mut BasicProperties) -> Option<Unreadable> {
    let headers = properties.headers().as_ref()?;
    let AMQPValue::LongString(mark) = headers.inner().get(MARK)? else { return None };
    let text = std::str::from_utf8(mark.as_bytes()).ok()?;
    let error = text.strip_prefix(SECRET.as_str())?.trim_start().to_owned();
    let raw = match headers.inner().get(RAW) {
        Some(AMQPValue::LongString(raw)) => raw.as_bytes().to_vec(),
        _ => Vec::new(),
    };
    let mut rest = FieldTable::default();
    for (name, value) in headers.inner().iter().filter(|(name, _)| ![MARK, RAW].contains(&name.as_str())) {
        rest.insert(name.clone(), value.clone());
    }
    *properties = std::mem::take(properties).with_headers(rest);
    Some(Unreadable { error, raw })
}

impl Unreadable {
    /// The raw properties as hexadecimal digits.
    pub(in crate::broker) fn hex(&self) -> String {
        to_hex(&self.raw)
    }
}

fn to_hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Adds the raw properties to the properties of a copy. If they do not fit, foreign headers are left out first, because
/// the raw properties contain them, too; then the raw properties are truncated.
pub(in crate::broker) fn add_raw_properties(
    copy: &BasicProperties,
    unreadable: &Unreadable,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let headers = copy.headers().clone().unwrap_or_default();
    let own = trust::own_headers(&headers);
    let mut try_with = |headers: &FieldTable, raw: &[u8], whole: bool| {
        let mut headers = headers.clone();
        headers.insert(RAW.into(), AMQPValue::LongString(to_hex(raw).into()));
        if !whole {
            headers.insert(header_names::TRUNCATED.into(), AMQPValue::Boolean(true));
        }
        let properties = copy.clone().with_headers(headers);
        frame.fits(&properties).then_some(properties)
    };
    let raw = &unreadable.raw[..];
    let halves = std::iter::successors(Some(raw.len()), |length| (*length > 0).then_some(length / 2));
    try_with(&headers, raw, true)
        .or_else(|| halves.into_iter().find_map(|length| try_with(&own, &raw[..length], false)))
        .unwrap_or_else(|| copy.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_cannot_be_forged() {
        let mut table = FieldTable::default();
        table.insert(MARK.into(), AMQPValue::LongString(format!("{} e", uuid::Uuid::new_v4()).into()));
        let mut forged = BasicProperties::default().with_headers(table.clone());
        assert_eq!(take_mark(&mut forged), None);
        insert_mark(&mut table, "e", b"\x00\xff", true);
        let mut properties = BasicProperties::default().with_headers(table);
        assert_eq!(take_mark(&mut properties), Some(Unreadable { error: "e".into(), raw: vec![0, 255] }));
        assert_eq!(properties.headers(), &Some(FieldTable::default()));
    }

    #[test]
    fn raw_properties_fit_into_the_frame_with_our_headers() {
        let mut table = FieldTable::default();
        table.insert("x-pointsd-error".into(), AMQPValue::LongString("e".into()));
        table.insert("theirs".into(), AMQPValue::LongString("t".repeat(500).into()));
        let copy = BasicProperties::default().with_headers(table);
        for (bytes, hex_digits, theirs) in [(1000, 2000, true), (1600, 3200, false), (60_000, 1800, false)] {
            let unreadable = Unreadable { error: "e".into(), raw: vec![7; bytes] };
            let mut frame = HeaderFrame::new(4096);
            let with = add_raw_properties(&copy, &unreadable, &mut frame);
            assert!(frame.fits(&with));
            let headers = with.headers().as_ref().unwrap().inner();
            let AMQPValue::LongString(raw) = &headers[RAW] else { panic!("a text") };
            assert!(raw.len() >= hex_digits && raw.as_bytes().starts_with(b"0707"), "{bytes}: {}", raw.len());
            assert_eq!(headers.contains_key("theirs"), theirs, "{bytes}");
            assert_eq!(headers.contains_key(header_names::TRUNCATED), !theirs, "{bytes}");
            assert!(headers.contains_key("x-pointsd-error"));
        }
    }
}
