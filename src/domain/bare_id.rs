//! Documents of other formats in the place of a bare payment id. Looked up as an id, a document would be unknown at every
//! check and then be forgotten.

/// The kind of document that a text is; `None` if it may be an id.
pub(super) fn other_content(text: &str) -> Option<&'static str> {
    let is = |is: bool, content: &'static str| is.then_some(content);
    is(is_json(text), "JSON within a text")
        .or_else(|| is(text.contains(['<', '>']), "markup (XML or HTML)"))
        .or_else(|| is(is_form(text), "a form or a pair of name and value"))
        .or_else(|| is(text.contains([',', ';', '|', '\u{ff0c}', '\u{ff1b}', '\u{3001}']), "a list"))
}

/// Whether a text is a JSON object, array, string or literal, complete or cut off. An id within braces, as some systems write a
/// GUID, is not JSON.
fn is_json(text: &str) -> bool {
    let text = text.trim_start();
    let is_object =
        || text.strip_prefix('{').is_some_and(|rest| rest.contains([':', '"', ',', '{', ' ']) || rest.len() < 2);
    matches!(text, "null" | "true" | "false") || text.starts_with(['"', '[']) || is_object()
}

/// Whether a text has a pair `name=value`. Trailing `=`, as in base64, make no pair.
fn is_form(text: &str) -> bool {
    text.trim_end_matches('=').contains('=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_from_ids() {
        for (text, content) in [
            ("<?xml version=\"1.0\"?><id>7</id>", "markup"),
            ("<id/>", "markup"),
            ("7</id>", "markup"),
            ("a=b&c=d", "a form"),
            ("paymentId=7", "a form"),
            ("a=&b=", "a form"),
            ("a==b", "a form"),
            ("{\"paymentId\":7}", "JSON"),
            ("{paymentId: 7}", "JSON"),
            ("{\"paymentId\":", "JSON"),
            ("{}", "JSON"),
            ("{", "JSON"),
            ("[7]", "JSON"),
            ("[", "JSON"),
            ("\"7\"", "JSON"),
            (" \"7", "JSON"),
            ("null", "JSON"),
            ("true", "JSON"),
            ("7,8", "a list"),
            ("7, 8", "a list"),
            ("7;8", "a list"),
            ("7|8", "a list"),
            ("7\u{ff0c}8", "a list"),
        ] {
            assert!(
                other_content(text).is_some_and(|told| told.starts_with(content)),
                "{text}: {:?}",
                other_content(text)
            );
        }
        for id in [
            "7",
            "ORDER 7",
            "ORDER-7",
            "-7",
            "a/b:c@d#e",
            "{3F2504E0-4F89-11D3-9A0C-0305E82C3301}",
            "cGF5bWVudA==",
            "YTE=",
            "P&A-7",
            "O'Neil",
            "1.5",
            "nullable",
            "x[1]",
            "",
            "\u{652f}\u{4ed8}",
        ] {
            assert_eq!(other_content(id), None, "{id}");
        }
    }
}
