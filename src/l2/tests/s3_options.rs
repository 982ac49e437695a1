use super::*;

fn parse(url: &str) -> Result<S3Options> {
    S3Options::parse(&Url::parse(url)?)
}

#[test]
fn a_url_names_bucket_prefix_and_endpoint() {
    let options = parse("s3://kv/a/b/?endpoint=http://127.0.0.1:9000/&region=eu-west-1&part_size=6MiB").unwrap();
    assert_eq!((options.bucket.as_str(), options.prefix.as_str()), ("kv", "a/b"));
    assert_eq!(options.endpoint.as_deref(), Some("http://127.0.0.1:9000"));
    assert!(options.aws.path_style && options.aws.sign_payload, "of a custom endpoint without TLS");
    assert_eq!((options.part_bytes, options.aws.region.as_deref()), (6 << 20, Some("eu-west-1")));
    let options = parse("s3://kv?endpoint=https://[::1]:9000&path_style=off").unwrap();
    assert!(!options.aws.path_style && !options.aws.sign_payload && options.prefix.is_empty());
    assert_eq!(options.place(), "s3://kv at https://[::1]:9000");
}

#[test]
fn google_and_azure_take_what_they_have() {
    let options = parse("gs://kv/a?part_size=6MiB&anonymous=on").unwrap();
    assert_eq!((options.service, options.place().as_str()), (ObjectService::Google, "gs://kv/a"));
    let options = parse("AZ://kv/a?account=one").unwrap();
    assert_eq!((options.service, options.account.as_deref()), (ObjectService::Azure, Some("one")));
    assert_eq!(options.place(), "az://kv/a of the account one");
}

#[test]
fn an_error_names_the_cause_and_the_remedy_and_repeats_no_secret() {
    for (url, part) in [
        ("s3://", "no bucket's name"),
        ("s3://a b", "no bucket's name"),
        ("s3://kv/../x", "no empty part"),
        ("s3://kv/a//b", "no empty part"),
        ("s3://kv/a%20b", "letters, digits"),
        ("s3://me:hush@kv/x", "secrets do not belong into a URL"),
        ("s3://kv?access_key=hush", "the parameter access_key of s3: secrets do not belong"),
        ("s3://kv?secret_key=hush", "AWS_SECRET_ACCESS_KEY"),
        ("s3://kv?endpoint=hush", "write http://host:port"),
        ("s3://kv?endpoint=http://me:hush@host", "remove the part up to @"),
        ("s3://kv?endpoint=http://", "it is no URL of a service"),
        ("s3://kv?endpoint=http://:9000", "it has no host"),
        ("s3://kv?endpoint=http://host:port", "its port is no number"),
        ("s3://kv?part_size=1MiB", "not from 5MiB to 1GiB"),
        ("s3://kv?depth=0", "0 is not from 1 to 1024"),
        ("s3://kv?conditional=perhaps", "neither auto, on nor off"),
        ("s3://kv?checksum=md5", "neither none, sha256 nor crc64nvme"),
        ("gs://", "no bucket's name; write gs://bucket/prefix"),
        ("gs://me:hush@kv/x", "GOOGLE_APPLICATION_CREDENTIALS"),
        ("gs://kv?bearer_token=hush", "the parameter bearer_token of gs: secrets do not belong"),
        ("gs://kv?region=x", "gs has no parameter \"region\"; it takes endpoint, credentials,"),
        ("az://", "no container's name; write az://container/prefix?account=…"),
        ("az://kv?account_key=hush", "AZURE_STORAGE_ACCOUNT_KEY"),
        ("az://kv?sas_token=hush", "secrets do not belong"),
        ("az://kv?checksum=sha256", "az has no parameter \"checksum\"; it takes endpoint, account,"),
        ("s3://kv?account=one", "s3 has no parameter \"account\""),
        ("s3://kv?capacity=1G", "s3 has no parameter \"capacity\"; it takes endpoint, region,"),
    ] {
        let message = parse(url).unwrap_err().message;
        assert!(message.contains(part), "{url}: {message}");
        assert!(!message.contains("hush"), "{message}");
    }
}
