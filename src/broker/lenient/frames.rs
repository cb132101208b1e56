//! The filter for frames from the broker: it replaces methods and content headers that lapin cannot decode.

use super::{FRAME_OVERHEAD, header};
use std::{collections::BTreeMap, io};

/// The frame types (AMQP 0-9-1, "General Frame Format").
const METHOD: u8 = 1;
const HEADER: u8 = 2;
const BODY: u8 = 3;
const HEARTBEAT: u8 = 8;

/// The bytes before a payload: type, channel and size.
const HEAD: usize = 7;

/// The octet that ends a frame.
const FRAME_END: u8 = 0xce;

/// The maximum size of a method or content header, which is buffered until it is complete. RabbitMQ limits published
/// headers by its `frame_max` (128 KiB) and adds headers of its own.
const MAX_BUFFERED_BYTES: usize = 16 * 1024 * 1024;

/// The smallest `frame_max` that AMQP 0-9-1 allows.
const FRAME_MIN: usize = 4096;

/// An argument of a method.
#[derive(Clone, Copy)]
enum Argument {
    /// A short string with its name.
    Text(&'static str),
    /// A number of bytes of any other type.
    Bytes(usize),
}

/// The arguments of a method with a text of another program, or with a text that the broker may have truncated within a
/// character; empty for other methods.
fn arguments(method: [u8; 4]) -> &'static [Argument] {
    use Argument::{Bytes, Text};
    match method {
        DELIVER => &[Text("consumer tag"), Bytes(9), Text("exchange"), Text("routing key")],
        GET_OK => &[Bytes(9), Text("exchange"), Text("routing key"), Bytes(4)],
        // basic.return
        [0, 60, 0, 50] => &[Bytes(2), Text("reply text"), Text("exchange"), Text("routing key")],
        // connection.close, channel.close
        [0, 10, 0, 50] | [0, 20, 0, 40] => &[Bytes(2), Text("reply text"), Bytes(4)],
        _ => &[],
    }
}

/// `basic.deliver`
const DELIVER: [u8; 4] = [0, 60, 0, 60];
/// `basic.get-ok`
const GET_OK: [u8; 4] = [0, 60, 0, 71];
/// `connection.open-ok`
const OPEN_OK: [u8; 4] = [0, 10, 0, 41];
/// `connection.tune`
const TUNE: [u8; 4] = [0, 10, 0, 30];

/// A filter that receives bytes in pieces of any size and outputs frames that lapin can decode.
pub(super) struct Filter {
    /// The beginning of an incomplete frame.
    pending: Vec<u8>,
    /// The remaining bytes of a frame that passes unchanged.
    passing: usize,
    /// Whether all bytes pass unchanged, because they are not AMQP; lapin reports the error.
    transparent: bool,
    /// The negotiated maximum frame size.
    frame_max: usize,
    /// Whether the connection is open.
    is_open: bool,
    /// By channel: the fault of the method whose content header follows.
    faults: BTreeMap<[u8; 2], String>,
}

impl Filter {
    /// Creates a filter. `frame_max`: the size that the client requests; 0 for no limit.
    pub(super) fn new(frame_max: u32) -> Self {
        let mut filter = Self {
            pending: Vec::new(),
            passing: 0,
            transparent: false,
            frame_max: usize::MAX,
            is_open: false,
            faults: BTreeMap::new(),
        };
        filter.limit_frame_size(frame_max);
        filter
    }

    /// Whether the handshake is over.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Lowers the maximum frame size: the lower limit of both sides applies.
    fn limit_frame_size(&mut self, frame_max: u32) {
        if frame_max > 0 {
            self.frame_max = self.frame_max.min((frame_max as usize).max(FRAME_MIN));
        }
    }

    /// Appends the complete frames of the earlier and the new input to `output`.
    pub(super) fn pass(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<()> {
        let mut pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            let passed = self.pass_whole(input, output)?;
            self.pending = input[passed..].to_vec();
        } else {
            pending.extend_from_slice(input);
            let passed = self.pass_whole(&pending, output)?;
            pending.drain(..passed);
            self.pending = pending;
        }
        Ok(())
    }

    /// Processes complete frames and returns the number of processed bytes.
    fn pass_whole(&mut self, input: &[u8], output: &mut Vec<u8>) -> io::Result<usize> {
        let mut rest = input;
        while !rest.is_empty() {
            if self.transparent || self.passing > 0 {
                let count = if self.transparent { rest.len() } else { self.passing.min(rest.len()) };
                output.extend_from_slice(&rest[..count]);
                self.passing = self.passing.saturating_sub(count);
                rest = &rest[count..];
                continue;
            }
            let Some(&[kind, _, _, size @ ..]) = rest.first_chunk::<HEAD>() else { break };
            let whole = (u32::from_be_bytes(size) as usize).saturating_add(FRAME_OVERHEAD);
            match kind {
                METHOD | HEADER if whole > MAX_BUFFERED_BYTES => {
                    let error = format!("a method or a content header of {whole} bytes");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, error));
                }
                METHOD | HEADER => {
                    let Some((frame, later)) = rest.split_at_checked(whole) else { break };
                    self.append_decodable(frame, output);
                    rest = later;
                }
                BODY | HEARTBEAT => self.passing = whole,
                _ => self.transparent = true,
            }
        }
        Ok(input.len() - rest.len())
    }

    /// Appends a method or content header that lapin can decode; one that cannot be repaired is appended unchanged.
    fn append_decodable(&mut self, frame: &[u8], output: &mut Vec<u8>) {
        let (head, rest) = frame.split_at(HEAD);
        let payload = &rest[..rest.len() - 1];
        let channel = [head[1], head[2]];
        let other = match head[0] {
            METHOD => self.repair_method(channel, payload),
            _ => self.repair_header(channel, payload),
        };
        // A replacement is at most as large as `frame_max`, or slightly larger than the frame.
        let Some((payload, size)) = other.and_then(|other| u32::try_from(other.len()).ok().map(|size| (other, size)))
        else {
            output.extend_from_slice(frame);
            return;
        };
        output.extend_from_slice(&head[..3]);
        output.extend_from_slice(&size.to_be_bytes());
        output.extend_from_slice(&payload);
        output.push(FRAME_END);
    }

    /// The replacement of a method; `None` if it is valid.
    fn repair_method(&mut self, channel: [u8; 2], payload: &[u8]) -> Option<Vec<u8>> {
        let method = *payload.first_chunk::<4>()?;
        self.is_open |= method == OPEN_OK;
        if method == TUNE {
            // It follows the maximum number of channels.
            let frame_max = payload.get(6..10)?.first_chunk::<4>()?;
            self.limit_frame_size(u32::from_be_bytes(*frame_max));
        }
        let carries_content = method == DELIVER || method == GET_OK;
        if carries_content {
            self.faults.remove(&channel);
        }
        let (other, fault) = repair_texts(payload, arguments(method))?;
        if carries_content {
            self.faults.insert(channel, fault);
        }
        Some(other)
    }

    /// The replacement of a content header; `None` if it is valid.
    fn repair_header(&mut self, channel: [u8; 2], payload: &[u8]) -> Option<Vec<u8>> {
        let too_large = || {
            let whole = payload.len() + FRAME_OVERHEAD;
            (whole > self.frame_max).then(|| "the properties are larger than a frame".to_owned())
        };
        let fault = self.faults.remove(&channel).or_else(too_large).or_else(|| header::find_fault(payload))?;
        header::build_readable(payload, &fault, self.frame_max)
    }
}

/// Makes the texts of a method valid UTF-8 and returns the method and its first fault; `None` if all texts are valid,
/// or if the method cannot be parsed.
fn repair_texts(payload: &[u8], arguments: &[Argument]) -> Option<(Vec<u8>, String)> {
    // The usual case: no texts, or all of them valid.
    if arguments.is_empty() || all_texts_are_valid(payload, arguments)? {
        return None;
    }
    let (method, mut rest) = payload.split_at_checked(4)?;
    let (mut other, mut fault) = (method.to_vec(), None);
    for argument in arguments {
        match argument {
            Argument::Bytes(count) => {
                let (bytes, later) = rest.split_at_checked(*count)?;
                other.extend_from_slice(bytes);
                rest = later;
            }
            Argument::Text(name) => {
                let (length, later) = rest.split_first()?;
                let (text, later) = later.split_at_checked((*length).into())?;
                rest = later;
                let valid = String::from_utf8_lossy(text);
                if valid.as_bytes() != text {
                    fault.get_or_insert_with(|| format!("the {name} is not UTF-8"));
                }
                let valid = &valid[..valid.floor_char_boundary(usize::from(u8::MAX))];
                other.push(u8::try_from(valid.len()).ok()?);
                other.extend_from_slice(valid.as_bytes());
            }
        }
    }
    other.extend_from_slice(rest);
    fault.map(|fault| (other, fault))
}

/// Whether all texts of a method are UTF-8, without copying. `None` if the method cannot be parsed.
fn all_texts_are_valid(payload: &[u8], arguments: &[Argument]) -> Option<bool> {
    let mut rest = payload.get(4..)?;
    let mut are_valid = true;
    for argument in arguments {
        let (count, is_text) = match argument {
            Argument::Bytes(count) => (*count, false),
            Argument::Text(_) => {
                let (length, later) = rest.split_first()?;
                rest = later;
                (usize::from(*length), true)
            }
        };
        let (bytes, later) = rest.split_at_checked(count)?;
        are_valid &= !is_text || std::str::from_utf8(bytes).is_ok();
        rest = later;
    }
    Some(are_valid)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let size = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&[kind, 0, 1][..], &size, payload, &[FRAME_END]].concat()
    }

    fn deliver(exchange: &[u8], key: &[u8]) -> Vec<u8> {
        let short = |text: &[u8]| [&[u8::try_from(text.len()).unwrap()], text].concat();
        let payload = [&DELIVER[..], &short(b"pointsd"), &[0, 0, 0, 0, 0, 0, 0, 7, 1], &short(exchange), &short(key)];
        frame(METHOD, &payload.concat())
    }

    /// A content header with a message ID.
    fn content(message_id: &[u8]) -> Vec<u8> {
        let id = [&[u8::try_from(message_id.len()).unwrap()], message_id].concat();
        frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0x80][..], &id].concat())
    }

    fn passed(filter: &mut Filter, pieces: &[&[u8]]) -> Vec<u8> {
        let mut output = Vec::new();
        for piece in pieces {
            filter.pass(piece, &mut output).unwrap();
        }
        output
    }

    #[test]
    fn what_is_sound_passes_byte_for_byte_in_pieces_of_any_size() {
        let body = frame(BODY, b"hello");
        let all = [deliver(b"points", b"key"), content(b"m-1"), body, frame(HEARTBEAT, b"")].concat();
        for size in 1..all.len() {
            let pieces: Vec<&[u8]> = all.chunks(size).collect();
            assert_eq!(passed(&mut Filter::new(0), &pieces), all, "pieces of {size}");
        }
        let other_protocol = b"AMQP\x00\x00\x09\x01 and whatever follows";
        assert_eq!(passed(&mut Filter::new(0), &[other_protocol]), other_protocol);
    }

    #[test]
    fn a_message_with_a_text_that_is_not_utf_8_is_replaced_and_its_body_and_neighbours_are_not() {
        let (body, next) = (frame(BODY, b"hello"), [deliver(b"", b"q"), content(b"m-2")].concat());
        for (method, header) in
            [(deliver(b"", b"q"), content(b"m\xff")), (deliver(b"points", b"\xff\xfe"), content(b"m"))]
        {
            let all = [method, header, body.clone(), next.clone()].concat();
            let whole = passed(&mut Filter::new(131_072), &[&all]);
            let pieces: Vec<&[u8]> = all.chunks(3).collect();
            // Both marks have the same secret of this process.
            assert_eq!(passed(&mut Filter::new(131_072), &pieces), whole);
            assert!(whole.ends_with(&[body.clone(), next.clone()].concat()), "the following frames are unchanged");
            let mut frames = &whole[..];
            for _ in 0..2 {
                let size = u32::from_be_bytes(*frames[3..].first_chunk().unwrap()) as usize;
                assert_eq!(frames[size + HEAD], FRAME_END);
                frames = &frames[size + FRAME_OVERHEAD..];
            }
        }
    }

    #[test]
    fn a_header_larger_than_a_frame_is_replaced_by_one_that_fits() {
        let mut tune = TUNE.to_vec();
        tune.extend([7, 255, 0, 0, 16, 0, 0, 60]);
        let mut filter = Filter::new(131_072);
        assert_eq!(passed(&mut filter, &[&frame(METHOD, &tune)]), frame(METHOD, &tune));
        // 0x2000: headers; one of 5000 bytes.
        let table = [&b"\x04long"[..], b"S", &5000_u32.to_be_bytes(), &[b'x'; 5000]].concat();
        let size = u32::try_from(table.len()).unwrap().to_be_bytes();
        let large = frame(HEADER, &[&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5, 0x20, 0][..], &size, &table].concat());
        let replaced = passed(&mut filter, &[&large]);
        assert!(replaced.len() <= 4096 && replaced != large, "{}", replaced.len());
        assert_eq!(passed(&mut Filter::new(131_072), &[&large]), large, "it fits there");
    }

    proptest! {
        /// Arbitrary input causes no panic and loses no byte of a body.
        #[test]
        fn arbitrary_bytes_pass_or_are_replaced(
            payloads in proptest::collection::vec((1_u8..4, proptest::collection::vec(any::<u8>(), 0..200)), 0..8),
            class in any::<bool>(),
            piece in 1_usize..64,
        ) {
            let mut all = Vec::new();
            for (kind, payload) in &payloads {
                let payload = match (class, *kind) {
                    (true, METHOD) => [&DELIVER[..], payload].concat(),
                    (true, HEADER) => [&[0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5][..], payload].concat(),
                    _ => payload.clone(),
                };
                all.extend(frame(*kind, &payload));
            }
            let pieces: Vec<&[u8]> = all.chunks(piece).collect();
            let output = passed(&mut Filter::new(8192), &pieces);
            let mut rest = &output[..];
            for (kind, payload) in &payloads {
                let size = u32::from_be_bytes(*rest[3..].first_chunk().unwrap()) as usize;
                prop_assert_eq!(rest[0], *kind);
                if *kind == BODY {
                    prop_assert_eq!(&rest[HEAD..HEAD + size], &payload[..]);
                }
                if *kind == HEADER && class {
                    prop_assert_eq!(header::find_fault(&rest[HEAD..HEAD + size]), None);
                }
                rest = &rest[size + FRAME_OVERHEAD..];
            }
            prop_assert!(rest.is_empty());
        }
    }
}
