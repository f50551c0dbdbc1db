//! The writing side of a hub, by hf-hub: making a repository, uploading, one commit.
//!
//! In: local files with the hashes that they had. Out: the commit. Large files go to the storage
//! that the hub names, by xet. Every stream checks that it still has the content that was hashed,
//! so that a file which changes ends the push before anything is committed.

use super::contents::{CHANGED, Content};
use crate::error::{Error, Result};
use crate::input::hub::address::{Origin, shown};
use crate::input::hub::cache::RepoKind;
use crate::input::hub::settings::HubSettings;
use crate::input::hub::transport::{AGENT, cause, no_client};
use crate::input::not_read;
use crate::runtime::block_on;
use bytes::Bytes;
use dlm_datasets::hash::HashWriter;
use futures_util::stream;
use hf_hub::repository::{
    AddSource, CommitOperation, SourceByteStream, StreamFactory, StreamSource,
};
use hf_hub::{HFClient, HFError, HFRepository, HFResult, RepoType, RepoTypeDataset, RepoTypeModel};
use std::fs::File;
use std::io::{Read, Sink, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

/// Attempts of each request after the first.
const RETRIES: usize = 7;
/// Bytes that are read at a time.
const CHUNK: usize = 1 << 20;

/// A repository that can be written.
pub(crate) struct Writer {
    client: HFClient,
    kind: RepoKind,
    id: String,
    token: String,
}

/// Why the hub did not do what it was asked for.
pub(crate) enum Refused {
    /// It has the repository already, or its branch has moved on.
    Conflict,
    Other(Error),
}

impl Writer {
    /// For repository `id`, with the token and at the endpoint of `settings`.
    pub(crate) fn new(settings: &HubSettings, kind: RepoKind, id: &str) -> Result<Writer> {
        let origin = Origin::of(&settings.endpoint);
        let same = move |attempt: reqwest::redirect::Attempt| {
            if attempt.previous().len() > 10 || Origin::of(attempt.url().as_str()) != origin {
                attempt.error("a redirect that is not followed with content to write")
            } else {
                attempt.follow()
            }
        };
        let http = reqwest::Client::builder()
            .user_agent(AGENT)
            .connect_timeout(Duration::from_secs(20).min(settings.patience))
            .read_timeout(settings.patience)
            .redirect(reqwest::redirect::Policy::custom(same))
            .retry(reqwest::retry::never())
            .referer(false)
            .http1_only()
            .build()
            .map_err(|e| no_client(&e))?;
        let token = settings.token.clone().unwrap_or_default();
        let client = HFClient::builder()
            .endpoint(&settings.endpoint)
            .token(&token)
            .client(http)
            .cache_dir(&settings.cache)
            .cache_enabled(false)
            .retry_max_attempts(RETRIES)
            .retry_base_delay(settings.pause)
            .build()
            .map_err(|e| match e {
                HFError::Request { source, .. } => no_client(&source),
                _ => Error::Internal("hf-hub refuses its settings".to_string()),
            })?;
        Ok(Writer { client, kind, id: id.to_string(), token })
    }

    /// Makes the repository; an error if there is one.
    pub(crate) fn create(&self, private: bool) -> std::result::Result<(), Refused> {
        let (client, id) = (&self.client, self.id.as_str());
        let made = block_on(async {
            match self.kind {
                RepoKind::Dataset => make(client, id, RepoTypeDataset, private).await,
                RepoKind::Model => make(client, id, RepoTypeModel, private).await,
            }
        });
        made.map_err(Refused::Other)?.map_err(|e| self.refused(e))
    }

    /// Uploads files and commits them, together with what is removed, on top of commit `parent`.
    pub(crate) fn commit(
        &self,
        add: &[&Content],
        remove: &[String],
        message: &str,
        parent: Option<&str>,
    ) -> std::result::Result<(), Refused> {
        let (owner, name) = hf_hub::split_id(&self.id);
        let mut operations: Vec<CommitOperation> = Vec::with_capacity(add.len() + remove.len());
        operations.extend(add.iter().map(|content| {
            let factory = Checked { file: content.file.clone(), sha256: content.sha256.clone() };
            CommitOperation::Add {
                path_in_repo: content.path.clone(),
                source: AddSource::stream(StreamSource::new(Arc::new(factory), content.bytes)),
            }
        }));
        operations.extend(remove.iter().map(CommitOperation::delete));
        let done = match self.kind {
            RepoKind::Dataset => {
                send(self.client.dataset(owner, name), operations, message, parent)
            }
            RepoKind::Model => send(self.client.model(owner, name), operations, message, parent),
        };
        done.map_err(Refused::Other)?.map_err(|e| self.refused(e))
    }

    /// What follows from hf-hub's error. Its own text is not shown: it holds addresses, which may
    /// be signed.
    fn refused(&self, e: HFError) -> Refused {
        let token = self.token.as_str();
        let more = |message: &Option<String>| match message {
            Some(text) if !text.trim().is_empty() => {
                format!(" (it says: {})", without_secrets(text, token))
            }
            _ => String::new(),
        };
        let reason = match &e {
            HFError::Conflict { .. } => return Refused::Conflict,
            HFError::AuthRequired { .. } => {
                "the hub answers 401: the token in HF_TOKEN (or of `hf auth login`) is wrong or expired".to_string()
            }
            HFError::Forbidden { context } => format!(
                "the hub answers 403: the account of this token may not write there, or the token is one for reading only{}",
                more(&context.server_message)
            ),
            HFError::RateLimited { retry_after, .. } => {
                let later = retry_after.map_or(String::new(), |t| format!(" after {} s", t.as_secs()));
                format!("the hub answers 429: too many requests; push again{later}")
            }
            HFError::Http { context } if context.status.as_u16() == 412 => return Refused::Conflict,
            HFError::Http { context } => format!(
                "the hub answers {}{}",
                context.status.as_u16(),
                more(&context.server_message)
            ),
            HFError::RepoNotFound { .. } | HFError::RevisionNotFound { .. } => {
                "the hub answers 404: there is no such repository, or the token may not see it".to_string()
            }
            HFError::Request { source, .. } => format!(
                "no answer ({}); is the network there, and HF_ENDPOINT right?",
                cause(source)
            ),
            HFError::Other(why) if why.contains(CHANGED) => CHANGED.to_string(),
            HFError::Other(why) => without_secrets(why, token),
            HFError::Io(e) => format!("reading what is pushed: {}", e.kind()),
            HFError::Json(_) | HFError::MalformedResponse { .. } => {
                "the answer is not what a hub sends; is HF_ENDPOINT right?".to_string()
            }
            HFError::Xet { source, .. } if source.to_string().contains(CHANGED) => {
                CHANGED.to_string()
            }
            HFError::Xet { source, .. } => format!(
                "sending large files to the hub's storage failed ({}); nothing was committed, push again to go on",
                without_secrets(&source.to_string(), token)
            ),
            _ => "the hub's answer is not understood".to_string(),
        };
        Refused::Other(Error::Input { path: self.id.clone(), reason })
    }
}

/// Makes a repository.
async fn make(client: &HFClient, id: &str, kind: impl RepoType, private: bool) -> HFResult<()> {
    client.create_repository().repo_id(id).repo_type(kind).private(private).send().await.map(drop)
}

/// One commit on the main branch.
fn send<T: RepoType>(
    repo: HFRepository<T>,
    operations: Vec<CommitOperation>,
    message: &str,
    parent: Option<&str>,
) -> Result<HFResult<()>> {
    block_on(async {
        let commit = repo.create_commit().operations(operations).commit_message(message);
        commit.maybe_parent_commit(parent).send().await.map(drop)
    })
}

/// Text of a hub or of a library without addresses, whose queries may be signatures, and without
/// the token.
fn without_secrets(text: &str, token: &str) -> String {
    let text = match token {
        "" => text.to_string(),
        token => text.replace(token, "(the token)"),
    };
    let quotes = |c: char| !c.is_ascii_alphanumeric() && c != '/';
    let words = text.split_whitespace().map(|word| match word.contains("://") {
        true => shown(word.trim_matches(quotes)),
        false => word.split("?").next().unwrap_or_default().to_string(),
    });
    not_read::shown(&words.collect::<Vec<_>>().join(" "))
}

/// A file that is read from its start each time, and checked against its sha256.
struct Checked {
    file: PathBuf,
    sha256: String,
}

impl StreamFactory for Checked {
    fn open(&self) -> SourceByteStream {
        let chunks = Chunks {
            file: File::open(&self.file).map_err(HFError::from),
            hash: Some(HashWriter::new(std::io::sink())),
            sha256: self.sha256.clone(),
        };
        Box::pin(stream::iter(chunks))
    }
}

/// The chunks of a file; an error behind the last one if it is not the content that was hashed.
struct Chunks {
    file: HFResult<File>,
    /// None when all has been said.
    hash: Option<HashWriter<Sink>>,
    sha256: String,
}

impl Iterator for Chunks {
    type Item = HFResult<Bytes>;

    fn next(&mut self) -> Option<HFResult<Bytes>> {
        let mut hash = self.hash.take()?;
        let gone = || HFError::Other(CHANGED.to_string());
        let Ok(file) = &mut self.file else { return Some(Err(gone())) };
        let mut chunk = Vec::with_capacity(CHUNK);
        match file.take(CHUNK as u64).read_to_end(&mut chunk) {
            Ok(0) => (hash.finish().2 != self.sha256).then(|| Err(gone())),
            Ok(_) => {
                let hashed = hash.write_all(&chunk).map_err(HFError::from);
                self.hash = Some(hash);
                Some(hashed.map(|()| Bytes::from(chunk)))
            }
            Err(e) => Some(Err(HFError::from(e))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_not_shown() {
        let text = "PUT https://me:pw@cas.example/v1/x?X-Amz-Signature=abc failed (url: 'https://s3/y?sig=1'), header Bearer hf_secret, ?sig=2";
        let said = without_secrets(text, "hf_secret");
        for secret in ["pw@", "X-Amz", "abc", "sig=", "hf_secret"] {
            assert!(!said.contains(secret), "{said}");
        }
        assert!(said.contains("https://cas.example/v1/x") && said.contains("failed"), "{said}");
        assert!(!without_secrets("a\u{1b}[31mb\u{202e}", "").contains(['\u{1b}', '\u{202e}']));
    }

    /// The content that was hashed, or an error behind it.
    #[test]
    fn streams_notice_a_change() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x");
        let content = vec![7u8; 2 * CHUNK + 5];
        std::fs::write(&file, &content).unwrap();
        let sha256 = dlm_datasets::hash::sha256(&content);
        let read = || {
            let chunks = Chunks {
                file: File::open(&file).map_err(HFError::from),
                hash: Some(HashWriter::new(std::io::sink())),
                sha256: sha256.clone(),
            };
            let parts: HFResult<Vec<Bytes>> = chunks.collect();
            parts.map(|parts| parts.concat()).map_err(|e| e.to_string())
        };
        assert_eq!(read(), Ok(content.clone()));
        std::fs::write(&file, &content[1..]).unwrap();
        assert_eq!(read(), Err(CHANGED.to_string()));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(read(), Err(CHANGED.to_string()));
    }
}
