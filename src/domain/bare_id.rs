//! Detects documents of other formats in the place of a bare payment ID. A document that was looked up as an ID would
//! be unknown at every check and would then be dropped.

/// Returns the kind of document that a text contains; `None` if the text may be an ID.
pub(super) fn document_kind(text: &str) -> Option<&'static str> {
    let is = |is: bool, content: &'static str| is.then_some(content);
    is(is_json(text), "JSON within a string")
        .or_else(|| is(text.contains(['<', '>']), "markup (XML or HTML)"))
        .or_else(|| is(is_form(text), "form data or a name=value pair"))
        .or_else(|| is(text.contains([',', ';', '|', '\u{ff0c}', '\u{ff1b}', '\u{3001}']), "a list"))
}

/// Returns whether a text is a JSON object, array, string or literal, complete or truncated. An ID within braces, as
/// some systems write a GUID, is not JSON.
fn is_json(text: &str) -> bool {
    let text = text.trim_start();
    let is_object =
        || text.strip_prefix('{').is_some_and(|rest| rest.contains([':', '"', ',', '{', ' ']) || rest.len() < 2);
    matches!(text, "null" | "true" | "false") || text.starts_with(['"', '[']) || is_object()
}

/// Returns whether a text contains a pair `name=value`. A trailing `=`, as in base64, is not a pair.
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
            ("a=b&c=d", "form data"),
            ("paymentId=7", "form data"),
            ("a=&b=", "form data"),
            ("a==b", "form data"),
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
                document_kind(text).is_some_and(|reported| reported.starts_with(content)),
                "{text}: {:?}",
                document_kind(text)
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
            assert_eq!(document_kind(id), None, "{id}");
        }
    }
}
