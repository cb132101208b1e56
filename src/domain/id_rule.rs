//! Rules for payment IDs in addition to those for every identifier: an ID that is inserted into a URL must remain one
//! segment of the path, whatever an intermediate server decodes.

use regex::Regex;

/// Characters with a meaning in a URL, even percent-encoded: servers and proxies decode some of them.
const RESERVED: [char; 6] = ['/', '\\', '%', '?', '#', ';'];

/// The rule that decides which payment IDs are accepted.
#[derive(Debug, Clone, Default)]
pub enum IdRule {
    /// Every ID is accepted.
    #[default]
    Any,
    /// Every ID is accepted except `.`, `..` and IDs that contain a character with a meaning in a URL.
    UrlSafe,
    /// IDs that match a pattern are accepted.
    Matching(IdPattern),
}

/// A regular expression that the whole ID must match. `.` and `..` are refused in any case.
#[derive(Debug, Clone)]
pub struct IdPattern {
    text: String,
    regex: Regex,
}

/// Why a text is not a valid pattern for IDs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdPatternError {
    /// The pattern is empty and would match no ID.
    #[error("is empty; must be a regular expression that matches whole ids, as in \"[A-Za-z0-9_-]+\"")]
    Empty,
    /// The text is not a regular expression, or the expression is too large. The reason is one line.
    #[error("is not a regular expression: {0}")]
    Invalid(String),
}

/// Why an ID is refused. The error text never quotes the ID.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdRefused {
    /// The ID could change the path of a URL.
    #[error("is unsafe in a URL; must not be empty, \".\" or \"..\", or contain any of / \\ % ? # ;")]
    UnsafeInUrl,
    /// The ID does not match the configured pattern.
    #[error("is refused by pay_status.http.id_pattern; must match {pattern} and must not be \".\" or \"..\"")]
    NoMatch {
        /// The pattern, on one line.
        pattern: String,
    },
}

impl IdPattern {
    /// Compiles a regular expression.
    pub fn new(text: &str) -> Result<Self, IdPatternError> {
        if text.is_empty() {
            return Err(IdPatternError::Empty);
        }
        // The text is compiled alone first: a text such as `a)|(b` would be a valid expression only within the group.
        let regex = Regex::new(text).and_then(|_| Regex::new(&format!(r"\A(?:{text})\z")));
        let regex = regex.map_err(|error| IdPatternError::Invalid(last_line(&error)))?;
        Ok(Self { text: text.to_owned(), regex })
    }

    /// Returns the regular expression as configured.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

/// Returns a pattern with its line breaks escaped, because an error text has one line.
fn on_one_line(text: &str) -> String {
    let escaped = |character: char| {
        if character.is_control() { character.escape_default().to_string() } else { character.into() }
    };
    text.chars().map(escaped).collect()
}

/// Returns the last line of the error, which is the reason: the lines above it repeat the expression and mark a
/// position.
fn last_line(error: &regex::Error) -> String {
    let text = error.to_string();
    let line = text.lines().last().unwrap_or_default().trim();
    line.strip_prefix("error: ").unwrap_or(line).to_owned()
}

impl IdRule {
    /// Returns an error if the ID is refused.
    pub fn check(&self, id: &str) -> Result<(), IdRefused> {
        let is_dots = matches!(id, "." | "..");
        match self {
            Self::UrlSafe if id.is_empty() || is_dots || id.contains(RESERVED) => Err(IdRefused::UnsafeInUrl),
            Self::Matching(pattern) if is_dots || !pattern.regex.is_match(id) => {
                Err(IdRefused::NoMatch { pattern: on_one_line(&pattern.text) })
            }
            Self::Any | Self::UrlSafe | Self::Matching(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(rule: &IdRule, id: &str) -> bool {
        rule.check(id).is_ok()
    }

    #[test]
    fn an_id_that_could_leave_its_place_in_a_url_is_refused() {
        for id in ["", ".", "..", "a/b", "a\\b", "a%2fb", "a?b", "a#b", "a;b", "x/../P1", "../admin"] {
            assert!(!accepts(&IdRule::UrlSafe, id), "{id}");
            assert!(accepts(&IdRule::Any, id), "{id}");
        }
        for id in ["1", "P-1", "a b", "a:b@c", "...", "a.b", "支付", "a&b=c"] {
            assert!(accepts(&IdRule::UrlSafe, id), "{id}");
        }
    }

    #[test]
    fn a_pattern_matches_the_whole_id_and_replaces_the_default() {
        let rule = |text: &str| IdRule::Matching(IdPattern::new(text).unwrap());
        let shop = rule("shop/[0-9]+|ab|a");
        for (id, accepted) in
            [("shop/17", true), ("a", true), ("ab", true), ("abc", false), ("shop/", false), ("xshop/17", false)]
        {
            assert_eq!(accepts(&shop, id), accepted, "{id}");
        }
        let all = rule(".*");
        for (id, accepted) in [("a%b", true), (".", false), ("..", false), ("...", true), ("a\nb", false)] {
            assert_eq!(accepts(&all, id), accepted, "{id}");
        }
        assert!(!accepts(&rule("(?m)^a$"), "a\na"));
    }

    #[test]
    fn a_refusal_names_what_is_allowed_and_not_the_id() {
        let refused = IdRule::Matching(IdPattern::new("[0-9]+").unwrap()).check("S3CRET").unwrap_err();
        assert_eq!(
            refused.to_string(),
            "is refused by pay_status.http.id_pattern; must match [0-9]+ and must not be \".\" or \"..\""
        );
        let of_two_lines = IdRule::Matching(IdPattern::new("(?x)[0-9]+\n").unwrap()).check("S3CRET").unwrap_err();
        assert!(of_two_lines.to_string().contains("must match (?x)[0-9]+\\n and"), "{of_two_lines}");
        let refused = IdRule::UrlSafe.check("S3CRET/").unwrap_err().to_string();
        assert!(refused.contains("/ \\ % ? # ;") && !refused.contains("S3CRET"), "{refused}");
    }

    #[test]
    fn what_is_not_a_regular_expression_is_refused_on_one_line() {
        assert_eq!(IdPattern::new("").unwrap_err(), IdPatternError::Empty);
        for text in ["[0-9", "a)|(b", "a{99999}{99999}", "(?P<x"] {
            let error = IdPattern::new(text).unwrap_err().to_string();
            assert!(error.starts_with("is not a regular expression: ") && !error.contains('\n'), "{text}: {error}");
        }
    }
}
