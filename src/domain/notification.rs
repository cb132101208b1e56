//! Parses notifications of payment services: from a body to a payment ID; all other data comes from the payment's own
//! record (`docs/guides/notifications.md`). Errors name the field and what would be right, never the content.

use super::{
    bare_id,
    id_rule::IdRule,
    ids::PaymentId,
    java,
    message::{Format, decode_utf8, readable_payment_id},
};
use crate::domain::{
    field_paths::FieldPaths,
    malformed::{Field, ID_TYPES, Malformed, Problem, json_type, parse_identifier},
};
use serde::Deserialize;
use serde_json::value::RawValue;

/// The result of parsing a notification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Notification {
    /// The notification concerns this payment.
    Payment(PaymentId),
    /// The notification is of a type that is not configured.
    Ignored,
}

/// The format of a source's notification bodies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotificationFormat {
    /// A bare payment ID: a JSON string or integer, plain text, or a serialized `java.lang.Long` or `java.lang.String`.
    PaymentId,
    /// A pay-result notification, which has the payment ID in `businessKey1`.
    PayNotify {
        /// The accepted values of `messageType`.
        message_types: Vec<String>,
        /// The accepted values of `businessKey2`.
        business_types: Vec<String>,
    },
}

impl NotificationFormat {
    /// Parses one body. `format` contains the limits of bodies and the rule for payment IDs.
    pub fn parse(&self, body: &[u8], format: &Format) -> Result<Notification, Malformed> {
        match self {
            Self::PaymentId => parse_payment_id(body, format).map(Notification::Payment),
            Self::PayNotify { message_types, business_types } => {
                parse_pay_notify(body, format, message_types, business_types)
            }
        }
    }
}

impl NotificationFormat {
    /// Returns the payment ID of a body that [`NotificationFormat::parse`] refuses, where one can be read nevertheless.
    pub fn readable_payment_id(&self, body: &[u8], format: &Format) -> Option<PaymentId> {
        match self {
            // An ID that the payment source cannot be asked about, or a points message in the wrong queue.
            Self::PaymentId => {
                let any = Format { payment_ids: IdRule::Any, ..format.clone() };
                parse_payment_id(body, &any).ok().or_else(|| format.readable_payment_id(body))
            }
            Self::PayNotify { .. } => {
                let [key, ..] = Field::BusinessKey1.spellings() else { return None };
                let paths = FieldPaths::new([Some(&format!("/{key}")), None, None]).ok()?;
                readable_payment_id(&paths, body)
            }
        }
    }
}

fn parse_payment_id(body: &[u8], format: &Format) -> Result<PaymentId, Malformed> {
    let malformed = |problem: Problem| Malformed::new(Field::Body, problem);
    let checked = |id: &str| parse_bare_id(id, format).map_err(malformed);
    if java::is_stream(body) && body.len() <= format.max_body_bytes {
        return checked(&java::read_text(body).ok_or_else(|| malformed(Problem::OtherJava))?);
    }
    let text = decode_utf8(body, format.max_body_bytes)?;
    match serde_json::from_str::<&RawValue>(text) {
        Ok(json) => parse_identifier(Field::Body, Some(json), |id| parse_bare_id(id, format)),
        // A body that begins like JSON is reported as invalid JSON, and not read as plain text.
        Err(error) if text.trim_start().starts_with(['"', '{', '[']) => {
            Err(malformed(Problem::NotJson(error.to_string())))
        }
        Err(_) => checked(text),
    }
}

/// Reads a payment ID that is the whole body. Any text can arrive here, so a document of another format is refused.
fn parse_bare_id(id: &str, format: &Format) -> Result<PaymentId, Problem> {
    match bare_id::document_kind(id) {
        Some(content) => Err(Problem::NotAnId(content)),
        None => format.payment_id(id),
    }
}

/// The relevant members, as JSON texts. Serde refuses a member that occurs twice.
#[derive(Deserialize)]
struct PayNotify<'b> {
    #[serde(borrow, rename = "messageType")]
    message_type: Option<&'b RawValue>,
    #[serde(borrow, rename = "businessKey1")]
    business_key_1: Option<&'b RawValue>,
    #[serde(borrow, rename = "businessKey2")]
    business_key_2: Option<&'b RawValue>,
}

fn parse_pay_notify(
    body: &[u8],
    format: &Format,
    message_types: &[String],
    business_types: &[String],
) -> Result<Notification, Malformed> {
    let text = decode_utf8(body, format.max_body_bytes)?;
    let malformed = |problem| Malformed::new(Field::Body, problem);
    let json: &RawValue = serde_json::from_str(text).map_err(|error| malformed(Problem::NotJson(error.to_string())))?;
    if !json.get().starts_with('{') {
        return Err(malformed(Problem::NotAnObject));
    }
    let PayNotify { message_type, business_key_1, business_key_2 } =
        serde_json::from_str(json.get()).map_err(|error| member_error(&error))?;
    // The type decides first: a notification of another type may have any other content.
    if !message_types.contains(&read_word(Field::MessageType, message_type)?)
        || !business_types.contains(&read_word(Field::BusinessKey2, business_key_2)?)
    {
        return Ok(Notification::Ignored);
    }
    parse_identifier(Field::BusinessKey1, business_key_1, |id| format.payment_id(id)).map(Notification::Payment)
}

/// Converts the only two errors that remain for an object of valid JSON, whose members may have any type: a repeated
/// field and an invalid escape.
fn member_error(error: &serde_json::Error) -> Malformed {
    let message = error.to_string();
    let fields = [Field::MessageType, Field::BusinessKey1, Field::BusinessKey2];
    let field = fields.into_iter().find(|field| message.contains(&format!("`{field}`"))).unwrap_or(Field::Body);
    let problem = if field == Field::Body { Problem::BadEscape } else { Problem::GivenTwice };
    Malformed::new(field, problem)
}

/// Reads a string, or the digits of an integer.
fn read_word(field: Field, value: Option<&RawValue>) -> Result<String, Malformed> {
    let malformed = |problem| Malformed::new(field, problem);
    let json = value.ok_or_else(|| malformed(Problem::Missing))?.get();
    match json_type(json) {
        "a string" => serde_json::from_str(json).map_err(|_| malformed(Problem::BadEscape)),
        "an integer" => Ok(json.to_owned()),
        given => Err(malformed(Problem::WrongType { given, wanted: ID_TYPES })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MAX: usize = 1000;

    fn limits() -> Format {
        Format { paths: FieldPaths::default(), max_body_bytes: MAX, max_points: 1, payment_ids: IdRule::Any }
    }

    fn read(format: &NotificationFormat, body: &[u8]) -> Result<String, String> {
        read_within(&limits(), format, body)
    }

    fn read_within(limits: &Format, format: &NotificationFormat, body: &[u8]) -> Result<String, String> {
        match format.parse(body, limits) {
            Ok(Notification::Payment(id)) => Ok(id.to_string()),
            Ok(Notification::Ignored) => Ok("(ignored)".into()),
            Err(error) => Err(error.to_string()),
        }
    }

    #[test]
    fn a_bare_payment_id_is_read_in_each_of_its_forms() {
        let long = include_bytes!("../../tests/fixtures/java/long.ser");
        let string = include_bytes!("../../tests/fixtures/java/string.ser");
        for (body, id) in [
            (&b"\"202002201101\""[..], "202002201101"),
            (b"202002201101", "202002201101"),
            (b" 7 \r\n", "7"),
            (b"123456789012345678901234567890", "123456789012345678901234567890"),
            (b"-0", "0"),
            (b"\"ORDER 7\"", "ORDER 7"),
            (b"\"\\u652f\"", "\u{652f}"),
            (b"ORDER-7", "ORDER-7"),
            (b"007", "007"),
            ("支付".as_bytes(), "支付"),
            (b"\xef\xbb\xbf7", "7"),
            (b"\xef\xbb\xbf\"7\"", "7"),
            (b"\xef\xbb\xbfORDER-7", "ORDER-7"),
            (long, "202002201101"),
            (string, "202002201101"),
        ] {
            assert_eq!(read(&NotificationFormat::PaymentId, body).as_deref(), Ok(id), "{body:?}");
        }
        let nul = include_bytes!("../../tests/fixtures/java/string-nul.ser");
        let list = include_bytes!("../../tests/fixtures/java/list.ser");
        let large = vec![b'7'; MAX + 1];
        let large_java = [&[0xac, 0xed, 0x00, 0x05][..], &large].concat();
        for (body, error) in [
            (&b""[..], "body is empty; must be 1 to 128 characters"),
            (b"\"\"", "body is empty; must be 1 to 128 characters"),
            (b"1.5", "body is a number with a fraction or an exponent; must be a string or an integer"),
            (b"null", "body is null; must be a string or an integer"),
            (b"true", "body is a boolean; must be a string or an integer"),
            (b"{\"id\": 7}", "body is an object; must be a string or an integer"),
            (b"[7]", "body is an array; must be a string or an integer"),
            (b"\"7", "body is not JSON: EOF while parsing a string at line 1 column 2"),
            (b"{secret", "body is not JSON: key must be a string at line 1 column 2"),
            (b"ORDER-7\n", "body has a control character; must have none"),
            (b" ORDER-7", "body has leading or trailing whitespace; must have none"),
            (b"\xff", "body is not UTF-8 from byte 0; must be UTF-8"),
            (b"<pay><id>7</id></pay>", "body is markup (XML or HTML); must be one bare payment ID"),
            (b"\"<id>7</id>\"", "body is markup (XML or HTML); must be one bare payment ID"),
            (b"a=b&c=d", "body is form data or a name=value pair; must be one bare payment ID"),
            (b"\"paymentId=7\"", "body is form data or a name=value pair; must be one bare payment ID"),
            (b"\"{\\\"paymentId\\\":7}\"", "body is JSON within a string; must be one bare payment ID"),
            (b"\"\\\"7\\\"\"", "body is JSON within a string; must be one bare payment ID"),
            (b"\"[7,8]\"", "body is JSON within a string; must be one bare payment ID"),
            (b"7,8,9", "body is a list; must be one bare payment ID"),
            (b"\xac\xed\x00\x05\x74\x00\x037,8", "body is a list; must be one bare payment ID"),
            (b"\xac\xed\x00\x05\x74\x00\x03a=b", "body is form data or a name=value pair; must be one bare payment ID"),
            (
                b"\xef\xbb\xbf\xef\xbb\xbf7",
                "body has an invisible character (such as a zero-width space); must have none",
            ),
            ("7\u{200b}".as_bytes(), "body has an invisible character (such as a zero-width space); must have none"),
            (nul, "body has a control character; must have none"),
            (list, "body is another serialized Java object; must be a java.lang.Long or a java.lang.String"),
            (&large, "body has 1001 bytes; at most 1000 are accepted"),
            (&large_java, "body has 1005 bytes; at most 1000 are accepted"),
        ] {
            assert_eq!(read(&NotificationFormat::PaymentId, body), Err(error.to_owned()), "{body:?}");
        }
    }

    fn pay_notify_format() -> NotificationFormat {
        NotificationFormat::PayNotify {
            message_types: vec!["payresult_notify".into()],
            business_types: vec!["60201".into()],
        }
    }

    #[test]
    fn a_pay_notification_counts_when_both_of_its_types_are_asked_for() {
        for (body, message) in [
            (r#"{"messageType": "payresult_notify", "businessKey1": "7", "businessKey2": "60201", "x": []}"#, Ok("7")),
            (r#"{"messageType": "payresult_notify", "businessKey1": 7, "businessKey2": 60201}"#, Ok("7")),
            (r#"{"messageType": "refund", "businessKey1": [], "businessKey1": 3}"#, Err("businessKey1 is given twice")),
            (r#"{"messageType": "refund"}"#, Ok("(ignored)")),
            (r#"{"messageType": "payresult_notify", "businessKey2": "60202"}"#, Ok("(ignored)")),
            (r#"{"messageType": "payresult_notify", "businessKey2": "60201"}"#, Err("businessKey1 is missing")),
            (r#"{"messageType": "payresult_notify", "businessKey1": "7"}"#, Err("businessKey2 is missing")),
            (r#"{"businessKey1": "7", "businessKey2": "60201"}"#, Err("messageType is missing")),
            (
                r#"{"messageType": ["payresult_notify"]}"#,
                Err("messageType is an array; must be a string or an integer"),
            ),
            (
                r#"{"messageType": "payresult_notify", "businessKey1": " ", "businessKey2": "60201"}"#,
                Err("businessKey1 has leading or trailing whitespace; must have none"),
            ),
            (r#""7""#, Err("body is JSON but not an object; must be an object")),
            (r#"["payresult_notify", "7", "60201"]"#, Err("body is JSON but not an object; must be an object")),
            ("", Err("body is not JSON: EOF while parsing a value at line 1 column 0")),
            (
                "\u{feff}{\"messageType\": \"payresult_notify\", \"businessKey1\": \"7\", \"businessKey2\": \"60201\"}",
                Ok("7"),
            ),
            (
                "{\"messageType\": \"payresult_notify\", \"businessKey1\": \"7\\u200b\", \"businessKey2\": \"60201\"}",
                Err("businessKey1 has an invisible character (such as a zero-width space); must have none"),
            ),
        ] {
            let message = message.map(str::to_owned).map_err(str::to_owned);
            assert_eq!(read(&pay_notify_format(), body.as_bytes()), message, "{body}");
        }
    }

    #[test]
    fn an_id_that_the_payment_source_cannot_be_asked_for_is_malformed_in_each_form() {
        let safe = Format { payment_ids: IdRule::UrlSafe, ..limits() };
        let pay_notify = br#"{"messageType": "payresult_notify", "businessKey1": "a/b", "businessKey2": "60201"}"#;
        for (format, body, field) in [
            (NotificationFormat::PaymentId, &b"\"a/b\""[..], "body"),
            (NotificationFormat::PaymentId, b"a/b", "body"),
            (NotificationFormat::PaymentId, b"\xac\xed\x00\x05\x74\x00\x03a/b", "body"),
            (pay_notify_format(), pay_notify, "businessKey1"),
        ] {
            let error = read_within(&safe, &format, body).unwrap_err();
            assert!(error.starts_with(&format!("{field} is unsafe in a URL")) && !error.contains("a/b"), "{error}");
            assert_eq!(read(&format, body).as_deref(), Ok("a/b"));
        }
    }

    #[test]
    fn the_id_of_a_malformed_notification_is_read_where_it_can_be() {
        let safe = Format { payment_ids: IdRule::UrlSafe, ..limits() };
        let id = |format: &NotificationFormat, body: &[u8]| {
            assert!(format.parse(body, &safe).is_err(), "{body:?}");
            format.readable_payment_id(body, &safe).map(|id| id.to_string())
        };
        for (body, expected) in [
            (&b"a/b"[..], Some("a/b")),
            (b"\"a/b\"", Some("a/b")),
            (br#"{"paymentId": 7, "userId": "u", "integral": 1}"#, Some("7")),
            (b"{}", None),
            (b"<id>7</id>", None),
            (b"7,8", None),
            (b"\xff", None),
        ] {
            assert_eq!(id(&NotificationFormat::PaymentId, body).as_deref(), expected, "{body:?}");
        }
        for (body, expected) in [
            (r#"{"messageType": "payresult_notify", "businessKey1": "a/b", "businessKey2": "60201"}"#, Some("a/b")),
            (r#"{"businessKey1": "7", "businessKey2": "60201"}"#, Some("7")),
            (r#"{"businessKey1": "7", "messageType": []}"#, Some("7")),
            (r#"{"businessKey1": "7", "messageType": "payres"#, Some("7")),
            (r#"{"messageType": "a", "businessKey1": "7", "businessKey1": "7"}"#, None),
            (r#"{"messageType": "payresult_notify", "businessKey2": "60201"}"#, None),
            ("7", None),
        ] {
            assert_eq!(id(&pay_notify_format(), body.as_bytes()).as_deref(), expected, "{body}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in ".{0,200}") {
            for format in [NotificationFormat::PaymentId, pay_notify_format()] {
                for body in [&bytes[..], text.as_bytes()] {
                    let _ = format.parse(body, &limits());
                    let _ = format.readable_payment_id(body, &limits());
                }
            }
        }

        /// Bodies that are almost valid: bytes of valid bodies replaced, removed and duplicated.
        #[test]
        fn no_mutilated_body_makes_it_panic_or_tells_its_content(
            which in 0..6_usize,
            edits in proptest::collection::vec((any::<u16>(), any::<u8>(), 0..4_u8), 0..6),
        ) {
            let bodies: [&[u8]; 6] = [
                br#"{"messageType": "payresult_notify", "businessKey1": "S3CRET", "businessKey2": "60201", "x": [{}]}"#,
                br#"{"messageType": "payresult_notify", "businessKey1": 12345678901234567890, "businessKey2": 60201}"#,
                b"\"S3CRET\\u652f\"",
                b"202002201101",
                include_bytes!("../../tests/fixtures/java/long.ser"),
                include_bytes!("../../tests/fixtures/java/string-unicode.ser"),
            ];
            let mut body = bodies[which].to_vec();
            for (at, byte, edit) in edits {
                let at = usize::from(at) % body.len().max(1);
                match edit {
                    0 => body.insert(at.min(body.len()), byte),
                    1 if !body.is_empty() => { body.remove(at); }
                    2 if !body.is_empty() => body[at] = byte,
                    _ => body.extend_from_within(at.min(body.len())..),
                }
            }
            for format in [NotificationFormat::PaymentId, pay_notify_format()] {
                if let Err(error) = format.parse(&body, &limits()) {
                    prop_assert!(!error.to_string().contains("S3CRET"), "{}", error);
                }
            }
        }

        /// Every text that is accepted as an ID is returned unchanged in every form, and an error never quotes the
        /// body.
        #[test]
        fn every_id_comes_through_as_it_is(id in "[!-~]{1,128}", bare in "[A-Za-z0-9][A-Za-z0-9_.:/@#*+-]{0,120}") {
            let json = serde_json::to_string(&bare).unwrap();
            prop_assert_eq!(read(&NotificationFormat::PaymentId, json.as_bytes()), Ok(bare));
            let body = serde_json::json!({"messageType": "payresult_notify", "businessKey1": id, "businessKey2": "60201"});
            prop_assert_eq!(read(&pay_notify_format(), body.to_string().as_bytes()), Ok(id));
        }
    }
}
