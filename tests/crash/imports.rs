//! Definitions that an operator imports while the broker is killed.
//!
//! Owns the imports and what must be left of them: an import that was answered is there as a
//! whole, one that was not is there as a whole or not at all.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use super::ledger::{Kind, Violation};
use super::node::Failure;
use super::round::{Failed, Round, Tally};
use crate::support::{Broker, Client, Handshake};

/// What import `number` brings: one of each kind of object.
fn definitions(number: u32) -> Value {
    let (vhost, user, queue, exchange) =
        (format!("v{number}"), format!("u{number}"), format!("q{number}"), format!("e{number}"));
    json!({
        "vhosts": [{ "name": vhost }],
        "users": [{ "name": user, "password": "secret", "tags": "" }],
        "permissions": [
            { "user": user, "vhost": vhost, "configure": ".*", "write": ".*", "read": ".*" }
        ],
        "policies": [{
            "name": format!("p{number}"), "vhost": vhost, "pattern": "^q", "apply-to": "queues",
            "priority": 1, "definition": { "max-length": number + 1 }
        }],
        "queues": [{
            "name": queue, "vhost": vhost, "durable": true, "auto_delete": false, "arguments": {}
        }],
        "exchanges": [{
            "name": exchange, "vhost": vhost, "type": "fanout", "durable": true,
            "auto_delete": false, "internal": false, "arguments": {}
        }],
        "bindings": [{
            "source": exchange, "vhost": vhost, "destination": queue,
            "destination_type": "queue", "routing_key": "", "arguments": {}
        }],
    })
}

/// How many of the objects of import `number` are in an export, and how many it has.
fn count(export: &Value, number: u32) -> (usize, usize) {
    let wanted = definitions(number);
    let sections = wanted.as_object().expect("an object");
    let names = |object: &Value| {
        let keys = ["vhost", "name", "user", "source", "destination"];
        keys.map(|key| object.get(key).cloned())
    };
    let is_there = |(section, objects): (&String, &Value)| {
        let all = export[section].as_array().map(Vec::as_slice).unwrap_or_default();
        all.iter().any(|object| names(object) == names(&objects[0]))
    };
    (sections.iter().filter(|section| is_there(*section)).count(), sections.len())
}

/// Imports one after the other until the broker dies. Returns the first number without success.
fn import_until(data: &Path, mut number: u32) -> u32 {
    while import(data, number).is_ok() {
        number += 1;
    }
    number
}

/// Has the running broker import, as the tool does; but the tool, when it finds the broker dead,
/// would import into its directory itself, while that is being made what a loss of power leaves.
fn import(data: &Path, number: u32) -> std::io::Result<()> {
    let mut stream = UnixStream::connect(data.join("control.sock"))?;
    let command = json!({ "command": "import", "payload": definitions(number), "vhost": null });
    writeln!(stream, "{command}")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer)?;
    match serde_json::from_str::<Value>(&answer) {
        Ok(answer) if answer.get("ok").is_some() => Ok(()),
        // Half an answer, or none: the broker died.
        Err(_) => Err(ErrorKind::UnexpectedEof.into()),
        Ok(answer) => panic!("import {number} was refused: {answer}"),
    }
}

/// What the tool needs to know of a node.
struct Node {
    dir: std::path::PathBuf,
    data: std::path::PathBuf,
}

impl Node {
    fn tool(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_leveret"));
        command.arg("definitions").args(arguments).arg("--data-dir").arg(&self.data);
        command.output().expect("the tool runs")
    }

    fn export(&self) -> Result<Value, Violation> {
        let file = self.dir.join("export.json");
        let output = self.tool(&["export", file.to_str().expect("UTF-8")]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let text = fs::read(&file).unwrap_or_default();
        serde_json::from_slice(&text).map_err(|_| Violation::new(Kind::Refused, said))
    }
}

/// Runs imports over some crashes.
pub fn run(failure: Failure, seed: u64) -> Result<Tally, Failed> {
    let mut round = Round::new(failure, "", seed);
    round.node.start();
    let data = round.node.data_dir();
    let node = Node { dir: data.parent().expect("a parent").to_owned(), data };
    let mut next = 1;
    let mut unanswered = Vec::new();
    for crash in 1..=3 {
        let importer = {
            let data = node.data.clone();
            std::thread::spawn(move || import_until(&data, next))
        };
        // It is waited for before the broker starts again, which it would import into.
        let mut open = None;
        let mut wrong = round.crash(250, 0, || {
            open = Some(importer.join().expect("the importer ends well"));
        });
        let open = open.expect("the broker was killed");
        round.tally.messages += u64::from(open - next);
        unanswered.push(open);
        match node.export() {
            Err(violation) => wrong.push(violation),
            Ok(export) => wrong.extend(check(&export, open, &unanswered)),
        }
        if open > next && wrong.is_empty() {
            wrong.extend(log_in(&round.node.address, open - 1));
        }
        round = round.fail_if(wrong, &format!("after crash {crash}"))?;
        next = open + 1;
    }
    Ok(round.tally)
}

/// Compares an export with the imports up to `last`, of which some have no answer.
fn check(export: &Value, last: u32, unanswered: &[u32]) -> Vec<Violation> {
    let mut wrong = Vec::new();
    for number in 1..=last + 1 {
        let (there, all) = count(export, number);
        let is_open = unanswered.contains(&number);
        let kind = match there {
            0 if is_open || number > last => continue,
            _ if number > last => Kind::Invented,
            _ if there == all => continue,
            _ if is_open => Kind::Split,
            _ => Kind::Lost,
        };
        let what = format!("{there} of {all} objects of import {number}, open: {unanswered:?}");
        wrong.push(Violation::new(kind, what));
    }
    wrong
}

/// The imported user may work on the imported virtual host.
fn log_in(address: &str, number: u32) -> Option<Violation> {
    let handshake = Handshake {
        user: Some(format!("u{number}")),
        password: Some("secret".to_owned()),
        vhost: Some(format!("v{number}")),
        ..Handshake::default()
    };
    let mut client = Client::open_with(&Broker::at(address.to_owned()), &handshake);
    for _ in 0..number + 5 {
        client.put(1, &format!("q{number}"), "x");
    }
    let (messages, _) = client.counts(1, &format!("q{number}"));
    client.close();
    let what = format!("{messages} messages in q{number}, whose policy allows {}", number + 1);
    (messages != i64::from(number) + 1).then(|| Violation::new(Kind::Changed, what))
}

#[test]
fn missing_objects_are_told() {
    let all = definitions(1);
    assert_eq!(check(&all, 1, &[]), []);
    assert_eq!(check(&all, 1, &[1]), []);
    assert_eq!(check(&all, 2, &[2]), []);
    assert_eq!(check(&all, 2, &[])[0].kind, Kind::Lost, "an import that is missing");
    assert_eq!(check(&all, 0, &[])[0].kind, Kind::Invented, "an import that never was");
    for section in all.as_object().expect("an object").keys() {
        let mut part = all.clone();
        part[section] = json!([]);
        assert_eq!(check(&part, 1, &[])[0].kind, Kind::Lost, "{section}");
        assert_eq!(check(&part, 1, &[1])[0].kind, Kind::Split, "{section}");
    }
}
