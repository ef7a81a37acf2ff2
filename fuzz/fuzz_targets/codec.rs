//! The codec's parsers against any bytes; see `tests/codec_check`. Start it from the stored
//! seeds: `cargo +nightly fuzz run codec fuzz/corpus/codec tests/corpus/codec`.
#![no_main]

use libfuzzer_sys::fuzz_target;

#[path = "../../tests/codec_check/mod.rs"]
mod codec_check;

fuzz_target!(|bytes: &[u8]| codec_check::check(bytes));
