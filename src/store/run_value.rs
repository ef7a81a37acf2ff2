//! The value of an entry of stored messages.
//!
//! Owns its layout. One entry holds one or several spans of messages of one lane, each with
//! consecutive sequence numbers, so that many small messages cost the engine one key. Numbers are
//! little-endian:
//!
//! | bytes | what |
//! |---|---|
//! | 1 | format, 1 |
//! | 4 | number of spans, at least 1 |
//! | 20 each | span: first sequence number u64, messages u32, bytes of records u32, bodies u32 |
//! | 9 each | body of a record, span by span: 0 and its length u64, or 1 and its body id u64 |
//! | | records of all spans |
//! | | bodies that have a length above |
//!
//! A record that refers to a body does so by the body's number in its span. What is read here is
//! not trusted: a value that does not add up is `None`, never a panic.

use std::ops::Range;

const FORMAT: u8 = 1;
const HEAD_BYTES: usize = 5;
const SPAN_BYTES: usize = 20;
const BODY_BYTES: usize = 9;
const INLINE: u8 = 0;
const SHARED: u8 = 1;

/// Messages with consecutive sequence numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) first: u64,
    pub(super) messages: u32,
    /// Bytes of their records.
    pub(super) bytes: u32,
    /// How many bodies they refer to.
    pub(super) bodies: u32,
}

impl Span {
    /// The last sequence number.
    pub(super) fn last(&self) -> u64 {
        self.first + u64::from(self.messages) - 1
    }
}

/// Where a body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyPlace {
    /// In the value, with this length.
    Inline(u64),
    /// In the table of shared bodies, under this id.
    Shared(u64),
}

/// Appends what goes before the records.
pub(super) fn write_head<'a>(
    spans: &[Span],
    bodies: impl Iterator<Item = &'a BodyPlace>,
    out: &mut Vec<u8>,
) {
    out.push(FORMAT);
    out.extend_from_slice(&(spans.len() as u32).to_le_bytes());
    for span in spans {
        out.extend_from_slice(&span.first.to_le_bytes());
        out.extend_from_slice(&span.messages.to_le_bytes());
        out.extend_from_slice(&span.bytes.to_le_bytes());
        out.extend_from_slice(&span.bodies.to_le_bytes());
    }
    for body in bodies {
        let (kind, number) = match body {
            BodyPlace::Inline(len) => (INLINE, len),
            BodyPlace::Shared(id) => (SHARED, id),
        };
        out.push(kind);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// A value taken apart, all of whose lengths add up.
#[derive(Debug)]
pub(super) struct RunValue<'a> {
    value: &'a [u8],
    spans: usize,
    records_at: usize,
    bodies_at: usize,
}

/// A span of a value.
#[derive(Debug)]
pub(super) struct StoredSpan<'a> {
    pub(super) span: Span,
    pub(super) records: &'a [u8],
    /// Its bodies, and the bytes of those in the value.
    pub(super) bodies: Vec<(BodyPlace, &'a [u8])>,
}

impl<'a> RunValue<'a> {
    /// Checks all lengths against each other, and that the sequence numbers rise up to `last`.
    pub(super) fn parse(value: &'a [u8], last: u64) -> Option<Self> {
        let (&format, rest) = value.split_first()?;
        let spans = u32::from_le_bytes(*rest.first_chunk()?) as usize;
        if format != FORMAT || spans == 0 {
            return None;
        }
        let table_at = HEAD_BYTES.checked_add(spans.checked_mul(SPAN_BYTES)?)?;
        let run = Self { value, spans, records_at: table_at, bodies_at: table_at };
        let (mut records, mut bodies, mut end) = (0, 0, None);
        value.get(..table_at)?;
        for index in 0..spans {
            let span = run.span(index);
            let is_after = end.is_none_or(|end| span.first >= end);
            if span.messages == 0 || !is_after {
                return None;
            }
            end = Some(span.first.checked_add(u64::from(span.messages))?);
            records += span.bytes as usize;
            bodies += span.bodies as usize;
        }
        if end? - 1 != last {
            return None;
        }
        let records_at = table_at.checked_add(bodies.checked_mul(BODY_BYTES)?)?;
        let table = value.get(table_at..records_at)?;
        let bodies_at = records_at.checked_add(records)?;
        let mut len = bodies_at;
        for entry in table.chunks_exact(BODY_BYTES) {
            if let BodyPlace::Inline(bytes) = parse_body(entry)? {
                len = len.checked_add(usize::try_from(bytes).ok()?)?;
            }
        }
        (len == value.len()).then_some(Self { value, spans, records_at, bodies_at })
    }

    /// The spans in order.
    pub(super) fn spans(&self) -> impl Iterator<Item = StoredSpan<'a>> + use<'a> {
        let Self { value, spans, mut records_at, mut bodies_at } = *self;
        let mut table_at = HEAD_BYTES + spans * SPAN_BYTES;
        (0..spans).map(move |index| {
            let span = span_at(value, index);
            let table = take(&mut table_at, span.bodies as usize * BODY_BYTES);
            let bodies = value[table].chunks_exact(BODY_BYTES).map(|entry| {
                let place = parse_body(entry).expect("checked by parse");
                let len = match place {
                    BodyPlace::Inline(len) => len as usize,
                    BodyPlace::Shared(_) => 0,
                };
                (place, &value[take(&mut bodies_at, len)])
            });
            let bodies = bodies.collect();
            let records = &value[take(&mut records_at, span.bytes as usize)];
            StoredSpan { span, records, bodies }
        })
    }

    fn span(&self, index: usize) -> Span {
        span_at(self.value, index)
    }
}

/// The span of this number; the table must be there.
fn span_at(value: &[u8], index: usize) -> Span {
    let at = HEAD_BYTES + index * SPAN_BYTES;
    let word = |at: usize| {
        u32::from_le_bytes(*value[at..].first_chunk().expect("the table of spans is there"))
    };
    Span {
        first: u64::from_le_bytes(*value[at..].first_chunk().expect("a span has 20 bytes")),
        messages: word(at + 8),
        bytes: word(at + 12),
        bodies: word(at + 16),
    }
}

fn parse_body(entry: &[u8]) -> Option<BodyPlace> {
    let (&kind, number) = entry.split_first()?;
    let number = u64::from_le_bytes(number.try_into().ok()?);
    match kind {
        INLINE => Some(BodyPlace::Inline(number)),
        SHARED => Some(BodyPlace::Shared(number)),
        _ => None,
    }
}

/// The next `len` bytes from `at` on, which moves behind them.
fn take(at: &mut usize, len: usize) -> Range<usize> {
    let from = *at;
    *at += len;
    from..*at
}
