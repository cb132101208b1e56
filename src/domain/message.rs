//! From a body to a credit: the wire format (`docs/guides/producers.md`), exact and total.
//!
//! The body is read in one pass that copies nothing but the identifiers. Numbers are taken by their text, so an
//! identifier of twenty digits keeps them all. Errors name the field and what would be right, never the content.

use super::{
    credit::{Credit, Points},
    field_paths::{FieldPaths, FoundFields},
    id_rule::IdRule,
    ids::{PaymentId, UserId},
    malformed::{Field, Malformed, Problem, identifier, json_type},
};
use crate::domain::malformed::is_integer;
use serde_json::value::RawValue;

/// What some writers put before UTF-8. It is no part of a body.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// How far a malformed body is looked through for its payment id. Bytes.
const MOST_LOOKED_THROUGH: usize = 1024 * 1024;

const POINTS_TYPES: &str = "an integer";

/// How bodies look and what they may hold: `[message]` of the configuration.
#[derive(Debug, Clone)]
pub struct Format {
    /// Where the fields are.
    pub paths: FieldPaths,
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
        readable_payment_id(&self.paths, body)
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
        self.paths.compose(&value).to_string().into_bytes()
    }

    fn find<'b>(&self, body: &'b [u8]) -> Result<FoundFields<'b>, Malformed> {
        let malformed = |problem| Err(Malformed::new(Field::Body, problem));
        let text = utf8(body, self.max_body_bytes)?;
        let found = match self.paths.find(text) {
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
pub(super) fn readable_payment_id(paths: &FieldPaths, body: &[u8]) -> Option<PaymentId> {
    let body = body.get(..MOST_LOOKED_THROUGH).unwrap_or(body);
    let text = body.utf8_chunks().next()?.valid();
    paths.readable_payment_id(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
