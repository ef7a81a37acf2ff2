//! Property tests of the codec against amq-protocol: what either writes the other reads alike,
//! wherever the stream is cut.

use amq_protocol::frame::AMQPFrame;
use proptest::collection::{btree_map, vec};
use proptest::option;
use proptest::prelude::*;

use leveret::codec::encode::{self, DeliverHead};
use leveret::codec::frame::{FrameKind, split};
use leveret::codec::hot::{ContentHeader, Publish, Settle, method_ids};
use leveret::codec::method::{self, AMQPClass, AMQPProperties, AMQPValue, FieldTable, basic};
use leveret::codec::properties::Properties;

#[path = "codec_check/mod.rs"]
mod codec_check;

use codec_check::{check, check_properties, oracle_frame};

/// Text that fits a short string, with characters of several bytes.
fn short_text() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => "[a-z.#*]{0,12}",
        1 => "[\u{e0}-\u{ff}\u{4e00}-\u{4eff}]{0,60}",
        1 => "[ -~]{255}",
    ]
}

fn value() -> impl Strategy<Value = AMQPValue> {
    let leaf = prop_oneof![
        any::<bool>().prop_map(AMQPValue::Boolean),
        any::<i8>().prop_map(AMQPValue::ShortShortInt),
        any::<u8>().prop_map(AMQPValue::ShortShortUInt),
        any::<i16>().prop_map(AMQPValue::ShortInt),
        any::<u16>().prop_map(AMQPValue::ShortUInt),
        any::<i32>().prop_map(AMQPValue::LongInt),
        any::<u32>().prop_map(AMQPValue::LongUInt),
        any::<i64>().prop_map(AMQPValue::LongLongInt),
        (-1e6f32..1e6).prop_map(AMQPValue::Float),
        (-1e9f64..1e9).prop_map(AMQPValue::Double),
        any::<u64>().prop_map(AMQPValue::Timestamp),
        vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::LongString(bytes.into())),
        vec(any::<u8>(), 0..20).prop_map(|bytes| AMQPValue::ByteArray(bytes.into())),
        Just(AMQPValue::Void),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(|items| AMQPValue::FieldArray(items.into())),
            btree_map("[a-z-]{0,8}", inner, 0..4)
                .prop_map(|map| AMQPValue::FieldTable(fields(map))),
        ]
    })
}

fn fields(entries: std::collections::BTreeMap<String, AMQPValue>) -> FieldTable {
    let mut table = FieldTable::default();
    for (key, value) in entries {
        table.insert(key.into(), value);
    }
    table
}

fn table() -> impl Strategy<Value = FieldTable> {
    btree_map("[a-z-]{0,8}", value(), 0..5).prop_map(fields)
}

type Texts = Vec<Option<String>>;

fn properties() -> impl Strategy<Value = AMQPProperties> {
    let numbers = (
        option::of(any::<u8>()),
        option::of(any::<u8>()),
        option::of(any::<u64>()),
        option::of(table()),
    );
    (vec(option::of(short_text()), 10), numbers).prop_map(
        |(texts, (mode, priority, timestamp, headers))| {
            let mut properties = with_texts(texts);
            if let Some(mode) = mode {
                properties = properties.with_delivery_mode(mode);
            }
            if let Some(priority) = priority {
                properties = properties.with_priority(priority);
            }
            if let Some(timestamp) = timestamp {
                properties = properties.with_timestamp(timestamp);
            }
            if let Some(headers) = headers {
                properties = properties.with_headers(headers);
            }
            properties
        },
    )
}

fn with_texts(texts: Texts) -> AMQPProperties {
    let setters = [
        AMQPProperties::with_content_type,
        AMQPProperties::with_content_encoding,
        AMQPProperties::with_correlation_id,
        AMQPProperties::with_reply_to,
        AMQPProperties::with_expiration,
        AMQPProperties::with_message_id,
        AMQPProperties::with_type,
        AMQPProperties::with_user_id,
        AMQPProperties::with_app_id,
        AMQPProperties::with_cluster_id,
    ];
    let mut properties = AMQPProperties::default();
    for (set, text) in setters.into_iter().zip(texts) {
        if let Some(text) = text {
            properties = set(properties, text.into());
        }
    }
    properties
}

/// Methods that clients send, hot ones included.
fn client_method() -> impl Strategy<Value = AMQPClass> {
    let text = || short_text().prop_map(method::ShortString::from);
    let publish = (text(), text(), any::<bool>(), any::<bool>()).prop_map(
        |(exchange, routing_key, mandatory, immediate)| {
            basic::AMQPMethod::Publish(basic::Publish {
                exchange,
                routing_key,
                mandatory,
                immediate,
            })
        },
    );
    let ack = (any::<u64>(), any::<bool>()).prop_map(|(delivery_tag, multiple)| {
        basic::AMQPMethod::Ack(basic::Ack { delivery_tag, multiple })
    });
    let nack = (any::<u64>(), any::<bool>(), any::<bool>()).prop_map(
        |(delivery_tag, multiple, requeue)| {
            basic::AMQPMethod::Nack(basic::Nack { delivery_tag, multiple, requeue })
        },
    );
    let reject = (any::<u64>(), any::<bool>()).prop_map(|(delivery_tag, requeue)| {
        basic::AMQPMethod::Reject(basic::Reject { delivery_tag, requeue })
    });
    let consume = (text(), text(), any::<bool>(), table()).prop_map(
        |(queue, consumer_tag, no_ack, arguments)| {
            basic::AMQPMethod::Consume(basic::Consume {
                queue,
                consumer_tag,
                no_ack,
                arguments,
                ..Default::default()
            })
        },
    );
    prop_oneof![publish, ack, nack, reject, consume].prop_map(AMQPClass::Basic)
}

/// What a client could send: methods, publishes with content, heartbeats.
fn client_stream() -> impl Strategy<Value = Vec<u8>> {
    let method = (any::<u16>(), client_method()).prop_map(|(channel, method)| {
        let mut out = Vec::new();
        method::put_method(&mut out, channel, &method);
        out
    });
    let content = (any::<u16>(), properties(), vec(any::<u8>(), 0..60)).prop_map(
        |(channel, properties, body)| {
            let header = method::header_payload(60, body.len() as u64, &properties);
            let mut out = Vec::new();
            encode::put_publish(&mut out, channel, b"exchange", b"key", false);
            encode::put_content(&mut out, channel, 16, &header, &body);
            out
        },
    );
    let heartbeat = Just(()).prop_map(|()| {
        let mut out = Vec::new();
        encode::put_heartbeat(&mut out);
        out
    });
    vec(prop_oneof![3 => method, 2 => content, 1 => heartbeat], 0..5)
        .prop_map(|pieces| pieces.concat())
}

/// All frames of a stream that arrives in pieces of these sizes (the last repeats).
fn frames(stream: &[u8], pieces: &[usize]) -> Vec<(FrameKind, u16, Vec<u8>)> {
    let mut found = Vec::new();
    let mut buffer = Vec::new();
    let mut rest = stream;
    let mut sizes = pieces.iter().copied().chain(std::iter::repeat(*pieces.last().unwrap()));
    while !rest.is_empty() {
        let (piece, after) = rest.split_at(sizes.next().unwrap().clamp(1, rest.len()));
        buffer.extend_from_slice(piece);
        rest = after;
        while let Some((frame, used)) = split(&buffer, 131_072).unwrap() {
            found.push((frame.kind, frame.channel, frame.payload.to_vec()));
            buffer.drain(..used);
        }
    }
    assert!(buffer.is_empty(), "bytes are left over");
    found
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn methods_are_read_as_amq_protocol_reads_them(method in client_method(), channel: u16) {
        let mut out = Vec::new();
        method::put_method(&mut out, channel, &method);
        prop_assert_eq!(oracle_frame(&out), (AMQPFrame::Method(channel, method.clone()), &[][..]));
        let (frame, used) = split(&out, 0).unwrap().unwrap();
        prop_assert_eq!(used, out.len());
        prop_assert_eq!(method::parse_method(frame.payload), Ok(method));
        check(&out);
        for cut in 4..frame.payload.len() {
            prop_assert!(method::parse_method(&frame.payload[..cut]).is_err());
            let (_, method_id) = method_ids(frame.payload);
            prop_assert!(method_id != 40 || Publish::parse(&frame.payload[..cut]).is_err());
            if let Some(settle) = Settle::parse(method_id, &frame.payload[..cut]) {
                prop_assert!(settle.is_err());
            }
        }
    }

    #[test]
    fn headers_are_read_as_amq_protocol_reads_them(properties in properties(), body_size: u64) {
        let payload = method::header_payload(60, body_size, &properties);
        let header = ContentHeader::parse(&payload).unwrap();
        prop_assert_eq!(header.body_size, body_size);
        check_properties(&Properties::new(header.properties), &properties);
        prop_assert_eq!(method::parse_properties(header.properties), Ok(properties));
        check(&payload);
        for cut in 0..payload.len() {
            prop_assert!(ContentHeader::parse(&payload[..cut]).is_err());
        }
    }

    #[test]
    fn what_we_publish_is_a_publish(
        exchange in short_text(), key in short_text(), mandatory: bool,
    ) {
        let mut out = Vec::new();
        encode::put_publish(&mut out, 7, exchange.as_bytes(), key.as_bytes(), mandatory);
        let publish = basic::Publish {
            exchange: exchange.into(),
            routing_key: key.into(),
            mandatory,
            immediate: false,
        };
        let method = AMQPClass::Basic(basic::AMQPMethod::Publish(publish));
        prop_assert_eq!(oracle_frame(&out), (AMQPFrame::Method(7, method), &[][..]));
    }

    #[test]
    fn confirms_are_acks_and_nacks(tag: u64, multiple: bool) {
        let mut out = Vec::new();
        encode::put_ack(&mut out, 3, tag, multiple);
        encode::put_nack(&mut out, 3, tag, multiple);
        let (ack, rest) = oracle_frame(&out);
        let wanted = basic::AMQPMethod::Ack(basic::Ack { delivery_tag: tag, multiple });
        prop_assert_eq!(ack, AMQPFrame::Method(3, AMQPClass::Basic(wanted)));
        let (nack, rest) = oracle_frame(rest);
        let wanted = basic::Nack { delivery_tag: tag, multiple, requeue: true };
        let wanted = AMQPClass::Basic(basic::AMQPMethod::Nack(wanted));
        prop_assert_eq!((nack, rest), (AMQPFrame::Method(3, wanted), &[][..]));
    }

    #[test]
    fn frames_do_not_depend_on_where_the_stream_is_cut(
        stream in client_stream(),
        pieces in vec(1usize..40, 1..20),
    ) {
        let whole = frames(&stream, &[usize::MAX]);
        prop_assert_eq!(&frames(&stream, &[1]), &whole);
        prop_assert_eq!(&frames(&stream, &pieces), &whole);
    }

    #[test]
    fn damaged_streams_do_no_harm(
        mut stream in client_stream(),
        damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
    ) {
        for (place, byte) in damage {
            if !stream.is_empty() {
                let place = place.index(stream.len());
                stream[place] = byte;
            }
        }
        check(&stream);
    }

    #[test]
    fn any_bytes_do_no_harm(bytes in vec(any::<u8>(), 0..200)) {
        check(&bytes);
    }
}

/// A message as a consumer, a getter and its publisher get it.
#[derive(Clone, Debug)]
struct Message {
    exchange: String,
    routing_key: String,
    properties: AMQPProperties,
    body: Vec<u8>,
}

impl Message {
    fn address(&self) -> Vec<u8> {
        let mut out = Vec::new();
        encode::put_publish(
            &mut out,
            1,
            self.exchange.as_bytes(),
            self.routing_key.as_bytes(),
            true,
        );
        let (frame, _) = split(&out, 0).unwrap().unwrap();
        Publish::parse(frame.payload).unwrap().address.to_vec()
    }
}

fn message() -> impl Strategy<Value = Message> {
    (short_text(), short_text(), properties(), vec(any::<u8>(), 0..50)).prop_map(
        |(exchange, routing_key, properties, body)| Message {
            exchange,
            routing_key,
            properties,
            body,
        },
    )
}

/// Header and body as amq-protocol reads them.
fn oracle_content(channel: u16, mut rest: &[u8]) -> (AMQPProperties, Vec<u8>) {
    let (header, after) = oracle_frame(rest);
    let AMQPFrame::Header(found, header) = header else { panic!("a header is due: {header:?}") };
    assert_eq!((found, header.class_id), (channel, 60));
    rest = after;
    let mut body = Vec::new();
    while !rest.is_empty() {
        let (frame, after) = oracle_frame(rest);
        let AMQPFrame::Body(found, piece) = frame else { panic!("a body is due: {frame:?}") };
        assert!(found == channel && !piece.is_empty() && piece.len() <= 16);
        body.extend_from_slice(&piece);
        rest = after;
    }
    assert_eq!(header.body_size, body.len() as u64);
    (header.properties, body)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    #[test]
    fn deliveries_carry_the_message(
        message in message(), tag in short_text(), delivery_tag: u64, redelivered: bool,
    ) {
        let header = method::header_payload(60, message.body.len() as u64, &message.properties);
        let head = DeliverHead::new(9, tag.as_bytes());
        let mut out = Vec::new();
        let address = message.address();
        encode::put_delivery(
            &mut out, &head, delivery_tag, redelivered, 24, &address, &header, &message.body,
        );
        let (deliver, rest) = oracle_frame(&out);
        let wanted = basic::AMQPMethod::Deliver(basic::Deliver {
            consumer_tag: tag.into(),
            delivery_tag,
            redelivered,
            exchange: message.exchange.into(),
            routing_key: message.routing_key.into(),
        });
        prop_assert_eq!(deliver, AMQPFrame::Method(9, AMQPClass::Basic(wanted)));
        prop_assert_eq!(oracle_content(9, rest), (message.properties, message.body));
    }

    #[test]
    fn get_ok_and_return_carry_the_message(
        message in message(), delivery_tag: u64, redelivered: bool, message_count: u32, code: u16,
    ) {
        let header = method::header_payload(60, message.body.len() as u64, &message.properties);
        let address = message.address();
        let (exchange, routing_key) = (message.exchange, message.routing_key);

        let mut out = Vec::new();
        encode::put_get_ok(&mut out, 9, delivery_tag, redelivered, &address, message_count);
        encode::put_content(&mut out, 9, 24, &header, &message.body);
        let (get_ok, rest) = oracle_frame(&out);
        let wanted = basic::AMQPMethod::GetOk(basic::GetOk {
            delivery_tag,
            redelivered,
            exchange: exchange.clone().into(),
            routing_key: routing_key.clone().into(),
            message_count,
        });
        prop_assert_eq!(get_ok, AMQPFrame::Method(9, AMQPClass::Basic(wanted)));
        prop_assert_eq!(
            oracle_content(9, rest),
            (message.properties.clone(), message.body.clone())
        );

        out.clear();
        encode::put_return(&mut out, 9, code, "NO_ROUTE", &address);
        encode::put_content(&mut out, 9, 24, &header, &message.body);
        let (returned, rest) = oracle_frame(&out);
        let wanted = basic::AMQPMethod::Return(basic::Return {
            reply_code: code,
            reply_text: "NO_ROUTE".into(),
            exchange: exchange.into(),
            routing_key: routing_key.into(),
        });
        prop_assert_eq!(returned, AMQPFrame::Method(9, AMQPClass::Basic(wanted)));
        prop_assert_eq!(oracle_content(9, rest), (message.properties, message.body));
    }
}
