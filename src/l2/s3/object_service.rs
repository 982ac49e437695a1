//! The services that keep buckets, and the words of each.

/// A kind of service.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ObjectService {
    /// `s3:`, of AWS or of anyone who speaks S3.
    S3,
    /// `gs:`, Google Cloud Storage.
    Google,
    /// `az:`, Azure Blob Storage.
    Azure,
}

impl ObjectService {
    /// The service that a URL's scheme names; S3 where it names none of the others.
    pub fn of_scheme(scheme: &str) -> ObjectService {
        match scheme {
            "gs" => ObjectService::Google,
            "az" => ObjectService::Azure,
            _ => ObjectService::S3,
        }
    }

    /// The scheme of its URLs, which is also the backend's name.
    pub fn scheme(self) -> &'static str {
        match self {
            ObjectService::S3 => "s3",
            ObjectService::Google => "gs",
            ObjectService::Azure => "az",
        }
    }

    /// A URL of a place in it.
    pub fn example(self) -> &'static str {
        match self {
            ObjectService::S3 => "s3://bucket/prefix?endpoint=…",
            ObjectService::Google => "gs://bucket/prefix",
            ObjectService::Azure => "az://container/prefix?account=…",
        }
    }

    /// Its name, as it follows the word "no".
    pub fn label(self) -> &'static str {
        match self {
            ObjectService::S3 => "S3 service",
            ObjectService::Google => "Google Cloud Storage",
            ObjectService::Azure => "Azure Blob Storage",
        }
    }

    /// Its own word for a bucket.
    pub fn bucket(self) -> &'static str {
        match self {
            ObjectService::S3 | ObjectService::Google => "bucket",
            ObjectService::Azure => "container",
        }
    }

    /// How its users give access keys.
    pub fn ways_to_give_keys(self) -> &'static str {
        match self {
            ObjectService::S3 => "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a file by credentials=",
            ObjectService::Google => {
                "let GOOGLE_APPLICATION_CREDENTIALS or credentials= name the JSON file of a service account or of gcloud's login"
            }
            ObjectService::Azure => {
                "set AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN or AZURE_STORAGE_CONNECTION_STRING, or name a file \
                 with a connection string by credentials="
            }
        }
    }

    /// The permissions that a backend uses.
    pub fn permissions(self) -> &'static str {
        match self {
            ObjectService::S3 => "the access key needs ListBucket, GetObject, PutObject, DeleteObject",
            ObjectService::Google => "the account needs the role Storage Object User, or the permissions of it",
            ObjectService::Azure => {
                "the account needs the role Storage Blob Data Contributor, or a token for read, write, delete, list"
            }
        }
    }

    /// Variables of the environment that may have the endpoint, the first that is set counts.
    pub fn endpoint_variables(self) -> &'static [&'static str] {
        match self {
            ObjectService::S3 => &["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"],
            ObjectService::Google => &["GOOGLE_BASE_URL"],
            ObjectService::Azure => &["AZURE_STORAGE_ENDPOINT"],
        }
    }

    /// The variable of the environment that may name a file of certificates to trust.
    pub fn ca_variable(self) -> Option<&'static str> {
        (self == ObjectService::S3).then_some("AWS_CA_BUNDLE")
    }
}
