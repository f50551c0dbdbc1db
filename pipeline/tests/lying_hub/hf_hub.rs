//! Why reading does not go through hf-hub 1.0: what it does with answers that our own calls refuse
//! or use. Its builder takes a client of ours, here one that follows no redirect, waits for 20 s
//! and does not try again; that bounds none of what is shown. A test that fails with a newer
//! hf-hub names a call that may move to it (docs/security.md).

use crate::cases::{TOKEN, large, rows, truth};
use dlm_test_support::lying_hub::{COMMIT, Kind, LyingHub, Reply, json, part, status};
use futures_util::StreamExt;
use hf_hub::repository::RepoTreeEntry;
use hf_hub::{HFClient, HFError, HFRepository, HFResult, RepoTypeDataset};
use std::time::{Duration, Instant};

/// Repository `evil/NAME` by hf-hub.
fn repository(hub: &LyingHub, name: &str) -> HFRepository<RepoTypeDataset> {
    let http = reqwest::Client::builder()
        .timeout(Duration::from_secs(20))
        .redirect(reqwest::redirect::Policy::none())
        .retry(reqwest::retry::never())
        .http1_only()
        .build()
        .unwrap();
    let client = HFClient::builder()
        .endpoint(&hub.at.hub)
        .token(TOKEN)
        .client(http)
        .cache_enabled(false)
        .retry_max_attempts(1)
        .retry_base_delay(Duration::from_millis(1))
        .build()
        .unwrap();
    client.dataset("evil", name)
}

fn wait<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(future)
}

/// Paths of the listing, and whether a sha256 came with each.
fn listed(hub: &LyingHub, name: &str) -> HFResult<Vec<(String, bool)>> {
    let repository = repository(hub, name);
    let entries: Vec<HFResult<RepoTreeEntry>> = wait(async {
        let entries = repository.list_tree().revision(COMMIT).recursive(true).send()?;
        Ok::<_, HFError>(entries.collect().await)
    })?;
    let path = |entry| match entry {
        RepoTreeEntry::File { path, lfs, .. } => {
            (path, lfs.is_some_and(|lfs| lfs.sha256.is_some()))
        }
        RepoTreeEntry::Directory { path, .. } => (path, false),
    };
    entries.into_iter().map(|entry| entry.map(path)).collect()
}

/// The typed listing has no sha256: hubs send `lfs.oid`, it reads `lfs.sha256`.
#[test]
fn the_typed_listing_has_no_sha256() {
    let hub = LyingHub::start(|r, _| truth(r));
    assert_eq!(listed(&hub, "plain").unwrap(), [("a.jsonl".to_string(), false)]);
}

/// A Link header that it does not understand ends the listing without an error; one to another
/// origin is followed with the token, which no rule for redirects sees.
#[test]
fn pages_are_lost_or_read_elsewhere() {
    let hub = LyingHub::start(|r, at| match (r.kind, r.repo.as_str(), r.number) {
        (Kind::Tree, repo, 0) => {
            let host = if repo == "elsewhere" { &at.elsewhere } else { &at.hub };
            let rel = if repo == "unquoted" { "next" } else { "\"next\"" };
            let next = format!("<{host}{}&cursor=1>; rel={rel}", r.target);
            let body = serde_json::to_vec(&[large("b.jsonl", b"{}\n")]).unwrap();
            Reply::Whole(200, vec![("Link", next)], body)
        }
        _ => truth(r),
    });
    let files = |name: &str| listed(&hub, name).unwrap().len();
    assert_eq!((files("usual"), files("unquoted"), files("elsewhere")), (2, 1, 2));
    let asked = hub.asked("elsewhere");
    assert!(asked.iter().any(|r| r.elsewhere && r.token), "{asked:?}");
}

/// An answer about a revision may have any number of bytes, all of which are kept in memory, and
/// must have an `id`, which not every mirror sends.
#[test]
fn answers_have_no_limit() {
    let hub = LyingHub::start(|r, _| match r.repo.as_str() {
        "long" => {
            let filler = "x".repeat(70 << 20);
            json(format!("{{\"id\": \"evil/long\", \"sha\": \"{COMMIT}\", \"x\": \"{filler}\"}}"))
        }
        _ => truth(r),
    });
    let info = |name: &str| wait(repository(&hub, name).info().revision("main").send());
    assert_eq!(info("long").unwrap().sha.as_deref(), Some(COMMIT));
    assert!(info("short").is_err());
}

/// What a hub asks for in Retry-After is not waited for, and lost in the error but for 429.
#[test]
fn retry_after_is_ignored() {
    let hub = LyingHub::start(|r, _| match r.kind {
        Kind::Revision => {
            Reply::Whole(503, vec![("Retry-After", "30".to_string())], b"{}".to_vec())
        }
        _ => truth(r),
    });
    let begin = Instant::now();
    let error = wait(repository(&hub, "busy").info().revision("main").send()).unwrap_err();
    assert!(matches!(error, HFError::Http { .. }), "{error}");
    assert_eq!(hub.asked("busy").len(), 2);
    assert!(begin.elapsed() < Duration::from_secs(20));
}

/// The error code of a hub decides nothing: which variant comes follows from the status and from
/// what was asked.
#[test]
fn error_codes_are_text() {
    let hub = LyingHub::start(|r, _| match status(404) {
        Reply::Whole(status, _, body) => {
            let code = if r.repo == "no-repo" { "RepoNotFound" } else { "GatedRepo" };
            Reply::Whole(status, vec![("X-Error-Code", code.to_string())], body)
        }
        other => other,
    });
    for name in ["no-repo", "gated"] {
        let error = wait(repository(&hub, name).info().revision("main").send()).unwrap_err();
        assert!(matches!(error, HFError::RevisionNotFound { .. }), "{name}: {error}");
    }
}

/// A stream does not say whether the part or the whole file comes: the two lengths are the same
/// where a hub sends X-Linked-Size. Each part costs a HEAD before it; a header of that answer sends
/// the bytes' way to a storage server of the hub's choice, of which our client knows nothing.
#[test]
fn a_stream_does_not_say_what_comes() {
    let hub = LyingHub::start(|r, _| match (r.kind, r.repo.as_str()) {
        (Kind::File, "xet") => {
            let headers = vec![("X-Xet-Hash", "a".repeat(64)), ("X-Linked-Size", "9".to_string())];
            Reply::Whole(200, headers, Vec::new())
        }
        // to HEAD, which has no range
        (Kind::File, _) if r.range.is_none() => Reply::Whole(200, Vec::new(), Vec::new()),
        (Kind::File, repo) => {
            let answer = match repo {
                "part" => part(r, &rows()),
                _ => Reply::Whole(200, Vec::new(), rows()),
            };
            match answer {
                Reply::Whole(status, mut headers, body) => {
                    headers.push(("X-Linked-Size", rows().len().to_string()));
                    Reply::Whole(status, headers, body)
                }
                other => other,
            }
        }
        _ => truth(r),
    });
    let stream = |name: &str| {
        let repository = repository(&hub, name);
        wait(async {
            let call = repository.download_file_stream().filename("a.jsonl").revision(COMMIT);
            let (length, mut stream) = call.range(10..30).send().await?;
            let mut bytes = Vec::new();
            while let Some(chunk) = stream.next().await {
                bytes.extend_from_slice(&chunk?);
            }
            Ok::<_, HFError>((length, bytes))
        })
    };
    let (part, whole) = (stream("part").unwrap(), stream("whole").unwrap());
    assert_eq!((&part.1[..], &whole.1[..]), (&rows()[10..30], &rows()[..]));
    assert_eq!(part.0, whole.0);
    assert_eq!(hub.asked("part").len(), 2, "a HEAD and a GET");
    assert!(stream("xet").is_err());
    let asked = hub.asked(COMMIT);
    assert!(asked.iter().any(|r| r.target.contains("xet-read-token")), "{asked:?}");
}
