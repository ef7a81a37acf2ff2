//! The `expiration` property: how long a message may wait.
//!
//! Owns its syntax and the words in which RabbitMQ refuses it (`rabbit_basic:parse_expiration`).

use super::arguments::EXPIRY_MAX_MS;

/// Reads an `expiration`, which is a text of milliseconds.
///
/// # Errors
/// The reason as RabbitMQ gives it after `invalid expiration '...': `.
pub(crate) fn parse_expiration(text: &[u8]) -> Result<u64, String> {
    let digits = text.strip_prefix(b"+").or_else(|| text.strip_prefix(b"-")).unwrap_or(text);
    let len = digits.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = digits.split_at(len);
    if number.is_empty() {
        return Err("no_integer".to_owned());
    }
    if !rest.is_empty() {
        return Err(format!("{{leftover_string,\"{}\"}}", String::from_utf8_lossy(rest)));
    }
    let number = String::from_utf8_lossy(number);
    let number = match number.trim_start_matches('0') {
        "" => "0",
        significant => significant,
    };
    if number != "0" && text.first() == Some(&b'-') {
        return Err(format!("{{value_negative,-{number}}}"));
    }
    match number.parse() {
        Ok(ms) if ms <= EXPIRY_MAX_MS => Ok(ms),
        _ => Err(format!("{{value_too_large,{number}}}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_time_is_refused_in_rabbitmqs_words() {
        let refused = |text: &str| parse_expiration(text.as_bytes()).expect_err(text);
        assert_eq!(refused("abc"), "no_integer");
        assert_eq!(refused(""), "no_integer");
        assert_eq!(refused(" 5"), "no_integer");
        assert_eq!(refused("1.5"), "{leftover_string,\".5\"}");
        assert_eq!(refused("-1"), "{value_negative,-1}");
        assert_eq!(refused("315360000001"), "{value_too_large,315360000001}");
        assert_eq!(refused("99999999999999999999"), "{value_too_large,99999999999999999999}");
        for (text, ms) in
            [("0", 0), ("+5", 5), ("-0", 0), ("007", 7), ("315360000000", 315360000000)]
        {
            assert_eq!(parse_expiration(text.as_bytes()), Ok(ms), "{text}");
        }
    }
}
