//! Identifiers of payments and users, validated once and then trusted.

use std::fmt;

/// The most characters (Unicode scalar values, not bytes) an identifier may have.
pub const MAX_ID_CHARS: usize = 128;

/// Why a text is no identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// Nothing is there.
    #[error("is empty; must be 1 to {MAX_ID_CHARS} characters")]
    Empty,
    /// More than [`MAX_ID_CHARS`] characters.
    #[error("is too long; must be 1 to {MAX_ID_CHARS} characters")]
    TooLong,
    /// A control character (NUL, newline, DEL, …) anywhere in it.
    #[error("has a control character; must have none")]
    ControlCharacter,
    /// White space at its beginning or end.
    #[error("has blanks around it; must have none at its ends")]
    SurroundingBlank,
}

/// Checks `text` against the rules that payment and user identifiers share (`docs/messages.md`).
fn check(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    // A character has at most four bytes, so most texts need no counting.
    if text.len() > MAX_ID_CHARS && text.chars().count() > MAX_ID_CHARS {
        return Err(IdError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(IdError::ControlCharacter);
    }
    if text.starts_with(char::is_whitespace) || text.ends_with(char::is_whitespace) {
        return Err(IdError::SurroundingBlank);
    }
    Ok(())
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes `text` as it stands; nothing is trimmed or folded.
            pub fn new(text: &str) -> Result<Self, IdError> {
                check(text)?;
                Ok(Self(text.into()))
            }

            /// An id that no message can have, because it breaks the rules of [`Self::new`]: what is written under it is rolled
            /// back.
            pub(crate) fn reserved(text: &str) -> Self {
                debug_assert!(check(text).is_err());
                Self(text.into())
            }

            /// The canonical text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:?}", &self.0)
            }
        }
    };
}

identifier! {
    /// What a payment is known by: the key of de-duplication. Ordered by its bytes, as the ledger orders it.
    PaymentId
}

identifier! {
    /// Whose points they are. Ordered by its bytes, as the ledger orders it.
    UserId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_is_applied_at_its_bound() {
        let cases: &[(&str, Result<(), IdError>)] = &[
            ("1", Ok(())),
            (&"x".repeat(128), Ok(())),
            (&"支".repeat(128), Ok(())),
            (&"🧾".repeat(128), Ok(())),
            (&"🧾".repeat(129), Err(IdError::TooLong)),
            (&"x".repeat(129), Err(IdError::TooLong)),
            ("", Err(IdError::Empty)),
            (" ", Err(IdError::SurroundingBlank)),
            (" a", Err(IdError::SurroundingBlank)),
            ("a\u{3000}", Err(IdError::SurroundingBlank)),
            ("a b", Ok(())),
            ("a\0b", Err(IdError::ControlCharacter)),
            ("a\n", Err(IdError::ControlCharacter)),
            ("a\u{7f}", Err(IdError::ControlCharacter)),
            ("a\u{85}b", Err(IdError::ControlCharacter)),
            ("'; DROP TABLE points_credits; --", Ok(())),
        ];
        for (text, expected) in cases {
            assert_eq!(PaymentId::new(text).map(|_| ()), *expected, "{text:?}");
            assert_eq!(UserId::new(text).map(|_| ()), *expected, "{text:?}");
        }
    }
}
