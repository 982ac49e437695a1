//! Access keys from a file in the form of `~/.aws/credentials`.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One section of the file. It has no `Debug`, so that no log shows it.
#[derive(Default)]
pub struct AccessKeys {
    /// `aws_access_key_id`.
    pub id: String,
    /// `aws_secret_access_key`.
    pub secret: String,
    /// `aws_session_token`, if it is there.
    pub token: Option<String>,
}

/// The file that programs of AWS read when the environment has no access key.
pub fn usual_file() -> Option<PathBuf> {
    let named = std::env::var_os("AWS_SHARED_CREDENTIALS_FILE").map(PathBuf::from);
    let at_home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".aws/credentials"));
    named.or_else(at_home).filter(|file| file.is_file())
}

/// Reads the section `profile` of `file`. No message has a line of the file.
pub fn read(file: &Path, profile: &str) -> Result<AccessKeys> {
    let shown = file.display();
    let text = std::fs::read_to_string(file)
        .map_err(|error| Error::io(format!("reading the access keys in {shown}, which credentials= names"), &error))?;
    let (mut keys, mut inside) = (AccessKeys::default(), false);
    for line in text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';'])) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == profile;
        } else if inside && let Some((name, value)) = line.split_once('=') {
            let value = value.trim().to_owned();
            match name.trim().to_ascii_lowercase().as_str() {
                "aws_access_key_id" => keys.id = value,
                "aws_secret_access_key" => keys.secret = value,
                "aws_session_token" => keys.token = Some(value),
                _ => {}
            }
        }
    }
    if keys.id.is_empty() || keys.secret.is_empty() {
        return Err(Error::invalid(format!(
            "{shown} has no aws_access_key_id and aws_secret_access_key in a section [{profile}]; write them, or name another \
             section by profile="
        )));
    }
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_section_is_read_and_no_error_repeats_a_line() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = "# x\n[default]\naws_access_key_id = one\n[other]\nAWS_ACCESS_KEY_ID=two\naws_secret_access_key=hush=\n\
                    aws_session_token = t\n";
        std::fs::write(file.path(), text).unwrap();
        let keys = read(file.path(), "other").unwrap();
        assert_eq!((keys.id.as_str(), keys.secret.as_str(), keys.token.as_deref()), ("two", "hush=", Some("t")));
        let message = read(file.path(), "default").map(drop).unwrap_err().message;
        assert!(message.contains("section [default]; write them") && !message.contains("one"), "{message}");
        let message = read(Path::new("/no/file"), "default").map(drop).unwrap_err().message;
        assert!(message.contains("which credentials= names: No such file"), "{message}");
    }
}
