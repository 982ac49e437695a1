//! A payload that is sent from L1's memory.

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::arena::Buffer;

/// Keeps the payload's memory until the last piece of it that is being sent is gone.
struct SentBuffer {
    // The order matters: the memory is let go first, then that is said.
    buffer: Buffer,
    _gone: oneshot::Sender<()>,
}

impl AsRef<[u8]> for SentBuffer {
    fn as_ref(&self) -> &[u8] {
        self.buffer.bytes()
    }
}

/// Bytes of the buffer that are not copied, and a receiver that ends when all of them are dropped.
pub fn lend(buffer: Buffer) -> (Bytes, oneshot::Receiver<()>) {
    let (gone, ended) = oneshot::channel();
    (Bytes::from_owner(SentBuffer { buffer, _gone: gone }), ended)
}
