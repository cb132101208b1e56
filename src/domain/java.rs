//! Reads the two Java objects that a notification may contain: `java.lang.Long` and `java.lang.String`, as
//! `ObjectOutputStream` writes them (Java Object Serialization Specification, chapter 6). Nothing is deserialized:
//! every other content is refused.

/// The first bytes of every stream: magic number and version. They are not valid UTF-8.
const STREAM: [u8; 4] = [0xac, 0xed, 0x00, 0x05];

/// The tag `TC_STRING`, followed by a length of two bytes and modified UTF-8.
const STRING: u8 = 0x74;

/// A `Long` up to its value: an object of the class `java.lang.Long` with one field `value`, of type `J`, whose
/// superclass is `java.lang.Number`.
const LONG: &[u8] = b"\x73\x72\x00\x0ejava.lang.Long\x3b\x8b\xe4\x90\xcc\x8f\x23\xdf\x02\x00\x01\x4a\x00\x05value\
                      \x78\x72\x00\x10java.lang.Number\x86\xac\x95\x1d\x0b\x94\xe0\x8b\x02\x00\x00\x78\x70";

/// Returns whether a body is a stream of serialized objects.
pub(super) fn is_stream(body: &[u8]) -> bool {
    body.starts_with(&STREAM)
}

/// Returns the text of a stream that contains one `Long` or one `String`; `None` for any other stream.
pub(super) fn read_text(body: &[u8]) -> Option<String> {
    let object = body.strip_prefix(&STREAM)?;
    if let Some(value) = object.strip_prefix(LONG) {
        return Some(i64::from_be_bytes(value.try_into().ok()?).to_string());
    }
    let (length, text) = object.strip_prefix(&[STRING])?.split_first_chunk::<2>()?;
    let whole = text.len() == usize::from(u16::from_be_bytes(*length));
    whole.then(|| simd_cesu8::mutf8::decode_strict(text).ok().map(std::borrow::Cow::into_owned))?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes that a Java virtual machine has written (`tests/fixtures/java/Fixtures.java`).
    macro_rules! fixture {
        ($name:literal) => {
            include_bytes!(concat!("../../tests/fixtures/java/", $name, ".ser"))
        };
    }

    #[test]
    fn a_long_and_a_string_are_read_and_nothing_else() {
        let long_text = "x".repeat(129);
        for (name, body, text) in [
            ("long", &fixture!("long")[..], Some("202002201101")),
            ("long-min", fixture!("long-min"), Some("-9223372036854775808")),
            ("long-zero", fixture!("long-zero"), Some("0")),
            ("string", fixture!("string"), Some("202002201101")),
            ("string-unicode", fixture!("string-unicode"), Some("支付-é-😀")),
            ("string-nul", fixture!("string-nul"), Some("a\0b")),
            ("string-empty", fixture!("string-empty"), Some("")),
            ("string-129", fixture!("string-129"), Some(long_text.as_str())),
            ("integer", fixture!("integer"), None),
            ("null", fixture!("null"), None),
            ("array", fixture!("array"), None),
            ("list", fixture!("list"), None),
            ("bigint", fixture!("bigint"), None),
            ("two-strings", fixture!("two-strings"), None),
        ] {
            assert!(is_stream(body), "{name}");
            assert_eq!(read_text(body).as_deref(), text, "{name}");
        }
    }

    #[test]
    fn a_stream_that_is_cut_off_or_goes_on_is_refused() {
        for whole in [&fixture!("long")[..], fixture!("string"), fixture!("string-unicode")] {
            for end in 0..whole.len() {
                assert_eq!(read_text(&whole[..end]), None, "{end} bytes");
            }
            assert_eq!(read_text(&[whole, &[0]].concat()), None);
        }
        // A lone surrogate, an overlong letter and a plain NUL are not valid modified UTF-8.
        for text in [&b"\xed\xa0\xbd"[..], b"\xc1\xa1", b"\0"] {
            let length = u8::try_from(text.len()).unwrap();
            assert_eq!(read_text(&[&STREAM[..], &[STRING, 0, length], text].concat()), None, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(tail in proptest::collection::vec(any::<u8>(), 0..100), cut in 0..200_usize) {
            for begin in [&STREAM[..], &[&STREAM[..], &[STRING]].concat(), &[&STREAM[..], LONG].concat()] {
                let body = [begin, &tail].concat();
                let _ = read_text(&body[..cut.min(body.len())]);
            }
        }
    }
}
