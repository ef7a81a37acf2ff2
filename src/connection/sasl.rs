//! SASL: what a client sends to say who it is.
//!
//! Owns the encodings of PLAIN (RFC 4616) and of RabbitMQ's AMQPLAIN. It must not judge the
//! credentials.

use crate::codec::table::{self, Value};

/// The mechanisms that are offered, in order of preference.
pub(super) const MECHANISMS: &str = "PLAIN AMQPLAIN";

/// A user name and password.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Credentials {
    pub(super) user: String,
    pub(super) password: String,
}

/// Reads a response. The error is RabbitMQ's explanation, for the log.
pub(super) fn credentials(mechanism: &str, response: &[u8]) -> Result<Credentials, String> {
    match mechanism {
        "PLAIN" => plain(response).ok_or_else(|| "response is not valid for PLAIN".to_owned()),
        "AMQPLAIN" => amqplain(response)
            .ok_or_else(|| "AMQPLAIN auth info is missing LOGIN or PASSWORD field".to_owned()),
        other => Err(format!("unknown authentication mechanism '{other}'")),
    }
}

/// `authorization id NUL user NUL password`; the first is ignored, as in RabbitMQ.
fn plain(response: &[u8]) -> Option<Credentials> {
    let mut parts = response.split(|byte| *byte == 0);
    let (_, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    text(user, password)
}

/// A field table without its length, with LOGIN and PASSWORD.
fn amqplain(response: &[u8]) -> Option<Credentials> {
    let field = |name: &[u8]| match table::find(response, name)? {
        Value::LongString(text) => Some(text),
        _ => None,
    };
    text(field(b"LOGIN")?, field(b"PASSWORD")?)
}

fn text(user: &[u8], password: &[u8]) -> Option<Credentials> {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok();
    Some(Credentials { user: text(user)?, password: text(password)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user_and_password(mechanism: &str, response: &[u8]) -> Option<(String, String)> {
        credentials(mechanism, response).ok().map(|found| (found.user, found.password))
    }

    #[test]
    fn both_encodings_are_read() {
        let guest = Some(("guest".to_owned(), "secret".to_owned()));
        assert_eq!(user_and_password("PLAIN", b"\0guest\0secret"), guest);
        assert_eq!(user_and_password("PLAIN", b"other\0guest\0secret"), guest);
        let response = b"\x05LOGINS\0\0\0\x05guest\x08PASSWORDS\0\0\0\x06secret";
        assert_eq!(user_and_password("AMQPLAIN", response), guest);
    }

    #[test]
    fn malformed_responses_are_refused() {
        for response in [&b""[..], b"guest", b"\0guest", b"\0a\0b\0c", b"\0\xff\0x"] {
            assert_eq!(user_and_password("PLAIN", response), None);
        }
        for response in [&b""[..], b"\x05LOGINS\0\0\0\x05guest", b"\x05LOGINS\0\0\0\xff"] {
            assert_eq!(user_and_password("AMQPLAIN", response), None);
        }
        assert!(credentials("EXTERNAL", b"").is_err());
    }
}
