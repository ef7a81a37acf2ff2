//! A large body frame that is taken in as it comes.
//!
//! Owns the place within a body frame whose beginning was taken in before its end has come: its
//! payload is copied once, or read from the socket into its place, however it is cut. Frames of a
//! connection do not interleave (specification section 2.3.5), so there is one at most. What comes
//! for a channel that was closed meanwhile is dropped. It must not know what a message is for.

use super::content::Incoming;
use super::{Connection, Worker};
use crate::codec::frame::{self, BODY, FRAME_END, FRAME_HEAD};
use crate::queue::SHARED_BODY_MIN;

/// It pays to read so much (bytes) into its place, rather than to copy it there.
const ROOM_MIN: usize = 32 * 1024;

/// Room is made for so much (bytes) at a time.
const ROOM_MAX: usize = 256 * 1024;

/// So much (bytes) is read at most while a body goes on for longer than [`ROOM_MIN`]: enough for
/// the end of one frame and the beginning of the next, whose payload is then read into its place.
const SHORT_READ: usize = 8 * 1024;

/// See the module's description.
#[derive(Debug)]
pub(super) struct BodyFrame {
    channel: u16,
    /// Bytes of the payload, and those that have not come.
    size: usize,
    left: usize,
}

impl Connection {
    /// Takes in what there is of the frame that `rest` begins with and that is not all there, if it
    /// is a large one of a body that is due. Answers how many bytes that was.
    pub(super) fn begin_body_frame(&mut self, rest: &[u8]) -> usize {
        let Some((head, payload)) = rest.split_first_chunk::<FRAME_HEAD>() else { return 0 };
        let [kind, channel_high, channel_low, size @ ..] = *head;
        let size = u32::from_be_bytes(size) as usize;
        let channel = u16::from_be_bytes([channel_high, channel_low]);
        if kind != BODY || size < SHARED_BODY_MIN || payload.len() >= size {
            return 0;
        }
        let memory = self.broker.memory().clone();
        let Some(incoming) = self.incoming(channel) else { return 0 };
        // A refusal comes with the whole frame.
        if !incoming.begin_part(size, &memory) || incoming.take_part(payload).is_err() {
            return 0;
        }
        self.body_frame = Some(BodyFrame { channel, size, left: size - payload.len() });
        rest.len()
    }

    /// Takes in more of the frame that has begun. Answers how many bytes of `buffer` from `at` on
    /// were taken.
    pub(super) fn continue_body_frame(
        &mut self,
        at: usize,
        buffer: &[u8],
        worker: &mut Worker,
    ) -> usize {
        let Some(BodyFrame { channel, size, left }) = self.body_frame.take() else { return 0 };
        let rest = &buffer[at..];
        let part = &rest[..left.min(rest.len())];
        let taken = match self.incoming(channel) {
            Some(incoming) => incoming.take_part(part),
            None => Ok(()),
        };
        if let Err(error) = taken {
            self.commit(buffer, worker);
            self.fail_in_order(channel, error, worker);
        }
        let Some(&end) = rest.get(left) else {
            self.body_frame = Some(BodyFrame { channel, size, left: left - part.len() });
            return part.len();
        };
        if end == FRAME_END {
            self.end_body_frame(channel, buffer, worker);
        } else {
            let payload = self.incoming(channel).map_or(&[][..], |incoming| incoming.last(size));
            let error = frame::invalid_end(BODY, payload, end);
            self.commit(buffer, worker);
            self.fail_framing(&error, worker);
        }
        left + 1
    }

    fn end_body_frame(&mut self, number: u16, buffer: &[u8], worker: &mut Worker) {
        if !self.incoming(number).is_some_and(|incoming| incoming.is_complete()) {
            return;
        }
        if let Err(error) = self.complete_publish(number, buffer, worker) {
            self.commit(buffer, worker);
            self.fail_in_order(number, error, worker);
        }
    }

    /// The content that is due on an open channel.
    fn incoming(&mut self, number: u16) -> Option<&mut Incoming> {
        let channel = self.channels.get_mut(usize::from(number))?.as_mut()?;
        channel.incoming.as_mut().filter(|_| !channel.closing)
    }

    /// The body that what is read next belongs to, if it is worth reading it into its place, and
    /// how many bytes of it at most. [`Connection::body_came`] has to be told how much was added.
    pub fn body_room(&mut self) -> Option<(&mut Vec<u8>, usize)> {
        let BodyFrame { channel, left, .. } = *self.body_frame.as_ref()?;
        if left < ROOM_MIN {
            return None;
        }
        // Without room it is fed, and refused. What is announced need never come.
        self.incoming(channel)?.room(left.min(ROOM_MAX)).ok()
    }

    /// So many bytes were added to what [`Connection::body_room`] has answered.
    pub fn body_came(&mut self, bytes: usize) {
        let frame = self.body_frame.as_mut().expect("there was room");
        frame.left -= bytes;
        let channel = frame.channel;
        self.incoming(channel).expect("there was room").body_came(bytes);
    }

    /// How much should be read at most, in bytes.
    pub fn read_max(&self, usual: usize) -> usize {
        let is_long = |number: &u16| {
            let channel = self.channels.get(usize::from(*number)).and_then(Option::as_ref);
            let incoming = channel.and_then(|channel| channel.incoming.as_ref());
            incoming.is_some_and(|incoming| incoming.left() >= 2 * ROOM_MIN as u64)
        };
        if self.receiving.last().is_some_and(is_long) { SHORT_READ.min(usual) } else { usual }
    }
}
