//! All methods that are not hot, and whole property lists, through amq-protocol.
//!
//! Owns the checks that make amq-protocol safe and RabbitMQ-like on bytes from the network:
//! before a payload is parsed, its arguments are walked by the method's signature, so that
//! tables are no deeper than [`table::DEPTH_MAX`] (amq-protocol recurses once per level), nothing
//! follows the arguments, and bad UTF-8 is told apart from bad structure. It must not decide
//! what a method means.

pub use amq_protocol::protocol::basic::AMQPProperties;
pub use amq_protocol::protocol::{
    AMQPClass, access, basic, channel, confirm, connection, exchange, queue, tx,
};
pub use amq_protocol::types::{
    AMQPValue, ByteArray, DecimalValue, FieldArray, FieldTable, LongString, ShortString,
};

use amq_protocol::frame::{GenError, SerializeFn, WriteContext};
use amq_protocol::protocol::{basic::gen_properties, gen_class, parse_class};

use crate::codec::frame::{FRAME_END, FRAME_OVERHEAD, METHOD, cannot_decode};
use crate::codec::{encode, hot, properties, table};
use crate::error::{AmqpError, ReplyCode};

/// The method that closes a channel because of this error.
pub fn channel_close(error: &AmqpError) -> AMQPClass {
    AMQPClass::Channel(channel::AMQPMethod::Close(channel::Close {
        reply_code: error.code.code(),
        reply_text: error.reply_text().as_str().into(),
        class_id: error.class_id,
        method_id: error.method_id,
    }))
}

/// Parses the payload of a method frame: class, method and exactly its arguments.
pub fn parse_method(payload: &[u8]) -> Result<AMQPClass, AmqpError> {
    let (class_id, method_id) = hot::method_ids(payload);
    let Some(fields) = signature(class_id, method_id) else {
        let text = "unknown class or method";
        return Err(AmqpError::new(ReplyCode::CommandInvalid, text).of(class_id, method_id));
    };
    let arguments = payload.get(4..).unwrap_or_default();
    let undecodable = || cannot_decode(class_id, method_id, arguments);
    let values = split_fields(fields, arguments).ok_or_else(undecodable)?;
    for (kind, value) in values {
        if kind == b's' && std::str::from_utf8(value).is_err() {
            // RabbitMQ raises this one without naming the method.
            return Err(AmqpError::new(ReplyCode::FrameError, "Malformed UTF-8 in shortstr"));
        }
        if kind == b'T' && !is_table(value) {
            return Err(undecodable());
        }
    }
    match parse_class(payload) {
        Ok(([], method)) => Ok(method),
        _ => Err(undecodable()),
    }
}

/// Parses flags and list of properties, as `ContentHeader::properties` has them.
pub fn parse_properties(properties: &[u8]) -> Result<AMQPProperties, AmqpError> {
    let undecodable = || cannot_decode(hot::BASIC, hot::PUBLISH, properties);
    let headers = properties::Properties::new(properties).headers();
    if !properties::is_well_formed(properties) || !headers.is_none_or(is_table) {
        return Err(undecodable());
    }
    match basic::parse_properties(properties) {
        Ok(([], parsed)) => Ok(parsed),
        _ => Err(undecodable()),
    }
}

/// Appends a method as a whole frame.
pub fn put_method(out: &mut Vec<u8>, channel: u16, method: &AMQPClass) {
    let payload = generated(gen_class(method));
    let size = u32::try_from(payload.len()).expect("a method fits in a frame");
    out.reserve(payload.len() + FRAME_OVERHEAD);
    out.push(METHOD);
    out.extend_from_slice(&channel.to_be_bytes());
    out.extend_from_slice(&size.to_be_bytes());
    out.extend_from_slice(&payload);
    out.push(FRAME_END);
}

/// Appends a content header as a whole frame.
pub fn put_properties_header(
    out: &mut Vec<u8>,
    channel: u16,
    class_id: u16,
    body_size: u64,
    properties: &AMQPProperties,
) {
    encode::put_header(out, channel, &header_payload(class_id, body_size, properties));
}

/// The payload of a header frame.
pub fn header_payload(class_id: u16, body_size: u64, properties: &AMQPProperties) -> Vec<u8> {
    let weight = [0, 0];
    let list = generated(gen_properties(properties));
    [&class_id.to_be_bytes()[..], &weight, &body_size.to_be_bytes(), &list].concat()
}

fn generated(generate: impl SerializeFn<Vec<u8>>) -> Vec<u8> {
    let written: Result<_, GenError> = generate(WriteContext::from(Vec::new()));
    written.expect("a Vec takes everything").into_inner().0
}

/// The arguments of a method, one letter each: digits are fields of that many bytes (bits that
/// stand together are one byte), `s` a short string that must be UTF-8, `r` a raw short string
/// (RabbitMQ checks none in methods with content), `L` a long string and `T` a table. `None` for
/// methods that AMQP 0-9-1 and RabbitMQ's extensions do not have.
fn signature(class_id: u16, method_id: u16) -> Option<&'static [u8]> {
    let fields: &str = match (class_id, method_id) {
        // connection
        (10, 10) => "11TLL",
        (10, 11) => "TsLs",
        (10, 20 | 21) => "L",
        (10, 30 | 31) => "242",
        (10, 40) => "ss1",
        (10, 41 | 60) => "s",
        (10, 50) | (20, 40) => "2s22",
        (10, 51 | 61 | 71) => "",
        (10, 70) => "Ls",
        // channel
        (20, 10) => "s",
        (20, 11) => "L",
        (20, 20 | 21) => "1",
        (20, 41) => "",
        // access
        (30, 10) => "s1",
        (30, 11) => "2",
        // exchange
        (40, 10) => "2ss1T",
        (40, 20) => "2s1",
        (40, 30 | 40) => "2sss1T",
        (40, 11 | 21 | 31 | 51) => "",
        // queue
        (50, 10) => "2s1T",
        (50, 11) => "s44",
        (50, 20) => "2sss1T",
        (50, 30 | 40) => "2s1",
        (50, 31 | 41) => "4",
        (50, 50) => "2sssT",
        (50, 21 | 51) => "",
        // basic
        (60, 10) => "421",
        (60, 20) => "2ss1T",
        (60, 21 | 31 | 72) => "s",
        (60, 30) => "s1",
        (60, 40) => "2rr1",
        (60, 50) => "2rrr",
        (60, 60) => "r81rr",
        (60, 70) => "2s1",
        (60, 71) => "81rr4",
        (60, 80 | 90 | 120) => "81",
        (60, 100 | 110) => "1",
        (60, 11 | 111) => "",
        // confirm, tx
        (85, 10) => "1",
        (85, 11) | (90, 10 | 11 | 20 | 21 | 30 | 31) => "",
        _ => return None,
    };
    Some(fields.as_bytes())
}

/// Cuts arguments into fields (without their lengths); `None` unless they end together.
fn split_fields<'a>(fields: &'static [u8], mut rest: &'a [u8]) -> Option<Vec<(u8, &'a [u8])>> {
    let mut values = Vec::with_capacity(fields.len());
    for &kind in fields {
        let length = match kind {
            b's' | b'r' => usize::from(take_array::<1>(&mut rest)?[0]),
            b'L' | b'T' => u32::from_be_bytes(take_array(&mut rest)?) as usize,
            digit => usize::from(digit - b'0'),
        };
        values.push((kind, take(&mut rest, length)?));
    }
    rest.is_empty().then_some(values)
}

fn take<'a>(rest: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(length)?;
    *rest = after;
    Some(taken)
}

fn take_array<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*taken)
}

/// Whether the contents of a table are sound, and shallow enough for amq-protocol's recursion.
fn is_table(contents: &[u8]) -> bool {
    table::check(contents, table::DEPTH_MAX).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::table::DEPTH_MAX;

    /// Arguments of a method with all lengths zero.
    fn blank(fields: &[u8]) -> Vec<u8> {
        let lengths = fields.iter().map(|kind| match kind {
            b's' | b'r' => 1,
            b'L' | b'T' => 4,
            digit => usize::from(digit - b'0'),
        });
        vec![0; lengths.sum()]
    }

    fn payload(class_id: u16, method_id: u16, arguments: &[u8]) -> Vec<u8> {
        [&class_id.to_be_bytes(), &method_id.to_be_bytes(), arguments].concat()
    }

    #[test]
    fn signatures_agree_with_amq_protocol() {
        let mut known = 0;
        for class_id in 0..=100 {
            for method_id in 0..=200 {
                // An unknown method is an error even with many bytes; a known one takes some.
                let bytes = payload(class_id, method_id, &[0; 64]);
                let theirs = parse_class(&bytes[..]);
                let Some(fields) = signature(class_id, method_id) else {
                    assert!(theirs.is_err(), "{class_id} {method_id}");
                    continue;
                };
                known += 1;
                let arguments = blank(fields);
                let (rest, method) = theirs.unwrap();
                assert_eq!(rest.len(), 64 - arguments.len(), "{class_id} {method_id}");
                let bytes = payload(class_id, method_id, &arguments);
                assert_eq!(parse_method(&bytes), Ok(method.clone()));
                assert_eq!(method.get_amqp_class_id(), class_id);
                assert_eq!(method.get_amqp_method_id(), method_id);
                let mut out = Vec::new();
                put_method(&mut out, 5, &method);
                // amq-protocol gives out ticket 1 whatever it read in access.request-ok.
                if (class_id, method_id) != (30, 11) {
                    assert_eq!(out[7..out.len() - 1], bytes);
                }
                let longer = payload(class_id, method_id, &[&arguments[..], &[0]].concat());
                let error = parse_method(&longer).unwrap_err();
                assert_eq!((error.class_id, error.method_id), (class_id, method_id));
                assert!(error.text.starts_with("cannot decode <<"));
            }
        }
        assert_eq!(known, 66);
    }

    #[test]
    fn unknown_methods_are_named() {
        let error = parse_method(&payload(60, 200, b"")).unwrap_err();
        assert_eq!(error.reply_text(), "COMMAND_INVALID - unknown class or method");
        assert_eq!((error.class_id, error.method_id), (60, 200));
    }

    #[test]
    fn bad_utf8_is_told_apart_from_bad_structure() {
        let error = parse_method(&payload(50, 10, b"\0\0\x01\xff\0\0\0\0\0")).unwrap_err();
        assert_eq!(error.reply_text(), "FRAME_ERROR - Malformed UTF-8 in shortstr");
        assert_eq!((error.class_id, error.method_id), (0, 0));
        // One byte is missing: the structure is looked at first.
        let error = parse_method(&payload(50, 10, b"\0\0\x01\xff\0\0\0\0")).unwrap_err();
        assert_eq!(error.reply_text(), "FRAME_ERROR - cannot decode <<0,0,1,255,0,0,0,0>>");
        assert_eq!((error.class_id, error.method_id), (50, 10));
    }

    #[test]
    fn an_unknown_table_type_is_refused() {
        let arguments = b"\0\0\x01q\0\0\0\0\x03\x01kz";
        let error = parse_method(&payload(50, 10, arguments)).unwrap_err();
        assert!(error.text.starts_with("cannot decode <<0,0,1,113,"));
    }

    /// The contents of a table that holds arrays in arrays (or tables in tables), counting itself.
    fn nested(depth: usize, table: bool) -> Vec<u8> {
        // Built backwards, as each level begins with the length of all that it holds.
        let mut reversed: Vec<u8> = Vec::new();
        for level in 1..depth {
            reversed.extend_from_slice(&(reversed.len() as u32).to_le_bytes());
            reversed.push(if table { b'F' } else { b'A' });
            if table || level == depth - 1 {
                reversed.extend_from_slice(b"k\x01");
            }
        }
        reversed.reverse();
        reversed
    }

    fn declare(table: &[u8]) -> Vec<u8> {
        let length = (table.len() as u32).to_be_bytes();
        payload(50, 10, &[b"\0\0\x01q\0", &length[..], table].concat())
    }

    #[test]
    fn deep_tables_are_parsed_up_to_the_limit() {
        for table in [false, true] {
            let method = parse_method(&declare(&nested(DEPTH_MAX + 1, table))).unwrap();
            let mut out = Vec::new();
            put_method(&mut out, 1, &method);
            assert_eq!(out[7..out.len() - 1], declare(&nested(DEPTH_MAX + 1, table)));
            assert!(parse_method(&declare(&nested(DEPTH_MAX + 2, table))).is_err());
        }
    }

    #[test]
    fn a_frame_of_nothing_but_nesting_does_no_harm() {
        for table in [false, true] {
            let depth = 131_000 / if table { 7 } else { 5 };
            let bytes = nested(depth, table);
            assert!(parse_method(&declare(&bytes)).is_err());
            let length = (bytes.len() as u32).to_be_bytes();
            assert!(parse_properties(&[b"\x20\0", &length[..], &bytes].concat()).is_err());
        }
    }

    #[test]
    fn the_deepest_table_fits_on_a_quarter_of_a_worker_stack() {
        let thread = std::thread::Builder::new().stack_size(512 * 1024).spawn(|| {
            let method = parse_method(&declare(&nested(DEPTH_MAX + 1, true))).unwrap();
            let mut out = Vec::new();
            put_method(&mut out, 1, &method.clone());
            format!("{method:?}").len()
        });
        assert!(thread.unwrap().join().unwrap() > 0);
    }

    #[test]
    fn properties_go_there_and_back() {
        let mut headers = FieldTable::default();
        headers.insert("x".into(), AMQPValue::LongLongInt(-1));
        let properties = AMQPProperties::default()
            .with_delivery_mode(2)
            .with_headers(headers)
            .with_type("t".into());
        let payload = header_payload(60, 7, &properties);
        let header = hot::ContentHeader::parse(&payload).unwrap();
        assert_eq!((header.class_id, header.body_size), (60, 7));
        assert_eq!(parse_properties(header.properties), Ok(properties.clone()));
        let mut out = Vec::new();
        put_properties_header(&mut out, 1, 60, 7, &properties);
        assert_eq!(out[7..out.len() - 1], payload);
        assert!(parse_properties(b"\x80\0\x01\xff").is_err());
        assert!(parse_properties(b"").is_err());
    }
}
