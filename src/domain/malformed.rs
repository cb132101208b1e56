//! Why nothing can be read from a body, and reading identifiers from JSON. No error quotes the body.

use super::{id_rule::IdRefused, ids::IdError};
use serde_json::value::RawValue;
use std::fmt;

pub(super) const ID_TYPES: &str = "a string or an integer";

/// A part of a message that an error can name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    /// The body as a whole.
    Body,
    /// `paymentId` or `payment_id`.
    PaymentId,
    /// `userId` or `user_id`.
    UserId,
    /// `integral` or `points`.
    Points,
    /// Of a pay-result notification.
    MessageType,
    /// The same: the payment's id.
    BusinessKey1,
    /// The same: what kind of payment.
    BusinessKey2,
}

impl Field {
    /// The fields that are looked for, in the order in which they are reported.
    pub(super) const WANTED: [Self; 3] = [Self::PaymentId, Self::UserId, Self::Points];

    /// The accepted spellings at the top of a body, the first one being the field's name in errors.
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

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// More bytes than `message.max_body_bytes`.
    #[error("has {bytes} bytes; at most {max} are taken")]
    TooLarge {
        /// The body's size.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// Not UTF-8.
    #[error("is not UTF-8 from byte {at} on")]
    NotUtf8 {
        /// The first byte that is not.
        at: usize,
    },
    /// Not JSON; the parser's description has a position, and nothing of the content.
    #[error("is not JSON: {0}")]
    NotJson(String),
    /// JSON, but no object.
    #[error("is JSON but not an object")]
    NotAnObject,
    /// The field is not there.
    #[error("is missing")]
    Missing,
    /// The field is there more than once, in one spelling or both.
    #[error("is given twice")]
    GivenTwice,
    /// Another JSON type than the field has.
    #[error("is {given}; must be {wanted}")]
    WrongType {
        /// The JSON type that stands there.
        given: &'static str,
        /// What would be right.
        wanted: &'static str,
    },
    /// A string whose escapes mean no Unicode text.
    #[error("is a string with an invalid escape; must be Unicode text")]
    BadEscape,
    /// A stream of serialized Java objects that is no payment's id.
    #[error("is serialized Java, but neither a java.lang.Long nor a java.lang.String")]
    OtherJava,
    /// A text that holds something else than one bare id.
    #[error("is {0}; must be one bare payment id")]
    NotAnId(&'static str),
    /// No identifier.
    #[error(transparent)]
    Id(#[from] IdError),
    /// An identifier that the payment source cannot be asked for.
    #[error(transparent)]
    RefusedId(#[from] IdRefused),
    /// A whole number outside 1 to the limit.
    #[error("is out of range; must be 1 to {max}")]
    OutOfRange {
        /// `message.max_points`.
        max: i64,
    },
}

/// Why no credit can be read from a body. Its text goes into headers and logs: it never quotes the body.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field} {problem}")]
pub struct Malformed {
    /// Where.
    pub field: Field,
    /// What, and what would be right.
    pub problem: Problem,
}

impl Malformed {
    pub(super) fn new(field: Field, problem: impl Into<Problem>) -> Self {
        Self { field, problem: problem.into() }
    }
}

/// An identifier from its JSON text: a string's content, or an integer's digits as they stand.
pub(super) fn identifier<T, E: Into<Problem>>(
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

/// Whether a JSON text is a number without fraction and exponent.
pub(super) fn is_integer(text: &str) -> bool {
    let digits = text.strip_prefix('-').unwrap_or(text);
    !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

/// What a valid JSON text is, as a person would say it.
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
