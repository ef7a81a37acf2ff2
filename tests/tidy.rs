//! The house rules that a compiler does not check.
//!
//! Each rule is a test with a message that says where and what to do, and each proves on a
//! snippet that it can fail. ARCHITECTURE.md explains the layers. Only the standard library is
//! used, so that this is the first test to be ready.

#[path = "tidy/source.rs"]
mod source;

use source::{
    Source, crate_paths, find_words, first_word, functions, is_test_file, line_of, read_all, root,
};
use std::collections::BTreeSet;
use std::process::Command;

const FILE_LINES_MAX: usize = 600;
const FUNCTION_LINES_MAX: usize = 70;
const COLUMNS_MAX: usize = 100;

/// Which modules of ours each top-level module may import, besides itself. `main` and `lib` may
/// import everything.
const LAYERS: &[(&str, &[&str])] = &[
    // Leaves.
    ("atomic_file", &[]),
    ("clock", &[]),
    ("config", &[]),
    ("error", &[]),
    // Pure: bytes and state machines, no sockets, no clock, no locks.
    ("codec", &["error"]),
    ("queue", &["clock", "codec", "error"]),
    ("routing", &["codec", "error"]),
    // What lasts.
    ("store", &["atomic_file", "clock", "codec", "config", "error", "queue"]),
    // Shared state, synchronous.
    ("broker", &["clock", "codec", "config", "error", "queue", "routing", "store"]),
    // One AMQP connection, without its socket.
    ("connection", &["broker", "clock", "codec", "config", "error", "queue", "routing"]),
    // The outside.
    ("net", &["broker", "clock", "codec", "config", "connection", "error", "start_error"]),
    ("http", &["broker", "clock", "codec", "config", "error"]),
    ("perf", &["codec", "error"]),
    ("bench_api", &["broker", "clock", "connection", "queue", "store"]),
    // The process.
    ("data_dir", &["atomic_file"]),
    ("definitions_command", &["broker", "data_dir", "provision"]),
    ("provision", &["broker", "config", "start_error"]),
    ("ready_file", &["atomic_file", "start_error"]),
    ("start_error", &["config", "data_dir"]),
    ("store_command", &["data_dir", "store"]),
];

/// Names that `lib.rs` re-exports, and the module that each is of.
const REEXPORTS: &[(&str, &str)] = &[("StartError", "start_error")];

/// Paths that are closed to a module although their top-level module is open to it.
const CLOSED_PATHS: &[(&str, &str)] = &[("http", "broker::outbox")];

/// Words that production code of a layer must not hold, and why. `std::sync::Arc` shares
/// without synchronising and is let through.
const LAYER_WORDS: &[(&[&str], &[&str], &str)] = &[
    (
        &["codec", "queue", "routing"],
        &["tokio", "tracing", "std::sync", "std::fs", "std::net", "Instant", "SystemTime", "rand"],
        "it is pure: take time and bytes as arguments and return effects",
    ),
    (
        &["broker", "connection"],
        &["tokio", ".await", "async"],
        "it is synchronous: sockets, timers and tasks belong to net",
    ),
    (
        &["queue", "routing", "connection"],
        &["serde", "Serialize", "Deserialize"],
        "its types have no stable encoding: encode in the layer that stores or shows them",
    ),
];

/// The only file that may lock each kind of state (blanks left out of the code).
const LOCK_OWNERS: &[(&str, &str)] = &[
    ("Mutex<Queue", "src/broker/queue_cell.rs"),
    ("Mutex<Out", "src/broker/outbox.rs"),
    ("RwLock<Queue", "src/broker/queue_cell.rs"),
    ("RwLock<Out", "src/broker/outbox.rs"),
];

/// Something to mend: the line, from 1, and what to do.
type Violation = (usize, String);

type Rule = fn(&Source) -> Vec<Violation>;

/// Applies `rule` to every Rust file below `directories`.
#[track_caller]
fn check(directories: &[&str], rule: Rule) {
    let mut report = Vec::new();
    let sources = read_all(directories);
    assert!(!sources.is_empty(), "no Rust files below {directories:?}");
    for source in &sources {
        for (line, what) in rule(source) {
            report.push(format!("{}:{line}: {what}", source.path));
        }
    }
    assert!(report.is_empty(), "\n{}\n", report.join("\n"));
}

/// Shows that `rule` refuses `bad` at `line` and lets `good` through, both as the file `path`.
#[track_caller]
fn prove(rule: Rule, path: &str, bad: &str, line: usize, good: &str) {
    let found = rule(&Source::new(path, bad));
    assert!(found.iter().any(|(at, _)| *at == line), "{path} line {line} must fail: {found:?}");
    let found = rule(&Source::new(path, good));
    assert!(found.is_empty(), "{path} is fine: {found:?}");
}

const ALL: &[&str] = &["src", "tests", "benches", "conformance", "fuzz"];
const PROGRAMS: &[&str] = &["src", "benches", "conformance"];

#[test]
fn layers_import_downwards_only() {
    prove(
        layering,
        "src/codec/frame.rs",
        "use crate::error::ReplyCode;\nuse crate::queue::Queue;",
        2,
        "use crate::error::ReplyCode;\n// crate::queue\n#[cfg(test)]\nuse crate::queue::Queue;",
    );
    prove(layering, "src/queue/lane.rs", "use crate::{codec::hot, broker};", 1, "");
    prove(layering, "src/perf/mod.rs", "fn f() { crate::broker::run() }", 1, "use crate::codec;");
    prove(layering, "src/net/mod.rs", "use crate::Broker;", 1, "use crate::StartError;");
    prove(layering, "src/http/a.rs", "use crate::broker::{outbox::O};", 1, "use crate::broker::B;");
    prove(layering, "src/codec/a.rs", "use super::super::queue;", 1, "use super::frame;");
    prove(layering, "src/error.rs", "use super::codec;", 1, "use std::fmt;");
    prove(layering, "src/unlisted.rs", "\n", 1, "");
    check(&["src"], layering);
}

fn layering(source: &Source) -> Vec<Violation> {
    let Some(module) = source.module() else { return Vec::new() };
    if matches!(module, "lib" | "main") || source.text.is_empty() {
        return Vec::new();
    }
    let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == module) else {
        return vec![(1, format!("`{module}` has no row in LAYERS of tests/tidy.rs: add one"))];
    };
    let mut found = climbs_to_root(source);
    for (line, path) in crate_paths(&source.production) {
        let first = first_word(&path);
        let target = REEXPORTS.iter().find(|(name, _)| *name == first).map_or(first, |(_, of)| *of);
        let is_closed =
            CLOSED_PATHS.iter().any(|(from, to)| *from == module && path.starts_with(to));
        if (target != module && !allowed.contains(&target)) || is_closed {
            let what = format!(
                "`{module}` must not import `{path}`: it may use {allowed:?}; move the shared \
                 part down, or the caller up"
            );
            found.push((line, what));
        }
    }
    found
}

/// `super::` as far as the crate's root would hide an import from the rule.
fn climbs_to_root(source: &Source) -> Vec<Violation> {
    let below = source.path.trim_start_matches("src/").trim_end_matches(".rs");
    let depth = below.trim_end_matches("/mod").split('/').count();
    let climb = "super::".repeat(depth);
    find_words(&source.production, &climb)
        .map(|at| (line_of(&source.production, at), format!("write crate:: instead of {climb}")))
        .collect()
}

#[test]
fn layers_keep_out_what_is_not_theirs() {
    let pure = "src/queue/lane.rs";
    prove(layer_words, pure, "use std::sync::Mutex;", 1, "use std::sync::Arc;");
    prove(layer_words, pure, "\nlet t = Instant::now();", 2, "// Instant\nlet t = Instantly;");
    prove(layer_words, "src/codec/a.rs", "tracing::info!();", 1, "\"tracing\"");
    prove(layer_words, "src/broker/a.rs", "x\n.await;", 2, "#[cfg(test)]\nuse tokio::test;");
    prove(layer_words, "src/connection/a.rs", "use tokio::net;", 1, "use std::task::Waker;");
    prove(layer_words, "src/routing/a.rs", "#[derive(Serialize)]\nstruct A;", 1, "struct A;");
    check(&["src"], layer_words);
}

fn layer_words(source: &Source) -> Vec<Violation> {
    let Some(module) = source.module() else { return Vec::new() };
    let code = source.production.replace("std::sync::Arc", "");
    let mut found = Vec::new();
    for (layers, words, why) in LAYER_WORDS {
        for word in words.iter().filter(|_| layers.contains(&module)) {
            let what = format!("`{word}` has no place in `{module}`: {why}");
            found.extend(find_words(&code, word).map(|at| (line_of(&code, at), what.clone())));
        }
    }
    found
}

#[test]
fn the_queue_repeats_exactly() {
    let path = "src/queue/a.rs";
    prove(
        unordered_iteration,
        path,
        "struct A { by_id: FxHashMap<u64, B> }\nfn f(a: &A) { for b in a.by_id.values() {} }",
        2,
        "struct A { by_id: FxHashMap<u64, B>, c: Vec<B> }\nfn f() { a.by_id.get(1); a.c.iter() }",
    );
    prove(
        unordered_iteration,
        path,
        "struct A { ids: HashSet<u64> }\nfn f(a: A) {\n for i in &a.ids {} }",
        3,
        "struct A { ids: BTreeSet<u64> }\nfn f(a: A) { for i in &a.ids {} }",
    );
    check(&["src/queue"], unordered_iteration);
}

/// Iterating over a hash table makes a run depend on the hasher; look up only, or keep order.
fn unordered_iteration(source: &Source) -> Vec<Violation> {
    const STEPS: &[&str] =
        &["iter", "iter_mut", "into_iter", "keys", "values", "values_mut", "drain", "retain"];
    let code = &source.production;
    let mut found = Vec::new();
    for table in ["HashMap<", "HashSet<"] {
        for (at, _) in code.match_indices(table) {
            let Some((declared, _)) = code[..at].rsplit_once(':') else { continue };
            let name = declared.trim_end_matches(':').trim_end();
            let start = name.bytes().rposition(|b| !source::is_word(b)).map_or(0, |at| at + 1);
            let name = &name[start..];
            for at in find_words(code, name).filter(|_| !name.is_empty()) {
                let rest = code[at + name.len()..].trim_start();
                let step = rest.strip_prefix('.').map_or("", |rest| first_word(rest.trim_start()));
                let head = code[..at].rsplit([';', '{', '}', '(']).next().unwrap_or_default();
                let is_loop = find_words(head, "in").next().is_some() && rest.starts_with('{');
                if STEPS.contains(&step) || is_loop {
                    let what = format!("`{name}` is a hash table: its order differs between runs");
                    found.push((line_of(code, at), what));
                }
            }
        }
    }
    found
}

#[test]
fn each_lock_has_one_owner() {
    prove(lock_owners, "src/broker/vhost.rs", "\na: Mutex< Queue >", 2, "a: Mutex<Topology>");
    prove(lock_owners, "src/net/socket.rs", "a: Arc<Mutex<Outgoing>>", 1, "a: Arc<Outbox>");
    let owner = Source::new("src/broker/queue_cell.rs", "a: Mutex<Queue>");
    assert!(lock_owners(&owner).is_empty());
    check(&["src"], lock_owners);
}

fn lock_owners(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, line) in source.production.lines().enumerate() {
        let line: String = line.split_whitespace().collect();
        for (lock, owner) in LOCK_OWNERS.iter().filter(|(_, owner)| source.path != *owner) {
            if line.contains(lock) {
                found
                    .push((index + 1, format!("only {owner} may name `{lock}...`: go through it")));
            }
        }
    }
    found
}

#[test]
fn modules_begin_with_what_they_own() {
    prove(module_docs, "src/a.rs", "use std::fmt;\n", 1, "//! Owns a thing.\nuse std::fmt;\n");
    prove(module_docs, "src/a.rs", "//!\n//! Late.\n", 1, "//! Soon.\n");
    check(ALL, module_docs);
}

fn module_docs(source: &Source) -> Vec<Violation> {
    let first = source.text.lines().next().unwrap_or_default();
    match first.strip_prefix("//! ") {
        Some(sentence) if !sentence.trim().is_empty() => Vec::new(),
        _ => vec![(1, "begin with `//! ` and what the file owns and must not do".to_owned())],
    }
}

#[test]
fn files_are_short() {
    let long = "fn a() {}\n".repeat(FILE_LINES_MAX + 1);
    let tests = format!("fn a() {{}}\n#[cfg(test)]\nmod tests {{\n{long}}}\n");
    prove(file_length, "src/a.rs", &long, FILE_LINES_MAX + 1, &tests);
    prove(file_length, "src/a.rs", &long, FILE_LINES_MAX + 1, &long[10..]);
    check(PROGRAMS, file_length);
}

/// Lines up to the last one that is not test code; comments count.
fn file_length(source: &Source) -> Vec<Violation> {
    if is_test_file(&source.path) {
        return Vec::new();
    }
    let lines = match source.text.find("\n#[cfg(test)]\nmod tests {") {
        Some(at) => line_of(&source.text, at),
        None => source.text.lines().count(),
    };
    if lines <= FILE_LINES_MAX {
        return Vec::new();
    }
    vec![(
        lines,
        format!("{lines} lines, at most {FILE_LINES_MAX} without tests: split by subject"),
    )]
}

#[test]
fn functions_are_short() {
    let body = |lines: usize| format!("\nfn a() {{\n{}}}\n", "b();\n".repeat(lines - 2));
    let (long, fits) = (body(FUNCTION_LINES_MAX + 1), body(FUNCTION_LINES_MAX));
    prove(function_length, "src/a.rs", &long, 2, &fits);
    check(PROGRAMS, function_length);
}

fn function_length(source: &Source) -> Vec<Violation> {
    let long = functions(&source.production).into_iter().filter(|f| f.lines > FUNCTION_LINES_MAX);
    long.map(|f| {
        let (name, lines) = (f.name, f.lines);
        (f.line, format!("`{name}` has {lines} lines, at most {FUNCTION_LINES_MAX}: split it"))
    })
    .collect()
}

#[test]
fn lines_are_short_and_ascii() {
    let long = format!("\n//{}\n", "x".repeat(COLUMNS_MAX - 1));
    prove(line_shape, "src/a.rs", &long, 2, &long[..COLUMNS_MAX]);
    prove(line_shape, "src/a.rs", "a\n// caf\u{e9}", 2, "a\n\"caf\\u{e9}\"");
    prove(line_shape, "src/a.rs", "a\n\tb", 2, "a\n    b");
    check(ALL, line_shape);
}

fn line_shape(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let columns = line.chars().count();
        if columns > COLUMNS_MAX {
            found.push((index + 1, format!("{columns} columns, at most {COLUMNS_MAX}: wrap it")));
        }
        if !line.is_ascii() {
            found.push((index + 1, "not ASCII: write it as \\u{...}, or in words".to_owned()));
        }
        if line.contains('\t') {
            found.push((index + 1, "a tab: write \\t, or indent with spaces".to_owned()));
        }
    }
    found
}

#[test]
fn nothing_is_left_unfinished() {
    prove(unfinished, "src/a.rs", "fn a() {\n todo!()\n}", 2, "fn a() { \"todo!\" }");
    prove(unfinished, "src/a.rs", "unimplemented!();", 1, "// unimplemented!\n");
    prove(unfinished, "tests/a.rs", "dbg!(x);", 1, "debug!(x);");
    prove(unfinished, "src/a.rs", "a.unwrap();", 1, "#[cfg(test)]\nfn t() { a.unwrap(); }");
    prove(unfinished, "src/a/tests.rs", "dbg!(x);", 1, "a.unwrap(); a.unwrap_or(b);");
    check(ALL, unfinished);
}

fn unfinished(source: &Source) -> Vec<Violation> {
    let mut found = Vec::new();
    for word in ["todo!", "unimplemented!", "dbg!"] {
        let what = format!("`{word}` must not be committed: finish it");
        let places = find_words(&source.code, word);
        found.extend(places.map(|at| (line_of(&source.code, at), what.clone())));
    }
    if source.path.starts_with("src/") {
        let code = &source.production;
        let what = "write expect(\"why it holds\"), or return the error";
        let places = code.match_indices(".unwrap()");
        found.extend(places.map(|(at, _)| (line_of(code, at), what.to_owned())));
    }
    found
}

#[test]
fn names_are_those_of_amqp() {
    prove(names, "src/broker/a.rs", "\nstruct QueueManager;", 2, "struct QueueCell;");
    prove(names, "src/broker/a.rs", "fn get_queue() {}", 1, "fn get_ok() {} fn queue() {}");
    prove(names, "src/broker/a.rs", "mod queue_utils;", 1, "mod queue_cell;");
    prove(names, "src/broker/frame_handler.rs", "//! A.", 1, "");
    check(PROGRAMS, names);
}

/// RabbitMQ's users know vhosts, exchanges and queues; a manager of queues says nothing.
fn names(source: &Source) -> Vec<Violation> {
    const EMPTY_WORDS: &[&str] = &["manager", "handler", "utils", "util", "helper", "helpers"];
    let says_nothing = |name: &str| {
        let lower = name.to_ascii_lowercase();
        EMPTY_WORDS.iter().any(|word| lower == *word || lower.ends_with(&format!("_{word}")))
            || ["Manager", "Handler", "Utils", "Util", "Helper"].iter().any(|w| name.ends_with(w))
    };
    let mut found = Vec::new();
    let stem = source.path.rsplit('/').next().unwrap_or_default().trim_end_matches(".rs");
    if says_nothing(stem) && !source.text.is_empty() {
        found.push((1, format!("`{stem}` does not say what the file owns: use a noun of AMQP")));
    }
    let code = &source.production;
    for kind in ["struct", "enum", "trait", "mod", "fn", "type"] {
        for at in find_words(code, kind) {
            let name = first_word(code[at + kind.len()..].trim_start());
            let is_getter = kind == "fn" && name.starts_with("get_");
            // basic.get has these two answers.
            let is_method = matches!(name, "get_ok" | "get_empty");
            if says_nothing(name) || (is_getter && !is_method) {
                let what = format!("`{name}`: name it by what it is, without get_ or manager");
                found.push((line_of(code, at), what));
            }
        }
    }
    found
}

#[test]
fn every_file_is_a_module() {
    let source = |path: &str, text: &str| Source::new(path, text);
    let tree = |root: &str| {
        vec![
            source("src/lib.rs", root),
            source("src/main.rs", ""),
            source("src/a/mod.rs", "mod b;"),
            source("src/a/b.rs", "#[cfg(test)]\nmod tests;"),
            source("src/a/b/tests.rs", ""),
            source("src/c.rs", "// mod d;"),
        ]
    };
    assert!(dead_files(&tree("pub mod a;\npub(crate) mod c;")).is_empty());
    assert_eq!(dead_files(&tree("pub mod a;")), ["src/c.rs"]);
    let mut with_dead = tree("mod a; mod c;");
    with_dead.push(source("src/c/d.rs", ""));
    assert_eq!(dead_files(&with_dead), ["src/c/d.rs"]);

    let mut dead = dead_files(&read_all(&["src"]));
    dead.extend(dead_files(&read_all(&["conformance/src"])));
    assert!(dead.is_empty(), "no module declares these files: add `mod` or delete {dead:?}");
}

/// Files that their parent module does not declare.
fn dead_files(sources: &[Source]) -> Vec<String> {
    let declared: BTreeSet<String> = sources.iter().flat_map(declared_modules).collect();
    let is_root = |path: &str| path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    let paths = sources.iter().map(|source| source.path.as_str());
    let is_dead = |path: &&str| !is_root(path) && !declared.contains(&module_path(path));
    paths.filter(is_dead).map(str::to_owned).collect()
}

/// `src/a/b` for `src/a/b.rs` and `src/a/b/mod.rs`.
fn module_path(path: &str) -> String {
    path.trim_end_matches(".rs").trim_end_matches("/mod").to_owned()
}

fn declared_modules(source: &Source) -> Vec<String> {
    let own = module_path(&source.path);
    let folder = match own.rsplit_once('/') {
        Some((folder, "lib" | "main")) => folder.to_owned(),
        _ => own,
    };
    find_words(&source.code, "mod")
        .map(|at| first_word(source.code[at + "mod".len()..].trim_start()))
        .map(|name| format!("{folder}/{name}"))
        .collect()
}

#[test]
fn nothing_names_the_place_it_was_made_in() {
    let work = concat!("cd /wo", "rk/main");
    assert_eq!(places("a.md", &format!("fine\n{work}")).len(), 1);
    assert_eq!(places("a.sh", concat!("x=/ho", "me/someone/x")).len(), 1);
    assert_eq!(places("a.md", concat!("see https://cra", "tes.io/x")).len(), 1);
    assert_eq!(places("a.toml", concat!("at registry.npm", "js.org")).len(), 1);
    assert!(
        places("Cargo.lock", concat!("https://github.com/rust-lang/cra", "tes.io-index"))
            .is_empty()
    );
    assert!(places("a.md", "src/network/main, /var/lib/leveret").is_empty());

    let mut report = Vec::new();
    for path in repository_files() {
        // What is not text has no words.
        let Ok(text) = std::fs::read_to_string(root().join(&path)) else { continue };
        for (line, what) in places(&path, &text) {
            report.push(format!("{path}:{line}: {what}"));
        }
    }
    assert!(report.is_empty(), "\n{}\n", report.join("\n"));
}

/// Paths of somebody's machine, and hosts of package registries outside lock files. Written in
/// halves, so that this file does not hold them.
fn places(path: &str, text: &str) -> Vec<Violation> {
    const PATHS: &[&str] = &[
        concat!("/wo", "rk/"),
        concat!("/ho", "me/"),
        concat!("/ro", "ot/"),
        concat!("/Us", "ers/"),
        concat!("/tmp/te", "am"),
    ];
    const HOSTS: &[&str] = &[
        concat!("cra", "tes.io"),
        concat!("npm", "js.org"),
        concat!("py", "pi.org"),
        concat!("python", "hosted.org"),
        concat!("proxy.go", "lang.org"),
        concat!("ma", "ven.org"),
        concat!("maven.apa", "che.org"),
        concat!("deb.deb", "ian.org"),
    ];
    let name = path.rsplit('/').next().unwrap_or_default();
    let is_lock = name.ends_with(".lock") || name.contains("-lock.") || name == "go.sum";
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for word in PATHS {
            // Within a longer path or a word it means something else.
            let is_start = |(at, _): &(usize, &str)| {
                !line[..*at].ends_with(|c: char| c.is_alphanumeric() || "._-~$}".contains(c))
            };
            if line.match_indices(word).any(|place| is_start(&place)) {
                found.push((
                    index + 1,
                    format!("`{word}` is a path of one machine: make it relative"),
                ));
            }
        }
        for word in HOSTS.iter().filter(|word| !is_lock && line.contains(**word)) {
            let what = format!("`{word}` is a registry's host: only lock files name those");
            found.push((index + 1, what));
        }
    }
    found
}

/// Files that are committed or could be. Without a repository, as in an unpacked archive, there
/// is nothing that a commit could take along.
fn repository_files() -> Vec<String> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(root())
        .output();
    match listed {
        Ok(output) if output.status.success() => {
            let names = String::from_utf8_lossy(&output.stdout).into_owned();
            names.split_terminator('\0').map(str::to_owned).collect()
        }
        _ => {
            eprintln!("not a git repository: the words of its files are not checked");
            Vec::new()
        }
    }
}
