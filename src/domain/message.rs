//! From a body to a credit: the wire format (`docs/messages.md`), exact and total.
//!
//! The body is read in one pass that copies nothing but the identifiers. Numbers are taken by their text, so an
//! identifier of twenty digits keeps them all. Errors name the field and what would be right, never the content.

use super::{
    credit::{Credit, Points},
    id_rule::{IdRefused, IdRule},
    ids::{IdError, PaymentId, UserId},
};
use crate::domain::field_paths::{FieldValue, Shape};
use serde_json::value::RawValue;
use std::fmt;

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

/// What some writers put before UTF-8. It is no part of a body.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// How far a malformed body is looked through for its payment id. Bytes.
const MOST_LOOKED_THROUGH: usize = 1024 * 1024;

pub(super) const ID_TYPES: &str = "a string or an integer";
const POINTS_TYPES: &str = "an integer";

/// How bodies look and what they may hold: `[message]` of the configuration.
#[derive(Debug, Clone)]
pub struct Format {
    /// Where the fields are.
    pub shape: Shape,
    /// Larger bodies are malformed. Bytes.
    pub max_body_bytes: usize,
    /// More points in one message are malformed.
    pub max_points: i64,
    /// Which payment ids are accepted: `pay_status.http.id_pattern`, or what a payment source over HTTP demands.
    pub payment_ids: IdRule,
}

impl Format {
    /// Reads one body.
    pub fn parse(&self, body: &[u8]) -> Result<Credit, Malformed> {
        let found = self.find(body)?;
        let [payment_id, user_id, points] = found.values;
        Ok(Credit {
            payment_id: identifier(Field::PaymentId, payment_id, |id| self.payment_id(id))?,
            user_id: identifier(Field::UserId, user_id, UserId::new)?,
            points: self.points(points)?,
        })
    }

    /// The payment id of a body that [`Format::parse`] refuses, where one can be read all the same. For people to find the
    /// message by: nothing is decided by it.
    pub fn readable_payment_id(&self, body: &[u8]) -> Option<PaymentId> {
        readable_payment_id(&self.shape, body)
    }

    /// A payment id, if this format accepts it.
    pub(super) fn payment_id(&self, id: &str) -> Result<PaymentId, Problem> {
        let payment = PaymentId::new(id)?;
        self.payment_ids.check(id)?;
        Ok(payment)
    }

    /// A body that [`Format::parse`] reads as this credit, unless it is beyond the limits.
    pub fn compose(&self, payment_id: &str, user_id: &str, points: i64) -> Vec<u8> {
        let value = |field| match field {
            Field::PaymentId => payment_id.into(),
            Field::UserId => user_id.into(),
            Field::Points => points.into(),
            Field::Body | Field::MessageType | Field::BusinessKey1 | Field::BusinessKey2 => serde_json::Value::Null,
        };
        self.shape.compose(&value).to_string().into_bytes()
    }

    fn find<'b>(&self, body: &'b [u8]) -> Result<FieldValue<'b>, Malformed> {
        let malformed = |problem| Err(Malformed::new(Field::Body, problem));
        let text = utf8(body, self.max_body_bytes)?;
        let found = match self.shape.find(text) {
            Ok(found) => found,
            // Only the parser itself fails here, with a fixed phrase and a position: any type of value is taken.
            Err(error) => return malformed(Problem::NotJson(error.to_string())),
        };
        if !found.is_object {
            return malformed(Problem::NotAnObject);
        }
        match found.given_twice {
            Some(field) => Err(Malformed::new(field, Problem::GivenTwice)),
            None => Ok(found),
        }
    }

    fn points(&self, value: Option<&RawValue>) -> Result<Points, Malformed> {
        let malformed = |problem| Malformed::new(Field::Points, problem);
        let text = value.ok_or_else(|| malformed(Problem::Missing))?.get();
        if !is_integer(text) {
            return Err(malformed(Problem::WrongType { given: json_type(text), wanted: POINTS_TYPES }));
        }
        // Too long for 64 bits is as much out of range as zero is.
        let number = text.parse::<i64>().ok();
        number
            .and_then(|number| Points::new(number, self.max_points))
            .ok_or_else(|| malformed(Problem::OutOfRange { max: self.max_points }))
    }
}

/// A body as text, of at most `max` bytes, without the byte order mark that some writers put before it.
pub(super) fn utf8(body: &[u8], max: usize) -> Result<&str, Malformed> {
    if body.len() > max {
        return Err(Malformed::new(Field::Body, Problem::TooLarge { bytes: body.len(), max }));
    }
    let text = std::str::from_utf8(body);
    let text = text.map_err(|error| Malformed::new(Field::Body, Problem::NotUtf8 { at: error.valid_up_to() }))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

/// The payment id that can be read of a body that is malformed, also of a large one, or of one that is cut off.
pub(super) fn readable_payment_id(shape: &Shape, body: &[u8]) -> Option<PaymentId> {
    let body = body.get(..MOST_LOOKED_THROUGH).unwrap_or(body);
    let text = body.utf8_chunks().next()?.valid();
    shape.readable_payment_id(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
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
fn is_integer(text: &str) -> bool {
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

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
