//! The methods that the generator sends.
//!
//! Owns their fields; who sends them when is others' business.

use amq_protocol::uri::AMQPUri;

use crate::codec::method::{
    self, AMQPClass, AMQPValue, FieldTable, ShortString, basic, channel, confirm, connection,
    exchange, queue,
};

/// How to declare a queue.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declare {
    /// Only look whether it exists.
    pub(crate) is_passive: bool,
    /// Survives a restart.
    pub(crate) is_durable: bool,
    /// Goes with its connection.
    pub(crate) is_exclusive: bool,
    /// The optional arguments.
    pub(crate) arguments: FieldTable,
}

/// A method as a frame, ready to be written.
pub(crate) fn frame(channel: u16, class: &AMQPClass) -> Vec<u8> {
    let mut out = Vec::new();
    method::put_method(&mut out, channel, class);
    out
}

/// `connection.start-ok` with the user and password of the URI.
pub(crate) fn start_ok(uri: &AMQPUri) -> AMQPClass {
    let user = &uri.authority.userinfo;
    let start_ok = connection::StartOk {
        client_properties: client_properties(),
        mechanism: "PLAIN".into(),
        response: format!("\0{}\0{}", user.username, user.password).into(),
        locale: "en_US".into(),
    };
    AMQPClass::Connection(connection::AMQPMethod::StartOk(start_ok))
}

/// `connection.tune-ok`. Heartbeats are switched off: a producer that the broker holds back cannot
/// send them.
pub(crate) fn tune_ok(channel_max: u16, frame_max: u32) -> AMQPClass {
    let tune_ok = connection::TuneOk { channel_max, frame_max, heartbeat: 0 };
    AMQPClass::Connection(connection::AMQPMethod::TuneOk(tune_ok))
}

/// `connection.open` with the virtual host of the URI.
pub(crate) fn open(uri: &AMQPUri) -> AMQPClass {
    let open = connection::Open { virtual_host: ShortString::from(uri.vhost.as_str()) };
    AMQPClass::Connection(connection::AMQPMethod::Open(open))
}

/// `connection.close`.
pub(crate) fn close() -> AMQPClass {
    let close =
        connection::Close { reply_code: 200, reply_text: "done".into(), class_id: 0, method_id: 0 };
    AMQPClass::Connection(connection::AMQPMethod::Close(close))
}

/// `channel.open`.
pub(crate) fn open_channel() -> AMQPClass {
    AMQPClass::Channel(channel::AMQPMethod::Open(channel::Open {}))
}

/// `channel.close`.
pub(crate) fn close_channel() -> AMQPClass {
    let close =
        channel::Close { reply_code: 200, reply_text: "done".into(), class_id: 0, method_id: 0 };
    AMQPClass::Channel(channel::AMQPMethod::Close(close))
}

/// `exchange.declare`.
pub(crate) fn declare_exchange(name: &str, kind: &str, is_durable: bool) -> AMQPClass {
    let declare = exchange::Declare {
        exchange: name.into(),
        kind: kind.into(),
        passive: false,
        durable: is_durable,
        auto_delete: false,
        internal: false,
        nowait: false,
        arguments: FieldTable::default(),
    };
    AMQPClass::Exchange(exchange::AMQPMethod::Declare(declare))
}

/// `exchange.delete`.
pub(crate) fn delete_exchange(name: &str) -> AMQPClass {
    let delete = exchange::Delete { exchange: name.into(), if_unused: false, nowait: false };
    AMQPClass::Exchange(exchange::AMQPMethod::Delete(delete))
}

/// `queue.declare`.
pub(crate) fn declare(name: &str, options: &Declare) -> AMQPClass {
    let declare = queue::Declare {
        queue: name.into(),
        passive: options.is_passive,
        durable: options.is_durable,
        exclusive: options.is_exclusive,
        auto_delete: false,
        nowait: false,
        arguments: options.arguments.clone(),
    };
    AMQPClass::Queue(queue::AMQPMethod::Declare(declare))
}

/// `queue.bind`.
pub(crate) fn bind(queue: &str, exchange: &str, key: &str, arguments: FieldTable) -> AMQPClass {
    let bind = queue::Bind {
        queue: queue.into(),
        exchange: exchange.into(),
        routing_key: key.into(),
        nowait: false,
        arguments,
    };
    AMQPClass::Queue(queue::AMQPMethod::Bind(bind))
}

/// `queue.delete`, with all that is in it.
pub(crate) fn delete(name: &str) -> AMQPClass {
    let delete =
        queue::Delete { queue: name.into(), if_unused: false, if_empty: false, nowait: false };
    AMQPClass::Queue(queue::AMQPMethod::Delete(delete))
}

/// `confirm.select`.
pub(crate) fn select_confirms() -> AMQPClass {
    AMQPClass::Confirm(confirm::AMQPMethod::Select(confirm::Select { nowait: false }))
}

/// `basic.qos` for each consumer.
pub(crate) fn qos(prefetch: u16) -> AMQPClass {
    let qos = basic::Qos { prefetch_count: prefetch, global: false };
    AMQPClass::Basic(basic::AMQPMethod::Qos(qos))
}

/// `basic.consume`.
pub(crate) fn consume(queue: &str, is_auto_ack: bool) -> AMQPClass {
    let consume = basic::Consume {
        queue: queue.into(),
        consumer_tag: "c".into(),
        no_local: false,
        no_ack: is_auto_ack,
        exclusive: false,
        nowait: false,
        arguments: FieldTable::default(),
    };
    AMQPClass::Basic(basic::AMQPMethod::Consume(consume))
}

/// `basic.get` with automatic acknowledgement.
pub(crate) fn fetch(queue: &str) -> AMQPClass {
    AMQPClass::Basic(basic::AMQPMethod::Get(basic::Get { queue: queue.into(), no_ack: true }))
}

fn client_properties() -> FieldTable {
    let mut capabilities = FieldTable::default();
    for name in [
        "connection.blocked",
        "consumer_cancel_notify",
        "publisher_confirms",
        "basic.nack",
        "authentication_failure_close",
    ] {
        capabilities.insert(name.into(), AMQPValue::Boolean(true));
    }
    let mut properties = FieldTable::default();
    properties.insert("product".into(), AMQPValue::LongString("leveret perf".into()));
    let version = env!("CARGO_PKG_VERSION");
    properties.insert("version".into(), AMQPValue::LongString(version.into()));
    properties.insert("capabilities".into(), AMQPValue::FieldTable(capabilities));
    properties
}
