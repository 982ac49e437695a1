//! Encryption at rest around any backend: AES-256-GCM, with the keys of the backend's URL.
//!
//! Each object is encrypted under a key of its own, which [`keys`] derives from a master key, the object's identity and 96 random
//! bits. The same bits are the nonce. So a nonce can only repeat under one key where one object is written again and again: after
//! 2^32 writes of the same object the chance is one in 2^33. The header's identity is associated data. The header has the master
//! key's id, the nonce and the tag; the payload's checksum in it is that of the ciphertext, so that a store can be verified without
//! a key.

mod cipher_memory;
mod cipher_threads;
mod encrypted_backend;
mod key_callback;
mod keys;
#[cfg(test)]
mod tests;

pub use self::encrypted_backend::EncryptedBackend;
pub use self::key_callback::KeyCallback;
pub use self::keys::{EncryptionKeys, KeyLocation};
