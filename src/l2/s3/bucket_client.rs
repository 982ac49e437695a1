//! A bucket of one service: its client, and the moving of bytes between the bucket and memory of the caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
use object_store::client::{Certificate, ClientOptions};
use object_store::path::Path;
use object_store::{
    BackoffConfig, Error as ServiceError, GetOptions, GetRange, GetResult, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMode, PutOptions, PutPayload, RetryConfig,
};

use super::aws_credentials;
use super::bucket_errors::{is_page, knows_no_condition, service_error};
use super::s3_options::{Conditional, S3Options, ServerChecksum};
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
    /// Bucket, prefix and endpoint, for people.
    pub place: String,
    part_bytes: u64,
    /// Stores carry a precondition.
    conditional: AtomicBool,
    may_drop_condition: bool,
}

impl BucketClient {
    /// Makes the client, and asks nothing yet. Called where the runtime that runs it is entered.
    pub fn new(options: &S3Options) -> Result<BucketClient> {
        let place = options.place();
        let client = client_options(options)?;
        let store = s3(options, client).map_err(|error| match error {
            BuildFailure::Own(error) => error,
            BuildFailure::Service(error) => service_error("opening", &place, &error),
        })?;
        Ok(BucketClient {
            store,
            place,
            part_bytes: options.part_bytes,
            conditional: AtomicBool::new(options.conditional != Conditional::Off),
            may_drop_condition: options.conditional == Conditional::Auto,
        })
    }

    /// Whether the service was found to know no precondition.
    pub fn has_dropped_condition(&self) -> bool {
        self.may_drop_condition && !self.conditional.load(Ordering::Relaxed)
    }

    /// Fails unless the service answers as one should that is asked for an object which is not there.
    pub async fn probe(&self, nobody: &Path) -> Result<()> {
        let no_service = || {
            let cause = "the endpoint answers, but not as an S3 service: correct endpoint=, or the proxy before it";
            Error::new(KVKEEP_ERR_IO, format!("{cause}: opening {}", self.place))
        };
        match self.store.get_opts(nobody, GetOptions::default()).await {
            Ok(_) => Err(no_service()),
            Err(error @ ServiceError::NotFound { .. }) => {
                let text = error.to_string();
                if text.contains("<Code>NoSuchBucket") || is_page(&text) {
                    return Err(service_error("opening", &self.place, &error));
                }
                if text.contains("<Code>") { Ok(()) } else { Err(no_service()) }
            }
            Err(error) => Err(service_error("opening", &self.place, &error)),
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

    /// Writes an object. `replace`: whatever is under its name.
    pub async fn write(&self, name: &Path, header: &Header, payload: Bytes, replace: bool) -> Result<Stored> {
        let header = Bytes::copy_from_slice(&header.0);
        if (HEADER_BYTES + payload.len()) as u64 > self.part_bytes {
            return self.write_parts(name, header, payload).await;
        }
        let whole = PutPayload::from_iter([header, payload]);
        if !replace && self.conditional.load(Ordering::Relaxed) {
            match self.store.put_opts(name, whole.clone(), PutMode::Create.into()).await {
                Ok(_) => return Ok(Stored::Written),
                Err(ServiceError::AlreadyExists { .. }) => return Ok(Stored::Already),
                Err(error) if self.may_drop_condition && knows_no_condition(&error) => {
                    self.conditional.store(false, Ordering::Relaxed);
                }
                Err(error) => return Err(self.error("writing", name, &error)),
            }
        }
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
                Err(error) => failure = Some(service_error("deleting in", &self.place, &error)),
            }
        }
        failure.map_or(Ok(count), Err)
    }

    /// All objects below a folder.
    pub fn list(&self, folder: &Path) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
        self.store.list(Some(folder))
    }

    fn error(&self, what: &str, name: &Path, error: &ServiceError) -> Error {
        service_error(what, name.as_ref(), error)
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

enum BuildFailure {
    Own(Error),
    Service(ServiceError),
}

fn client_options(options: &S3Options) -> Result<ClientOptions> {
    let plain = options.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut client = ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(options.connect)
        .with_read_timeout(options.stall)
        .with_pool_max_idle_per_host(2 * options.depth + options.lookups);
    if let Some(file) = &options.ca {
        let shown = file.display();
        let pem =
            std::fs::read(file).map_err(|error| Error::io(format!("reading {shown}, which ca= names"), &error))?;
        let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(Error::invalid(format!("{shown}, which ca= names, has no certificate in PEM")));
        }
        client = certificates.into_iter().fold(client, ClientOptions::with_root_certificate);
    }
    Ok(client)
}

fn retries(options: &S3Options) -> RetryConfig {
    let backoff = BackoffConfig {
        init_backoff: std::time::Duration::from_millis(50),
        max_backoff: std::time::Duration::from_secs(2),
        base: 3.0,
    };
    // The deadline of a request bounds it too.
    RetryConfig { backoff, max_retries: options.retries, retry_timeout: std::time::Duration::from_secs(120) }
}

fn s3(options: &S3Options, client: ClientOptions) -> std::result::Result<Arc<dyn ObjectStore>, BuildFailure> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&options.bucket)
        .with_client_options(client)
        .with_retry(retries(options))
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_virtual_hosted_style_request(!options.path_style)
        .with_disable_bulk_delete(!options.bulk_delete)
        .with_unsigned_payload(!options.sign_payload)
        .with_skip_signature(options.anonymous);
    if let Some(endpoint) = &options.endpoint {
        // A bucket in the host's name stands there already for this client.
        let endpoint = match endpoint.split_once("://") {
            Some((scheme, host)) if !options.path_style => format!("{scheme}://{}.{host}", options.bucket),
            _ => endpoint.clone(),
        };
        // The one that counts more, since the environment may have set it.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &options.region {
        builder = builder.with_region(region);
    }
    match options.checksum {
        ServerChecksum::None => {}
        ServerChecksum::Sha256 => builder = builder.with_checksum_algorithm(Checksum::SHA256),
        ServerChecksum::Crc64Nvme => builder = builder.with_checksum_algorithm(Checksum::CRC64NVME),
    }
    const OTHERS: [&str; 4] = [
        "AWS_ACCESS_KEY_ID",
        "AWS_WEB_IDENTITY_TOKEN_FILE",
        "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
        "AWS_CONTAINER_CREDENTIALS_FULL_URI",
    ];
    let has_others = OTHERS.iter().any(|name| std::env::var_os(name).is_some());
    let file = match &options.credentials {
        None if options.anonymous || has_others => None,
        None => aws_credentials::usual_file(),
        named => named.clone(),
    };
    if let Some(file) = file {
        let keys = aws_credentials::read(&file, &options.profile).map_err(BuildFailure::Own)?;
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        builder = keys.token.into_iter().fold(builder, AmazonS3Builder::with_token);
    }
    Ok(Arc::new(builder.build().map_err(BuildFailure::Service)?))
}
