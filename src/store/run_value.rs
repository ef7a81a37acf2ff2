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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn value() -> Vec<u8> {
        let spans = [
            Span { first: 5, messages: 2, bytes: 3, bodies: 1 },
            Span { first: 9, messages: 1, bytes: 2, bodies: 2 },
        ];
        let bodies = [BodyPlace::Inline(4), BodyPlace::Shared(77), BodyPlace::Inline(1)];
        let mut value = Vec::new();
        write_head(&spans, bodies.iter(), &mut value);
        assert_eq!(value.len(), 1 + 4 + 2 * 20 + 3 * 9);
        value.extend_from_slice(b"abcdeBODYx");
        value
    }

    #[test]
    fn spans_come_back_with_their_bodies() {
        let value = value();
        let spans: Vec<_> = RunValue::parse(&value, 9).expect("well-formed").spans().collect();
        assert_eq!((spans[0].span.first, spans[0].span.last()), (5, 6));
        assert_eq!(spans[0].records, b"abc");
        assert_eq!(spans[0].bodies, [(BodyPlace::Inline(4), &b"BODY"[..])]);
        assert_eq!((spans[1].span.first, spans[1].records), (9, &b"de"[..]));
        let bodies = [(BodyPlace::Shared(77), &b""[..]), (BodyPlace::Inline(1), &b"x"[..])];
        assert_eq!(spans[1].bodies, bodies);
    }

    #[test]
    fn what_does_not_add_up_is_refused() {
        let value = value();
        assert!(RunValue::parse(&value, 8).is_none(), "another last sequence number");
        for len in 0..value.len() {
            assert!(RunValue::parse(&value[..len], 9).is_none(), "{len} bytes of it");
        }
        let with = |at: usize, byte: u8| {
            let mut value = value.clone();
            value[at] = byte;
            value
        };
        assert!(RunValue::parse(&with(0, 2), 9).is_none(), "another format");
        assert!(RunValue::parse(&with(1, 0), 9).is_none(), "no spans");
        assert!(RunValue::parse(&with(25, 6), 9).is_none(), "spans that overlap");
        assert!(RunValue::parse(&with(45, 2), 9).is_none(), "another kind of body");
        assert!(RunValue::parse(&with(52, 0xff), 9).is_none(), "a body of any length");
        let mut long = value.clone();
        long.push(0);
        assert!(RunValue::parse(&long, 9).is_none(), "something behind it");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..120), last: u64, spans in 0..4u8,
        ) {
            if bytes.len() > 4 {
                bytes[..5].copy_from_slice(&[1, spans, 0, 0, 0]);
            }
            if let Some(run) = RunValue::parse(&bytes, last) {
                prop_assert!(run.spans().count() > 0);
            }
        }

        #[test]
        fn no_flipped_byte_makes_it_panic(at in 0..82usize, byte: u8, last in 0..12u64) {
            let mut value = value();
            let at = at % value.len();
            value[at] = byte;
            if let Some(run) = RunValue::parse(&value, last) {
                prop_assert!(run.spans().count() > 0);
            }
        }
    }
}
