//! Content headers: whether lapin can decode one, what can be read of one that it cannot, and one that replaces it.

use super::{FRAME_OVERHEAD, mark::mark};
use crate::broker::trust;
use lapin::{
    BasicProperties,
    protocol::basic::{gen_properties, parse_properties},
    types::{FieldTable, ShortString, parsing::parse_value},
};

/// What comes before the properties: class, weight, the body's size.
const FIXED: usize = 12;

/// So many bytes cannot hold more nested values than the stack of lapin's thread has room for. RabbitMQ's usual frame.
const SHALLOW: usize = 128 * 1024;

/// The deepest nesting in a larger header that is decoded: decoding is recursive.
const MOST_NESTED: usize = 20_000;

const TOO_DEEP: &str = "a header is nested too deep";

/// Why lapin cannot decode a content header; `None` when it can, or when the payload is no content header.
pub(super) fn fault(payload: &[u8]) -> Option<String> {
    let properties = payload.get(FIXED..)?;
    if properties.len() > SHALLOW && Salvage::of(properties).has_deep_value {
        return Some(TOO_DEEP.to_owned());
    }
    match parse_properties(properties) {
        Ok(([], _)) => None,
        _ => Some(Salvage::of(properties).fault.unwrap_or_else(|| "the properties cannot be decoded".to_owned())),
    }
}

/// A content header that lapin can decode: of the same body, with what can be read of the properties, and a mark. `None` when
/// the payload is no content header.
pub(super) fn marked(payload: &[u8], fault: &str, frame_max: usize) -> Option<Vec<u8>> {
    let (fixed, raw) = payload.split_at_checked(FIXED)?;
    let Salvage { mut properties, complete, .. } = Salvage::of(raw);
    if !complete {
        // The headers that tell whether the others are ours may be missing.
        trust::strip_own_headers(&mut properties);
    }
    let headers = properties.headers().clone().unwrap_or_default();
    let own = trust::own_headers(&headers);
    let room = frame_max.saturating_sub(FRAME_OVERHEAD + FIXED);
    let mut kept_raw = raw.len().min(room / 2);
    let mut attempts = [Some(&headers), Some(&own), None].into_iter();
    let mut kept = attempts.next()?;
    loop {
        let whole = kept_raw == raw.len() && kept.is_some_and(|kept| kept.inner().len() == headers.inner().len());
        let mut table = kept.cloned().unwrap_or_default();
        mark(&mut table, fault, &raw[..kept_raw], whole);
        let bytes = cookie_factory::gen_simple(gen_properties(&properties.clone().with_headers(table)), Vec::new());
        let bytes = bytes.ok()?;
        if bytes.len() <= room {
            return Some([fixed, &bytes].concat());
        }
        match attempts.next() {
            Some(next) => kept = next,
            None if kept_raw == 0 => return None,
            None => kept_raw /= 2,
        }
    }
}

/// What can be read of a message's properties.
#[derive(Debug, Default)]
struct Salvage {
    properties: BasicProperties,
    /// Whether every header was read.
    complete: bool,
    /// The first thing that is wrong. It names no value.
    fault: Option<String>,
    has_deep_value: bool,
}

impl Salvage {
    fn of(bytes: &[u8]) -> Self {
        let mut salvage = Self::default();
        let mut reader = Reader(bytes);
        match salvage.read(&mut reader) {
            None => salvage.note("the properties end too early"),
            Some(()) if !reader.0.is_empty() => salvage.note("bytes follow the properties"),
            Some(()) => {}
        }
        salvage
    }

    fn note(&mut self, fault: &str) {
        self.fault.get_or_insert_with(|| fault.to_owned());
    }

    /// In the order of AMQP 0-9-1, "class basic, properties". `None` when the bytes end too early.
    fn read(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let flags = reader.number::<2>().map(u16::from_be_bytes)?;
        let given = |bit: u32| flags & (1 << bit) != 0;
        self.complete = !given(13);
        macro_rules! text {
            ($bit:literal, $name:literal, $with:ident) => {
                if given($bit)
                    && let Some(text) = self.text($name, reader.short()?)
                {
                    self.properties = std::mem::take(&mut self.properties).$with(text);
                }
            };
        }
        text!(15, "content_type", with_content_type);
        text!(14, "content_encoding", with_content_encoding);
        if given(13) {
            let headers = self.headers(reader.long()?);
            self.properties = std::mem::take(&mut self.properties).with_headers(headers);
        }
        if given(12) {
            reader.number::<1>()?;
        }
        if given(11) {
            let [priority] = reader.number()?;
            self.properties = std::mem::take(&mut self.properties).with_priority(priority);
        }
        text!(10, "correlation_id", with_correlation_id);
        text!(9, "reply_to", with_reply_to);
        text!(8, "expiration", with_expiration);
        text!(7, "message_id", with_message_id);
        if given(6) {
            let timestamp = reader.number().map(u64::from_be_bytes)?;
            self.properties = std::mem::take(&mut self.properties).with_timestamp(timestamp);
        }
        text!(5, "type", with_type);
        text!(4, "user_id", with_user_id);
        text!(3, "app_id", with_app_id);
        text!(2, "cluster_id", with_cluster_id);
        Some(())
    }

    fn text(&mut self, name: &str, bytes: &[u8]) -> Option<ShortString> {
        let text = std::str::from_utf8(bytes).ok().and_then(|text| ShortString::try_new(text).ok());
        if text.is_none() {
            self.note(&format!("{name} is not UTF-8"));
        }
        text
    }

    /// The headers that can be decoded.
    fn headers(&mut self, table: &[u8]) -> FieldTable {
        let (mut reader, mut headers) = (Reader(table), FieldTable::default());
        self.complete = true;
        while !reader.0.is_empty() {
            let Some((name, value)) = reader.entry() else {
                self.note("the table of headers cannot be read");
                self.complete = false;
                break;
            };
            let name = self.text("the name of a header", name);
            if value.len() > SHALLOW && is_deep(value) {
                self.note(TOO_DEEP);
                (self.complete, self.has_deep_value) = (false, true);
                continue;
            }
            let value = parse_value(value).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, value)| value);
            if value.is_none() {
                self.note("the value of a header cannot be decoded");
            }
            match name.zip(value) {
                Some((name, value)) => {
                    headers.insert(name, value);
                }
                None => self.complete = false,
            }
        }
        headers
    }
}

/// Whether arrays and tables in a value are nested too deep to be decoded, or cannot be followed.
fn is_deep(value: &[u8]) -> bool {
    // What is left of each array or table around the present place, and whether it is a table.
    let mut around: Vec<(Reader<'_>, bool)> = Vec::new();
    let mut next = Some(value);
    loop {
        if let Some([kind @ (b'A' | b'F'), content @ ..]) = next {
            around.push((Reader(content.get(4..).unwrap_or_default()), *kind == b'F'));
        }
        if around.len() > MOST_NESTED {
            return true;
        }
        while around.last().is_some_and(|(reader, _)| reader.0.is_empty()) {
            around.pop();
        }
        let Some((reader, is_table)) = around.last_mut() else { return false };
        next = if *is_table { reader.entry().map(|(_, value)| value) } else { reader.value() };
        if next.is_none() {
            return true;
        }
    }
}

/// Reads from the beginning of bytes; `None` where they end too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        self.take(BYTES)?.first_chunk().copied()
    }

    /// A short string's bytes.
    fn short(&mut self) -> Option<&'a [u8]> {
        let [length] = self.number()?;
        self.take(length.into())
    }

    /// A long string's bytes, or a table's or an array's.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.number().map(u32::from_be_bytes)?;
        self.take(usize::try_from(length).ok()?)
    }

    /// A header's name, and its value with the octet of its type. `None` also for a type that RabbitMQ does not know
    /// ("AMQP 0-9-1 Errata", Field types): how long its value is cannot be told.
    fn entry(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        Some((self.short()?, self.value()?))
    }

    /// A value with the octet of its type.
    fn value(&mut self) -> Option<&'a [u8]> {
        let value = self.0;
        let [kind] = self.number()?;
        match kind {
            b't' | b'b' | b'B' => self.take(1)?,
            b's' | b'U' | b'u' => self.take(2)?,
            b'I' | b'i' | b'f' => self.take(4)?,
            b'L' | b'l' | b'd' | b'T' => self.take(8)?,
            b'D' => self.take(5)?,
            b'S' | b'x' | b'A' | b'F' => self.long()?,
            b'V' => &[],
            _ => return None,
        };
        Some(&value[..value.len() - self.0.len()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{header_names, header_values, lenient::take};
    use proptest::prelude::*;

    /// A content header's payload.
    fn content(flags: u16, properties: &[u8]) -> Vec<u8> {
        [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], &flags.to_be_bytes(), properties].concat()
    }

    fn table(entries: &[u8]) -> Vec<u8> {
        [&u32::try_from(entries.len()).unwrap().to_be_bytes()[..], entries].concat()
    }

    fn decoded(payload: &[u8]) -> BasicProperties {
        let (rest, properties) = parse_properties(&payload[FIXED..]).unwrap();
        assert!(rest.is_empty());
        properties
    }

    #[test]
    fn what_is_wrong_is_named_and_the_rest_is_kept() {
        let good_header = b"\x01aS\x00\x00\x00\x01v";
        for (flags, properties, wrong) in [
            (0x8080, b"\x01j\x02\xff\xfe".to_vec(), "message_id is not UTF-8"),
            (
                0xa000,
                [b"\x01j".to_vec(), table(&[&good_header[..], b"\x01\xffV"].concat())].concat(),
                "the name of a header is not UTF-8",
            ),
            (
                0xa000,
                [b"\x01j".to_vec(), table(&[&good_header[..], b"\x01b?"].concat())].concat(),
                "the table of headers cannot be read",
            ),
            (
                0xa000,
                [b"\x01j".to_vec(), table(&[&good_header[..], b"\x01bA\0\0\0\x01?"].concat())].concat(),
                "the value of a header cannot be decoded",
            ),
            (0x8080, b"\x01j\x09abc".to_vec(), "the properties end too early"),
            (0x8000, b"\x01jmore".to_vec(), "bytes follow the properties"),
        ] {
            let payload = content(flags, &properties);
            assert_eq!(fault(&payload).as_deref(), Some(wrong));
            let other = marked(&payload, wrong, 131_072).unwrap();
            assert_eq!(other[..FIXED], payload[..FIXED], "the size of the body is the same");
            let mut properties = decoded(&other);
            let unreadable = take(&mut properties).unwrap();
            assert_eq!((unreadable.error.as_str(), &unreadable.raw[..]), (wrong, &payload[FIXED..]));
            assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some("j"));
            let headers = properties.headers().clone().unwrap_or_default();
            assert_eq!(headers.inner().len(), usize::from(flags & 0x2000 != 0), "{headers:?}");
        }
        assert_eq!(fault(&content(0x8080, b"\x01j\x01m")), None);
        assert_eq!(fault(b"short"), None);
    }

    #[test]
    fn headers_that_cannot_all_be_read_are_none_of_ours() {
        let ours = b"\x10x-pointsd-sourceS\x00\x00\x00\x01s";
        let checks = crate::domain::check_message::CONTENT_TYPE.as_bytes();
        let content_type = [&[u8::try_from(checks.len()).unwrap()], checks].concat();
        let whole = [content_type.clone(), table(ours), b"\x01\xff".to_vec()].concat();
        let properties = decoded(&marked(&content(0xa080, &whole), "f", 131_072).unwrap());
        assert_eq!(header_values::read_source(&properties).as_deref(), Some("s"), "only the message id is wrong");
        assert!(trust::is_check_message(&properties));
        let part = [content_type, table(&[&ours[..], b"\x01\xffV"].concat())].concat();
        let properties = decoded(&marked(&content(0xa000, &part), "f", 131_072).unwrap());
        assert_eq!(header_values::read_source(&properties), None);
        assert!(!trust::is_check_message(&properties));
    }

    #[test]
    fn what_is_too_large_for_the_frame_is_cut() {
        let text = |size: usize| [&u32::try_from(size).unwrap().to_be_bytes()[..], &vec![b'x'; size]].concat();
        let headers = table(&[&b"\x01aS"[..], &text(100_000)].concat());
        let payload = content(0x2080, &[headers, b"\x01\xff".to_vec()].concat());
        for frame_max in [131_072, 8192, 4096] {
            let other = marked(&payload, "f", frame_max).unwrap();
            assert!(other.len() + FRAME_OVERHEAD <= frame_max, "{frame_max}");
            let mut properties = decoded(&other);
            let unreadable = take(&mut properties).unwrap();
            assert!(payload[FIXED..].starts_with(&unreadable.raw) && unreadable.raw.len() >= 256);
            let headers = properties.headers().as_ref().unwrap().inner();
            assert!(headers.contains_key(header_names::TRUNCATED) && !headers.contains_key("a"), "{frame_max}");
        }
    }

    proptest! {
        /// Of arbitrary properties something that lapin decodes comes out, within the frame, and says what was wrong.
        #[test]
        fn arbitrary_properties_are_decodable_or_are_made_so(
            flags in any::<u16>(),
            properties in proptest::collection::vec(any::<u8>(), 0..600),
            frame_max in 4096_usize..9000,
        ) {
            let payload = content(flags, &properties);
            if let Some(wrong) = fault(&payload) {
                let other = marked(&payload, &wrong, frame_max).unwrap();
                prop_assert!(other.len() + FRAME_OVERHEAD <= frame_max);
                let mut properties = decoded(&other);
                prop_assert_eq!(take(&mut properties).unwrap().error, wrong);
            } else {
                prop_assert_eq!(Salvage::of(&payload[FIXED..]).fault, None, "what lapin decodes is sound");
                prop_assert_eq!(
                    Salvage::of(&payload[FIXED..]).properties.headers().clone().unwrap_or_default(),
                    decoded(&payload).headers().clone().unwrap_or_default()
                );
            }
        }
    }

    #[test]
    fn large_headers_are_decoded_unless_they_are_nested_too_deep() {
        let nested = |depth: usize, filling: usize| {
            let mut value = [&b"S"[..], &u32::try_from(filling).unwrap().to_be_bytes(), &vec![b'x'; filling]].concat();
            for _ in 0..depth {
                value = [&b"A"[..], &u32::try_from(value.len()).unwrap().to_be_bytes(), &value].concat();
            }
            value
        };
        assert!(!is_deep(&nested(100, 200_000)));
        assert!(!is_deep(&nested(MOST_NESTED, 10)) && is_deep(&nested(MOST_NESTED + 1, 10)));
        assert!(is_deep(b"A\0\0\0\x01?"), "it cannot be followed");
        let table = [&b"\x04deep"[..], &nested(40_000, 10)].concat();
        let properties = [&[0x20, 0][..], &u32::try_from(table.len()).unwrap().to_be_bytes(), &table].concat();
        assert_eq!(fault(&[&[0; FIXED][..], &properties].concat()).as_deref(), Some(TOO_DEEP));
    }
}
