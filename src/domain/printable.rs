//! Text of a message, made safe for a terminal.

use super::ids::is_invisible;

/// Returns `text` in one line, with control characters and invisible characters escaped.
pub fn printable(text: &str) -> String {
    text.chars()
        .flat_map(|character| {
            let hidden = is_invisible(character) || character.is_control();
            let escaped = hidden.then(|| character.escape_default());
            let plain = escaped.is_none().then_some(character);
            escaped.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_act_on_is_made_visible() {
        assert_eq!(printable("a\u{1b}[31m\n\u{9b}\u{202e}支\u{200b}"), "a\\u{1b}[31m\\n\\u{9b}\\u{202e}支\\u{200b}");
    }
}
