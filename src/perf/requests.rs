//! What the operations of a churn run write, as templates with a number in them.
//!
//! Owns the operations' steps. A template is encoded once; a request is a copy of it with other
//! digits.

use super::args::{Churn, Kind};
use super::block::{Block, Shape};
use super::dialogue::{
    Answer, BASIC_GET_OK, CHANNEL_CLOSE_OK, CHANNEL_OPEN_OK, QUEUE_BIND_OK, QUEUE_DECLARE_OK,
    QUEUE_DELETE_OK,
};
use super::link::CHANNEL;
use super::methods::{self, Declare};
use super::plan::Plan;
use crate::codec::method::AMQPClass;

/// Where the digits of a number go. Nobody's name holds this.
const PLACE: &str = "%%%%%%%%%%%%";

/// The channels that are opened and closed begin with this one.
const CHANNEL_FIRST: u16 = CHANNEL + 1;

/// A request that differs by a number.
pub(crate) struct Template {
    bytes: Vec<u8>,
    places: Vec<usize>,
    /// The number is that of the frame's channel.
    is_channel: bool,
}

impl Template {
    fn new(bytes: Vec<u8>) -> Self {
        let is_place = |at: &usize| bytes[*at..].starts_with(PLACE.as_bytes());
        let places = (0..bytes.len()).filter(is_place).collect();
        Self { bytes, places, is_channel: false }
    }

    /// Appends the request of this number.
    pub(crate) fn put(&self, out: &mut Vec<u8>, number: u64) {
        let start = out.len();
        out.extend_from_slice(&self.bytes);
        let request = &mut out[start..];
        if self.is_channel {
            let channel = CHANNEL_FIRST + number as u16;
            request[1..3].copy_from_slice(&channel.to_be_bytes());
        }
        for &place in &self.places {
            let mut rest = number;
            for digit in request[place..place + PLACE.len()].iter_mut().rev() {
                *digit = b'0' + (rest % 10) as u8;
                rest /= 10;
            }
        }
    }
}

/// One operation: what is written for it, step by step, and what each step is answered by.
pub(crate) struct Operation {
    /// It begins with a connection and a channel of its own, and closes them at the end.
    pub(crate) is_connecting: bool,
    /// Its numbers go on and on; otherwise they begin anew with each batch.
    pub(crate) is_distinct: bool,
    /// The requests on the channel.
    pub(crate) steps: Vec<(Template, Answer)>,
}

impl Operation {
    /// What a worker does in a churn run.
    pub(crate) fn of(plan: &Plan, churn: Churn, worker: usize, frame_max: u32) -> Self {
        let queue = queue_name(plan, worker);
        let declare = |is_exclusive| {
            let options = Declare { is_exclusive, ..plan.declare_options() };
            (template(methods::declare(&queue, &options)), QUEUE_DECLARE_OK)
        };
        let steps = match churn {
            Churn::Connections => Vec::new(),
            Churn::Channels => vec![
                (of_channels(methods::open_channel()), CHANNEL_OPEN_OK),
                (of_channels(methods::close_channel()), CHANNEL_CLOSE_OK),
            ],
            Churn::Queues => {
                vec![declare(false), (template(methods::delete(&queue)), QUEUE_DELETE_OK)]
            }
            Churn::Declare => vec![declare(false), (bind(plan, &queue, worker), QUEUE_BIND_OK)],
            Churn::Bind => vec![(bind(plan, plan.queue_of(0), worker), QUEUE_BIND_OK)],
            Churn::Session => {
                let shape = Shape { keys: vec![queue.clone()], ..plan.shape_of(worker, frame_max) };
                let mut bytes = Block::new(&shape, 1, 1).run(0, 1).to_vec();
                bytes.extend(methods::frame(CHANNEL, &methods::fetch(&queue)));
                vec![declare(true), (Template::new(bytes), BASIC_GET_OK)]
            }
        };
        Self {
            is_connecting: matches!(churn, Churn::Connections | Churn::Session),
            is_distinct: matches!(churn, Churn::Declare | Churn::Bind | Churn::Session),
            steps,
        }
    }
}

/// The request that deletes a queue that a worker has declared.
pub(crate) fn deletion(plan: &Plan, worker: usize) -> Template {
    template(methods::delete(&queue_name(plan, worker)))
}

fn queue_name(plan: &Plan, worker: usize) -> String {
    format!("{}-{worker}-{PLACE}", plan.prefix)
}

fn bind(plan: &Plan, queue: &str, worker: usize) -> Template {
    let exchange = plan.exchange.as_ref().map_or("", |exchange| &exchange.name);
    let kind = plan.exchange.as_ref().map_or(Kind::Direct, |exchange| exchange.kind);
    let (key, arguments) = kind.binding(&format!("{worker}-{PLACE}"));
    template(methods::bind(queue, exchange, &key, arguments))
}

fn template(class: AMQPClass) -> Template {
    Template::new(methods::frame(CHANNEL, &class))
}

fn of_channels(class: AMQPClass) -> Template {
    Template { is_channel: true, ..template(class) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_goes_where_its_place_is() {
        let template = template(methods::bind(PLACE, "e", PLACE, Default::default()));
        let mut out = vec![7];
        template.put(&mut out, 1234);
        let text = String::from_utf8_lossy(&out[1..]).into_owned();
        assert_eq!(text.matches("000000001234").count(), 2, "{text}");
        assert_eq!(out.len(), 1 + template.bytes.len());
        assert!(!text.contains('%'));
    }

    #[test]
    fn channels_are_numbered_in_their_frames() {
        let template = of_channels(methods::open_channel());
        let mut out = Vec::new();
        template.put(&mut out, 0);
        template.put(&mut out, 299);
        assert_eq!(out[1..3], [0, 2]);
        assert_eq!(out[out.len() / 2..][1..3], 301u16.to_be_bytes());
    }
}
