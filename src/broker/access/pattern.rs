//! Permission patterns: regular expressions as RabbitMQ understands them.
//!
//! Owns the way from PCRE's notation to this program's regular expressions, which take linear time
//! whatever a client sends. What they cannot express (look-around, back-references, possessive
//! quantifiers, recursion) is refused; what they would read in another way is rewritten.

use regex::bytes::{Regex, RegexBuilder};

/// The memory that one compiled pattern may take.
const SIZE_BYTES_MAX: usize = 1 << 20;

/// A compiled pattern, which matches anywhere in a name.
#[derive(Clone, Debug)]
pub(super) enum Pattern {
    /// Any name, as `.*` does: by far the most frequent.
    Everything,
    Regex(Regex),
}

impl Pattern {
    /// Compiles a pattern; the error says what is wrong with it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text {
            // What matches an empty part of a name matches in every name.
            ".*" => Ok(Self::Everything),
            // RabbitMQ: an empty pattern is for no name, and not for all.
            "" => compile("^$").map(Self::Regex),
            _ => rewrite(text)
                .and_then(|rewritten| compile(&rewritten))
                .map(Self::Regex)
                .map_err(|reason| format!("regular expression '{text}' is refused: {reason}")),
        }
    }

    pub(super) fn is_match(&self, name: &[u8]) -> bool {
        match self {
            Self::Everything => true,
            Self::Regex(regex) => regex.is_match(name),
        }
    }
}

/// Puts a name in the place of `{placeholder}`, to be taken literally.
pub(super) fn expand(pattern: &str, placeholder: &str, name: &str) -> String {
    pattern.replace(placeholder, &regex::escape(name))
}

fn compile(text: &str) -> Result<Regex, String> {
    // RabbitMQ matches bytes. Only a pattern with classes of other than ASCII needs characters.
    let with =
        |unicode| RegexBuilder::new(text).unicode(unicode).size_limit(SIZE_BYTES_MAX).build();
    with(false).or_else(|_| with(true)).map_err(|error| {
        let text = error.to_string();
        // The last line says what is wrong; those before draw where.
        text.lines().last().unwrap_or(&text).trim_start_matches("error: ").to_owned()
    })
}

/// Rewrites what PCRE reads in another way than `regex` does, and refuses what only PCRE has and
/// `regex` would take for something else.
fn rewrite(text: &str) -> Result<String, String> {
    let mut out = String::with_capacity(text.len() + 8);
    let mut rest = text;
    let mut in_class = false;
    let mut after_quantifier = false;
    while let Some(next) = rest.chars().next() {
        let mut len = next.len_utf8();
        let mut quantifier = false;
        match next {
            '\\' => {
                len += rest[1..].chars().next().map_or(0, char::len_utf8);
                out.push_str(&escaped(&rest[..len], in_class));
            }
            '[' if in_class => {
                // `[:alpha:]` stays; anything else would open a class within the class.
                let named = rest[1..].starts_with(':') && rest.contains(":]");
                out.push_str(if named { "[" } else { "\\[" });
                if named {
                    let end = rest.find(":]").expect("looked for above") + 2;
                    out.push_str(&rest[1..end]);
                    len = end;
                }
            }
            '&' | '~' if in_class => out.extend(['\\', next]),
            ']' => {
                in_class = false;
                out.push(']');
            }
            '[' => {
                in_class = true;
                // A bracket that comes first is a member of the class.
                let opening = ["[^]", "[]", "[^", "["];
                let opening = opening.into_iter().find(|opening| rest.starts_with(opening));
                len = opening.map_or(1, str::len);
                out.push_str(&rest[..len]);
            }
            '(' if !in_class && (rest.starts_with("(?R") || rest.starts_with("(?u")) => {
                return Err("recursion and Unicode flags are not supported".to_owned());
            }
            '+' if !in_class && after_quantifier => {
                return Err("possessive quantifiers are not supported".to_owned());
            }
            '*' | '+' | '?' if !in_class => {
                quantifier = !after_quantifier;
                out.push(next);
            }
            '{' if !in_class => match repetition_len(rest) {
                Some(repetition) => {
                    len = repetition;
                    quantifier = true;
                    out.push_str(&rest[..len]);
                }
                None => out.push_str("\\{"),
            },
            '}' if !in_class => out.push_str("\\}"),
            other => out.push(other),
        }
        after_quantifier = quantifier;
        rest = &rest[len..];
    }
    Ok(out)
}

/// A backslash and a character: `regex` gives some of them a meaning that PCRE does not.
fn escaped(pair: &str, in_class: bool) -> String {
    match pair {
        "\\<" | "\\>" => pair[1..].to_owned(),
        "\\Z" if !in_class => "\\z".to_owned(),
        pair => pair.to_owned(),
    }
}

/// The length of a repetition such as `{2}`, `{2,}` or `{2,3}`; PCRE takes other braces literally.
fn repetition_len(text: &str) -> Option<usize> {
    let end = text.find('}')?;
    let inner = &text[1..end];
    let (least, most) = inner.split_once(',').unwrap_or((inner, "0"));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    (!least.is_empty() && is_number(least) && is_number(most)).then_some(end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, name: &str) -> bool {
        Pattern::parse(pattern).expect(pattern).is_match(name.as_bytes())
    }

    #[test]
    fn patterns_match_anywhere_unless_anchored() {
        assert!(matches("a", "banana") && matches("^amq\\.", "amq.gen-1"));
        assert!(!matches("^a$", "banana"));
        assert!(matches(".*", "") && matches(".*", "x"));
        assert!(matches("(?i)^ORDERS", "orders") && matches("^(a|b)+$", "abba"));
        assert!(matches("^\u{e9}", "\u{e9}t\u{e9}") && matches("[\u{e9}]", "\u{e9}"));
        assert!(Pattern::parse("^.$").expect("valid").is_match(b"\xff"));
    }

    #[test]
    fn an_empty_pattern_is_for_no_name() {
        assert!(!matches("", "q") && matches("", ""));
    }

    #[test]
    fn what_pcre_takes_literally_is_literal() {
        assert!(matches("^{client_id}$", "{client_id}") && matches("^a{,2}$", "a{,2}"));
        assert!(matches("^a{2}$", "aa") && matches("^a{1,}b{1,2}$", "aabb"));
        assert!(matches("^[[]$", "[") && matches("^[]a]+$", "a]") && matches("^[^]]$", "x"));
        assert!(matches("^[[:alpha:]&&b]+$", "a&b") && matches("^\\<a\\>\\Z", "<a>"));
    }

    #[test]
    fn what_only_pcre_can_do_is_refused() {
        let patterns =
            ["(?!amq)", "(?<=a)b", "(a)\\1", "a++", "a*+", "(?R)", "(?>a)", "(", "[a", "a{2}+"];
        for pattern in patterns {
            let reason = Pattern::parse(pattern).expect_err(pattern);
            assert!(reason.starts_with(&format!("regular expression '{pattern}'")), "{reason}");
        }
        assert!(Pattern::parse("((a{1000}){1000}){1000}").is_err());
    }
}
