//! Sizes as people write them: `64MiB`, `1 GB`, `4096`.
//!
//! Owns the units, which are RabbitMQ's: `kB`, `MB`, `GB`, `TB` are powers of 1000; `k`, `KiB`
//! and so on are powers of 1024. It must not know which setting a size belongs to.

use nom::branch::alt;
use nom::bytes::complete::tag_no_case;
use nom::character::complete::{multispace0, u64 as number};
use nom::combinator::{all_consuming, value};
use nom::sequence::delimited;
use nom::{IResult, Parser};

/// The number of bytes that `text` stands for, unless it is no size or does not fit.
pub(super) fn parse(text: &str) -> Option<u64> {
    let count = delimited(multispace0, number, multispace0);
    let unit = delimited(multispace0, unit, multispace0);
    let (_, (count, unit)) = all_consuming((count, unit)).parse(text).ok()?;
    count.checked_mul(unit)
}

/// The factor of a unit; no unit means bytes. Longer names stand before their prefixes.
fn unit(input: &str) -> IResult<&str, u64> {
    let decimal = alt((
        value(1000, tag_no_case("kb")),
        value(1000_u64.pow(2), tag_no_case("mb")),
        value(1000_u64.pow(3), tag_no_case("gb")),
        value(1000_u64.pow(4), tag_no_case("tb")),
    ));
    let binary = alt((
        value(1 << 10, alt((tag_no_case("kib"), tag_no_case("k")))),
        value(1 << 20, alt((tag_no_case("mib"), tag_no_case("m")))),
        value(1 << 30, alt((tag_no_case("gib"), tag_no_case("g")))),
        value(1 << 40, alt((tag_no_case("tib"), tag_no_case("t")))),
    ));
    alt((decimal, binary, value(1, alt((tag_no_case("b"), tag_no_case("")))))).parse(input)
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn units_are_powers_of_1000_and_1024() {
        let cases = [
            ("0", 0),
            ("4096", 4096),
            ("12 B", 12),
            ("1kB", 1000),
            ("1KB", 1000),
            ("1k", 1024),
            ("1KiB", 1024),
            (" 64 MiB ", 64 << 20),
            ("64mib", 64 << 20),
            ("1GB", 1_000_000_000),
            ("2G", 2 << 30),
            ("3TiB", 3 << 40),
            ("1tb", 1_000_000_000_000),
        ];
        for (text, bytes) in cases {
            assert_eq!(parse(text), Some(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        let cases =
            ["", " ", "MiB", "-1", "1.5GiB", "1XB", "1 Mi B", "1MiBs", "18446744073709551616"];
        for text in cases {
            assert_eq!(parse(text), None, "{text:?}");
        }
        assert_eq!(parse("18446744073709551615"), Some(u64::MAX));
        assert_eq!(parse("18446744073709551615k"), None, "more than 64 bits");
    }
}
