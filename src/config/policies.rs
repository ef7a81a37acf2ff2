//! Policies in the configuration file.
//!
//! Owns the form of the tables `[[policies]]` and `[[operator_policies]]`. It must not know the
//! keys of a definition: a broker judges them when it sets the policy.

use serde::Deserialize;
use serde_json::{Map, Value as Json};
use toml::Value;

use super::{ConfigError, refuse};

/// A policy to set at each start.
#[derive(Clone, Debug, PartialEq)]
pub struct ConfiguredPolicy {
    /// Whether it is an operator policy.
    pub is_operator: bool,
    /// Its name.
    pub name: String,
    /// The vhost that it is for.
    pub vhost: String,
    /// A regular expression for names.
    pub pattern: String,
    /// What it is for, such as `queues`.
    pub apply_to: String,
    /// Of several policies that match, the highest is in effect.
    pub priority: i64,
    /// The settings by their keys.
    pub definition: Map<String, Json>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PolicyTable {
    name: String,
    #[serde(default = "default_vhost")]
    vhost: String,
    pattern: String,
    #[serde(default = "default_apply_to")]
    apply_to: String,
    #[serde(default)]
    priority: i64,
    definition: toml::Table,
}

fn default_vhost() -> String {
    "/".to_owned()
}

fn default_apply_to() -> String {
    "all".to_owned()
}

pub(super) fn check(
    policies: Vec<PolicyTable>,
    operator_policies: Vec<PolicyTable>,
) -> Result<Vec<ConfiguredPolicy>, ConfigError> {
    let of_users = policies.into_iter().map(|table| policy(false, table));
    let of_operators = operator_policies.into_iter().map(|table| policy(true, table));
    of_users.chain(of_operators).collect()
}

fn policy(is_operator: bool, table: PolicyTable) -> Result<ConfiguredPolicy, ConfigError> {
    let PolicyTable { name, vhost, pattern, apply_to, priority, definition } = table;
    let definition = definition
        .into_iter()
        .map(|(key, value)| match scalar(&value) {
            Some(value) => Ok((key, value)),
            None => {
                let setting = if is_operator { "operator_policies" } else { "policies" };
                let allowed = format!("a text, a number or a list in the definition (key {key})");
                refuse(setting, &value, allowed)
            }
        })
        .collect::<Result<_, _>>()?;
    Ok(ConfiguredPolicy { is_operator, name, vhost, pattern, apply_to, priority, definition })
}

fn scalar(value: &Value) -> Option<Json> {
    Some(match value {
        Value::String(text) => Json::from(text.as_str()),
        Value::Integer(number) => Json::from(*number),
        Value::Float(number) => Json::from(*number),
        Value::Boolean(flag) => Json::from(*flag),
        Value::Array(items) => items.iter().map(scalar).collect::<Option<Vec<_>>>()?.into(),
        Value::Datetime(_) | Value::Table(_) => return None,
    })
}
