//! What a run found, as a table for people or one JSON object for programs.
//!
//! Owns names, units and number formats. Every figure is added once and appears in both forms.

use std::fmt::Write;

use serde_json::{Map, Value, json};

/// Figures in the order in which they are shown.
#[derive(Debug, Default)]
pub(crate) struct Report {
    rows: Vec<(String, Value, String)>,
    notes: Vec<String>,
    is_generator_bound: bool,
    samples: Vec<Value>,
}

impl Report {
    /// Adds a text.
    pub(crate) fn text(&mut self, key: impl Into<String>, text: impl Into<String>) {
        let text = text.into();
        self.rows.push((key.into(), json!(text), text));
    }

    /// Adds a count.
    pub(crate) fn count(&mut self, key: impl Into<String>, count: u64) {
        self.rows.push((key.into(), json!(count), grouped(count)));
    }

    /// Adds a number per second.
    pub(crate) fn rate(&mut self, key: impl Into<String>, rate: f64) {
        self.rows.push((
            key.into(),
            json!(rate.round()),
            format!("{} /s", grouped(rate.round() as u64)),
        ));
    }

    /// Adds a decimal number with its unit.
    pub(crate) fn number(&mut self, key: impl Into<String>, number: f64, unit: &str) {
        let digits = if number.abs() < 10.0 { 3 } else { 1 };
        let text = format!("{number:.digits$} {unit}");
        self.rows.push((
            key.into(),
            json!((number * 1e4).round() / 1e4),
            text.trim_end().to_owned(),
        ));
    }

    /// Adds an amount of memory.
    pub(crate) fn bytes(&mut self, key: impl Into<String>, bytes: u64) {
        let text = match bytes {
            0..=20_479 => format!("{} bytes", grouped(bytes)),
            20_480..=20_971_519 => format!("{:.1} KiB", bytes as f64 / 1024.0),
            _ => format!("{:.1} MiB", bytes as f64 / 1_048_576.0),
        };
        self.rows.push((key.into(), json!(bytes), text));
    }

    /// Adds why the generator and not the broker set the pace.
    pub(crate) fn generator_bound(&mut self, note: String) {
        self.is_generator_bound = true;
        self.notes.push(note);
    }

    /// Adds what happened from second to second, for programs only.
    pub(crate) fn samples(&mut self, samples: impl IntoIterator<Item = Value>) {
        self.samples.extend(samples);
    }

    /// The table.
    pub(crate) fn table(&self) -> String {
        let mut out = String::new();
        let width = self.rows.iter().map(|(key, ..)| key.len()).max().unwrap_or(0);
        for (key, _, text) in &self.rows {
            let label = key.replace("_per_s", "").replace('_', " ");
            writeln!(out, "{label:<width$}  {text}").expect("strings take all text");
        }
        for note in &self.notes {
            writeln!(out, "note: {note}").expect("strings take all text");
        }
        out
    }

    /// The JSON object, on one line.
    pub(crate) fn json(&self) -> String {
        let rows = self.rows.iter().map(|(key, value, _)| (key.clone(), value.clone()));
        let mut object: Map<String, Value> = rows.collect();
        object.insert("notes".into(), json!(self.notes));
        object.insert("generator_bound".into(), json!(self.is_generator_bound));
        object.insert("samples".into(), json!(self.samples));
        Value::Object(object).to_string()
    }
}

/// A number with its thousands apart.
pub(crate) fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (at, digit) in digits.char_indices() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(15_234_567), "15,234,567");
    }

    #[test]
    fn table_and_json_hold_the_same_figures() {
        let mut report = Report::default();
        report.text("server", "X 1");
        report.rate("delivered_per_s", 1234.4);
        report.bytes("broker_resident", 3 << 20);
        report.generator_bound("N.".into());
        report.samples([json!({"at_s": 1.0})]);
        let table = report.table();
        assert!(table.contains("delivered        1,234 /s"), "{table}");
        assert!(table.ends_with("note: N.\n"));
        let json: Value = serde_json::from_str(&report.json()).expect("an object");
        assert_eq!(json["delivered_per_s"], 1234.0);
        assert_eq!(json["broker_resident"], 3 << 20);
        assert_eq!(json["notes"][0], "N.");
        assert_eq!(json["generator_bound"], true);
        assert_eq!(json["samples"][0]["at_s"], 1.0);
    }
}
