//! Identifiers of payments and users, validated when they are created.

use std::fmt;

/// The most characters (Unicode scalar values, not bytes) of an identifier.
pub const MAX_ID_CHARS: usize = 128;

/// Why a text is not a valid identifier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty.
    #[error("is empty; must be 1 to {MAX_ID_CHARS} characters")]
    Empty,
    /// The text has more than [`MAX_ID_CHARS`] characters.
    #[error("is too long; must be 1 to {MAX_ID_CHARS} characters")]
    TooLong,
    /// The text contains a control character (NUL, newline, DEL, …).
    #[error("has a control character; must have none")]
    ControlCharacter,
    /// The text contains an invisible character, such as a zero-width space or a byte order mark.
    #[error("has an invisible character (such as a zero-width space); must have none")]
    InvisibleCharacter,
    /// The text has whitespace at its beginning or end.
    #[error("has leading or trailing whitespace; must have none")]
    SurroundingBlank,
}

/// Invisible characters: Unicode's format characters (category Cf), those that are ignored in display
/// (`Default_Ignorable_Code_Point`), and the separators of lines and paragraphs. Two identifiers that differ only in
/// such characters look alike.
const INVISIBLE: [(char, char); 25] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{34f}', '\u{34f}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{115f}', '\u{1160}'),
    ('\u{17b4}', '\u{17b5}'),
    ('\u{180b}', '\u{180f}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{206f}'),
    ('\u{3164}', '\u{3164}'),
    ('\u{fe00}', '\u{fe0f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{ffa0}', '\u{ffa0}'),
    ('\u{fff0}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0000}', '\u{e0fff}'),
];

/// Returns whether a character is invisible.
pub fn is_invisible(character: char) -> bool {
    !character.is_ascii() && INVISIBLE.iter().any(|(first, last)| (*first..=*last).contains(&character))
}

/// Checks `text` against the rules that payment and user identifiers share (`docs/guides/producers.md`).
fn validate(text: &str) -> Result<(), IdError> {
    if text.is_empty() {
        return Err(IdError::Empty);
    }
    // A character has at most four bytes, so only longer texts need counting.
    if text.len() > MAX_ID_CHARS && text.chars().count() > MAX_ID_CHARS {
        return Err(IdError::TooLong);
    }
    if text.chars().any(char::is_control) {
        return Err(IdError::ControlCharacter);
    }
    if !text.is_ascii() && text.chars().any(is_invisible) {
        return Err(IdError::InvisibleCharacter);
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
            /// Validates `text` and keeps it unchanged; nothing is trimmed or case-folded.
            pub fn new(text: &str) -> Result<Self, IdError> {
                validate(text)?;
                Ok(Self(text.into()))
            }

            /// Creates an ID that no message can have, because it violates the rules of [`Self::new`]. Rows that are
            /// written with it are rolled back.
            pub(crate) fn reserved(text: &str) -> Self {
                debug_assert!(validate(text).is_err());
                Self(text.into())
            }

            /// Returns the text.
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
    /// The ID of a payment: the key of de-duplication. Ordered by its bytes, as the ledger orders it.
    PaymentId
}

identifier! {
    /// The ID of the user who owns points. Ordered by its bytes, as the ledger orders it.
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
            ("a\u{200b}b", Err(IdError::InvisibleCharacter)),
            ("\u{feff}a", Err(IdError::InvisibleCharacter)),
            ("a\u{ad}b", Err(IdError::InvisibleCharacter)),
            ("a\u{2028}b", Err(IdError::InvisibleCharacter)),
            ("a\u{202e}b", Err(IdError::InvisibleCharacter)),
            ("a\u{3164}", Err(IdError::InvisibleCharacter)),
            ("a\u{e0041}", Err(IdError::InvisibleCharacter)),
            ("é支🧾", Ok(())),
            ("'; DROP TABLE points_credits; --", Ok(())),
        ];
        for (text, expected) in cases {
            assert_eq!(PaymentId::new(text).map(|_| ()), *expected, "{text:?}");
            assert_eq!(UserId::new(text).map(|_| ()), *expected, "{text:?}");
        }
    }

    #[test]
    fn every_format_character_of_unicode_is_invisible() {
        let format = regex::Regex::new(r"\A\p{Cf}\z").unwrap();
        for character in ('\0'..=char::MAX).filter(|character| format.is_match(&character.to_string())) {
            assert!(is_invisible(character), "U+{:04X}", u32::from(character));
        }
        let seen = regex::Regex::new(r"\A[\p{L}\p{N}\p{P}\p{S}]\z").unwrap();
        // The fillers of Hangul are letters by category, but have no visible shape.
        let fillers = ['\u{115f}', '\u{1160}', '\u{3164}', '\u{ffa0}'];
        for character in ('\0'..=char::MAX).filter(|character| seen.is_match(&character.to_string())) {
            assert!(!is_invisible(character) || fillers.contains(&character), "U+{:04X}", u32::from(character));
        }
    }
}
