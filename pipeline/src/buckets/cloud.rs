//! Buckets of clouds, by the crate object_store.
//!
//! In: an address, and the environment: variables that begin with `AWS_`, `GOOGLE_` or `AZURE_` are
//! handed to the crate, which reads credentials, endpoint and region from them. Nothing else of the
//! configuration says who we are. Waiting is done on the process's one network thread
//! (`runtime.rs`).

use super::address::{BucketAddress, Scheme};
use super::fault::{Fault, FaultKind};
use super::settings::{BucketSettings, LONGEST_PAUSE};
use super::store::{ObjectInfo, Outcome, Parts, Store, changed, short};
use crate::runtime::block_on;
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt, stream};
use object_store::path::Path;
use object_store::retry::{RetryContext, RetryPolicy};
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, ObjectStoreExt,
    PutMultipartOptions, RetryConfig, aws, azure, gcp,
};
use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// Ranges of an object that are fetched at a time, and parts that are sent at a time.
const AT_A_TIME: usize = 4;
/// A request with its body may take this long: a part of 8 MiB then needs 47 kB/s.
const REQUEST: Duration = Duration::from_secs(180);
/// A connection may take this long.
const CONNECT: Duration = Duration::from_secs(10);
/// Tries of one request within the crate, which knows what may be repeated.
const TRIES: usize = 3;

/// A bucket of a cloud.
#[derive(Debug)]
pub(crate) struct CloudStore {
    store: Arc<dyn ObjectStore>,
    patience: Duration,
    pause: Duration,
}

impl CloudStore {
    /// The bucket of an address, with what the environment says. No request is made.
    pub(crate) fn open(address: &BucketAddress) -> Outcome<CloudStore> {
        let BucketSettings { patience, pause, .. } = BucketSettings::from_env();
        let retry = RetryConfig {
            backoff: BackoffConfig { init_backoff: pause / 4, max_backoff: pause * 8, base: 2.0 },
            max_retries: TRIES,
            retry_timeout: patience.min(Duration::from_secs(60)),
        };
        let client = ClientOptions::new().with_timeout(REQUEST).with_connect_timeout(CONNECT);
        let bucket = address.bucket.as_str();
        let store: std::result::Result<Arc<dyn ObjectStore>, object_store::Error> = match address
            .scheme
        {
            Scheme::S3 => {
                let options = variables("AWS_");
                check_http(&options)?;
                let start = aws::AmazonS3Builder::new().with_client_options(client);
                let builder =
                    options.into_iter().fold(start, |b, (key, value)| match key.parse() {
                        Ok(key) => b.with_config(key, value),
                        Err(_) => b,
                    });
                let builder = builder.with_bucket_name(bucket).with_retry(retry);
                builder.build().map(|s| Arc::new(s) as _)
            }
            Scheme::Gs => {
                let client = client.with_allow_http(true);
                let start = gcp::GoogleCloudStorageBuilder::new().with_client_options(client);
                let builder = variables("GOOGLE_").into_iter().fold(start, |b, (key, value)| {
                    match key.parse() {
                        Ok(key) => b.with_config(key, value),
                        Err(_) => b,
                    }
                });
                let builder = builder.with_bucket_name(bucket).with_retry(retry);
                builder.build().map(|s| Arc::new(s) as _)
            }
            _ => {
                let start = azure::MicrosoftAzureBuilder::new().with_client_options(client);
                let builder = variables("AZURE_").into_iter().fold(start, |b, (key, value)| {
                    match key.parse() {
                        Ok(key) => b.with_config(key, value),
                        Err(_) => b,
                    }
                });
                let builder = builder.with_container_name(bucket).with_retry(retry);
                builder.build().map(|s| Arc::new(s) as _)
            }
        };
        let store = store.map_err(|_| Fault::new(FaultKind::Denied, wrong_environment(address)))?;
        Ok(CloudStore { store, patience, pause })
    }

    fn wait<T>(
        &self,
        future: impl Future<Output = std::result::Result<T, object_store::Error>>,
    ) -> Outcome<T> {
        let waited = block_on(future).map_err(no_thread)?;
        waited.map_err(|e| Fault::of(&e))
    }
}

/// The variables with a prefix, as options of the crate. Empty ones are as good as absent.
fn variables(prefix: &str) -> Vec<(String, String)> {
    std::env::vars_os()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, value)| key.starts_with(prefix) && !value.trim().is_empty())
        .map(|(key, value)| (key.to_ascii_lowercase(), value))
        .collect()
}

/// Refuses an endpoint without encryption, to which credentials would go, unless it is asked for.
fn check_http(options: &[(String, String)]) -> Outcome<()> {
    let value = |name: &str| options.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
    let endpoint = value("aws_endpoint_url_s3").or(value("aws_endpoint_url")).unwrap_or_default();
    let allowed = value("aws_allow_http").is_some_and(|v| v.eq_ignore_ascii_case("true"));
    if endpoint.starts_with("http://") && !allowed {
        return Err(Fault::new(
            FaultKind::Denied,
            "AWS_ENDPOINT_URL is an http:// address, to which requests go without encryption; set AWS_ALLOW_HTTP=true if that is meant",
        ));
    }
    Ok(())
}

/// What to look at where the variables of the environment cannot be used. Their values are not
/// shown.
fn wrong_environment(address: &BucketAddress) -> String {
    let names = credentials(address.scheme);
    format!("the settings of this bucket in the environment cannot be used; {names}")
}

/// Where credentials come from.
pub(crate) fn credentials(scheme: Scheme) -> &'static str {
    match scheme {
        Scheme::S3 => {
            "credentials come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, a web identity or the role of the machine; AWS_REGION and AWS_ENDPOINT_URL say where the bucket is"
        }
        Scheme::Gs => {
            "credentials come from the file that GOOGLE_APPLICATION_CREDENTIALS names, `gcloud auth application-default login` or the service account of the machine"
        }
        Scheme::Az => {
            "the account is AZURE_STORAGE_ACCOUNT_NAME; credentials come from AZURE_STORAGE_ACCOUNT_KEY, AZURE_STORAGE_SAS_TOKEN, a client secret or the identity of the machine"
        }
        Scheme::File => "the folder must be readable and writable",
    }
}

fn no_thread(error: crate::error::Error) -> Fault {
    Fault::new(FaultKind::Lasting, error.to_string())
}

fn path_of(key: &str) -> Outcome<Path> {
    Path::parse(key).map_err(|_| Fault::new(FaultKind::Lasting, "the name cannot be an object's"))
}

fn info(meta: ObjectMeta) -> ObjectInfo {
    let ObjectMeta { location, size, e_tag, version, .. } = meta;
    ObjectInfo { key: location.into(), bytes: size, tag: e_tag.or(version) }
}

impl Store for CloudStore {
    fn list(&self, folder: &str) -> Outcome<Vec<ObjectInfo>> {
        let prefix = path_of(folder)?;
        let mut found: Vec<ObjectMeta> = Vec::new();
        loop {
            // A listing may end early, with an error or without saying so. What comes after its
            // last name is asked for until nothing does.
            let last = found.iter().map(|meta| &meta.location).max().cloned();
            let mut names = match &last {
                None => self.store.list(Some(&prefix)),
                Some(last) => self.store.list_with_offset(Some(&prefix), last),
            };
            let before = found.len();
            let collect = async {
                while let Some(meta) = names.try_next().await? {
                    if last.as_ref().is_none_or(|last| meta.location > *last) {
                        found.push(meta);
                    }
                }
                Ok(())
            };
            match self.wait(collect) {
                Err(fault) if found.len() == before => return Err(fault),
                Ok(()) if found.len() == before => break,
                _ => {}
            }
        }
        Ok(found.into_iter().map(info).collect())
    }

    fn head(&self, key: &str) -> Outcome<ObjectInfo> {
        let key = path_of(key)?;
        self.wait(self.store.head(&key)).map(info)
    }

    fn read(
        &self,
        key: &str,
        ranges: Vec<Range<u64>>,
        tag: Option<&str>,
        take: &mut dyn FnMut(Bytes) -> Outcome<()>,
    ) -> Outcome<()> {
        let key = path_of(key)?;
        let fetch = |range: Range<u64>| {
            let (store, key, length) = (self.store.clone(), key.clone(), range.end - range.start);
            let tag = tag.map(String::from);
            async move {
                let options =
                    GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
                let result = store.get_opts(&key, options).await.map_err(|e| Fault::of(&e))?;
                let now = info(result.meta.clone()).tag;
                if tag.is_some() && now != tag {
                    return Err(changed());
                }
                let bytes = result.bytes().await.map_err(|e| Fault::of(&e))?;
                match bytes.len() as u64 {
                    found if found == length => Ok(bytes),
                    found => Err(short(length, found)),
                }
            }
        };
        let transfer = async {
            let mut pieces = stream::iter(ranges).map(fetch).buffered(AT_A_TIME);
            while let Some(piece) = pieces.next().await {
                take(piece?)?;
            }
            Ok(())
        };
        block_on(transfer).map_err(no_thread)?
    }

    fn write(&self, key: &str, content: Bytes) -> Outcome<()> {
        let key = path_of(key)?;
        self.wait(self.store.put(&key, content.into())).map(|_| ())
    }

    fn write_parts(&self, key: &str, parts: &mut dyn Parts) -> Outcome<()> {
        let key = path_of(key)?;
        let repeat = Repeat { patience: self.patience, pause: self.pause };
        let options = PutMultipartOptions::default().with_retry_policy(Arc::new(repeat));
        let transfer = async {
            let of = |e: object_store::Error| Fault::of(&e);
            let mut upload = self.store.put_multipart_opts(&key, options).await.map_err(of)?;
            let send = async {
                let mut sent = JoinSet::new();
                let mut more = true;
                while more || !sent.is_empty() {
                    while more && sent.len() < AT_A_TIME {
                        match parts.next()? {
                            Some(part) => {
                                let bytes = part.len() as u64;
                                let part = upload.put_part(part.into());
                                sent.spawn(async move { part.await.map(|()| bytes) });
                            }
                            None => more = false,
                        }
                    }
                    if let Some(done) = sent.join_next().await {
                        let lost = |_| Fault::new(FaultKind::Passing, "a part was lost");
                        parts.arrived(done.map_err(lost)?.map_err(of)?);
                    }
                }
                Ok(())
            };
            let sent: Outcome<()> = send.await;
            match sent {
                Ok(()) => upload.complete().await.map(|_| ()).map_err(of),
                Err(fault) => {
                    // Parts that nothing will be made of cost money.
                    let _ = tokio::time::timeout(CONNECT, upload.abort()).await;
                    Err(fault)
                }
            }
        };
        block_on(transfer).map_err(no_thread)?
    }

    fn remove(&self, key: &str) -> Outcome<()> {
        let key = path_of(key)?;
        match self.wait(self.store.delete(&key)) {
            Err(fault) if fault.kind == FaultKind::NotFound => Ok(()),
            removed => removed,
        }
    }
}

/// Sends a part again after the crate's own tries, until patience ends, so that one part does not
/// cost the whole object.
#[derive(Debug)]
struct Repeat {
    patience: Duration,
    pause: Duration,
}

impl RetryPolicy for Repeat {
    fn retry<'a, 'b>(
        &'a self,
        context: RetryContext,
    ) -> Pin<Box<dyn Future<Output = bool> + Send + 'b>>
    where
        'a: 'b,
        Self: 'b,
    {
        use object_store::retry::RetryFailure::{Status, Transport};
        let passing = match context.failure {
            Status(status) => {
                status.is_server_error() || matches!(status.as_u16(), 400 | 408 | 429)
            }
            Transport(_) => true,
            _ => false,
        };
        let again = passing && context.elapsed < self.patience && context.attempt < 20;
        let exponent = u32::try_from(context.attempt).unwrap_or(10).min(10);
        let pause = (self.pause * 2u32.pow(exponent)).min(LONGEST_PAUSE);
        Box::pin(async move {
            if again {
                tokio::time::sleep(pause).await;
            }
            again
        })
    }
}
