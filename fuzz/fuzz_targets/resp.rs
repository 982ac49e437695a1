#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| kvkeep::fuzzing::resp(bytes));
