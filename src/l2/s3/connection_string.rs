//! The connection string of an Azure storage account, as its portal shows it: `AccountName=…;AccountKey=…`.

use crate::error::{Error, Result};

/// The parts of a connection string. It has no `Debug`, so that no log shows it.
#[derive(Default)]
pub struct ConnectionString {
    /// `AccountName`.
    pub account: Option<String>,
    /// `AccountKey`, in base64.
    pub key: Option<String>,
    /// `SharedAccessSignature`.
    pub signature: Option<String>,
    /// `BlobEndpoint`, or the one that `EndpointSuffix` and `DefaultEndpointsProtocol` make.
    pub endpoint: Option<String>,
}

impl ConnectionString {
    /// Takes the text apart that `source` has. No message has a part of the text.
    pub fn parse(text: &str, source: &str) -> Result<ConnectionString> {
        let mut parts = ConnectionString::default();
        let (mut protocol, mut suffix) = ("https", None);
        for pair in text.trim().split(';').filter(|pair| !pair.trim().is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = value.trim();
            match name.trim().to_ascii_lowercase().as_str() {
                "accountname" => parts.account = Some(value.to_owned()),
                "accountkey" => parts.key = Some(value.to_owned()),
                "sharedaccesssignature" => parts.signature = Some(value.to_owned()),
                "blobendpoint" => parts.endpoint = Some(value.trim_end_matches('/').to_owned()),
                "defaultendpointsprotocol" => protocol = value,
                "endpointsuffix" => suffix = Some(value),
                _ => {}
            }
        }
        if parts.key.is_none() && parts.signature.is_none() {
            return Err(Error::invalid(format!(
                "{source} has no connection string of a storage account: write AccountName=…;AccountKey=…, or \
                 AccountName=…;SharedAccessSignature=…"
            )));
        }
        if let (None, Some(account), Some(suffix)) = (&parts.endpoint, &parts.account, suffix) {
            parts.endpoint = Some(format!("{protocol}://{account}.blob.{suffix}"));
        }
        Ok(parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_string_comes_apart_and_no_error_repeats_it() {
        let text =
            "DefaultEndpointsProtocol=https;AccountName=one;AccountKey=aGk+/w==;EndpointSuffix=core.example.net\n";
        let parts = ConnectionString::parse(text, "x").unwrap();
        assert_eq!((parts.account.as_deref(), parts.key.as_deref()), (Some("one"), Some("aGk+/w==")));
        assert_eq!(parts.endpoint.as_deref(), Some("https://one.blob.core.example.net"));
        let text = "BlobEndpoint=http://127.0.0.1:1/two/;SharedAccessSignature=sv=1&sig=a%3D;";
        let parts = ConnectionString::parse(text, "x").unwrap();
        assert_eq!(parts.endpoint.as_deref(), Some("http://127.0.0.1:1/two"));
        assert_eq!((parts.account, parts.key, parts.signature.as_deref()), (None, None, Some("sv=1&sig=a%3D")));
        let message = ConnectionString::parse("hush", "the file /f").map(drop).unwrap_err().message;
        assert!(message.starts_with("the file /f has no connection string") && !message.contains("hush"), "{message}");
    }
}
