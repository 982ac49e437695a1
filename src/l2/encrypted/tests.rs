//! Tests of encryption around a backend in memory.

use std::sync::Arc;

use super::keys::{EncryptionKeys, KeyLocation};
use super::{EncryptedBackend, KeyCallback};
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_UNSUPPORTED};
use crate::l2::memory::MemoryBackend;
use crate::l2::object_header::Header;
use crate::l2::tests::*;
use crate::l2::{Backend, Stored};

const LENGTH: usize = 5000;

fn text(digit: char) -> String {
    digit.to_string().repeat(64)
}

/// Keys as a file has them, the newest first.
fn read(text: &str) -> Result<EncryptionKeys, Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    EncryptionKeys::read(&KeyLocation::File(file.path().to_owned()), &KeyCallback::default())
}

fn around(inner: &Arc<MemoryBackend>, digits: &[char]) -> Arc<EncryptedBackend> {
    let text: Vec<String> = digits.iter().map(|&digit| text(digit)).collect();
    EncryptedBackend::wrap(inner.clone(), read(&text.join("\n")).unwrap()).unwrap()
}

fn verified(backend: &dyn Backend, number: u32) -> Result<(), Error> {
    let (header, buffer) = load(backend, number, LENGTH);
    header?.verify(&key(number), Some(&LAYOUT), buffer.bytes(), true)?;
    assert_eq!(buffer.bytes(), payload(number, LENGTH));
    Ok(())
}

fn refusal(backend: &dyn Backend, number: u32) -> (crate::error::Status, String) {
    let error = verified(backend, number).unwrap_err();
    (error.status, error.message)
}

#[test]
fn what_is_stored_is_ciphertext_and_comes_back_as_it_was() {
    let inner = MemoryBackend::open_url(&[]).unwrap();
    let backend = around(&inner, &['a']);
    for number in 0..3 {
        assert_eq!(store(&*backend, number, LENGTH).unwrap(), Stored::Written);
        verified(&*backend, number).unwrap();
    }
    let (header, buffer) = load(&*inner, 1, LENGTH);
    let header = header.unwrap();
    let plain = payload(1, LENGTH);
    assert!(buffer.bytes().windows(16).zip(plain.windows(16)).all(|(found, plain)| found != plain));
    assert!(buffer.bytes() != payload(1, LENGTH));
    // Its own check finds it whole, but no reader without a key takes it for the payload.
    assert!(header.verify_read(&key(1), LENGTH as u64, &mut buffer.bytes()).unwrap().is_ok());
    let error = header.verify(&key(1), Some(&LAYOUT), buffer.bytes(), true).unwrap_err();
    assert!(error.status == KVKEEP_ERR_UNSUPPORTED && error.message.contains("key_file="));
    assert_eq!(header.known(&key(1), LENGTH as u64), None);
    assert!(backend.usage().objects == 3 && backend.name() == "memory");
}

#[test]
fn any_flipped_bit_is_found() {
    let keys = read(&text('a')).unwrap();
    let plain = payload(1, 100);
    let header = Header::new(&key(1), &LAYOUT, &plain, true);
    let mut ciphertext = plain.clone();
    let stored = keys.encrypt(&key(1), &header, &mut ciphertext).unwrap();
    let back = keys.decrypt(&stored, &mut ciphertext.clone()).unwrap();
    back.verify(&key(1), Some(&LAYOUT), &plain, true).unwrap();
    for bit in 0..ciphertext.len() * 8 {
        let mut changed = ciphertext.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(keys.decrypt(&stored, &mut changed).unwrap_err().status, KVKEEP_ERR_CORRUPT, "payload bit {bit}");
    }
    // Of the header as well, though whoever changes it can make its own checksum right. The payload's is no secret's.
    for bit in (0..24 * 8).chain(28 * 8..156 * 8) {
        let mut changed = stored;
        changed.0[bit / 8] ^= 1 << (bit % 8);
        changed.sum_up();
        assert!(keys.decrypt(&changed, &mut ciphertext.clone()).is_err(), "header bit {bit}");
    }
}

#[test]
fn no_two_objects_have_a_nonce_or_a_ciphertext_alike() {
    let keys = read(&text('a')).unwrap();
    let plain = payload(1, 100);
    let header = Header::new(&key(1), &LAYOUT, &plain, true);
    let encrypt = || {
        let mut ciphertext = plain.clone();
        (keys.encrypt(&key(1), &header, &mut ciphertext).unwrap().encryption().unwrap(), ciphertext)
    };
    let ((one, first), (other, second)) = (encrypt(), encrypt());
    assert!(one.key_id == other.key_id && one.nonce != other.nonce && first != second);
}

#[test]
fn keys_rotate_and_an_object_without_its_key_is_no_corrupt_one() {
    let inner = MemoryBackend::open_url(&[]).unwrap();
    store(&*around(&inner, &['a']), 1, LENGTH).unwrap();
    let rotated = around(&inner, &['b', 'a']);
    verified(&*rotated, 1).unwrap();
    store(&*rotated, 2, LENGTH).unwrap();
    let newest = around(&inner, &['b']);
    verified(&*newest, 2).unwrap();
    let (status, message) = refusal(&*newest, 1);
    assert_eq!(status, KVKEEP_ERR_UNSUPPORTED);
    assert!(message.contains("add that key after the newest"), "{message}");
    // An object that is not encrypted proves nothing: anyone may have put it there.
    store(&*inner, 3, LENGTH).unwrap();
    let (status, message) = refusal(&*newest, 3);
    assert!(status == KVKEEP_ERR_UNSUPPORTED && message.contains("not encrypted"), "{message}");
}

#[test]
fn an_object_under_the_name_of_another_does_not_pass() {
    let keys = read(&text('a')).unwrap();
    let plain = payload(1, 100);
    let mut ciphertext = plain.clone();
    let stored = keys.encrypt(&key(1), &Header::new(&key(1), &LAYOUT, &plain, true), &mut ciphertext).unwrap();
    let back = keys.decrypt(&stored, &mut ciphertext).unwrap();
    assert_eq!(back.verify(&key(2), Some(&LAYOUT), &ciphertext, true).unwrap_err().status, KVKEEP_ERR_CORRUPT);
}

#[test]
fn more_stores_than_there_is_memory_for_are_all_made() {
    let inner = MemoryBackend::open_url(&[]).unwrap();
    let backend = around(&inner, &['a']);
    let large = 9 << 20;
    let answers: Vec<_> = (0..20).map(|number| send_store(&*backend, number, large)).collect();
    assert!(answers.iter().all(|stored| answer(stored).unwrap() == Stored::Written));
    let (header, buffer) = load(&*backend, 19, large);
    header.unwrap().verify(&key(19), Some(&LAYOUT), buffer.bytes(), true).unwrap();
    backend.close();
    assert!(store(&*backend, 1, LENGTH).is_err());
}

#[test]
fn wrong_keys_are_named_without_their_digits() {
    let message = |text: &str| read(text).map(|_| ()).unwrap_err().message;
    let secret = "5ec4e7".repeat(10);
    for (text, why) in [
        ("", "it has no key"),
        ("# only a comment\n", "it has no key"),
        (secret.as_str(), "its key number 1 is none"),
        (&format!("{}\n{}", text('a'), text('a')), "its key number 2 is there twice"),
    ] {
        let message = message(text);
        assert!(message.contains(why) && message.contains("64 hexadecimal digits"), "{message}");
        assert!(!message.contains("5ec4") && !message.contains("aaaa"), "{message}");
    }
    assert!(read(&format!("# newest\n {} # of May\n{}\n", text('a'), text('b'))).is_ok());
    let refusal = |location| EncryptionKeys::read(&location, &KeyCallback::default()).map(|_| ()).unwrap_err();
    let missing = refusal(KeyLocation::File("/nowhere/keys".into()));
    assert!(missing.message.contains("/nowhere/keys"), "{missing}");
    let unset = refusal(KeyLocation::Environment("KVKEEP_NO_SUCH_KEY".to_owned()));
    assert!(unset.message.contains("KVKEEP_NO_SUCH_KEY is not set"), "{unset}");
}
