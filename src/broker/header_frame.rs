//! The size of a content header: the broker closes the connection if one exceeds the negotiated frame size.

use lapin::{BasicProperties, protocol::basic::gen_properties};

/// The bytes that are reserved for headers that the broker adds to a redelivered or dead-lettered message
/// (`x-delivery-count`, `x-death` and related headers): without this reserve, a full frame would grow beyond what a
/// client reads.
const HEADROOM: usize = 2048;

/// The bytes of a content header frame without its properties: frame header and end (8), class, weight, body size (12).
const HEADER_FRAME_OVERHEAD: usize = 20;

/// The room for properties in a content header frame, measured by serializing them into a buffer of that size.
pub(super) struct HeaderFrame {
    room: Vec<u8>,
}

impl HeaderFrame {
    /// The room in frames of at most `frame_max` bytes.
    pub(super) fn new(frame_max: usize) -> Self {
        // 16 MiB is more than any header may have; a peer without a limit announces 4 GiB.
        let frame_max = frame_max.min(16 * 1024 * 1024);
        let headroom = HEADROOM.min(frame_max / 8);
        Self { room: vec![0; frame_max.saturating_sub(HEADER_FRAME_OVERHEAD + headroom)] }
    }

    /// Whether the properties fit into the frame.
    pub(super) fn fits(&mut self, properties: &BasicProperties) -> bool {
        cookie_factory::gen_simple(gen_properties(properties), std::io::Cursor::new(&mut self.room[..])).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::{AMQPValue, FieldTable};

    #[test]
    fn a_header_frame_is_measured_to_the_byte() {
        let properties = |size: usize| {
            let mut headers = FieldTable::default();
            headers.insert("a".into(), AMQPValue::LongString("x".repeat(size).into()));
            BasicProperties::default().with_headers(headers)
        };
        // Flags 2, table length 4, name 1 + 1, type 1, text length 4.
        let rest = 2 + 4 + 2 + 1 + 4 + HEADER_FRAME_OVERHEAD + 4096 / 8;
        assert!(HeaderFrame::new(4096).fits(&properties(4096 - rest)));
        assert!(!HeaderFrame::new(4096).fits(&properties(4097 - rest)));
    }
}
