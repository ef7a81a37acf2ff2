//! Reading one object of a definitions file.
//!
//! Owns the look-up of a key in the type that it must have, and errors that name the object. It
//! must not know which objects there are.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::table;
use crate::codec::method::FieldTable;

/// An object and what to call it.
pub(super) struct Object<'a> {
    pub(super) what: String,
    pub(super) map: Cow<'a, Map<String, Value>>,
}

impl<'a> Object<'a> {
    /// The object that `value` has to be. RabbitMQ writes some of them as a list of pairs.
    pub(super) fn of(what: String, value: &'a Value) -> Result<Self, String> {
        let map = match value {
            Value::Object(map) => Some(Cow::Borrowed(map)),
            Value::Array(pairs) => pairs.iter().map(pair).collect::<Option<_>>().map(Cow::Owned),
            _ => None,
        };
        match map {
            Some(map) => Ok(Self { what, map }),
            None => Err(format!("{what} must be an object")),
        }
    }

    /// All objects of a kind; none when the file does not mention it.
    pub(super) fn each<T>(
        &self,
        kind: &str,
        read: impl Fn(&Object<'_>) -> Result<T, String>,
    ) -> Result<Vec<T>, String> {
        let objects = match self.map.get(kind) {
            None | Some(Value::Null) => return Ok(Vec::new()),
            Some(Value::Array(objects)) => objects,
            Some(_) => return Err(format!("\"{kind}\" must be a list")),
        };
        let numbered = objects.iter().enumerate();
        numbered
            .map(|(at, value)| {
                let named = value.get("name").or_else(|| value.get("user")).and_then(Value::as_str);
                let name = named.map(|name| format!(" ('{name}')")).unwrap_or_default();
                read(&Object::of(format!("number {} of \"{kind}\"{name}", at + 1), value)?)
            })
            .collect()
    }

    pub(super) fn wrong(&self, key: &str, allowed: &str) -> String {
        let problem = if self.map.contains_key(key) { "must be" } else { "is missing: it is" };
        format!("{}: \"{key}\" {problem} {allowed}", self.what)
    }

    pub(super) fn optional_text(&self, key: &str) -> Result<Option<String>, String> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(_) => Err(self.wrong(key, "a text")),
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<String, String> {
        self.optional_text(key)?.ok_or_else(|| self.wrong(key, "a text"))
    }

    /// Empty when the file does not say.
    pub(super) fn vhost(&self) -> Result<String, String> {
        self.optional_text("vhost").map(Option::unwrap_or_default)
    }

    pub(super) fn flag(&self, key: &str, default: Option<bool>) -> Result<bool, String> {
        match self.map.get(key) {
            Some(Value::Bool(flag)) => Ok(*flag),
            None | Some(Value::Null) => default.ok_or_else(|| self.wrong(key, "true or false")),
            Some(_) => Err(self.wrong(key, "true or false")),
        }
    }

    /// A list of texts, or one text with commas.
    pub(super) fn words(&self, key: &str) -> Result<Vec<String>, String> {
        let words = match self.map.get(key) {
            None | Some(Value::Null) => Some(Vec::new()),
            Some(Value::String(text)) => {
                let words = text.split(',').map(|word| word.trim().to_owned());
                Some(words.filter(|word| !word.is_empty()).collect())
            }
            Some(Value::Array(words)) => {
                words.iter().map(|word| word.as_str().map(str::to_owned)).collect()
            }
            Some(_) => None,
        };
        words.ok_or_else(|| self.wrong(key, "a list of texts"))
    }

    pub(super) fn table(&self, key: &str) -> Result<Option<Object<'_>>, String> {
        match self.map.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => Object::of(format!("{}, \"{key}\"", self.what), value).map(Some),
        }
    }

    pub(super) fn arguments(&self) -> Result<FieldTable, String> {
        let Some(arguments) = self.table("arguments")? else { return Ok(FieldTable::default()) };
        table::from_json(&arguments.map).map_err(|error| format!("{}: {error}", self.what))
    }

    /// A limit; a negative number is none.
    pub(super) fn limit(&self, key: &str) -> Result<Option<u32>, String> {
        match self.map.get(key).map(Value::as_i64) {
            None => Ok(None),
            Some(Some(limit)) if limit < 0 => Ok(None),
            Some(Some(limit)) => Ok(Some(u32::try_from(limit).unwrap_or(u32::MAX))),
            Some(None) => Err(self.wrong(key, "a whole number")),
        }
    }
}

fn pair(value: &Value) -> Option<(String, Value)> {
    match value.as_array()?.as_slice() {
        [Value::String(key), value] => Some((key.clone(), value.clone())),
        _ => None,
    }
}
