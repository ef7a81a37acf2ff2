//! The documentation against the code.
//!
//! Owns the check that each test which docs/compatibility.md names exists. It must not judge what
//! the rows say.

use std::fs;
use std::path::Path;

fn read(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The last column of each row that has a test column, with the row's number.
fn tests_of(table: &str) -> Vec<(usize, String)> {
    let mut has_tests = false;
    let mut found = Vec::new();
    for (number, line) in (1..).zip(table.lines()) {
        let Some(row) = line.strip_prefix('|') else {
            has_tests = false;
            continue;
        };
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap_or_default().trim();
        if last == "Test" {
            has_tests = true;
        } else if has_tests && !last.starts_with("---") {
            found.push((number, last.to_owned()));
        }
    }
    found
}

/// Whether a file has this test: a case of a wire script, or a function.
fn has(file: &str, test: &str) -> bool {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let Ok(text) = fs::read_to_string(path) else { return false };
    match file.ends_with(".txt") {
        true => text.lines().any(|line| {
            let title = line.strip_prefix("## ").unwrap_or_default();
            let title = title.trim_start_matches("[leveret] ").trim_start_matches("[rabbitmq] ");
            title == test
        }),
        false => text.contains(&format!("fn {test}(")),
    }
}

fn file_of(place: &str) -> String {
    match place {
        "conformance" => "conformance/README.md".to_owned(),
        _ if place.starts_with("wire/") => format!("tests/{place}.txt"),
        _ if place.ends_with(".rs") => place.to_owned(),
        _ => format!("tests/{place}.rs"),
    }
}

/// What is wrong with one entry of the column, which may list several tests of several files.
fn missing(entry: &str) -> Vec<String> {
    if entry.starts_with("none") {
        return Vec::new();
    }
    let mut missing = Vec::new();
    let mut place = String::new();
    // Titles of wire cases hold commas themselves: a part belongs to the one before when the two
    // together are a title.
    let mut pending = String::new();
    for part in entry.split(", ").flat_map(|part| part.split("; ")) {
        let (new_place, test) = match part.split_once(": ") {
            Some((new, test)) if !new.contains(' ') => (Some(new.to_owned()), test.to_owned()),
            _ => (None, part.to_owned()),
        };
        match new_place {
            Some(new) => {
                missing.extend((!pending.is_empty()).then(|| format!("{place}: {pending}")));
                (place, pending) = (new, test);
            }
            None if pending.is_empty() => pending = test,
            None => pending = format!("{pending}, {test}"),
        }
        if place == "conformance" || has(&file_of(&place), &pending) {
            pending.clear();
        }
    }
    missing.extend((!pending.is_empty()).then(|| format!("{place}: {pending}")));
    missing
}

#[test]
fn each_test_that_the_table_names_exists() {
    let table = read("docs/compatibility.md");
    let wrong: Vec<String> = tests_of(&table)
        .into_iter()
        .flat_map(|(line, entry)| {
            let missing = missing(&entry);
            missing.into_iter().map(move |test| format!("docs/compatibility.md:{line}: {test}"))
        })
        .collect();
    assert!(wrong.is_empty(), "no such tests:\n{}", wrong.join("\n"));
}

#[test]
fn a_test_that_does_not_exist_is_found() {
    assert!(missing("docs: a_test_that_does_not_exist_is_found").is_empty());
    assert_eq!(missing("docs: no_such_test").len(), 1);
    let table = "| Feature | Test |\n|---|---|\n| one | docs: a |\n\n| Feature |\n|---|\n| two |\n";
    assert_eq!(tests_of(table), [(3, "docs: a".to_owned())]);
}
