use super::*;
use crate::domain::{credit::MAX_POINTS_LIMIT, field_paths::FieldPathsError, id_rule::IdPattern, ids::is_invisible};
use proptest::prelude::*;
use std::fmt::Write as _;

fn format() -> Format {
    Format { paths: FieldPaths::default(), max_body_bytes: 65_536, max_points: 1_000_000_000, payment_ids: IdRule::Any }
}

fn pointed(payment: &str, user: &str, points: &str) -> Format {
    let paths = FieldPaths::new([Some(payment), Some(user), Some(points)]).unwrap();
    Format { paths, ..format() }
}

fn parsed(format: &Format, body: &str) -> (String, String, i64) {
    let credit = format.parse(body.as_bytes()).unwrap_or_else(|error| panic!("{body}: {error}"));
    (credit.payment_id.to_string(), credit.user_id.to_string(), credit.points.get())
}

#[test]
fn valid_bodies_are_read_exactly() {
    let long = "9".repeat(128);
    let table: &[(&str, (&str, &str, i64))] = &[
        (r#"{"paymentId": 202002201101, "userId": 1101, "integral": 100}"#, ("202002201101", "1101", 100)),
        (r#"{"payment_id":"p-1","user_id":"u-1","points":1}"#, ("p-1", "u-1", 1)),
        (r#"{"paymentId":12345678901234567890123,"user_id":"7","points":2}"#, ("12345678901234567890123", "7", 2)),
        (r#"{"paymentId":-5,"userId":-0,"integral":3}"#, ("-5", "0", 3)),
        (
            r#"{"paymentId":"订单🧾","userId":"\u7528\ud83e\uddfe","integral":1000000000}"#,
            ("订单🧾", "用🧾", 1_000_000_000),
        ),
        (r#"{"x":{"paymentId":9},"paymentId":"1","y":[1,[2]],"userId":"2","integral":3,"x":1e999}"#, ("1", "2", 3)),
        (r#"{"p\u0061ymentId":"1","userId":"2","integral":3}"#, ("1", "2", 3)),
        ("\t{ \"paymentId\" : \"a b\" ,\r\n\"userId\":2,\"integral\":3}\n ", ("a b", "2", 3)),
        ("\u{feff}{\"paymentId\":1,\"userId\":2,\"integral\":3}", ("1", "2", 3)),
        (&format!(r#"{{"paymentId":{long},"userId":2,"integral":3}}"#), (&long, "2", 3)),
    ];
    for (body, (payment, user, points)) in table {
        assert_eq!(parsed(&format(), body), ((*payment).into(), (*user).into(), *points), "{body}");
    }
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table")]
fn malformed_bodies_name_the_field_and_never_the_content() {
    use Field::{Body, PaymentId, Points, UserId};
    let too_long = format!(r#"{{"paymentId":"{}","userId":2,"integral":3}}"#, "x".repeat(129));
    let too_many_digits = format!(r#"{{"paymentId":{},"userId":2,"integral":3}}"#, "1".repeat(129));
    let deep = format!(r#"{{"paymentId":{}1{},"userId":2,"integral":3}}"#, "[".repeat(9000), "]".repeat(9000));
    let table: &[(&str, Field, &str)] = &[
        ("", Body, "is not JSON: EOF while parsing a value at line 1 column 0"),
        ("secret", Body, "is not JSON: expected value at line 1 column 1"),
        (
            "{\"paymentId\":1,\"userId\":2,\"integral\":3} x",
            Body,
            "is not JSON: trailing characters at line 1 column 41",
        ),
        (
            "{\"paymentId\":1,\"userId\":2,\"integral\":3",
            Body,
            "is not JSON: EOF while parsing an object at line 1 column 38",
        ),
        ("{\"paymentId\":01,\"userId\":2,\"integral\":3}", Body, "is not JSON: invalid number at line 1 column 15"),
        ("\u{feff}\u{feff}{}", Body, "is not JSON: expected value at line 1 column 1"),
        ("\u{feff}{}", PaymentId, "is missing"),
        ("\"secret\"", Body, "is JSON but not an object; must be an object"),
        ("[1]", Body, "is JSON but not an object; must be an object"),
        ("17", Body, "is JSON but not an object; must be an object"),
        ("null", Body, "is JSON but not an object; must be an object"),
        ("{}", PaymentId, "is missing"),
        (r#"{"paymentId":1,"integral":3}"#, UserId, "is missing"),
        (r#"{"paymentId":1,"userId":2}"#, Points, "is missing"),
        (r#"{"paymentId":1,"paymentId":1,"userId":2,"integral":3}"#, PaymentId, "is given twice"),
        (r#"{"paymentId":1,"userId":2,"user_id":2,"integral":3}"#, UserId, "is given twice"),
        (r#"{"paymentId":1,"userId":2,"integral":3,"points":3}"#, Points, "is given twice"),
        (r#"{"paymentId":1,"paymen\u0074Id":1,"userId":2,"integral":3}"#, PaymentId, "is given twice"),
        (
            r#"{"paymentId":1.0,"userId":2,"integral":3}"#,
            PaymentId,
            "is a number with a fraction or an exponent; must be a string or an integer",
        ),
        (
            r#"{"paymentId":1e3,"userId":2,"integral":3}"#,
            PaymentId,
            "is a number with a fraction or an exponent; must be a string or an integer",
        ),
        (r#"{"paymentId":null,"userId":2,"integral":3}"#, PaymentId, "is null; must be a string or an integer"),
        (r#"{"paymentId":1,"userId":true,"integral":3}"#, UserId, "is a boolean; must be a string or an integer"),
        (r#"{"paymentId":1,"userId":{"a":1},"integral":3}"#, UserId, "is an object; must be a string or an integer"),
        (r#"{"paymentId":1,"userId":[1],"integral":3}"#, UserId, "is an array; must be a string or an integer"),
        (r#"{"paymentId":"","userId":2,"integral":3}"#, PaymentId, "is empty; must be 1 to 128 characters"),
        (
            r#"{"paymentId":" 1","userId":2,"integral":3}"#,
            PaymentId,
            "has leading or trailing whitespace; must have none",
        ),
        (
            r#"{"paymentId":"1","userId":"2\u00a0","integral":3}"#,
            UserId,
            "has leading or trailing whitespace; must have none",
        ),
        (r#"{"paymentId":"1\u0000","userId":2,"integral":3}"#, PaymentId, "has a control character; must have none"),
        (r#"{"paymentId":"1\n2","userId":2,"integral":3}"#, PaymentId, "has a control character; must have none"),
        (
            r#"{"paymentId":"\ud800","userId":2,"integral":3}"#,
            PaymentId,
            "is a string with an invalid escape; must be Unicode text",
        ),
        (&too_long, PaymentId, "is too long; must be 1 to 128 characters"),
        (&too_many_digits, PaymentId, "is too long; must be 1 to 128 characters"),
        (&deep, PaymentId, "is an array; must be a string or an integer"),
        (r#"{"paymentId":1,"userId":2,"integral":0}"#, Points, "is out of range; must be 1 to 1000000000"),
        (r#"{"paymentId":1,"userId":2,"integral":-3}"#, Points, "is out of range; must be 1 to 1000000000"),
        (r#"{"paymentId":1,"userId":2,"integral":1000000001}"#, Points, "is out of range; must be 1 to 1000000000"),
        (
            r#"{"paymentId":1,"userId":2,"integral":99999999999999999999}"#,
            Points,
            "is out of range; must be 1 to 1000000000",
        ),
        (
            r#"{"paymentId":1,"userId":2,"integral":3.0}"#,
            Points,
            "is a number with a fraction or an exponent; must be an integer",
        ),
        (r#"{"paymentId":1,"userId":2,"integral":"3"}"#, Points, "is a string; must be an integer"),
    ];
    for (body, field, problem) in table {
        let error = format().parse(body.as_bytes()).expect_err(body);
        assert_eq!((error.field, error.problem.to_string()), (*field, (*problem).to_owned()), "{body:.80}");
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}

#[test]
fn bytes_that_are_not_text_and_bodies_that_are_too_large_are_malformed() {
    let mut invalid = br#"{"paymentId":"1","userId":"2","integral":3,"note":"x"}"#.to_vec();
    let at = invalid.len() - 3;
    invalid[at] = 0xff;
    assert_eq!(
        format().parse(&invalid).unwrap_err().to_string(),
        format!("body is not UTF-8 from byte {at}; must be UTF-8")
    );

    let body = br#"{"paymentId":"1","userId":"2","integral":3}"#;
    let fits = Format { max_body_bytes: body.len(), ..format() };
    assert!(fits.parse(body).is_ok());
    let small = Format { max_body_bytes: body.len() - 1, ..format() };
    assert_eq!(small.parse(body).unwrap_err().to_string(), "body has 43 bytes; at most 42 are accepted");
}

#[test]
fn json_pointers_move_the_fields() {
    let nested = pointed("/data/order/id", "/data/user", "/items/1/p~1t~0");
    let body = r#"{"paymentId":"no","items":[7,{"p/t~":5},8],"data":{"user":2,"order":{"id":"x"},"more":1}}"#;
    assert_eq!(parsed(&nested, body), ("x".into(), "2".into(), 5));

    for (body, error) in [
        (r#"{"data":{"user":2},"items":[]}"#, "paymentId is missing"),
        (r#"{"data":5,"items":[7,{"p/t~":5}]}"#, "paymentId is missing"),
        (r#"{"data":{"order":{"id":1},"user":2},"data":{}}"#, "paymentId is given twice"),
        (r#"{"data":{"order":{"id":1},"user":2,"user":2}}"#, "userId is given twice"),
        (r#"{"data":{"order":{"id":1},"user":2},"items":{"1":{"p/t~":5}}}"#, ""),
    ] {
        let reported = nested.parse(body.as_bytes()).map_or_else(|error| error.to_string(), |_| String::new());
        assert_eq!(reported, error, "{body}");
    }
}

#[test]
fn pointers_that_make_no_shape_are_refused() {
    use FieldPathsError::{NotAPointer, Overlap};
    for (pointers, error) in [
        ([Some("id"), None, None], (Field::PaymentId, NotAPointer)),
        ([Some(""), None, None], (Field::PaymentId, NotAPointer)),
        ([Some("/a~2"), None, None], (Field::PaymentId, NotAPointer)),
        ([None, Some("/1/2/3/4/5/6/7/8/9"), None], (Field::UserId, NotAPointer)),
        ([Some("/a"), Some("/a"), None], (Field::UserId, Overlap)),
        ([Some("/a"), Some("/a/b"), None], (Field::UserId, Overlap)),
        ([Some("/a/b"), None, Some("/a")], (Field::Points, Overlap)),
        ([Some("/points"), None, None], (Field::Points, Overlap)),
    ] {
        assert_eq!(FieldPaths::new(pointers).unwrap_err(), error, "{pointers:?}");
    }
    let deep = pointed("/1/2/3/4/5/6/7/a", "/b/2/3/4/5/6/7/b", "/c/2/3/4/5/6/7/c");
    assert_eq!(deep.parse(b"{}").unwrap_err().to_string(), "paymentId is missing", "the deepest paths fit the bit set");
}

fn id_text() -> impl Strategy<Value = String> {
    "[^\\p{Cc}]{1,128}".prop_filter("no surrounding whitespace and no invisible character", |text| {
        text.trim() == text && !text.is_empty() && !text.contains(is_invisible)
    })
}

/// JSON text of a string with any mixture of literal and escaped characters.
fn escaped(text: &str, escape: &[bool]) -> String {
    let mut json = String::from("\"");
    for (character, escape) in text.chars().zip(escape.iter().cycle()) {
        if *escape || matches!(character, '"' | '\\') {
            let mut units = [0_u16; 2];
            for unit in character.encode_utf16(&mut units) {
                write!(json, "\\u{unit:04x}").unwrap();
            }
        } else {
            json.push(character);
        }
    }
    json.push('"');
    json
}

#[test]
fn the_payment_id_of_a_malformed_body_is_read_where_it_can_be() {
    let long = format!(r#"{{"paymentId": 7, "note": "{}"}}"#, "x".repeat(70_000));
    for (body, expected) in [
        (&br#"{"paymentId": 7, "userId": "u", "integral": 0}"#[..], Some("7")),
        (br#"{"integral": "1", "payment_id": "P-7"}"#, Some("P-7")),
        (br#"{"paymentId": 7, "userId": "u", "userId": "u", "integral": 1}"#, Some("7")),
        (br#"{"paymentId": "x/7", "userId": "u", "integral": 1}"#, Some("x/7")),
        (b"\xef\xbb\xbf{\"paymentId\": 7}", Some("7")),
        (long.as_bytes(), Some("7")),
        (br#"{"paymentId": "7", "userId": "#, Some("7")),
        (br#"{"paymentId": 7, "userId": "#, Some("7")),
        (br#"{"paymentId": "7""#, Some("7")),
        (b"{\"paymentId\": \"7\", \"userId\": \"\xff\"}", Some("7")),
        // The number may be truncated.
        (br#"{"paymentId": 7"#, None),
        (b"{\"paymentId\": 7\xff", None),
        (br#"{"paymentId": "7"#, None),
        (br#"{"paymentId": 7, "payment_id": 7}"#, None),
        (br#"{"paymentId": 7.5}"#, None),
        (b"{\"paymentId\": \"7\\u200b\"}", None),
        (br#"{"userId": 7}"#, None),
        (b"[7]", None),
        (b"7", None),
        (b"", None),
    ] {
        let format = Format { payment_ids: IdRule::UrlSafe, ..format() };
        assert!(format.parse(body).is_err(), "{body:?}");
        let read = format.readable_payment_id(body).map(|id| id.to_string());
        assert_eq!(read.as_deref(), expected, "{:?}", String::from_utf8_lossy(&body[..body.len().min(80)]));
    }
}

proptest! {
    #[test]
    fn a_valid_credit_survives_every_accepted_spelling(
        payment in id_text(),
        user in prop_oneof![id_text(), "-?[1-9][0-9]{0,100}"],
        points in 1_i64..=1_000_000_000,
        spelling in prop::array::uniform3(0_usize..2),
        escape in prop::collection::vec(any::<bool>(), 1..8),
        user_as_integer in any::<bool>(),
        order in Just([0_usize, 1, 2]).prop_shuffle(),
        blanks in "[ \t\r\n]{0,3}",
    ) {
        let user_json = if user_as_integer && is_integer(&user) && (user == "0" || !user.starts_with('0')) && user != "-0" && !user.starts_with("-0") {
            user.clone()
        } else {
            escaped(&user, &escape)
        };
        let members = [
            (Field::PaymentId, escaped(&payment, &escape)),
            (Field::UserId, user_json),
            (Field::Points, points.to_string()),
        ];
        let members: Vec<String> = order
            .iter()
            .map(|index| {
                let (field, value) = &members[*index];
                format!("{blanks}\"{}\"{blanks}:{blanks}{value}{blanks}", field.spellings()[spelling[*index]])
            })
            .collect();
        let body = format!("{blanks}{{{}}}{blanks}", members.join(","));
        prop_assert_eq!(parsed(&format(), &body), (payment, user, points));
    }

    #[test]
    fn no_bytes_whatever_panic(body in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = format().parse(&body);
        let _ = format().readable_payment_id(&body);
    }

    #[test]
    fn nothing_that_looks_like_json_panics(body in r#"[\[\]{}",:0-9eE.+\-\\ua-f ]{0,120}|\{("(paymentId|user_id|points|a)":("[^"]{0,9}"|-?[0-9]{1,30}|\[\]|null),?){0,6}\}"#) {
        for format in [format(), pointed("/a", "/user_id/0", "/points")] {
            if let Ok(credit) = format.parse(body.as_bytes()) {
                prop_assert!(credit.points.get() >= 1 && credit.points.get() <= MAX_POINTS_LIMIT);
            }
        }
    }
}

#[test]
fn a_payment_id_that_the_rule_refuses_is_malformed_and_a_user_id_is_not_checked_by_it() {
    let body = |payment: &str| format!(r#"{{"paymentId": "{payment}", "userId": "a/b", "integral": 1}}"#).into_bytes();
    let safe = Format { payment_ids: IdRule::UrlSafe, ..format() };
    assert!(safe.parse(&body("P-1")).is_ok());
    let refused = safe.parse(&body("x/../P1")).unwrap_err();
    assert_eq!(refused.field, Field::PaymentId);
    assert_eq!(
        refused.to_string(),
        "paymentId is unsafe in a URL; must not be empty, \".\" or \"..\", or contain any of / \\ % ? # ;"
    );
    let digits = Format { payment_ids: IdRule::Matching(IdPattern::new("[0-9]+").unwrap()), ..format() };
    assert!(digits.parse(&body("17")).is_ok());
    assert!(digits.parse(&body("P-1")).unwrap_err().to_string().contains("must match [0-9]+"));
}
