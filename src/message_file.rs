//! Recorded messages: JSON Lines with one message per line, bare or in an envelope (`docs/guides/producers.md`).

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

/// The longest line that is accepted, in bytes.
const MAX_LINE_BYTES: u64 = 192 * 1024 * 1024;

/// A recorded message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RecordedMessage {
    /// The body to send or to process, byte for byte.
    pub body: Vec<u8>,
    /// The message ID.
    pub message_id: Option<String>,
    /// The headers of the message.
    pub headers: serde_json::Map<String, serde_json::Value>,
    /// The routing key, where it differs from the configured one.
    pub routing_key: Option<String>,
    /// The content type, recorded only for a check message.
    pub content_type: Option<String>,
}

impl RecordedMessage {
    /// Returns whether the body is a check message.
    pub fn is_check_message(&self) -> bool {
        self.content_type.as_deref() == Some(CHECKS)
    }
}

/// Why a line is not a recorded message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordedError {
    /// A member of the envelope has the wrong type.
    #[error("{member}: must be {wanted}")]
    WrongType {
        /// The name of the member.
        member: &'static str,
        /// The required type.
        wanted: &'static str,
    },
    /// A member of the envelope occurs twice.
    #[error("{0}: is given twice")]
    GivenTwice(String),
    /// The line is longer than [`MAX_LINE_BYTES`].
    #[error("the line is too long; must have at most {MAX_LINE_BYTES} bytes")]
    TooLong,
}

/// One line that is not blank.
#[derive(Debug, PartialEq, Eq)]
pub struct MessageLine {
    /// The number of the line, counted from 1.
    pub number: u64,
    /// The number of bytes of the line, including its end.
    pub bytes: u64,
    /// The message of the line, or the error.
    pub message: Result<RecordedMessage, RecordedError>,
}

/// Reads messages line by line; blank lines are skipped.
pub struct Lines<R> {
    input: R,
    number: u64,
}

impl<R: BufRead> Lines<R> {
    /// Creates a reader at the beginning of `input`.
    pub fn new(input: R) -> Self {
        Self { input, number: 0 }
    }

    /// Returns the next line that is not blank, or `None` at the end of the input. Errors are read errors.
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

/// Returns a line, without its end, that [`parse`] reads as the same message.
///
/// The body is written as JSON where that preserves every byte, as a string where it is other text, and as base64 where
/// it is not text.
pub fn to_line(message: &RecordedMessage) -> String {
    let text = std::str::from_utf8(&message.body);
    let verbatim = text.ok().filter(|text| is_one_line_object(text));
    let (name, body) = match (verbatim, text) {
        (Some(json), _) => (BODY, json.to_owned()),
        (None, Ok(text)) if json_string(text).len() <= 2 * text.len() + 2 => (BODY, json_string(text)),
        (None, _) => (BODY_BASE64, json_string(&BASE64_STANDARD.encode(&message.body))),
    };
    let mut line = format!("{{\"{name}\":{body}");
    let mut member = |name: &str, value: String| {
        line.push_str(",\"");
        line.push_str(name);
        line.push_str("\":");
        line.push_str(&value);
    };
    if let Some(message_id) = &message.message_id {
        member(MESSAGE_ID, json_string(message_id));
    }
    if !message.headers.is_empty() {
        member(HEADERS, harmless(&serde_json::Value::Object(message.headers.clone()).to_string()));
    }
    if let Some(routing_key) = &message.routing_key {
        member(ROUTING_KEY, json_string(routing_key));
    }
    if let Some(content_type) = &message.content_type {
        member(CONTENT_TYPE, json_string(content_type));
    }
    line.push('}');
    line
}

/// Returns whether a text is one JSON object on one line, without surrounding whitespace.
fn is_one_line_object(text: &str) -> bool {
    text.starts_with('{')
        && text.ends_with('}')
        && !text.contains(char::is_control)
        && serde_json::from_str::<&RawValue>(text).is_ok_and(|value| value.get() == text)
}

fn json_string(text: &str) -> String {
    harmless(&serde_json::Value::String(text.to_owned()).to_string())
}

/// Escapes control characters that JSON permits unescaped but a terminal may interpret.
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

/// Parses a line. An object with a body and only members of an envelope is an envelope; any other line is itself a
/// body.
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

/// The members of an object, including repeated ones.
struct Members<'a>(Vec<(String, &'a RawValue)>);

impl<'a> Members<'a> {
    fn are_an_envelope(&self) -> bool {
        let members = || self.0.iter().map(|(name, _)| name.as_str());
        members().any(|name| name == BODY || name == BODY_BASE64)
            && members().all(|name| [BODY, BODY_BASE64, MESSAGE_ID, HEADERS, ROUTING_KEY, CONTENT_TYPE].contains(&name))
    }

    fn into_recorded(self) -> Result<RecordedMessage, RecordedError> {
        let base64: Option<String> = self.typed(BODY_BASE64, "a string")?;
        let body = match (self.single(BODY)?, base64) {
            (Some(_), Some(_)) => return Err(RecordedError::GivenTwice(BODY.to_owned())),
            (None, Some(base64)) => BASE64_STANDARD
                .decode(base64)
                .map_err(|_| RecordedError::WrongType { member: BODY_BASE64, wanted: "base64" })?,
            // A string is recorded as its text, so that any text can be recorded; any other value as its JSON.
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

    fn single(&self, name: &'static str) -> Result<Option<&'a RawValue>, RecordedError> {
        let mut of_name = self.0.iter().filter(|(member, _)| member == name).map(|(_, value)| *value);
        let first = of_name.next();
        if of_name.next().is_some() { Err(RecordedError::GivenTwice(name.to_owned())) } else { Ok(first) }
    }

    fn typed<T: Deserialize<'a>>(
        &self,
        member: &'static str,
        wanted: &'static str,
    ) -> Result<Option<T>, RecordedError> {
        let Some(value) = self.single(member)?.filter(|value| value.get() != "null") else { return Ok(None) };
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

    #[expect(clippy::unnecessary_wraps, reason = "compared with the parsed result")]
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
        // A byte order mark at the start of a file is not part of an envelope; a bare body keeps its bytes.
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
