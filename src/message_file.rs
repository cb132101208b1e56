//! RecordedMessage messages: JSON Lines, one message a line, bare or in an envelope (`docs/guides/producers.md`).

use crate::domain::{check_message::CONTENT_TYPE as CHECKS, message::BYTE_ORDER_MARK};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;
use std::{
    fmt::{self, Write as _},
    io::{self, BufRead, Read},
};

/// The longest line that is read. Bytes.
const MAX_LINE_BYTES: u64 = 192 * 1024 * 1024;

/// A message as it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedMessage {
    /// The body to send or to process, byte for byte.
    pub body: Vec<u8>,
    /// Its message id.
    pub message_id: Option<String>,
    /// Its headers.
    pub headers: serde_json::Map<String, serde_json::Value>,
    /// Its routing key, where it is not the configured one.
    pub routing_key: Option<String>,
    /// Its content type, where that matters: a check message's.
    pub content_type: Option<String>,
}

impl RecordedMessage {
    /// Whether its body is a check message.
    pub fn is_check_message(&self) -> bool {
        self.content_type.as_deref() == Some(CHECKS)
    }
}

/// Why a line is no recorded message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordedError {
    /// A member of the envelope has the wrong type.
    #[error("{member}: must be {wanted}")]
    WrongType {
        /// Which.
        member: &'static str,
        /// What would be right.
        wanted: &'static str,
    },
    /// A member of the envelope is there twice.
    #[error("{0}: is given twice")]
    GivenTwice(String),
    /// The line is longer than is read.
    #[error("the line has more than {MAX_LINE_BYTES} bytes")]
    TooLong,
}

/// One line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub struct MessageLine {
    /// Counted from 1.
    pub number: u64,
    /// How many bytes of the input it took, with its end.
    pub bytes: u64,
    /// What it says.
    pub message: Result<RecordedMessage, RecordedError>,
}

/// Reads lines one at a time; blank ones are passed over.
pub struct Lines<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// From the beginning of `input`.
    pub fn new(input: R) -> Self {
        Self { input, number: 0 }
    }

    /// The next line, or `None` at the end. An error is one of reading.
    pub fn next_line(&mut self) -> io::Result<Option<MessageLine>> {
        loop {
            let mut line = Vec::new();
            let read = Read::take(&mut self.input, MAX_LINE_BYTES).read_until(b'\n', &mut line)?;
            if read == 0 {
                return Ok(None);
            }
            self.number += 1;
            let mut bytes = read as u64;
            let message = if bytes == MAX_LINE_BYTES && line.last() != Some(&b'\n') {
                bytes += self.skip_line()?;
                Err(RecordedError::TooLong)
            } else {
                let end = line.iter().rposition(|byte| !matches!(byte, b'\n' | b'\r'));
                line.truncate(end.map_or(0, |end| end + 1));
                if line.iter().all(u8::is_ascii_whitespace) {
                    continue;
                }
                parse(line)
            };
            return Ok(Some(MessageLine { number: self.number, bytes, message }));
        }
    }

    fn skip_line(&mut self) -> io::Result<u64> {
        let mut skipped = 0;
        loop {
            let buffer = self.input.fill_buf()?;
            let end = buffer.iter().position(|byte| *byte == b'\n');
            let length = end.map_or(buffer.len(), |end| end + 1);
            let done = end.is_some() || buffer.is_empty();
            self.input.consume(length);
            skipped += length as u64;
            if done {
                return Ok(skipped);
            }
        }
    }
}

/// The line that [`parse`] reads as this message again, without its end.
///
/// The body stands there as JSON where that keeps every byte of it, as a string where it is some other text, and as
/// base64 where it is no text.
pub fn to_line(message: &RecordedMessage) -> String {
    let text = std::str::from_utf8(&message.body);
    let verbatim = text.ok().filter(|text| stands_verbatim(text));
    let (name, body) = match (verbatim, text) {
        (Some(json), _) => (BODY, json.to_owned()),
        (None, Ok(text)) if quoted(text).len() <= 2 * text.len() + 2 => (BODY, quoted(text)),
        (None, _) => (BODY_BASE64, quoted(&BASE64_STANDARD.encode(&message.body))),
    };
    let mut line = format!("{{\"{name}\":{body}");
    let mut member = |name: &str, value: String| {
        line.push_str(",\"");
        line.push_str(name);
        line.push_str("\":");
        line.push_str(&value);
    };
    if let Some(message_id) = &message.message_id {
        member(MESSAGE_ID, quoted(message_id));
    }
    if !message.headers.is_empty() {
        member(HEADERS, harmless(&serde_json::Value::Object(message.headers.clone()).to_string()));
    }
    if let Some(routing_key) = &message.routing_key {
        member(ROUTING_KEY, quoted(routing_key));
    }
    if let Some(content_type) = &message.content_type {
        member(CONTENT_TYPE, quoted(content_type));
    }
    line.push('}');
    line
}

/// An object in one line, with nothing around it.
fn stands_verbatim(text: &str) -> bool {
    text.starts_with('{')
        && text.ends_with('}')
        && !text.contains(char::is_control)
        && serde_json::from_str::<&RawValue>(text).is_ok_and(|value| value.get() == text)
}

fn quoted(text: &str) -> String {
    harmless(&serde_json::Value::String(text.to_owned()).to_string())
}

/// JSON with those control characters escaped, too, that JSON leaves as they are and a terminal may act on.
pub fn harmless(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for character in json.chars() {
        if matches!(character, '\u{7f}'..='\u{9f}') {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\u{:04x}", u32::from(character));
        } else {
            text.push(character);
        }
    }
    text
}

/// An envelope has a `body` and nothing but the members of an envelope; any other line is a body itself.
fn parse(line: Vec<u8>) -> Result<RecordedMessage, RecordedError> {
    let json = line.strip_prefix(BYTE_ORDER_MARK.encode_utf8(&mut [0; 4]).as_bytes()).unwrap_or(&line);
    match serde_json::from_slice::<Members<'_>>(json) {
        Ok(members) if members.are_an_envelope() => members.into_recorded(),
        _ => Ok(RecordedMessage {
            body: line,
            message_id: None,
            headers: serde_json::Map::new(),
            routing_key: None,
            content_type: None,
        }),
    }
}

const BODY: &str = "body";
const BODY_BASE64: &str = "body_base64";
const MESSAGE_ID: &str = "message_id";
const HEADERS: &str = "headers";
const ROUTING_KEY: &str = "routing_key";
const CONTENT_TYPE: &str = "content_type";

/// The members of an object, also those that come twice.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn are_an_envelope(&self) -> bool {
        let members = || self.0.iter().map(|(name, _)| name.as_str());
        members().any(|name| name == BODY || name == BODY_BASE64)
            && members().all(|name| [BODY, BODY_BASE64, MESSAGE_ID, HEADERS, ROUTING_KEY, CONTENT_TYPE].contains(&name))
    }

    fn into_recorded(self) -> Result<RecordedMessage, RecordedError> {
        let base64: Option<String> = self.typed(BODY_BASE64, "a string")?;
        let body = match (self.one(BODY)?, base64) {
            (Some(_), Some(_)) => return Err(RecordedError::GivenTwice(BODY.to_owned())),
            (None, Some(base64)) => BASE64_STANDARD
                .decode(base64)
                .map_err(|_| RecordedError::WrongType { member: BODY_BASE64, wanted: "base64" })?,
            // A string stands for its text, so that any text can be recorded; anything else for its JSON.
            (Some(body), None) => match serde_json::from_str::<String>(body.get()) {
                Ok(text) => text.into_bytes(),
                Err(_) => body.get().as_bytes().to_vec(),
            },
            (None, None) => return Err(RecordedError::WrongType { member: BODY, wanted: "given" }),
        };
        Ok(RecordedMessage {
            body,
            message_id: self.typed(MESSAGE_ID, "a string")?,
            headers: self.typed(HEADERS, "an object")?.unwrap_or_default(),
            routing_key: self.typed(ROUTING_KEY, "a string")?,
            content_type: self.typed(CONTENT_TYPE, "a string")?,
        })
    }

    fn one(&self, name: &'static str) -> Result<Option<&'a RawValue>, RecordedError> {
        let mut of_name = self.0.iter().filter(|(member, _)| member == name).map(|(_, value)| *value);
        let first = of_name.next();
        if of_name.next().is_some() { Err(RecordedError::GivenTwice(name.to_owned())) } else { Ok(first) }
    }

    fn typed<T: Deserialize<'a>>(
        &self,
        member: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, RecordedError> {
        let Some(value) = self.one(member)?.filter(|value| value.get() != "null") else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|_| RecordedError::WrongType { member, wanted })
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Members<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry::<String, &RawValue>()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(text: &[u8]) -> Vec<(u64, Result<RecordedMessage, RecordedError>)> {
        let mut lines = Lines::new(text);
        std::iter::from_fn(|| lines.next_line().unwrap()).map(|line| (line.number, line.message)).collect()
    }

    #[expect(clippy::unnecessary_wraps, reason = "compared with what is read")]
    fn bare(body: &[u8]) -> Result<RecordedMessage, RecordedError> {
        Ok(RecordedMessage {
            body: body.to_vec(),
            message_id: None,
            headers: serde_json::Map::new(),
            routing_key: None,
            content_type: None,
        })
    }

    #[test]
    fn lines_that_are_no_envelope_are_bodies_byte_for_byte() {
        let text = b"{\"paymentId\": 1}\r\n\n  \nnot json\n\xff\xfe\n{\"body\":1,\"paymentId\":2}\n[1]";
        assert_eq!(
            lines(text),
            [
                (1, bare(b"{\"paymentId\": 1}")),
                (4, bare(b"not json")),
                (5, bare(b"\xff\xfe")),
                (6, bare(b"{\"body\":1,\"paymentId\":2}")),
                (7, bare(b"[1]")),
            ]
        );
    }

    #[test]
    fn envelopes_carry_what_stands_beside_the_body() {
        let line =
            br#"{"body":{"paymentId": 12345678901234567890},"message_id":"m","headers":{"a":1},"routing_key":"k"}"#;
        let mut headers = serde_json::Map::new();
        headers.insert("a".into(), 1.into());
        let recorded = RecordedMessage {
            body: br#"{"paymentId": 12345678901234567890}"#.to_vec(),
            message_id: Some("m".into()),
            headers,
            routing_key: Some("k".into()),
            content_type: None,
        };
        assert_eq!(lines(line), [(1, Ok(recorded))]);
        assert_eq!(lines(br#"{"body":"{\"a\":1} x","message_id":null}"#), [(1, bare(b"{\"a\":1} x"))]);
        assert_eq!(lines(br#"{"body":17}"#), [(1, bare(b"17"))]);
        // A file that begins with a byte order mark: it is no part of the envelope; a bare body keeps its bytes.
        assert_eq!(
            lines("\u{feff}{\"body\":17}\n\u{feff}17".as_bytes()),
            [(1, bare(b"17")), (2, bare("\u{feff}17".as_bytes()))]
        );
    }

    #[test]
    fn envelopes_with_a_fault_name_the_member() {
        for (line, error) in [
            (r#"{"body":1,"headers":[]}"#, "headers: must be an object"),
            (r#"{"body":1,"message_id":5}"#, "message_id: must be a string"),
            (r#"{"body":1,"routing_key":{}}"#, "routing_key: must be a string"),
            (r#"{"body":1,"body":2}"#, "body: is given twice"),
            (r#"{"body":1,"body_base64":"MQ=="}"#, "body: is given twice"),
            (r#"{"body_base64":"?"}"#, "body_base64: must be base64"),
            (r#"{"body_base64":null}"#, "body: must be given"),
        ] {
            let read = lines(line.as_bytes());
            assert_eq!(read[0].1.as_ref().unwrap_err().to_string(), error, "{line}");
        }
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        let mut headers = serde_json::Map::new();
        headers.insert("x".into(), serde_json::json!({"a": [1, "\n"]}));
        for (body, begin) in [
            (&br#"{"paymentId": 12345678901234567890, "a":1e400}"#[..], r#"{"body":{"paymentId""#),
            (b"{\"a\":1} ", r#"{"body":"{"#),
            (b"{\"a\":\n1}", r#"{"body":"{"#),
            (b"17", r#"{"body":"17""#),
            (b"\"text\"", r#"{"body":"\"text\"""#),
            (b"{not json}", r#"{"body":"{not"#),
            (b"", r#"{"body":"""#),
            (b"{\"a\":\"\xc2\x9b\"}", r#"{"body":"{\"a\":\"\u009b\"}""#),
            (b"\x01\x01\x01\x01\x01", r#"{"body_base64":"AQEBAQE=""#),
            (b"\xac\xed\x00\x05", r#"{"body_base64":"rO0ABQ==""#),
        ] {
            for (message_id, headers, routing_key) in
                [(None, serde_json::Map::new(), None), (Some("m\"1"), headers.clone(), Some("k"))]
            {
                let message = RecordedMessage {
                    body: body.to_vec(),
                    message_id: message_id.map(str::to_owned),
                    headers,
                    routing_key: routing_key.map(str::to_owned),
                    content_type: None,
                };
                let line = to_line(&message);
                assert!(line.starts_with(begin) && !line.contains('\n'), "{line}");
                assert_eq!(lines(line.as_bytes()), [(1, Ok(message))], "{line}");
            }
        }
    }

    #[test]
    fn a_line_without_end_is_passed_over() {
        struct Endless(u64);
        impl Read for Endless {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = buffer.len().min(usize::try_from(self.0).unwrap_or(usize::MAX));
                buffer[..length].fill(b'x');
                self.0 -= length as u64;
                Ok(length)
            }
        }
        let input = Endless(MAX_LINE_BYTES + 10).chain(&b"\n{}\n"[..]);
        let mut lines = Lines::new(io::BufReader::new(input));
        let first = lines.next_line().unwrap().unwrap();
        assert_eq!((first.number, first.bytes, first.message), (1, MAX_LINE_BYTES + 11, Err(RecordedError::TooLong)));
        assert_eq!(lines.next_line().unwrap().unwrap().message, bare(b"{}"));
    }
}
