//! The mark on a message whose content header was replaced: what was wrong with it, and its raw properties.

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

/// The header that marks such a message, between the socket and who takes the delivery: a secret of this process, a blank,
/// and what was wrong.
pub(super) const MARK: &str = "x-pointsd-unreadable";

/// Known to nobody else: a header of that name that a producer has sent is no mark.
static SECRET: LazyLock<String> = LazyLock::new(|| uuid::Uuid::new_v4().to_string());

/// A message that lapin could not decode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::broker) struct Unreadable {
    /// What was wrong. It has no value of the message in it.
    pub(in crate::broker) error: String,
    /// Its properties as the broker sent them, or the beginning of them.
    pub(in crate::broker) raw: Vec<u8>,
}

/// `whole`: whether nothing is left out of the headers and the raw properties.
pub(super) fn mark(headers: &mut FieldTable, error: &str, raw: &[u8], whole: bool) {
    headers.insert(MARK.into(), AMQPValue::LongString(format!("{} {error}", *SECRET).into()));
    headers.insert(RAW.into(), AMQPValue::LongString(raw.into()));
    if !whole {
        headers.insert(header_names::TRUNCATED.into(), AMQPValue::Boolean(true));
    }
}

/// Takes the mark off; `None` where there is none.
pub(in crate::broker) fn take(properties: &mut BasicProperties) -> Option<Unreadable> {
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
    /// The raw properties, for a person.
    pub(in crate::broker) fn hex(&self) -> String {
        hex(&self.raw)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The properties of a copy with the raw ones beside them. Where they do not fit, foreign headers are left out first, because
/// the raw properties have them, too; then the raw properties are cut.
pub(in crate::broker) fn with_raw(
    copy: &BasicProperties,
    unreadable: &Unreadable,
    frame: &mut HeaderFrame,
) -> BasicProperties {
    let headers = copy.headers().clone().unwrap_or_default();
    let own = trust::own_headers(&headers);
    let mut with = |headers: &FieldTable, raw: &[u8], whole: bool| {
        let mut headers = headers.clone();
        headers.insert(RAW.into(), AMQPValue::LongString(hex(raw).into()));
        if !whole {
            headers.insert(header_names::TRUNCATED.into(), AMQPValue::Boolean(true));
        }
        let properties = copy.clone().with_headers(headers);
        frame.fits(&properties).then_some(properties)
    };
    let raw = &unreadable.raw[..];
    let halves = std::iter::successors(Some(raw.len()), |length| (*length > 0).then_some(length / 2));
    with(&headers, raw, true)
        .or_else(|| halves.into_iter().find_map(|length| with(&own, &raw[..length], false)))
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
        assert_eq!(take(&mut forged), None);
        mark(&mut table, "e", b"\x00\xff", true);
        let mut properties = BasicProperties::default().with_headers(table);
        assert_eq!(take(&mut properties), Some(Unreadable { error: "e".into(), raw: vec![0, 255] }));
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
            let with = with_raw(&copy, &unreadable, &mut frame);
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
