//! The master keys of an encrypted backend, and the objects that are encrypted and decrypted with them.

use std::path::PathBuf;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::key_callback::KeyCallback;
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_INTERNAL, KVKEEP_ERR_UNSUPPORTED, Result};
use crate::key::{ObjectKey, hex, unhex};
use crate::l2::object_header::{Encryption, Header};

/// The texts that BLAKE3 derives keys and ids with. They are part of the format.
const ID_CONTEXT: &str = "kvkeep 2026-11-30 id of a master key";
const ROOT_CONTEXT: &str = "kvkeep 2026-11-30 root of object keys";
const HOW: &str = "write 64 hexadecimal digits, as `openssl rand -hex 32` prints them, the newest key first";

/// Where the keys come from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum KeyLocation {
    /// In a file: one key a line.
    File(PathBuf),
    /// In an environment variable of this process: keys with spaces or commas between them.
    Environment(String),
    /// From the host program, which knows them by this name.
    Callback(String),
}

/// One master key.
struct MasterKey {
    id: [u8; 8],
    root: [u8; 32],
}

/// The master keys: the first encrypts, all decrypt.
pub struct EncryptionKeys {
    keys: Vec<MasterKey>,
    random: SystemRandom,
}

impl MasterKey {
    fn new(bytes: &[u8; 32]) -> MasterKey {
        let mut id = [0; 8];
        id.copy_from_slice(&blake3::derive_key(ID_CONTEXT, bytes)[..8]);
        MasterKey { id, root: blake3::derive_key(ROOT_CONTEXT, bytes) }
    }

    /// The key of one object that is written with these random bits.
    fn of_object(&self, key: &ObjectKey, nonce: &[u8; NONCE_LEN]) -> Result<LessSafeKey> {
        let mut hasher = blake3::Hasher::new_keyed(&self.root);
        hasher.update(&key.space.0).update(&key.key.hash);
        hasher.update(&key.key.rank.to_le_bytes()).update(&key.key.group.to_le_bytes()).update(nonce);
        let unbound = UnboundKey::new(&AES_256_GCM, hasher.finalize().as_bytes());
        unbound.map(LessSafeKey::new).map_err(|_| Error::new(KVKEEP_ERR_INTERNAL, "an object's key has a wrong length"))
    }
}

impl EncryptionKeys {
    /// Reads the keys, or asks the host program for them. No message has any of their digits.
    pub fn read(source: &KeyLocation, callback: &KeyCallback) -> Result<EncryptionKeys> {
        let (name, text) = match source {
            KeyLocation::File(path) => {
                let name = format!("the key file {}", path.display());
                let text =
                    std::fs::read_to_string(path).map_err(|error| Error::io(format!("reading {name}"), &error))?;
                (name, text)
            }
            KeyLocation::Environment(variable) => {
                let name = format!("the environment variable {variable}");
                let text = std::env::var(variable)
                    .map_err(|_| Error::invalid(format!("{name} is not set, or is no text: {HOW}")))?;
                (name, text)
            }
            KeyLocation::Callback(name) => {
                let mut keys: Vec<MasterKey> = Vec::new();
                callback.ask(name, |bytes| {
                    let key = MasterKey::new(bytes);
                    let same = keys.iter().position(|other| other.id == key.id);
                    same.map_or_else(
                        || {
                            keys.push(key);
                            Ok(())
                        },
                        Err,
                    )
                })?;
                return Ok(EncryptionKeys { keys, random: SystemRandom::new() });
            }
        };
        let text = Zeroizing::new(text);
        EncryptionKeys::parse(&text).map_err(|why| Error::invalid(format!("{name}: {why}; {HOW}")))
    }

    fn parse(text: &str) -> std::result::Result<EncryptionKeys, String> {
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or(""));
        let words = lines.flat_map(|line| line.split(|c: char| c.is_whitespace() || c == ','));
        let mut keys: Vec<MasterKey> = Vec::new();
        for (number, word) in words.filter(|word| !word.is_empty()).enumerate() {
            let bytes =
                unhex(word).map(Zeroizing::new).ok_or_else(|| format!("its key number {} is none", number + 1))?;
            let key = MasterKey::new(&bytes);
            if keys.iter().any(|other| other.id == key.id) {
                return Err(format!("its key number {} is there twice", number + 1));
            }
            keys.push(key);
        }
        if keys.is_empty() {
            return Err("it has no key".to_owned());
        }
        Ok(EncryptionKeys { keys, random: SystemRandom::new() })
    }

    /// Encrypts a payload in place. Gives its header.
    pub fn encrypt(&self, key: &ObjectKey, header: &Header, payload: &mut [u8]) -> Result<Header> {
        let failed = |_| Error::new(KVKEEP_ERR_INTERNAL, "an object could not be encrypted");
        let master = self.keys.first().ok_or_else(|| Error::new(KVKEEP_ERR_INTERNAL, "there is no key"))?;
        let mut nonce = [0; NONCE_LEN];
        self.random.fill(&mut nonce).map_err(failed)?;
        let sealing = master.of_object(key, &nonce)?;
        let header = header.encrypting(&master.id, &nonce);
        let data = Aad::from(header.associated_data());
        let made =
            sealing.seal_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), data, payload).map_err(failed)?;
        let mut tag = [0; 16];
        tag.copy_from_slice(made.as_ref());
        Ok(header.encrypted(&tag, payload))
    }

    /// Decrypts a payload in place. Gives its header, which has no checksum: that nothing changed is proved here.
    pub fn decrypt(&self, header: &Header, payload: &mut [u8]) -> Result<Header> {
        let (key, _) = header.open()?;
        let Some(Encryption { key_id, nonce, tag }) = header.encryption() else {
            let why = "the object is not encrypted, and its backend has a key: it is a miss until it is stored anew";
            return Err(Error::new(KVKEEP_ERR_UNSUPPORTED, why));
        };
        let Some(master) = self.keys.iter().find(|master| master.id == key_id) else {
            let why = format!(
                "the object is encrypted with the key {}, which its backend does not have: add that key after the newest, or let the \
                 object be stored anew",
                hex(&key_id)
            );
            return Err(Error::new(KVKEEP_ERR_UNSUPPORTED, why));
        };
        let data = Aad::from(header.associated_data());
        let opening = master.of_object(&key, &nonce)?;
        opening
            .open_in_place_separate_tag(Nonce::assume_unique_for_key(nonce), data, tag.into(), payload, 0..)
            .map_err(|_| Error::new(KVKEEP_ERR_CORRUPT, "the object does not decrypt: it was changed"))?;
        Ok(header.decrypted())
    }
}
