//! Makes the client of each kind of service, from the options and the environment.

use std::sync::Arc;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum, S3ConditionalPut};
#[cfg(feature = "az")]
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::client::{Certificate, ClientOptions};
#[cfg(feature = "gs")]
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};

use super::aws_credentials;
use super::bucket_errors::service_error;
#[cfg(feature = "az")]
use super::connection_string::ConnectionString;
use super::object_service::ObjectService;
use super::s3_options::{S3Options, ServerChecksum};
use crate::error::{Error, Result};

/// Makes the client of the service that the options name, and asks nothing yet.
pub fn make(options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    match options.service {
        ObjectService::S3 => s3(options),
        ObjectService::Google => google(options),
        ObjectService::Azure => azure(options),
    }
}

fn client_options(options: &S3Options, endpoint: Option<&str>) -> Result<ClientOptions> {
    let plain = endpoint.is_some_and(|endpoint| endpoint.starts_with("http://"));
    let mut client = ClientOptions::new()
        .with_allow_http(plain)
        .with_timeout_disabled()
        .with_connect_timeout(options.connect)
        .with_read_timeout(options.stall)
        .with_pool_max_idle_per_host(2 * options.depth + options.lookups);
    if let Some((file, by)) = &options.ca {
        let shown = format!("{}, which {by} names", file.display());
        let pem = std::fs::read(file).map_err(|error| Error::io(format!("reading {shown}"), &error))?;
        let certificates = Certificate::from_pem_bundle(&pem).unwrap_or_default();
        if certificates.is_empty() {
            return Err(Error::invalid(format!("{shown}, has no certificate in PEM")));
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

/// The client of Google or Azure, which is made unless its keys cannot be used. What the library says of them may repeat them.
#[cfg(any(feature = "gs", feature = "az"))]
fn with_usable_keys<T: ObjectStore>(
    options: &S3Options,
    client: object_store::Result<T>,
) -> Result<Arc<dyn ObjectStore>> {
    let unusable = |_| {
        let (keys, place) = (options.service.ways_to_give_keys(), options.place());
        Error::invalid(format!("the access keys cannot be used; {keys}: opening {place}"))
    };
    Ok(Arc::new(client.map_err(unusable)?))
}

fn s3(options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&options.bucket)
        .with_client_options(client_options(options, options.endpoint.as_deref())?)
        .with_retry(retries(options))
        .with_conditional_put(S3ConditionalPut::ETagMatch)
        .with_virtual_hosted_style_request(!options.aws.path_style)
        .with_disable_bulk_delete(!options.aws.bulk_delete)
        .with_unsigned_payload(!options.aws.sign_payload)
        .with_skip_signature(options.anonymous);
    if let Some(endpoint) = &options.endpoint {
        // A bucket in the host's name stands there already for this client.
        let endpoint = match endpoint.split_once("://") {
            Some((scheme, host)) if !options.aws.path_style => format!("{scheme}://{}.{host}", options.bucket),
            _ => endpoint.clone(),
        };
        // The one that counts more, since the environment may have set it.
        builder = builder.with_config(AmazonS3ConfigKey::S3Endpoint, endpoint);
    }
    if let Some(region) = &options.aws.region {
        builder = builder.with_region(region);
    }
    match options.aws.checksum {
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
        let keys = aws_credentials::read(&file, &options.aws.profile)?;
        builder = builder.with_access_key_id(keys.id).with_secret_access_key(keys.secret);
        builder = keys.token.into_iter().fold(builder, AmazonS3Builder::with_token);
    }
    let failed = |error| service_error(options.service, "opening", &options.place(), &error);
    Ok(Arc::new(builder.build().map_err(failed)?))
}

#[cfg(feature = "gs")]
fn google(options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    // The environment's keys count more than a file for this client.
    let builder = match &options.credentials {
        Some(file) => {
            std::fs::File::open(file).map_err(|error| {
                Error::io(format!("reading the access keys in {}, which credentials= names", file.display()), &error)
            })?;
            GoogleCloudStorageBuilder::new().with_application_credentials(file.to_string_lossy())
        }
        None if options.anonymous => GoogleCloudStorageBuilder::new(),
        None => GoogleCloudStorageBuilder::from_env(),
    };
    let builder = builder
        .with_bucket_name(&options.bucket)
        .with_client_options(client_options(options, options.endpoint.as_deref())?)
        .with_retry(retries(options))
        .with_skip_signature(options.anonymous);
    let builder = options.endpoint.iter().fold(builder, |builder, endpoint| builder.with_base_url(endpoint));
    with_usable_keys(options, builder.build())
}

#[cfg(feature = "az")]
fn azure(options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    const IN_ENVIRONMENT: &str = "AZURE_STORAGE_CONNECTION_STRING";
    let of_environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let keys = match &options.credentials {
        Some(file) => {
            let shown = format!("{}, which credentials= names", file.display());
            let text = std::fs::read_to_string(file)
                .map_err(|error| Error::io(format!("reading the access keys in {shown}"), &error))?;
            Some(ConnectionString::parse(&text, &format!("{shown},"))?)
        }
        None if options.anonymous => None,
        None => {
            of_environment(IN_ENVIRONMENT).map(|text| ConnectionString::parse(&text, IN_ENVIRONMENT)).transpose()?
        }
    };
    let mut builder = match keys {
        None if !options.anonymous => MicrosoftAzureBuilder::from_env(),
        _ => MicrosoftAzureBuilder::new(),
    };
    let (mut account, mut endpoint) = (options.account.clone(), options.endpoint.clone());
    if let Some(keys) = keys {
        (account, endpoint) = (account.or(keys.account), endpoint.or(keys.endpoint));
        builder = keys.key.into_iter().fold(builder, MicrosoftAzureBuilder::with_access_key);
        let signed = |builder: MicrosoftAzureBuilder, signature| builder.with_config(AzureConfigKey::SasKey, signature);
        builder = keys.signature.into_iter().fold(builder, signed);
    } else if !options.anonymous
        && of_environment("AZURE_STORAGE_ACCOUNT_KEY").is_none()
        && let Some(key) = of_environment("AZURE_STORAGE_KEY")
    {
        builder = builder.with_access_key(key);
    }
    let account = account
        .or_else(|| of_environment("AZURE_STORAGE_ACCOUNT_NAME"))
        .or_else(|| of_environment("AZURE_STORAGE_ACCOUNT"));
    let Some(account) = account else {
        let message = "az does not know the storage account: write account=NAME, or set AZURE_STORAGE_ACCOUNT_NAME";
        return Err(Error::invalid(message));
    };
    builder = builder
        .with_account(account)
        .with_container_name(&options.bucket)
        .with_client_options(client_options(options, endpoint.as_deref())?)
        .with_retry(retries(options))
        .with_skip_signature(options.anonymous);
    let builder = endpoint.into_iter().fold(builder, MicrosoftAzureBuilder::with_endpoint);
    with_usable_keys(options, builder.build())
}

#[cfg(not(feature = "gs"))]
fn google(_options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    Err(missing("Google Cloud Storage", "gs"))
}

#[cfg(not(feature = "az"))]
fn azure(_options: &S3Options) -> Result<Arc<dyn ObjectStore>> {
    Err(missing("Azure Blob Storage", "az"))
}

#[cfg(not(all(feature = "gs", feature = "az")))]
fn missing(service: &str, feature: &str) -> Error {
    let message =
        format!("this kvkeep was built without {service}: build it with cargo's feature {feature} (on by default)");
    Error::new(crate::error::KVKEEP_ERR_UNSUPPORTED, message)
}
