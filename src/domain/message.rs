//! Parses points messages: from a body to a credit, in the wire format of `docs/guides/producers.md`. Every body yields
//! a credit or an error.
//!
//! The body is parsed in one pass that copies only the identifiers. Numbers are read as text, so that an identifier of
//! twenty digits keeps all of them. Errors name the field and what would be right, never the content.

use super::{
    credit::{Credit, Points},
    field_paths::{FieldPaths, FoundFields},
    id_rule::IdRule,
    ids::{PaymentId, UserId},
    malformed::{Field, Malformed, Problem, json_type, parse_identifier},
};
use crate::domain::malformed::is_integer;
use serde_json::value::RawValue;

/// The byte order mark, which some programs write before UTF-8. It is not part of a body.
pub const BYTE_ORDER_MARK: char = '\u{feff}';

/// How much of a malformed body is searched for its payment ID, in bytes.
const MOST_LOOKED_THROUGH: usize = 1024 * 1024;

const POINTS_TYPES: &str = "an integer";

/// The format and the limits of bodies: `[message]` of the configuration.
#[derive(Debug, Clone)]
pub struct Format {
    /// The places of the fields.
    pub paths: FieldPaths,
    /// The largest body in bytes. A larger body is malformed.
    pub max_body_bytes: usize,
    /// The most points of one message. A message with more points is malformed.
    pub max_points: i64,
    /// The rule for payment IDs: `pay_status.http.id_pattern`, or the rule that a payment source over HTTP requires.
    pub payment_ids: IdRule,
}

impl Format {
    /// Parses one body.
    pub fn parse(&self, body: &[u8]) -> Result<Credit, Malformed> {
        let found = self.find_fields(body)?;
        let [payment_id, user_id, points] = found.values;
        Ok(Credit {
            payment_id: parse_identifier(Field::PaymentId, payment_id, |id| self.payment_id(id))?,
            user_id: parse_identifier(Field::UserId, user_id, UserId::new)?,
            points: self.parse_points(points)?,
        })
    }

    /// Returns the payment ID of a body that [`Format::parse`] refuses, where one can be read nevertheless. It helps
    /// people to find the message; no decision depends on it.
    pub fn readable_payment_id(&self, body: &[u8]) -> Option<PaymentId> {
        readable_payment_id(&self.paths, body)
    }

    /// Returns a payment ID if this format accepts it.
    pub(super) fn payment_id(&self, id: &str) -> Result<PaymentId, Problem> {
        let payment = PaymentId::new(id)?;
        self.payment_ids.check(id)?;
        Ok(payment)
    }

    /// Returns a body that [`Format::parse`] reads as this credit, unless the credit exceeds the limits.
    pub fn compose(&self, payment_id: &str, user_id: &str, points: i64) -> Vec<u8> {
        let value = |field| match field {
            Field::PaymentId => payment_id.into(),
            Field::UserId => user_id.into(),
            Field::Points => points.into(),
            Field::Body | Field::MessageType | Field::BusinessKey1 | Field::BusinessKey2 => serde_json::Value::Null,
        };
        self.paths.compose(&value).to_string().into_bytes()
    }

    fn find_fields<'b>(&self, body: &'b [u8]) -> Result<FoundFields<'b>, Malformed> {
        let malformed = |problem| Err(Malformed::new(Field::Body, problem));
        let text = decode_utf8(body, self.max_body_bytes)?;
        let found = match self.paths.find(text) {
            Ok(found) => found,
            // Values of every type are accepted, so only the parser itself fails here, with a fixed phrase and a
            // position.
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

    fn parse_points(&self, value: Option<&RawValue>) -> Result<Points, Malformed> {
        let malformed = |problem| Malformed::new(Field::Points, problem);
        let text = value.ok_or_else(|| malformed(Problem::Missing))?.get();
        if !is_integer(text) {
            return Err(malformed(Problem::WrongType { given: json_type(text), wanted: POINTS_TYPES }));
        }
        // A number of more than 64 bits is out of range, as zero is.
        let number = text.parse::<i64>().ok();
        number
            .and_then(|number| Points::new(number, self.max_points))
            .ok_or_else(|| malformed(Problem::OutOfRange { max: self.max_points }))
    }
}

/// Returns a body as text, without a leading byte order mark. Fails if it has more than `max` bytes or is not UTF-8.
pub(super) fn decode_utf8(body: &[u8], max: usize) -> Result<&str, Malformed> {
    if body.len() > max {
        return Err(Malformed::new(Field::Body, Problem::TooLarge { bytes: body.len(), max }));
    }
    let text = std::str::from_utf8(body);
    let text = text.map_err(|error| Malformed::new(Field::Body, Problem::NotUtf8 { at: error.valid_up_to() }))?;
    Ok(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

/// Returns the payment ID of a malformed body, where one can be read, even if the body is too large or truncated.
pub(super) fn readable_payment_id(paths: &FieldPaths, body: &[u8]) -> Option<PaymentId> {
    let body = body.get(..MOST_LOOKED_THROUGH).unwrap_or(body);
    let text = body.utf8_chunks().next()?.valid();
    paths.readable_payment_id(text.strip_prefix(BYTE_ORDER_MARK).unwrap_or(text))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
