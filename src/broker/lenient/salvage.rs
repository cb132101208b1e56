//! Reading the properties of a message as far as they can be decoded, and their first fault.

use lapin::{
    BasicProperties,
    types::{FieldTable, ShortString, parsing::parse_value},
};

/// The size up to which properties cannot nest deeper than the stack of the thread of lapin allows, in bytes. It is the
/// default frame size of RabbitMQ.
pub(super) const SHALLOW: usize = 128 * 1024;

/// The maximum nesting of a larger header that is decoded: decoding is recursive.
pub(super) const MAX_NESTING: usize = 20_000;

pub(super) const TOO_DEEP: &str = "a header is nested too deeply";

/// The readable properties of a message.
#[derive(Debug, Default)]
pub(super) struct Salvage {
    pub(super) properties: BasicProperties,
    /// Whether every header was read.
    pub(super) complete: bool,
    /// The first fault. It contains no value of the message.
    pub(super) fault: Option<String>,
    /// Whether a value is nested too deeply to be decoded.
    pub(super) has_deep_value: bool,
}

impl Salvage {
    /// Parses properties as far as possible.
    pub(super) fn parse(bytes: &[u8]) -> Self {
        let mut salvage = Self::default();
        let mut reader = Reader(bytes);
        match salvage.read(&mut reader) {
            None => salvage.record_fault("the properties end too early"),
            Some(()) if !reader.0.is_empty() => salvage.record_fault("bytes follow the properties"),
            Some(()) => {}
        }
        salvage
    }

    fn record_fault(&mut self, fault: &str) {
        self.fault.get_or_insert_with(|| fault.to_owned());
    }

    /// Reads the properties in the order of AMQP 0-9-1, "class basic, properties". `None` if the bytes end too early.
    fn read(&mut self, reader: &mut Reader<'_>) -> Option<()> {
        let flags = reader.number::<2>().map(u16::from_be_bytes)?;
        let is_present = |bit: u32| flags & (1 << bit) != 0;
        self.complete = !is_present(13);
        macro_rules! text {
            ($bit:literal, $name:literal, $with:ident) => {
                if is_present($bit)
                    && let Some(text) = self.text($name, reader.short()?)
                {
                    self.properties = std::mem::take(&mut self.properties).$with(text);
                }
            };
        }
        text!(15, "content_type", with_content_type);
        text!(14, "content_encoding", with_content_encoding);
        if is_present(13) {
            let headers = self.headers(reader.long()?);
            self.properties = std::mem::take(&mut self.properties).with_headers(headers);
        }
        if is_present(12) {
            reader.number::<1>()?;
        }
        if is_present(11) {
            let [priority] = reader.number()?;
            self.properties = std::mem::take(&mut self.properties).with_priority(priority);
        }
        text!(10, "correlation_id", with_correlation_id);
        text!(9, "reply_to", with_reply_to);
        text!(8, "expiration", with_expiration);
        text!(7, "message_id", with_message_id);
        if is_present(6) {
            let timestamp = reader.number().map(u64::from_be_bytes)?;
            self.properties = std::mem::take(&mut self.properties).with_timestamp(timestamp);
        }
        text!(5, "type", with_type);
        text!(4, "user_id", with_user_id);
        text!(3, "app_id", with_app_id);
        text!(2, "cluster_id", with_cluster_id);
        Some(())
    }

    /// Decodes a short string and records a fault if it is not UTF-8.
    fn text(&mut self, name: &str, bytes: &[u8]) -> Option<ShortString> {
        let text = std::str::from_utf8(bytes).ok().and_then(|text| ShortString::try_new(text).ok());
        if text.is_none() {
            self.record_fault(&format!("{name} is not UTF-8"));
        }
        text
    }

    /// Reads the headers that can be decoded.
    fn headers(&mut self, table: &[u8]) -> FieldTable {
        let (mut reader, mut headers) = (Reader(table), FieldTable::default());
        self.complete = true;
        while !reader.0.is_empty() {
            let Some((name, value)) = reader.entry() else {
                self.record_fault("the table of headers cannot be read");
                self.complete = false;
                break;
            };
            let name = self.text("the name of a header", name);
            if value.len() > SHALLOW && is_deep(value) {
                self.record_fault(TOO_DEEP);
                (self.complete, self.has_deep_value) = (false, true);
                continue;
            }
            let value = parse_value(value).ok().filter(|(rest, _)| rest.is_empty()).map(|(_, value)| value);
            if value.is_none() {
                self.record_fault("the value of a header cannot be decoded");
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

/// Whether the arrays and tables in a value are nested too deeply to be decoded, or cannot be parsed.
pub(super) fn is_deep(value: &[u8]) -> bool {
    // The rest of each array or table that encloses the current position, and whether it is a table.
    let mut enclosing: Vec<(Reader<'_>, bool)> = Vec::new();
    let mut next = Some(value);
    loop {
        if let Some([kind @ (b'A' | b'F'), content @ ..]) = next {
            enclosing.push((Reader(content.get(4..).unwrap_or_default()), *kind == b'F'));
        }
        if enclosing.len() > MAX_NESTING {
            return true;
        }
        while enclosing.last().is_some_and(|(reader, _)| reader.0.is_empty()) {
            enclosing.pop();
        }
        let Some((reader, is_table)) = enclosing.last_mut() else { return false };
        next = if *is_table { reader.entry().map(|(_, value)| value) } else { reader.value() };
        if next.is_none() {
            return true;
        }
    }
}

/// A reader of bytes; its methods return `None` if the bytes end too early.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn read(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(count)?;
        self.0 = rest;
        Some(taken)
    }

    fn number<const BYTES: usize>(&mut self) -> Option<[u8; BYTES]> {
        self.read(BYTES)?.first_chunk().copied()
    }

    /// Reads the bytes of a short string.
    fn short(&mut self) -> Option<&'a [u8]> {
        let [length] = self.number()?;
        self.read(length.into())
    }

    /// Reads the bytes of a long string, a table or an array.
    fn long(&mut self) -> Option<&'a [u8]> {
        let length = self.number().map(u32::from_be_bytes)?;
        self.read(usize::try_from(length).ok()?)
    }

    /// Reads a header: its name, and its value with the type octet. `None` also for a type that RabbitMQ does not know
    /// ("AMQP 0-9-1 Errata", Field types), because the length of its value is unknown.
    fn entry(&mut self) -> Option<(&'a [u8], &'a [u8])> {
        Some((self.short()?, self.value()?))
    }

    /// Reads a value with its type octet.
    fn value(&mut self) -> Option<&'a [u8]> {
        let value = self.0;
        let [kind] = self.number()?;
        match kind {
            b't' | b'b' | b'B' => self.read(1)?,
            b's' | b'U' | b'u' => self.read(2)?,
            b'I' | b'i' | b'f' => self.read(4)?,
            b'L' | b'l' | b'd' | b'T' => self.read(8)?,
            b'D' => self.read(5)?,
            b'S' | b'x' | b'A' | b'F' => self.long()?,
            b'V' => &[],
            _ => return None,
        };
        Some(&value[..value.len() - self.0.len()])
    }
}
