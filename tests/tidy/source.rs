//! Rust sources as the tidy rules see them.
//!
//! Owns reading the files and taking code apart just far enough: without comments and literals,
//! without tests, into functions and `crate::` paths. It must not know any rule.

use std::fs;
use std::path::{Path, PathBuf};

/// One source file in three forms of equal line structure.
pub struct Source {
    /// Relative to the repository, with forward slashes.
    pub path: String,
    /// As it is on disk.
    pub text: String,
    /// Comments and the contents of literals replaced by spaces.
    pub code: String,
    /// `code` with everything under `#[cfg(test)]` replaced by spaces; empty for test files.
    pub production: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = scrub(text);
        let production = if is_test_file(path) { String::new() } else { without_tests(&code) };
        Self { path: path.to_owned(), text: text.to_owned(), code, production }
    }

    /// The top-level module under `src/`: `queue` for `src/queue/lane.rs` and `src/queue.rs`.
    pub fn module(&self) -> Option<&str> {
        let below = self.path.strip_prefix("src/")?;
        Some(below.split('/').next()?.trim_end_matches(".rs"))
    }
}

/// The repository's root.
pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files below the given directories of the repository, in the order of their paths.
pub fn read_all(directories: &[&str]) -> Vec<Source> {
    let mut paths = Vec::new();
    for directory in directories {
        list_rust_files(&root().join(directory), &mut paths);
    }
    paths.sort();
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).expect("sources are readable UTF-8");
        let relative = path.strip_prefix(root()).expect("found below the root");
        Source::new(relative.to_str().expect("ASCII file names"), &text)
    };
    paths.into_iter().map(read).collect()
}

fn list_rust_files(directory: &Path, out: &mut Vec<PathBuf>) {
    // A directory that is not there yet has no files.
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries {
        let path = entry.expect("readable directory").path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if path.is_dir() && name != "target" && name != "node_modules" && !name.starts_with('.') {
            list_rust_files(&path, out);
        } else if name.ends_with(".rs") {
            out.push(path);
        }
    }
}

/// Files that hold nothing but tests: `tests.rs` and `..._tests.rs`, and what lies in a directory
/// of such a name.
pub fn is_test_file(path: &str) -> bool {
    let parts = path.split('/').map(|part| part.trim_end_matches(".rs"));
    parts.into_iter().any(|part| part == "tests" || part.ends_with("_tests"))
}

/// The line number, from 1, of a byte offset.
pub fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes()[..offset].iter().filter(|&&b| b == b'\n').count() + 1
}

/// Whether a byte can be part of an identifier.
pub fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

/// Offsets of `word` in `code` where it does not continue an identifier on either side.
pub fn find_words<'a>(code: &'a str, word: &'a str) -> impl Iterator<Item = usize> + 'a {
    let bytes = code.as_bytes();
    code.match_indices(word).map(|(at, _)| at).filter(move |&at| {
        let end = at + word.len();
        let before = at > 0 && is_word(bytes[at - 1]) && is_word(word.as_bytes()[0]);
        let last = word.as_bytes()[word.len() - 1];
        let after = end < bytes.len() && is_word(bytes[end]) && is_word(last);
        !before && !after
    })
}

/// Replaces comments, and what stands between the quotes of literals, by spaces.
pub fn scrub(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = at + literal_or_comment_len(bytes, at);
        if end == at {
            out.push(if bytes[at].is_ascii() { bytes[at] } else { b' ' });
            at += 1;
            continue;
        }
        out.extend(bytes[at..end].iter().map(|&b| if b == b'\n' { b'\n' } else { b' ' }));
        at = end;
    }
    String::from_utf8(out).expect("only ASCII was kept")
}

/// How many bytes the comment or literal that begins at `at` takes; 0 when none begins there.
fn literal_or_comment_len(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    let continues_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => rest.iter().position(|&b| b == b'\n').unwrap_or(rest.len()),
        [b'/', b'*', ..] => block_comment_len(rest),
        [b'"', ..] => quoted_len(rest, 0),
        [b'r', b'"' | b'#', ..] if !continues_word => raw_string_len(rest, 1),
        [b'b' | b'c', b'"', ..] if !continues_word => quoted_len(rest, 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !continues_word => raw_string_len(rest, 2),
        // A lifetime has no closing quote after its first character.
        [b'\'', b'\\', ..] => char_len(rest),
        [b'\'', _, b'\'', ..] => 3,
        [b'\'', first, ..] if !first.is_ascii() => char_len(rest),
        _ => 0,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// A string literal whose opening quote stands at `quote`.
fn quoted_len(rest: &[u8], quote: usize) -> usize {
    let mut at = quote + 1;
    while at < rest.len() && rest[at] != b'"' {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// A raw string literal whose hashes begin at `start`; 0 for a raw identifier.
fn raw_string_len(rest: &[u8], start: usize) -> usize {
    let hashes = rest[start..].iter().take_while(|&&b| b == b'#').count();
    if rest.get(start + hashes) != Some(&b'"') {
        return 0;
    }
    let closing: Vec<u8> = std::iter::once(b'"').chain(std::iter::repeat_n(b'#', hashes)).collect();
    let content = start + hashes + 1;
    let end = rest[content..].windows(closing.len()).position(|window| window == closing);
    end.map_or(rest.len(), |end| content + end + closing.len())
}

fn char_len(rest: &[u8]) -> usize {
    let skip = if rest[1] == b'\\' { 3 } else { 1 };
    let end = rest.iter().skip(skip).position(|&b| b == b'\'');
    end.map_or(rest.len(), |end| skip + end + 1)
}

/// Replaces every item under `#[cfg(test)]` by spaces.
fn without_tests(code: &str) -> String {
    const MARK: &str = "#[cfg(test)]";
    let mut out = code.as_bytes().to_vec();
    for (at, _) in code.match_indices(MARK) {
        let end = item_end(code, at + MARK.len());
        for byte in out[at..end].iter_mut().filter(|byte| **byte != b'\n') {
            *byte = b' ';
        }
    }
    String::from_utf8(out).expect("scrubbed code is ASCII")
}

/// Where the item that begins at `start` ends: after its `;` or its braces.
pub fn item_end(code: &str, start: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(start) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b';' if depth == 0 => return offset + 1,
            b'{' if depth == 0 => return block_end(code, offset),
            _ => {}
        }
    }
    code.len()
}

/// Where the block that opens at `open` ends: after its closing brace.
fn block_end(code: &str, open: usize) -> usize {
    let mut depth = 0_usize;
    for (offset, byte) in code.bytes().enumerate().skip(open) {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return offset + 1;
        }
    }
    code.len()
}

/// A function with a body.
pub struct Function<'a> {
    pub name: &'a str,
    pub line: usize,
    pub lines: usize,
}

pub fn functions(code: &str) -> Vec<Function<'_>> {
    let mut found = Vec::new();
    for at in find_words(code, "fn") {
        let name = first_word(code[at + 2..].trim_start());
        // A function pointer's type has no name.
        if name.is_empty() {
            continue;
        }
        let end = item_end(code, at);
        let (line, last) = (line_of(code, at), line_of(code, end - 1));
        found.push(Function { name, line, lines: last - line + 1 });
    }
    found
}

/// The identifier that `code` begins with, possibly empty.
pub fn first_word(code: &str) -> &str {
    let end = code.bytes().position(|b| !is_word(b)).unwrap_or(code.len());
    &code[..end]
}

/// Every path that begins with `crate::`, groups in braces written out, with its line:
/// `crate::a::{b, c::D}` gives `a::b` and `a::c::D`.
pub fn crate_paths(code: &str) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for at in find_words(code, "crate::") {
        let mut paths = Vec::new();
        expand_path(&code[at + "crate::".len()..], "", &mut paths);
        let line = line_of(code, at);
        found.extend(paths.into_iter().map(|path| (line, path)));
    }
    found
}

/// Adds the paths that the tree at the beginning of `code` stands for; returns what follows it.
fn expand_path<'a>(code: &'a str, prefix: &str, out: &mut Vec<String>) -> &'a str {
    let code = code.trim_start();
    if let Some(mut group) = code.strip_prefix('{') {
        loop {
            group = group.trim_start();
            if group.is_empty() || group.starts_with('}') {
                return group.strip_prefix('}').unwrap_or(group);
            }
            let rest = expand_path(group, prefix, out).trim_start();
            group = rest.strip_prefix(',').unwrap_or(rest);
            // Something that is no path, such as `as name`: step over it.
            if rest.len() == group.len() && !group.starts_with('}') {
                let next = group.find([',', '}']).unwrap_or(group.len());
                group = group[next..].trim_start_matches(',');
            }
        }
    }
    let word = first_word(code);
    let path = if prefix.is_empty() { word.to_owned() } else { format!("{prefix}::{word}") };
    let rest = &code[word.len()..];
    match rest.strip_prefix("::") {
        Some(below) if !below.starts_with('<') => expand_path(below, &path, out),
        _ => {
            out.push(path);
            rest
        }
    }
}

#[test]
fn scrubbing_keeps_code_and_lines_only() {
    let text =
        "let a = \"x // y\"; // note\n/* b /* c */ d */ let e = 'f';\nfn g<'a>(_: &'a str) {}";
    let code = scrub(text);
    assert_eq!(code.len(), text.len());
    let words: Vec<&str> = code.split_whitespace().collect();
    let expected = "let a = ; let e = ; fn g<'a>(_: &'a str) {}";
    assert_eq!(words.join(" "), expected);
    assert_eq!(code.lines().count(), 3);
    for literal in
        ["r#\"a \" b\"#", "b\"\\\"\"", "'\\''", "'\\u{e9}'", "b'\\n'", "\"\\\\\"", "br\"\\\""]
    {
        let code = scrub(&format!("x({literal})y"));
        assert!(code.starts_with("x(") && code.ends_with(")y"), "{literal}: {code}");
        assert!(!code.contains(['"', '\'', '\\']), "{literal}: {code}");
    }
    assert_eq!(scrub("r#type + r"), "r#type + r");
}

#[test]
fn tests_are_no_production_code() {
    let text =
        "fn a() {}\n#[cfg(test)]\nmod tests { fn b() {} }\nfn c() {}\n#[cfg(test)]\nmod t;\n";
    let source = Source::new("src/x.rs", text);
    let names: Vec<_> = functions(&source.production).iter().map(|f| f.name).collect();
    assert_eq!(names, ["a", "c"]);
    assert_eq!(functions(&source.code).len(), 3);
    assert!(Source::new("src/x/tests.rs", "fn a() {}").production.is_empty());
}

#[test]
fn functions_are_measured_with_signature_and_braces() {
    let code = "fn a(_: [u8; 2])\n{\n if x { y }\n}\ntrait T { fn b(&self); }\ntype P = fn(u8);";
    let found: Vec<_> = functions(code).iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(found, [("a", 1, 4), ("b", 5, 1)]);
}

#[test]
fn groups_of_imports_are_written_out() {
    let code = "use crate::{a, b::{C, d::E as F}, g};\nlet x = crate::h::i();\nuse crate::j::*;";
    let found: Vec<_> = crate_paths(code).into_iter().map(|(_, path)| path).collect();
    assert_eq!(found, ["a", "b::C", "b::d::E", "g", "h::i", "j::"]);
}
