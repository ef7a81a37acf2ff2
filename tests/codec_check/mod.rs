//! What must hold for any bytes at all: the codec's parsers do not panic, and where they and
//! amq-protocol both have an opinion, the opinions agree.
//!
//! Shared by the mutation test and the cargo-fuzz target. It must not depend on how its input
//! came to be.

use amq_protocol::frame::{AMQPFrame, parsing::parse_content_header};
use amq_protocol::protocol::parse_class;

use leveret::codec::frame::{Frame, FrameKind, split};
use leveret::codec::hot::{ContentHeader, Publish, Settle, method_ids, split_address};
use leveret::codec::method::{self, AMQPClass, AMQPProperties, basic};
use leveret::codec::properties::{self, Properties};
use leveret::codec::{encode, table};

/// The limit that frames are split with.
pub const FRAME_MAX: u32 = 4096;

/// Puts the bytes through every parser: as a stream of frames, and as a payload of each kind.
pub fn check(bytes: &[u8]) {
    let mut rest = bytes;
    while let Some((frame, used)) = check_split(rest) {
        match frame.kind {
            FrameKind::Method => check_method(frame.payload),
            FrameKind::Header => check_header(frame.payload),
            FrameKind::Body => check_body(frame.channel, frame.payload),
            FrameKind::Heartbeat => assert!(frame.payload.is_empty()),
        }
        rest = &rest[used..];
    }
    if bytes.len() >= 4 {
        check_method(bytes);
    }
    check_header(bytes);
    check_table(bytes);
}

/// The first frame, which must be the same (or none, or a refusal) for every truncation.
fn check_split(bytes: &[u8]) -> Option<(Frame<'_>, usize)> {
    let found = split(bytes, FRAME_MAX);
    let end = match &found {
        Ok(Some((frame, used))) => {
            assert_eq!(*used, frame.payload.len() + 8);
            let channel = frame.channel.to_be_bytes();
            assert_eq!(bytes[..3], [frame.kind.wire(), channel[0], channel[1]]);
            *used
        }
        Ok(None) => bytes.len(),
        Err(_) => 0,
    };
    for cut in 0..end.min(64) {
        assert_eq!(split(&bytes[..cut], FRAME_MAX), Ok(None), "cut at {cut}");
    }
    found.ok().flatten()
}

/// A method frame's payload, of at least four bytes.
pub fn check_method(payload: &[u8]) {
    let parsed = method::parse_method(payload);
    if let Ok(method) = &parsed {
        // Compared as bytes, since a NaN is not equal to itself. What is written may differ from
        // what was read (order of keys, reserved fields), but not from then on.
        let written = framed_payload(method);
        let again = method::parse_method(&written).expect("what we write can be read");
        assert_eq!(framed_payload(&again), written);
        assert_eq!((method.get_amqp_class_id(), method.get_amqp_method_id()), method_ids(payload));
    }
    let (60, method_id) = method_ids(payload) else {
        return;
    };
    match method_id {
        40 => check_publish(payload),
        80 | 90 | 120 => check_settle(method_id, payload),
        _ => assert!(Settle::parse(method_id, payload).is_none()),
    }
}

fn framed_payload(method: &AMQPClass) -> Vec<u8> {
    let mut out = Vec::new();
    method::put_method(&mut out, 1, method);
    let (frame, used) = split(&out, 0).expect("our frame").expect("a whole frame");
    assert_eq!((frame.kind, used), (FrameKind::Method, out.len()));
    frame.payload.to_vec()
}

fn check_publish(payload: &[u8]) {
    let ours = Publish::parse(payload);
    let theirs = match parse_class(payload) {
        Ok(([], AMQPClass::Basic(basic::AMQPMethod::Publish(publish)))) => Some(publish),
        _ => None,
    };
    let Ok(ours) = ours else {
        assert_eq!(theirs, None);
        return;
    };
    assert_eq!(split_address(ours.address), (ours.exchange, ours.routing_key));
    // amq-protocol wants UTF-8 here, RabbitMQ does not.
    let names = (std::str::from_utf8(ours.exchange), std::str::from_utf8(ours.routing_key));
    let (Ok(exchange), Ok(routing_key)) = names else {
        assert_eq!(theirs, None);
        return;
    };
    let theirs = theirs.expect("amq-protocol parses what we parse");
    assert_eq!((exchange, routing_key), (theirs.exchange.as_str(), theirs.routing_key.as_str()));
    assert_eq!((ours.mandatory, ours.immediate), (theirs.mandatory, theirs.immediate));
}

fn check_settle(method_id: u16, payload: &[u8]) {
    use basic::AMQPMethod::{Ack, Nack, Reject};
    let ours = Settle::parse(method_id, payload).expect("a settlement").ok();
    let theirs = match parse_class(payload) {
        Ok(([], AMQPClass::Basic(Ack(ack)))) => {
            Some(Settle::Ack { tag: ack.delivery_tag, multiple: ack.multiple })
        }
        Ok(([], AMQPClass::Basic(Nack(nack)))) => Some(Settle::Nack {
            tag: nack.delivery_tag,
            multiple: nack.multiple,
            requeue: nack.requeue,
        }),
        Ok(([], AMQPClass::Basic(Reject(reject)))) => {
            Some(Settle::Reject { tag: reject.delivery_tag, requeue: reject.requeue })
        }
        _ => None,
    };
    assert_eq!(ours, theirs);
}

/// A header frame's payload.
pub fn check_header(payload: &[u8]) {
    let properties = Properties::of_header(payload);
    touch(&properties);
    if let Some(headers) = properties.headers() {
        check_table(headers);
    }
    // amq-protocol recurses into nested tables, so it only gets shallow ones.
    let shallow = properties.headers().is_none_or(is_shallow);
    let ours = ContentHeader::parse(payload);
    if shallow && ours.is_err() {
        assert!(!matches!(parse_content_header(payload), Ok(([], _))));
    }
    let Ok(ours) = ours else {
        return;
    };
    if ours.class_id != 60 || ours.weight != 0 {
        return;
    }
    assert_eq!(properties, Properties::new(ours.properties));
    check_replacement(payload);
    let parsed = method::parse_properties(ours.properties);
    if !shallow {
        assert!(parsed.is_err());
        return;
    }
    match parse_content_header(payload) {
        Ok(([], theirs)) => {
            assert_eq!((ours.class_id, ours.body_size), (theirs.class_id, theirs.body_size));
            check_properties(&properties, &theirs.properties);
            assert!(parsed.is_ok());
        }
        _ => assert!(parsed.is_err()),
    }
}

fn is_shallow(contents: &[u8]) -> bool {
    table::check(contents, table::DEPTH_MAX).is_ok()
}

/// Reads every property, for the sake of not panicking.
fn touch(properties: &Properties<'_>) {
    let _ = (properties.flags(), properties.is_persistent(), properties.delivery_mode());
    let _ = (properties.priority(), properties.timestamp(), properties.content_type());
    let _ = (properties.content_encoding(), properties.correlation_id(), properties.reply_to());
    let _ = (properties.expiration(), properties.message_id(), properties.kind());
    let _ = (properties.user_id(), properties.app_id(), properties.cluster_id());
}

/// Every property reads as amq-protocol reads it.
pub fn check_properties(ours: &Properties<'_>, theirs: &AMQPProperties) {
    let text = |text: &Option<method::ShortString>| {
        text.as_ref().map(|text| text.as_str().as_bytes().to_vec())
    };
    let owned = |bytes: Option<&[u8]>| bytes.map(<[u8]>::to_vec);
    assert_eq!(owned(ours.content_type()), text(theirs.content_type()));
    assert_eq!(owned(ours.content_encoding()), text(theirs.content_encoding()));
    assert_eq!(ours.headers().is_some(), theirs.headers().is_some());
    assert_eq!(ours.delivery_mode(), *theirs.delivery_mode());
    assert_eq!(ours.priority(), *theirs.priority());
    assert_eq!(owned(ours.correlation_id()), text(theirs.correlation_id()));
    assert_eq!(owned(ours.reply_to()), text(theirs.reply_to()));
    assert_eq!(owned(ours.expiration()), text(theirs.expiration()));
    assert_eq!(owned(ours.message_id()), text(theirs.message_id()));
    assert_eq!(ours.timestamp(), *theirs.timestamp());
    assert_eq!(owned(ours.kind()), text(theirs.kind()));
    assert_eq!(owned(ours.user_id()), text(theirs.user_id()));
    assert_eq!(owned(ours.app_id()), text(theirs.app_id()));
    assert_eq!(owned(ours.cluster_id()), text(theirs.cluster_id()));
    assert_eq!(ours.is_persistent(), *theirs.delivery_mode() == Some(2));
}

/// Replacing a property of a well-formed header changes that one and nothing else.
fn check_replacement(header: &[u8]) {
    let old = Properties::of_header(header);
    let answered = properties::with_reply_to(header, b"amq.rabbitmq.reply-to.x");
    let new = Properties::of_header(&answered);
    assert!(properties::is_well_formed(&answered[12..]));
    assert_eq!(new.reply_to(), Some(&b"amq.rabbitmq.reply-to.x"[..]));
    assert_eq!((new.headers(), new.timestamp()), (old.headers(), old.timestamp()));
    assert_eq!((new.cluster_id(), new.kind()), (old.cluster_id(), old.kind()));

    let bare = properties::with_headers(header, None);
    assert!(properties::is_well_formed(&bare[12..]));
    let new = Properties::of_header(&bare);
    assert_eq!((new.headers(), new.reply_to()), (None, old.reply_to()));
    assert_eq!((new.content_type(), new.priority()), (old.content_type(), old.priority()));
    if let Some(headers) = old.headers() {
        let restored = properties::with_headers(&bare, Some(headers));
        assert_eq!(Properties::of_header(&restored).headers(), Some(headers));
        assert_eq!(restored.len(), header.len());
    }
}

/// The contents of a table: the walk ends, and agrees with the check.
fn check_table(contents: &[u8]) {
    let sound = table::entries(contents).all(|entry| entry.is_ok());
    if is_shallow(contents) {
        assert!(sound);
    }
    let _ = table::find(contents, b"x-death");
}

fn check_body(channel: u16, body: &[u8]) {
    let mut out = Vec::new();
    let header = [0, 60, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    encode::put_content(&mut out, channel, FRAME_MAX, &header, body);
    let (_, header_length) = split(&out, FRAME_MAX).expect("our frame").expect("a header");
    let mut rest = &out[header_length..];
    let mut joined = Vec::new();
    while let Some((frame, used)) = split(rest, FRAME_MAX).expect("our frame") {
        joined.extend_from_slice(frame.payload);
        rest = &rest[used..];
    }
    assert_eq!(joined, body);
}

/// A whole frame, as amq-protocol reads it.
#[allow(dead_code)]
pub fn oracle_frame(bytes: &[u8]) -> (AMQPFrame, &[u8]) {
    let (rest, frame) = amq_protocol::frame::parse_frame(bytes).expect("amq-protocol reads it");
    (frame, rest)
}
