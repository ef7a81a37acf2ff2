//! A segment: message records appended back to back in wire form.
//!
//! Owns the layout of a record in memory. It knows nothing of order, consumers or limits. A record
//! is an 8-byte head, the time at which it expires (8 bytes) if it does, then `exchange and
//! routing key | content header payload | body`, all as they came off the wire. Bodies of
//! [`SHARED_BODY_MIN`] bytes and more (and from [`FANNED_BODY_MIN`] on, where several queues get
//! them) stay outside as shared [`Bytes`], one copy for all queues that a message was routed to.
//! Runs of records go to the store as they are (see `records`), so a change of their layout is a
//! change of the store's format. Only a record that never goes there may be short: when a message
//! has the same address and header as one before it in the segment, four bytes tell where they are.
//!
//! A segment may be absent: its messages are elsewhere, and only their numbers are here.
//!
//! Invariant: `live` is the number of records that are neither consumed nor settled; a segment
//! whose `live` is zero holds nothing that anyone may still ask for.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::clock::Millis;

/// Bodies of this size and more (bytes) are kept outside of segments and shared between queues.
pub const SHARED_BODY_MIN: usize = 16 * 1024;

/// The first segment of a queue that was empty stays this small (bytes), so that many short queues
/// cost little.
pub(super) const SMALL_SEGMENT_BYTES: usize = if cfg!(test) { 512 } else { 16 * 1024 };

/// Further segments have this capacity (bytes); a larger record gets a segment of its own.
pub(super) const SEGMENT_BYTES: usize = if cfg!(test) { 4 * 1024 } else { 256 * 1024 };

/// Bodies of this size and more (bytes) are shared if several queues get them, so that the store
/// has them once.
pub const FANNED_BODY_MIN: usize = 4 * 1024;

/// A segment takes no more records when so many bytes of large bodies belong to it.
pub(super) const SHARED_BYTES_MAX: usize = if cfg!(test) { 32 * 1024 } else { 1024 * 1024 };

/// A large body costs so much less to deliver than its bytes say: it is not copied. Less, and
/// messages of a megabyte would wait for each other.
pub const LARGE_DISCOUNT: usize = 4;

/// Bytes of a record's head: body length and a flag (u32), then address length, header length and
/// a flag (u32).
const HEAD_BYTES: usize = 8;
/// Bits of the address length: two short strings are at most 512 bytes.
const ADDRESS_BITS: u32 = 10;
/// Bits of the header length: `frame_max` is at most 1 MiB.
const HEADER_BITS: u32 = 21;
const SHARED_FLAG: u32 = 1 << 31;
/// Beside the body length, which is at most 512 MiB.
const EXPIRES_FLAG: u32 = 1 << 31;
const STORED_FLAG: u32 = 1 << 30;
/// Part of the length where the body is shared; others are far shorter.
const ALIKE_FLAG: u32 = 1 << 29;
const BODY_LEN_MASK: u32 = !(EXPIRES_FLAG | STORED_FLAG);
const EXPIRY_BYTES: usize = 8;
/// What stands for address and header of a short record: where the address is, as an offset.
const ALIKE_BYTES: usize = 4;

/// The body of a message: a slice of a segment or read buffer, or a shared large one.
#[derive(Clone, Copy, Debug)]
pub enum Body<'a> {
    /// A small body, to be copied.
    Inline(&'a [u8]),
    /// A large body, to be shared: one of at least [`SHARED_BODY_MIN`] bytes is, one of at least
    /// [`FANNED_BODY_MIN`] may be.
    Shared(&'a Bytes),
}

impl Body<'_> {
    /// The body's length in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Inline(bytes) => bytes.len(),
            Self::Shared(bytes) => bytes.len(),
        }
    }

    /// The bytes of the body, wherever they are.
    #[cfg(test)]
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Inline(bytes) => bytes,
            Self::Shared(bytes) => bytes,
        }
    }
}

/// A message as it came off the wire, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct Content<'a> {
    /// Exchange and routing key as two short strings with their length bytes.
    pub address: &'a [u8],
    /// The payload of the content header frame.
    pub header: &'a [u8],
    /// The body.
    pub body: Body<'a>,
}

impl Content<'_> {
    /// What a delivery of this message costs: the bytes that it takes on the wire, roughly, of a
    /// large body only a part (see [`LARGE_DISCOUNT`]). Byte windows spend it.
    pub fn cost(&self) -> u32 {
        const DELIVER_OVERHEAD: usize = 64;
        let body = match self.body {
            Body::Inline(bytes) => bytes.len(),
            Body::Shared(bytes) => bytes.len() / LARGE_DISCOUNT,
        };
        let bytes = self.address.len() + self.header.len() + body + DELIVER_OVERHEAD;
        u32::try_from(bytes).unwrap_or(u32::MAX)
    }
}

/// What a record's head says, without touching the rest of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct RecordHead {
    pub(super) body_len: u32,
    pub(super) address_len: u32,
    pub(super) header_len: u32,
    /// The message is one for the store.
    pub(super) stored: bool,
    shared: bool,
    expires: bool,
    /// Address and header are elsewhere.
    alike: bool,
}

impl RecordHead {
    /// The head that these two words say.
    fn of(body: u32, sizes: u32) -> Self {
        let shared = sizes & SHARED_FLAG != 0;
        let alike = body & ALIKE_FLAG != 0 && !shared;
        let len = body & BODY_LEN_MASK;
        Self {
            body_len: if alike { len & !ALIKE_FLAG } else { len },
            stored: body & STORED_FLAG != 0,
            address_len: sizes & ((1 << ADDRESS_BITS) - 1),
            header_len: (sizes >> ADDRESS_BITS) & ((1 << HEADER_BITS) - 1),
            shared,
            expires: body & EXPIRES_FLAG != 0,
            alike,
        }
    }

    /// Bytes the whole record takes in its segment.
    pub(super) fn record_len(&self) -> u32 {
        let body = if self.shared { 4 } else { self.body_len };
        self.body_at() + body
    }

    /// Where the body, or its number, is in the record.
    fn body_at(&self) -> u32 {
        let before = match self.alike {
            true => ALIKE_BYTES as u32,
            false => self.address_len + self.header_len,
        };
        self.head_len() + before
    }

    /// Bytes before the address.
    fn head_len(&self) -> u32 {
        (HEAD_BYTES + if self.expires { EXPIRY_BYTES } else { 0 }) as u32
    }

    /// See [`Content::cost`].
    pub(super) fn cost(&self) -> u32 {
        let body = if self.shared { self.body_len / LARGE_DISCOUNT as u32 } else { self.body_len };
        self.address_len + self.header_len + body.saturating_add(64)
    }
}

/// Messages of the store, summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub(super) count: u64,
    pub(super) body_bytes: u64,
    /// See [`Content::cost`].
    pub(super) cost: u64,
}

impl Totals {
    pub(super) fn add(&mut self, head: &RecordHead) {
        self.count += 1;
        self.body_bytes += u64::from(head.body_len);
        self.cost += u64::from(head.cost());
    }

    pub(super) fn subtract(&mut self, other: Self) {
        debug_assert!(self.count >= other.count, "what is settled was counted");
        self.count = self.count.saturating_sub(other.count);
        self.body_bytes = self.body_bytes.saturating_sub(other.body_bytes);
        self.cost = self.cost.saturating_sub(other.cost);
    }

    pub(super) fn include(&mut self, other: Self) {
        self.count += other.count;
        self.body_bytes += other.body_bytes;
        self.cost += other.cost;
    }
}

impl From<&RecordHead> for Totals {
    fn from(head: &RecordHead) -> Self {
        let mut one = Self::default();
        one.add(head);
        one
    }
}

/// Where the records of a segment are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Residence {
    #[default]
    Here,
    /// In the store, where further ones may be that are settled.
    InStore,
    /// In a file of its own, as a whole.
    Spilled(u64),
}

/// What is special about a message that was loaded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Note {
    /// Sequence numbers before it that are missing.
    pub(super) skipped: u64,
    /// How often it came back before.
    pub(super) returns: u32,
}

/// See the module's description.
#[derive(Debug, Default)]
pub(super) struct Segment {
    bytes: Vec<u8>,
    /// The sizes in the head of the newest record with an address and a header, and where those
    /// are; 0 if there is none.
    newest: (u32, u32),
    shared: Vec<Bytes>,
    /// Bytes of the shared bodies that were added.
    pub(super) shared_bytes: usize,
    pub(super) live: u32,
    /// Records that were added.
    pub(super) count: u32,
    /// The sequence number of the first record.
    pub(super) first_seq: u64,
    /// The records for the store that were added.
    pub(super) stored: Totals,
    /// By offset.
    pub(super) notes: BTreeMap<u32, Note>,
    /// With which of the store's groups the records were handed over last.
    pub(super) group: u64,
    pub(super) residence: Residence,
}

impl Segment {
    /// A segment in an empty buffer, whose capacity is its size.
    pub(super) fn with_buffer(bytes: Vec<u8>, first_seq: u64) -> Self {
        debug_assert!(bytes.is_empty(), "a spare buffer is empty");
        Self { bytes, first_seq, ..Self::default() }
    }

    /// A stand-in for `totals` messages in the store, from `first_seq` on.
    pub(super) fn in_store(first_seq: u64, stored: Totals) -> Self {
        let residence = Residence::InStore;
        Self { live: stored.count as u32, first_seq, stored, residence, ..Self::default() }
    }

    /// The piece that the records were put aside as.
    pub(super) fn piece(&self) -> Option<u64> {
        match self.residence {
            Residence::Spilled(piece) => Some(piece),
            Residence::Here | Residence::InStore => None,
        }
    }

    /// Whether the records are here.
    pub(super) fn is_here(&self) -> bool {
        self.residence == Residence::Here
    }

    /// The records and bodies as one piece of bytes, for [`Segment::take_back`].
    pub(super) fn to_piece(&self) -> Vec<u8> {
        let mut piece = Vec::with_capacity(16 + self.bytes.len() + self.shared_bytes);
        piece.extend_from_slice(&(self.bytes.len() as u64).to_le_bytes());
        piece.extend_from_slice(&self.bytes);
        for body in &self.shared {
            piece.extend_from_slice(&(body.len() as u64).to_le_bytes());
            piece.extend_from_slice(body);
        }
        piece
    }

    /// Lets go of the records, which are kept as the piece of this number; answers what held them.
    pub(super) fn put_aside(&mut self, piece: u64) -> Self {
        self.residence = Residence::Spilled(piece);
        Self {
            bytes: std::mem::take(&mut self.bytes),
            shared: std::mem::take(&mut self.shared),
            ..Self::default()
        }
    }

    /// Takes the records back from their piece.
    pub(super) fn take_back(&mut self, piece: &[u8], share: &impl Fn(&[u8]) -> Bytes) {
        let mut parts = Vec::new();
        let mut rest = piece;
        while let Some((len, after)) = rest.split_first_chunk::<8>() {
            let len = u64::from_le_bytes(*len) as usize;
            let (part, next) = after.split_at(len.min(after.len()));
            parts.push(part);
            rest = next;
        }
        let mut parts = parts.into_iter();
        self.bytes = parts.next().unwrap_or_default().to_vec();
        self.shared = parts.map(share).collect();
        self.residence = Residence::Here;
    }

    /// Whether all records are for the store.
    pub(super) fn is_stored(&self) -> bool {
        self.stored.count == u64::from(self.count)
    }

    /// The records as they stand, from one on.
    pub(super) fn records(&self, from: u32) -> &[u8] {
        &self.bytes[from as usize..]
    }

    /// The bodies that records refer to.
    pub(super) fn bodies(&self) -> &[Bytes] {
        &self.shared
    }

    /// The number of the body that the record at `offset`, whose head this is, refers to.
    pub(super) fn body_index(&self, offset: u32, head: &RecordHead) -> Option<usize> {
        head.shared.then(|| self.number((offset + head.body_at()) as usize))
    }

    /// Where the next record would go; equal to the offset after the last record.
    pub(super) fn end(&self) -> u32 {
        self.bytes.len() as u32
    }

    /// Bytes of memory held, shared bodies excepted (those account for themselves).
    pub(super) fn capacity(&self) -> usize {
        self.bytes.capacity() + self.shared.capacity() * size_of::<Bytes>()
    }

    /// Whether `content` still fits. A segment grows to [`SMALL_SEGMENT_BYTES`], or is as large as
    /// its buffer was to begin with; an empty one takes any record.
    pub(super) fn has_room(&self, content: &Content<'_>) -> bool {
        let limit = self.bytes.capacity().max(SMALL_SEGMENT_BYTES);
        let has_room = self.bytes.len() + record_len_max(content) <= limit;
        self.bytes.is_empty() || (has_room && self.shared_bytes < SHARED_BYTES_MAX)
    }

    /// Appends a record and counts it as live; `stored` if it is one for the store.
    pub(super) fn append(&mut self, content: &Content<'_>, expiry: Option<Millis>, stored: bool) {
        debug_assert!(content.address.len() < 1 << ADDRESS_BITS, "two short strings");
        debug_assert!(content.header.len() < 1 << HEADER_BITS, "bounded by frame_max");
        let sizes = content.address.len() as u32 | (content.header.len() as u32) << ADDRESS_BITS;
        debug_assert!(content.body.size() < STORED_FLAG as usize, "bounded by the configuration");
        let mut flags = if expiry.is_some() { EXPIRES_FLAG } else { 0 };
        if stored {
            flags |= STORED_FLAG;
            self.stored.count += 1;
            self.stored.body_bytes += content.body.size() as u64;
            self.stored.cost += u64::from(content.cost());
        }
        let shared = if matches!(content.body, Body::Shared(_)) { SHARED_FLAG } else { 0 };
        let alike = (!stored && shared == 0).then(|| self.alike(sizes, content)).flatten();
        if alike.is_some() {
            flags |= ALIKE_FLAG;
        }
        self.bytes.reserve(record_len_max(content));
        self.bytes.extend_from_slice(&(content.body.size() as u32 | flags).to_le_bytes());
        self.bytes.extend_from_slice(&(sizes | shared).to_le_bytes());
        if let Some(Millis(at)) = expiry {
            self.bytes.extend_from_slice(&at.to_le_bytes());
        }
        if let Some(at) = alike {
            self.bytes.extend_from_slice(&at.to_le_bytes());
        } else {
            self.newest = (sizes, self.bytes.len() as u32);
            self.bytes.extend_from_slice(content.address);
            self.bytes.extend_from_slice(content.header);
        }
        match content.body {
            Body::Inline(body) => self.bytes.extend_from_slice(body),
            Body::Shared(body) => {
                self.bytes.extend_from_slice(&(self.shared.len() as u32).to_le_bytes());
                self.shared.push(body.clone());
                self.shared_bytes += body.len();
            }
        }
        self.live += 1;
        self.count += 1;
    }

    /// Where the same address and header are, if the newest record that has some has these.
    fn alike(&self, sizes: u32, content: &Content<'_>) -> Option<u32> {
        let (newest_sizes, at) = self.newest;
        let address_at = at as usize;
        if at == 0 || sizes != newest_sizes {
            return None;
        }
        let header_at = address_at + content.address.len();
        let is_alike = self.bytes[header_at..].starts_with(content.header)
            && self.bytes[address_at..].starts_with(content.address);
        is_alike.then_some(at)
    }

    /// Appends a record of a run, as it stands there, with the bodies of that run.
    ///
    /// # Errors
    /// When it refers to a body that is not there, or is not whole.
    pub(super) fn append_stored(
        &mut self,
        record: &[u8],
        bodies: &[Bytes],
        note: Note,
    ) -> Option<()> {
        let at = self.bytes.len();
        self.bytes.extend_from_slice(record);
        let head = self.head(at as u32);
        if head.alike {
            self.bytes.truncate(at);
            return None;
        }
        if let Some(index) = self.body_index(at as u32, &head) {
            let Some(body) = bodies.get(index).filter(|body| body.len() == head.body_len as usize)
            else {
                self.bytes.truncate(at);
                return None;
            };
            let place = at + head.body_at() as usize;
            let own = (self.shared.len() as u32).to_le_bytes();
            self.bytes[place..place + 4].copy_from_slice(&own);
            self.shared.push(body.clone());
            self.shared_bytes += body.len();
        }
        if note != Note::default() {
            self.notes.insert(at as u32, note);
        }
        self.stored.add(&head);
        self.live += 1;
        self.count += 1;
        Some(())
    }

    /// What is special about the record at `offset`.
    pub(super) fn note(&self, offset: u32) -> Note {
        if self.notes.is_empty() {
            return Note::default();
        }
        self.notes.get(&offset).copied().unwrap_or_default()
    }

    /// The head of the record at `offset`.
    pub(super) fn head(&self, offset: u32) -> RecordHead {
        let at = offset as usize;
        let word = |i: usize| {
            let b = &self.bytes[at + i..at + i + 4];
            u32::from_le_bytes([b[0], b[1], b[2], b[3]])
        };
        RecordHead::of(word(0), word(4))
    }

    /// When the record at `offset`, whose head this is, expires.
    pub(super) fn expiry(&self, offset: u32, head: &RecordHead) -> Option<Millis> {
        let at = offset as usize + HEAD_BYTES;
        head.expires.then(|| {
            let bytes = self.bytes[at..].first_chunk::<EXPIRY_BYTES>();
            Millis(u64::from_le_bytes(*bytes.expect("it follows the head")))
        })
    }

    /// The message of the record at `offset`.
    pub(super) fn content(&self, offset: u32) -> Content<'_> {
        let head = self.head(offset);
        let own_at = (offset + head.head_len()) as usize;
        let address_at = if head.alike { self.number(own_at) } else { own_at };
        let header_at = address_at + head.address_len as usize;
        let body_at = (offset + head.body_at()) as usize;
        let body = if head.shared {
            Body::Shared(&self.shared[self.number(body_at)])
        } else {
            Body::Inline(&self.bytes[body_at..body_at + head.body_len as usize])
        };
        Content {
            address: &self.bytes[address_at..header_at],
            header: &self.bytes[header_at..header_at + head.header_len as usize],
            body,
        }
    }

    /// Counts the record at `offset` as gone and lets go of its shared body.
    pub(super) fn settle(&mut self, offset: u32) {
        debug_assert!(self.live > 0, "a record is settled once");
        self.live -= 1;
        if !self.shared.is_empty() {
            let head = self.head(offset);
            if let Some(index) = self.body_index(offset, &head) {
                self.shared[index] = Bytes::new();
            }
        }
    }

    /// Forgets all records and keeps the buffer. Only when none is live. What comes next begins
    /// with `first_seq`.
    pub(super) fn clear(&mut self, first_seq: u64) {
        debug_assert_eq!(self.live, 0, "a live record would be lost");
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.clear();
        *self = Self::with_buffer(bytes, first_seq);
    }

    /// The emptied buffer, for another segment.
    pub(super) fn into_buffer(mut self) -> Vec<u8> {
        self.bytes.clear();
        self.bytes
    }

    /// The number that stands at an offset.
    fn number(&self, at: usize) -> usize {
        let b = &self.bytes[at..at + 4];
        u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize
    }
}

/// The length of the record at the beginning of `bytes`, as far as it stands there itself.
pub(super) fn stored_len(bytes: &[u8]) -> Option<usize> {
    let words = bytes.first_chunk::<HEAD_BYTES>()?;
    let word =
        |at: usize| u32::from_le_bytes([words[at], words[at + 1], words[at + 2], words[at + 3]]);
    let head = RecordHead::of(word(0), word(4));
    let len = head.record_len() as usize;
    (len <= bytes.len() && !head.alike).then_some(len)
}

/// The number of the shared body that the record `bytes` refers to.
pub(super) fn stored_body_number(bytes: &[u8]) -> Option<u32> {
    let sizes = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    let number = u32::from_le_bytes(*bytes.last_chunk()?);
    RecordHead::of(0, sizes).shared.then_some(number)
}

/// The length of a record that expires; others take [`EXPIRY_BYTES`] less.
fn record_len_max(content: &Content<'_>) -> usize {
    let body = match content.body {
        Body::Inline(body) => body.len(),
        Body::Shared(_) => 4,
    };
    HEAD_BYTES + EXPIRY_BYTES + content.address.len() + content.header.len() + body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_that_are_alike_share_their_address_and_header() {
        let mut segment = Segment::default();
        let bodies: Vec<Vec<u8>> = (0..6).map(|n| vec![n; usize::from(n)]).collect();
        let content = |n: usize, header: &'static [u8]| Content {
            address: b"\x00\x05queue",
            header,
            body: Body::Inline(&bodies[n]),
        };
        // Number, header, when it expires, whether it is stored, and whether it is short.
        type Case = (usize, &'static [u8], Option<Millis>, bool, bool);
        let records: [Case; 6] = [
            (0, b"header", None, true, false),
            (1, b"header", None, false, true),
            (2, b"header", Some(Millis(7)), false, true),
            (3, b"header", None, true, false),
            (4, b"others", None, false, false),
            (5, b"others", None, false, true),
        ];
        let mut offsets = Vec::new();
        for (n, header, expiry, stored, _) in records {
            offsets.push(segment.end());
            segment.append(&content(n, header), expiry, stored);
        }
        offsets.push(segment.end());
        for (index, (n, header, expiry, stored, short)) in records.into_iter().enumerate() {
            let offset = offsets[index];
            let (head, read) = (segment.head(offset), segment.content(offset));
            assert_eq!(read.address, b"\x00\x05queue");
            assert_eq!((read.header, read.body.bytes()), (header, &bodies[n][..]));
            assert_eq!(segment.expiry(offset, &head), expiry);
            assert_eq!((head.stored, head.cost()), (stored, read.cost()));
            assert_eq!(offset + head.record_len(), offsets[index + 1]);
            let full = HEAD_BYTES + 7 + 6 + n + expiry.map_or(0, |_| EXPIRY_BYTES);
            assert_eq!(head.record_len() as usize, if short { full - 13 + 4 } else { full });
            let whole = &segment.records(offset)[..head.record_len() as usize];
            assert_eq!(stored_len(whole).is_some(), !short, "only whole ones are ever stored");
            let taken = Segment::default().append_stored(whole, &[], Note::default());
            assert_eq!(taken.is_some(), !short);
        }
        let mut back = Segment::default();
        back.take_back(&segment.to_piece(), &Bytes::copy_from_slice);
        assert_eq!(back.content(offsets[5]).header, b"others");
    }

    #[test]
    fn records_read_back_as_written() {
        let large = Bytes::from(vec![7; SHARED_BODY_MIN]);
        let mut segment = Segment::default();
        let small = Content { address: b"\x00\x01q", header: b"header", body: Body::Inline(b"hi") };
        let shared = Content { address: b"\x00\x01r", header: b"h2", body: Body::Shared(&large) };
        segment.append(&small, Some(Millis(7)), true);
        let second = segment.end();
        segment.append(&shared, None, false);
        let head = segment.head(0);
        assert_eq!(head.record_len(), second);
        assert_eq!(segment.expiry(0, &head), Some(Millis(7)));
        assert_eq!(segment.expiry(second, &segment.head(second)), None);
        assert_eq!(second + segment.head(second).record_len(), segment.end());
        let content = segment.content(0);
        assert_eq!((content.address, content.header), (&b"\x00\x01q"[..], &b"header"[..]));
        assert_eq!(content.body.bytes(), b"hi");
        assert_eq!(segment.content(second).body.bytes(), &large[..]);
        assert_eq!(content.cost(), head.cost());
    }

    #[test]
    fn settling_lets_go_of_a_shared_body() {
        let large = Bytes::from(vec![7; SHARED_BODY_MIN]);
        let mut segment = Segment::default();
        let content = Content { address: b"\x00\x00", header: b"", body: Body::Shared(&large) };
        segment.append(&content, None, false);
        assert!(!large.is_unique());
        segment.settle(0);
        assert!(large.is_unique());
        assert_eq!(segment.live, 0);
    }
}
