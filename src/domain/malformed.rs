//! Errors of malformed bodies, and the reading of identifiers from JSON. No error quotes the body.

use super::{id_rule::IdRefused, ids::IdError};
use serde_json::value::RawValue;
use std::fmt;

pub(super) const ID_TYPES: &str = "a string or an integer";

/// A part of a message that an error can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The body as a whole.
    Body,
    /// The payment ID: `paymentId` or `payment_id`.
    PaymentId,
    /// The user ID: `userId` or `user_id`.
    UserId,
    /// The number of points: `integral` or `points`.
    Points,
    /// The type of a pay-result notification.
    MessageType,
    /// The payment ID of a pay-result notification.
    BusinessKey1,
    /// The type of the payment in a pay-result notification.
    BusinessKey2,
}

impl Field {
    /// The fields of a points message, in the order in which errors are reported.
    pub(super) const WANTED: [Self; 3] = [Self::PaymentId, Self::UserId, Self::Points];

    /// Returns the accepted spellings at the top level of a body; the first one is the field's name in errors.
    pub fn spellings(self) -> &'static [&'static str] {
        match self {
            Self::Body => &["body"],
            Self::PaymentId => &["paymentId", "payment_id"],
            Self::UserId => &["userId", "user_id"],
            Self::Points => &["integral", "points"],
            Self::MessageType => &["messageType"],
            Self::BusinessKey1 => &["businessKey1"],
            Self::BusinessKey2 => &["businessKey2"],
        }
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.spellings()[0])
    }
}

/// The error of a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// The body has more bytes than `message.max_body_bytes`.
    #[error("has {bytes} bytes; at most {max} are accepted")]
    TooLarge {
        /// The size of the body in bytes.
        bytes: usize,
        /// The largest size in bytes.
        max: usize,
    },
    /// The body is not UTF-8.
    #[error("is not UTF-8 from byte {at}; must be UTF-8")]
    NotUtf8 {
        /// The index of the first invalid byte.
        at: usize,
    },
    /// The body is not JSON. The parser's description contains a position and nothing of the content.
    #[error("is not JSON: {0}")]
    NotJson(String),
    /// The body is JSON, but not an object.
    #[error("is JSON but not an object; must be an object")]
    NotAnObject,
    /// The field is absent.
    #[error("is missing")]
    Missing,
    /// The field occurs more than once, in one spelling or in both.
    #[error("is given twice")]
    GivenTwice,
    /// The field has another JSON type than required.
    #[error("is {given}; must be {wanted}")]
    WrongType {
        /// The JSON type in the body.
        given: &'static str,
        /// The required JSON types.
        wanted: &'static str,
    },
    /// A string whose escapes do not encode Unicode text.
    #[error("is a string with an invalid escape; must be Unicode text")]
    BadEscape,
    /// A serialized Java object that cannot be a payment ID.
    #[error("is another serialized Java object; must be a java.lang.Long or a java.lang.String")]
    OtherJava,
    /// A text that contains more than one bare ID.
    #[error("is {0}; must be one bare payment ID")]
    NotAnId(&'static str),
    /// The text is not a valid identifier.
    #[error(transparent)]
    Id(#[from] IdError),
    /// An identifier that the payment source cannot be asked about.
    #[error(transparent)]
    RefusedId(#[from] IdRefused),
    /// A whole number outside the range of 1 to the limit.
    #[error("is out of range; must be 1 to {max}")]
    OutOfRange {
        /// The limit: `message.max_points`.
        max: i64,
    },
}

/// Why a body contains no valid credit. Its text is written to headers and logs, and never quotes the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Malformed {
    /// The field with the error.
    pub field: Field,
    /// The error, and what would be right.
    pub problem: Problem,
}

impl Malformed {
    pub(super) fn new(field: Field, problem: impl Into<Problem>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// Reads an identifier from its JSON text: the content of a string, or the digits of an integer, unchanged.
pub(super) fn parse_identifier<T, E: Into<Problem>>(
    field: Field,
    value: Option<&RawValue>,
    new: impl Fn(&str) -> Result<T, E>,
) -> Result<T, Malformed> {
    let malformed = |problem| Malformed::new(field, problem);
    let text = value.ok_or_else(|| malformed(Problem::Missing))?.get();
    let checked = |id: &str| new(id).map_err(|error| Malformed::new(field, error));
    if let Some(inner) = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')) {
        if !inner.contains('\\') {
            return checked(inner);
        }
        let unescaped = serde_json::from_str::<String>(text).map_err(|_| malformed(Problem::BadEscape))?;
        return checked(&unescaped);
    }
    match text {
        "-0" => checked("0"),
        _ if is_integer(text) => checked(text),
        _ => Err(malformed(Problem::WrongType { given: json_type(text), wanted: ID_TYPES })),
    }
}

/// Returns whether a JSON text is a number without fraction and exponent.
pub(super) fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// Returns the type of a valid JSON text, as a phrase for error texts.
pub(super) fn json_type(text: &str) -> &'static str {
    match text.as_bytes().first() {
        Some(b'"') => "a string",
        Some(b'{') => "an object",
        Some(b'[') => "an array",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ if is_integer(text) => "an integer",
        _ => "a number with a fraction or an exponent",
    }
}
