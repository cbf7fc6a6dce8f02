//! Makes text of strangers safe for the terminal. A message body may contain line breaks, escape sequences and marks
//! that reverse the direction of text. Printed raw, they forge lines of the output or control the terminal; here they
//! become visible escapes.

use std::borrow::Cow;
use std::fmt::Write;

/// Replaces every character that controls a terminal by a visible escape: `\n`, `\r`, `\t`, or `\u{1b}` for the others.
/// Text without such characters is returned unchanged; a backslash stays a backslash.
///
/// ```
/// assert_eq!(agentpost_cli::terminal::escaped("two\nlines \u{1b}[31m"), "two\\nlines \\u{1b}[31m");
/// ```
pub fn escaped(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if obeyed(c) => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// Whether a character controls the terminal or the order of text: C0, DEL and C1, line and paragraph separators, marks
/// that change the direction, invisible format characters.
fn obeyed(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{061c}' | '\u{200b}' | '\u{200e}' | '\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_text_of_any_script_is_unchanged() {
        for text in [
            "Here are the results.",
            "C:\\new",
            "größer → 漢字 العربية עברית",
            "👩‍🚀 e\u{301}",
            "",
        ] {
            assert!(matches!(escaped(text), Cow::Borrowed(t) if t == text), "{text}");
        }
    }

    #[test]
    fn control_characters_are_escaped() {
        for (raw, shown) in [
            ("a\nb\r\tc", "a\\nb\\r\\tc"),
            ("\u{1b}]0;owned\u{7}", "\\u{1b}]0;owned\\u{7}"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("a\u{202e}fdp.exe", "a\\u{202e}fdp.exe"),
            ("a\u{2066}b\u{2069}\u{061c}", "a\\u{2066}b\\u{2069}\\u{61c}"),
            ("a\u{2028}b\u{feff}", "a\\u{2028}b\\u{feff}"),
            ("\0", "\\u{0}"),
        ] {
            assert_eq!(escaped(raw), shown);
        }
    }
}
