//! Content headers: finding the fault of one that lapin cannot decode, and building a readable one with the same body.

use super::{
    FRAME_OVERHEAD,
    mark::insert_mark,
    salvage::{SHALLOW, Salvage, TOO_DEEP},
};
use crate::broker::trust;
use lapin::protocol::basic::{gen_properties, parse_properties};

/// The bytes before the properties: class, weight, body size.
const FIXED: usize = 12;

/// The reason why lapin cannot decode a content header; `None` if it can, or if the payload is no content header.
pub(super) fn find_fault(payload: &[u8]) -> Option<String> {
    let properties = payload.get(FIXED..)?;
    if properties.len() > SHALLOW && Salvage::parse(properties).has_deep_value {
        return Some(TOO_DEEP.to_owned());
    }
    match parse_properties(properties) {
        Ok(([], _)) => None,
        _ => Some(Salvage::parse(properties).fault.unwrap_or_else(|| "the properties cannot be decoded".to_owned())),
    }
}

/// Builds a content header that lapin can decode: for the same body, with the readable properties and a mark. `None` if
/// the payload is no content header.
pub(super) fn build_readable(payload: &[u8], fault: &str, frame_max: usize) -> Option<Vec<u8>> {
    let (fixed, raw) = payload.split_at_checked(FIXED)?;
    let Salvage { mut properties, complete, .. } = Salvage::parse(raw);
    if !complete {
        // The headers that decide whether own headers are genuine may be missing.
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
        insert_mark(&mut table, fault, &raw[..kept_raw], whole);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::{
        header_names, header_values,
        lenient::{
            salvage::{MAX_NESTING, is_deep},
            take_mark,
        },
    };
    use lapin::{BasicProperties, types::ShortString};
    use proptest::prelude::*;

    /// The payload of a content header.
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
            assert_eq!(find_fault(&payload).as_deref(), Some(wrong));
            let other = build_readable(&payload, wrong, 131_072).unwrap();
            assert_eq!(other[..FIXED], payload[..FIXED], "the size of the body is the same");
            let mut properties = decoded(&other);
            let unreadable = take_mark(&mut properties).unwrap();
            assert_eq!((unreadable.error.as_str(), &unreadable.raw[..]), (wrong, &payload[FIXED..]));
            assert_eq!(properties.content_type().as_ref().map(ShortString::as_str), Some("j"));
            let headers = properties.headers().clone().unwrap_or_default();
            assert_eq!(headers.inner().len(), usize::from(flags & 0x2000 != 0), "{headers:?}");
        }
        assert_eq!(find_fault(&content(0x8080, b"\x01j\x01m")), None);
        assert_eq!(find_fault(b"short"), None);
    }

    #[test]
    fn headers_that_cannot_all_be_read_are_none_of_ours() {
        let ours = b"\x10x-pointsd-sourceS\x00\x00\x00\x01s";
        let checks = crate::domain::check_message::CONTENT_TYPE.as_bytes();
        let content_type = [&[u8::try_from(checks.len()).unwrap()], checks].concat();
        let whole = [content_type.clone(), table(ours), b"\x01\xff".to_vec()].concat();
        let properties = decoded(&build_readable(&content(0xa080, &whole), "f", 131_072).unwrap());
        assert_eq!(header_values::read_source(&properties).as_deref(), Some("s"), "only the message id is wrong");
        assert!(trust::is_check_message(&properties));
        let part = [content_type, table(&[&ours[..], b"\x01\xffV"].concat())].concat();
        let properties = decoded(&build_readable(&content(0xa000, &part), "f", 131_072).unwrap());
        assert_eq!(header_values::read_source(&properties), None);
        assert!(!trust::is_check_message(&properties));
    }

    #[test]
    fn what_is_too_large_for_the_frame_is_cut() {
        let text = |size: usize| [&u32::try_from(size).unwrap().to_be_bytes()[..], &vec![b'x'; size]].concat();
        let headers = table(&[&b"\x01aS"[..], &text(100_000)].concat());
        let payload = content(0x2080, &[headers, b"\x01\xff".to_vec()].concat());
        for frame_max in [131_072, 8192, 4096] {
            let other = build_readable(&payload, "f", frame_max).unwrap();
            assert!(other.len() + FRAME_OVERHEAD <= frame_max, "{frame_max}");
            let mut properties = decoded(&other);
            let unreadable = take_mark(&mut properties).unwrap();
            assert!(payload[FIXED..].starts_with(&unreadable.raw) && unreadable.raw.len() >= 256);
            let headers = properties.headers().as_ref().unwrap().inner();
            assert!(headers.contains_key(header_names::TRUNCATED) && !headers.contains_key("a"), "{frame_max}");
        }
    }

    proptest! {
        /// Arbitrary properties are decodable, or the replacement is: within the frame and with the fault.
        #[test]
        fn arbitrary_properties_are_decodable_or_are_made_so(
            flags in any::<u16>(),
            properties in proptest::collection::vec(any::<u8>(), 0..600),
            frame_max in 4096_usize..9000,
        ) {
            let payload = content(flags, &properties);
            if let Some(wrong) = find_fault(&payload) {
                let other = build_readable(&payload, &wrong, frame_max).unwrap();
                prop_assert!(other.len() + FRAME_OVERHEAD <= frame_max);
                let mut properties = decoded(&other);
                prop_assert_eq!(take_mark(&mut properties).unwrap().error, wrong);
            } else {
                prop_assert_eq!(Salvage::parse(&payload[FIXED..]).fault, None, "lapin decodes them");
                prop_assert_eq!(
                    Salvage::parse(&payload[FIXED..]).properties.headers().clone().unwrap_or_default(),
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
        assert!(!is_deep(&nested(MAX_NESTING, 10)) && is_deep(&nested(MAX_NESTING + 1, 10)));
        assert!(is_deep(b"A\0\0\0\x01?"), "it cannot be parsed");
        let table = [&b"\x04deep"[..], &nested(40_000, 10)].concat();
        let properties = [&[0x20, 0][..], &u32::try_from(table.len()).unwrap().to_be_bytes(), &table].concat();
        assert_eq!(find_fault(&[&[0; FIXED][..], &properties].concat()).as_deref(), Some(TOO_DEEP));
    }
}
