//! A bucket of one service: its client, and the moving of bytes between the bucket and memory of the caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Error as ServiceError, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt, PutMode,
    PutOptions, PutPayload,
};

use super::bucket_errors::{is_none, is_page, knows_no_condition, names_no_bucket, service_error};
use super::object_service::ObjectService;
use super::s3_options::{Conditional, S3Options};
use super::service_clients;
use crate::error::{Error, KVKEEP_ERR_CORRUPT, KVKEEP_ERR_IO, Result};
use crate::l2::Stored;
use crate::l2::object_header::{HEADER_BYTES, Header};

/// Parts, or ranges, of one object that are on their way at once.
const PARTS_AT_ONCE: usize = 4;

/// The answer to a question for one object.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Asked {
    /// There is nothing under its name.
    Missing,
    /// There is an object with so many bytes of payload.
    Payload(u64),
    /// Something too short to be an object is there.
    Foreign,
}

/// The client of a bucket.
pub struct BucketClient {
    store: Arc<dyn ObjectStore>,
    /// The kind of its service.
    pub service: ObjectService,
    /// Bucket, prefix and endpoint, for people.
    pub place: String,
    part_bytes: u64,
    /// Stores carry a precondition.
    conditional: AtomicBool,
    may_drop_condition: bool,
    /// The service has shown that it keeps the precondition, or is being asked to.
    tried_condition: AtomicBool,
}

impl BucketClient {
    /// Makes the client, and asks nothing yet. Called where the runtime that runs it is entered.
    pub fn new(options: &S3Options) -> Result<BucketClient> {
        Ok(BucketClient {
            store: service_clients::make(options)?,
            service: options.service,
            place: options.place(),
            part_bytes: options.part_bytes,
            conditional: AtomicBool::new(options.conditional != Conditional::Off),
            may_drop_condition: options.conditional == Conditional::Auto,
            tried_condition: AtomicBool::new(options.conditional != Conditional::Auto),
        })
    }

    /// Whether the service was found to know no precondition.
    pub fn has_dropped_condition(&self) -> bool {
        self.may_drop_condition && !self.conditional.load(Ordering::Relaxed)
    }

    /// Fails unless the service answers as one should that is asked for an object which is not there.
    pub async fn probe(&self, nobody: &Path) -> Result<()> {
        let no_service = || Error::new(KVKEEP_ERR_IO, format!("{}: opening {}", is_none(self.service), self.place));
        match self.store.get_opts(nobody, GetOptions::default()).await {
            Ok(_) => Err(no_service()),
            Err(error @ ServiceError::NotFound { .. }) => {
                let text = error.to_string();
                if names_no_bucket(&text) || is_page(&text) {
                    return Err(self.failure("opening", &error));
                }
                if text.contains("<Code>") { Ok(()) } else { Err(no_service()) }
            }
            Err(error) => Err(self.failure("opening", &error)),
        }
    }

    /// Asks for an object's size.
    pub async fn ask(&self, name: &Path) -> Result<Asked> {
        match self.store.head(name).await {
            Ok(meta) => Ok(asked(meta.size)),
            Err(ServiceError::NotFound { .. }) => Ok(Asked::Missing),
            Err(error) => Err(self.error("asking for", name, &error)),
        }
    }

    /// Reads an object: its header, and its payload into `payload`, which has its length. The frames of the network are copied once.
    pub async fn read(&self, name: &Path, payload: &mut [u8]) -> Result<Header> {
        let failed = |error: ServiceError| self.error("reading", name, &error);
        let mut header = [0; HEADER_BYTES];
        let whole = (HEADER_BYTES + payload.len()) as u64;
        if whole <= self.part_bytes {
            let result = self.store.get_opts(name, GetOptions::default()).await.map_err(failed)?;
            check_size(name, result.meta.size, whole)?;
            self.fill(name, result, &mut [&mut header[..], payload]).await?;
            return Ok(Header(header));
        }
        let (first, rest) = payload.split_at_mut(self.part_bytes as usize - HEADER_BYTES);
        let range = |from: u64, bytes: usize, tag: Option<String>| GetOptions {
            range: Some(GetRange::Bounded(from..from + bytes as u64)),
            if_match: tag,
            ..GetOptions::default()
        };
        let result = self.store.get_opts(name, range(0, self.part_bytes as usize, None)).await.map_err(failed)?;
        check_size(name, result.meta.size, whole)?;
        // All ranges are of one object: another process may store it anew meanwhile.
        let tag = result.meta.e_tag.clone();
        let mut others: Vec<BoxFuture<'_, Result<()>>> = Vec::new();
        for (number, piece) in rest.chunks_mut(self.part_bytes as usize).enumerate() {
            let options = range((number as u64 + 1) * self.part_bytes, piece.len(), tag.clone());
            others.push(Box::pin(async move {
                let result = self.store.get_opts(name, options).await.map_err(failed)?;
                self.fill(name, result, &mut [piece]).await
            }));
        }
        let others = stream::iter(others).buffer_unordered(PARTS_AT_ONCE - 1).try_for_each(|()| async { Ok(()) });
        let mut pieces = [&mut header[..], first];
        futures_util::try_join!(self.fill(name, result, &mut pieces), others)?;
        Ok(Header(header))
    }

    /// Copies what a request brings into the pieces, one after the other, and fails unless it fills them exactly.
    async fn fill(&self, name: &Path, result: GetResult, pieces: &mut [&mut [u8]]) -> Result<()> {
        let wanted: usize = pieces.iter().map(|piece| piece.len()).sum();
        let (mut frames, mut got) = (result.into_stream(), 0);
        let (mut piece, mut at) = (0, 0);
        while let Some(frame) = frames.try_next().await.map_err(|error| self.error("reading", name, &error))? {
            let mut frame = &frame[..];
            got += frame.len();
            while !frame.is_empty() && piece < pieces.len() {
                let free = &mut pieces[piece][at..];
                let bytes = free.len().min(frame.len());
                free[..bytes].copy_from_slice(&frame[..bytes]);
                (frame, at) = (&frame[bytes..], at + bytes);
                if at == pieces[piece].len() {
                    (piece, at) = (piece + 1, 0);
                }
            }
        }
        if got == wanted {
            return Ok(());
        }
        Err(Error::new(KVKEEP_ERR_IO, format!("the service sent {got} of {wanted} bytes: reading {name}")))
    }

    /// Writes an object unless one is there, by one request. None, and nothing is written, where that cannot be: the object goes in
    /// parts, or the service knows no precondition.
    pub async fn create(&self, name: &Path, header: &Header, payload: Bytes) -> Result<Option<Stored>> {
        if (HEADER_BYTES + payload.len()) as u64 > self.part_bytes || !self.conditional.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let whole = PutPayload::from_iter([Bytes::copy_from_slice(&header.0), payload]);
        match self.store.put_opts(name, whole.clone(), PutMode::Create.into()).await {
            Ok(_) => {
                // Some services take the precondition and do not keep it, which only a second store shows.
                if !self.tried_condition.swap(true, Ordering::Relaxed)
                    && self.store.put_opts(name, whole, PutMode::Create.into()).await.is_ok()
                {
                    self.conditional.store(false, Ordering::Relaxed);
                }
                Ok(Some(Stored::Written))
            }
            Err(ServiceError::AlreadyExists { .. }) => {
                self.tried_condition.store(true, Ordering::Relaxed);
                Ok(Some(Stored::Already))
            }
            Err(error) if self.may_drop_condition && knows_no_condition(&error) => {
                self.conditional.store(false, Ordering::Relaxed);
                Ok(None)
            }
            Err(error) => Err(self.error("writing", name, &error)),
        }
    }

    /// Whether stores carry the precondition.
    pub fn has_condition(&self) -> bool {
        self.conditional.load(Ordering::Relaxed)
    }

    /// Writes an object. `replace`: whatever is under its name.
    pub async fn write(&self, name: &Path, header: &Header, payload: Bytes, replace: bool) -> Result<Stored> {
        if !replace && let Some(stored) = self.create(name, header, payload.clone()).await? {
            return Ok(stored);
        }
        let header = Bytes::copy_from_slice(&header.0);
        if (HEADER_BYTES + payload.len()) as u64 > self.part_bytes {
            return self.write_parts(name, header, payload).await;
        }
        let whole = PutPayload::from_iter([header, payload]);
        let written = self.store.put_opts(name, whole, PutOptions::default()).await;
        written.map(|_| Stored::Written).map_err(|error| self.error("writing", name, &error))
    }

    /// Writes an object in parts: it is there when the last one is.
    async fn write_parts(&self, name: &Path, header: Bytes, payload: Bytes) -> Result<Stored> {
        let failed = |error: ServiceError| self.error("writing", name, &error);
        let mut upload = self.store.put_multipart(name).await.map_err(failed)?;
        let first = payload.len().min(self.part_bytes as usize - HEADER_BYTES);
        let mut parts = vec![upload.put_part(PutPayload::from_iter([header, payload.slice(..first)]))];
        for from in (first..payload.len()).step_by(self.part_bytes as usize) {
            let until = payload.len().min(from + self.part_bytes as usize);
            parts.push(upload.put_part(payload.slice(from..until).into()));
        }
        drop(payload);
        let sent = stream::iter(parts).buffer_unordered(PARTS_AT_ONCE).try_for_each(|()| async { Ok(()) }).await;
        let ended = match sent {
            Ok(()) => upload.complete().await.map(|_| Stored::Written),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            // What it left costs room until the bucket's own rule for such uploads removes it.
            drop(upload.abort().await);
            return Err(failed(error));
        }
        Ok(Stored::Written)
    }

    /// Moves an object to another name.
    pub async fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.store.copy(from, to).await.map_err(|error| self.error("copying", from, &error))?;
        self.remove(from).await
    }

    /// Deletes one object, or what is under its name.
    pub async fn remove(&self, name: &Path) -> Result<()> {
        match self.store.delete(name).await {
            Ok(()) | Err(ServiceError::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.error("deleting", name, &error)),
        }
    }

    /// Deletes objects, and says how many names that were. One that is not there is no error.
    pub async fn delete(&self, names: BoxStream<'static, object_store::Result<Path>>) -> Result<u64> {
        let mut deleted = self.store.delete_stream(names);
        let (mut count, mut failure) = (0, None);
        while let Some(result) = deleted.next().await {
            match result {
                Ok(_) => count += 1,
                Err(ServiceError::NotFound { .. }) => {}
                Err(error) => failure = Some(self.failure("deleting in", &error)),
            }
        }
        failure.map_or(Ok(count), Err)
    }

    /// All objects below a folder.
    pub fn list(&self, folder: &Path) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(Some(folder))
    }

    fn error(&self, what: &str, name: &Path, error: &ServiceError) -> Error {
        service_error(self.service, what, name.as_ref(), error)
    }

    /// A failure of the service that concerns no single object.
    pub fn failure(&self, what: &str, error: &ServiceError) -> Error {
        service_error(self.service, what, &self.place, error)
    }
}

/// What an object of `bytes` bytes is.
pub fn asked(bytes: u64) -> Asked {
    bytes.checked_sub(HEADER_BYTES as u64).map_or(Asked::Foreign, Asked::Payload)
}

fn check_size(name: &Path, bytes: u64, wanted: u64) -> Result<()> {
    if bytes == wanted {
        return Ok(());
    }
    Err(Error::new(KVKEEP_ERR_CORRUPT, format!("the object has {bytes} bytes and not {wanted}: reading {name}")))
}
