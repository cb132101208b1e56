//! The places of a message's fields in its body, and a single pass over the JSON that finds the fields without copying.

use super::ids::PaymentId;
use crate::domain::malformed::{Field, parse_identifier};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::fmt;

/// The places of the fields in a body.
#[derive(Debug, Clone)]
pub struct FieldPaths {
    root: Node,
}

/// One node on the paths to the fields: an object (or array) that is entered, or a field itself.
#[derive(Debug, Clone, Default)]
struct Node {
    /// The node's number within the whole tree; its bit in [`FoundFields::seen`].
    number: u32,
    children: Vec<(String, Node)>,
    field: Option<Field>,
}

/// Why a set of JSON Pointers is invalid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FieldPathsError {
    /// The text is not a JSON Pointer by RFC 6901.
    #[error("must be a JSON Pointer such as \"/data/order/id\" (RFC 6901), at most 8 levels deep")]
    NotAPointer,
    /// Two fields have the same place, or one contains the other.
    #[error("points at or into another field; each field must have its own place")]
    Overlap,
}

impl Default for FieldPaths {
    /// The three fields at the top level of the object, each in either spelling.
    fn default() -> Self {
        #[expect(clippy::expect_used, reason = "the spellings are distinct constants, as a test verifies")]
        Self::new([None, None, None]).expect("the default field paths are valid")
    }
}

impl FieldPaths {
    /// The most levels that a pointer may have.
    const MAX_DEPTH: usize = 8;

    /// Creates the paths of the fields (payment, user, points) from JSON Pointers. A field without a pointer is at the
    /// top level, in either spelling. The error contains the first invalid field.
    pub fn new(pointers: [Option<&str>; 3]) -> Result<Self, (Field, FieldPathsError)> {
        let mut paths = Self { root: Node::default() };
        let mut count = 0;
        for (field, pointer) in Field::WANTED.into_iter().zip(pointers) {
            match pointer {
                Some(pointer) => {
                    let path = Self::parse_pointer(pointer).map_err(|error| (field, error))?;
                    paths.root.insert(&path, field, &mut count).map_err(|error| (field, error))?;
                }
                None => {
                    for name in field.spellings() {
                        let path = [(*name).to_owned()];
                        paths.root.insert(&path, field, &mut count).map_err(|error| (field, error))?;
                    }
                }
            }
        }
        Ok(paths)
    }

    /// Returns a body in which the fields are at these paths.
    pub(super) fn compose(&self, value: &impl Fn(Field) -> serde_json::Value) -> serde_json::Value {
        self.root.compose(value)
    }

    /// Finds the fields in one pass over a JSON text.
    pub(super) fn find<'b>(&self, text: &'b str) -> serde_json::Result<FoundFields<'b>> {
        let mut found = FoundFields::default();
        let mut json = serde_json::Deserializer::from_str(text);
        Visit { node: &self.root, found: &mut found }.deserialize(&mut json)?;
        json.end()?;
        Ok(found)
    }

    /// Returns the payment ID of a text that is not a valid message, where one can be read: the field occurs exactly
    /// once before the text ends or stops being JSON.
    pub(super) fn readable_payment_id(&self, text: &str) -> Option<PaymentId> {
        let mut found = FoundFields::default();
        let mut json = serde_json::Deserializer::from_str(text);
        let is_json = Visit { node: &self.root, found: &mut found }.deserialize(&mut json).is_ok();
        let value = found.values[0].filter(|_| found.given_twice != Some(Field::PaymentId))?;
        // A number at the end of a truncated text may be truncated itself.
        if !is_json && !value.get().ends_with('"') && text.ends_with(value.get()) {
            return None;
        }
        parse_identifier(Field::PaymentId, Some(value), PaymentId::new).ok()
    }

    fn parse_pointer(pointer: &str) -> Result<Vec<String>, FieldPathsError> {
        let rest = pointer.strip_prefix('/').ok_or(FieldPathsError::NotAPointer)?;
        let mut path = Vec::new();
        for part in rest.split('/') {
            let unescaped = part.replace("~1", "/").replace("~0", "~");
            if part.replace("~0", "").replace("~1", "").contains('~') {
                return Err(FieldPathsError::NotAPointer);
            }
            path.push(unescaped);
        }
        if path.len() > Self::MAX_DEPTH { Err(FieldPathsError::NotAPointer) } else { Ok(path) }
    }
}

impl Node {
    fn insert(&mut self, path: &[String], field: Field, count: &mut u32) -> Result<(), FieldPathsError> {
        let Some((name, rest)) = path.split_first() else {
            if !self.children.is_empty() || self.field.is_some() {
                return Err(FieldPathsError::Overlap);
            }
            self.field = Some(field);
            return Ok(());
        };
        if self.field.is_some() {
            return Err(FieldPathsError::Overlap);
        }
        let known = self.children.iter().position(|(key, _)| key == name);
        let index = known.unwrap_or_else(|| {
            *count += 1;
            self.children.push((name.clone(), Self { number: *count, ..Self::default() }));
            self.children.len() - 1
        });
        self.children[index].1.insert(rest, field, count)
    }

    fn compose(&self, value: &impl Fn(Field) -> serde_json::Value) -> serde_json::Value {
        let mut object = serde_json::Map::new();
        let mut written: Vec<Field> = Vec::new();
        for (name, child) in &self.children {
            match child.field {
                // Of several spellings, the first one is written.
                Some(field) if written.contains(&field) => {}
                Some(field) => {
                    written.push(field);
                    object.insert(name.clone(), value(field));
                }
                None => {
                    object.insert(name.clone(), child.compose(value));
                }
            }
        }
        serde_json::Value::Object(object)
    }

    fn child(&self, key: &str) -> Option<&Self> {
        self.children.iter().find(|(name, _)| name == key).map(|(_, node)| node)
    }

    /// Returns the field at this node, or the first field below it.
    fn first_field(&self) -> Field {
        self.field.or_else(|| self.children.first().map(|(_, child)| child.first_field())).unwrap_or(Field::Body)
    }
}

/// The result of one pass over a body.
#[derive(Default)]
pub(super) struct FoundFields<'b> {
    /// Whether the body is an object.
    pub(super) is_object: bool,
    /// The JSON texts of the fields, in the order of [`Field::WANTED`].
    pub(super) values: [Option<&'b RawValue>; 3],
    /// The first field that occurs more than once.
    pub(super) given_twice: Option<Field>,
    /// The nodes seen so far, one bit each: 3 pointers of at most 8 levels, or 6 spellings, fit.
    seen: u64,
}

impl<'b> FoundFields<'b> {
    fn mark_seen(&mut self, node: &Node) {
        let bit = 1_u64 << node.number;
        if self.seen & bit != 0 && self.given_twice.is_none() {
            self.given_twice = Some(node.first_field());
        }
        self.seen |= bit;
    }

    fn store(&mut self, field: Field, value: &'b RawValue) {
        for (wanted, slot) in Field::WANTED.into_iter().zip(&mut self.values) {
            // A field in two spellings, or in two objects of the same name, is given twice.
            if wanted == field && slot.replace(value).is_some() {
                self.given_twice.get_or_insert(field);
            }
        }
    }
}

/// Visits one JSON value on the path to the fields. A value of another type than the path needs is skipped: the fields
/// below it are then missing.
struct Visit<'s, 'f, 'b> {
    node: &'s Node,
    found: &'f mut FoundFields<'b>,
}

impl<'b> DeserializeSeed<'b> for Visit<'_, '_, 'b> {
    type Value = ();

    fn deserialize<D: Deserializer<'b>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'b> Visitor<'b> for Visit<'_, '_, 'b> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_map<A: MapAccess<'b>>(self, mut map: A) -> Result<(), A::Error> {
        let Self { node, found } = self;
        found.is_object |= node.number == 0;
        while let Some(child) = map.next_key_seed(Key(node))? {
            let Some(child) = child else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            found.mark_seen(child);
            match child.field {
                Some(field) => found.store(field, map.next_value::<&'b RawValue>()?),
                None => map.next_value_seed(Visit { node: child, found: &mut *found })?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'b>>(self, mut seq: A) -> Result<(), A::Error> {
        let Self { node, found } = self;
        let mut index = 0_usize;
        loop {
            let more = match node.child(&index.to_string()) {
                None => seq.next_element::<IgnoredAny>()?.is_some(),
                Some(child) => match child.field {
                    Some(field) => {
                        let value = seq.next_element::<&'b RawValue>()?;
                        if let Some(value) = value {
                            found.store(field, value);
                        }
                        value.is_some()
                    }
                    None => seq.next_element_seed(Visit { node: child, found: &mut *found })?.is_some(),
                },
            };
            if !more {
                return Ok(());
            }
            index += 1;
        }
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// Reads an object's key and looks up its node, without storing the key.
struct Key<'s>(&'s Node);

impl<'b, 's> DeserializeSeed<'b> for Key<'s> {
    type Value = Option<&'s Node>;

    fn deserialize<D: Deserializer<'b>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'s> Visitor<'_> for Key<'s> {
    type Value = Option<&'s Node>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, key: &str) -> Result<Self::Value, E> {
        Ok(self.0.child(key))
    }
}
