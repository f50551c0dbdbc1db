//! What is on the wire: parts that are there already, ranges that are ignored, other hosts, xet,
//! signed addresses, long listings.

use crate::cases::{Run, TOKEN, finish, large, listing, rows, truth};
use dlm_test_support::lying_hub::{COMMIT, Kind, LyingHub, Reply, part, redirect, status};
use dlm_test_support::sample;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Prepares `evil/REPO`, as far as `--files a.jsonl`.
fn run(hub: &LyingHub, dir: &Path, repo: &str) -> Run {
    let mut c = Command::new(env!("CARGO_BIN_EXE_dlm-prep"));
    c.args(["--dataset", &format!("evil/{repo}"), "--files", "a.jsonl", "--engine", "fast"])
        .arg("--tokenizer")
        .arg(sample("tokenizer"))
        .arg("--out")
        .arg(dir.join("out"))
        .current_dir(dir);
    finish(&mut c, dir, &hub.at.hub, 5_000).unwrap()
}

/// Where the only piece of the file waits to be joined.
fn piece(dir: &Path, repo: &str) -> PathBuf {
    let blobs = dir.join(format!("home/hub/datasets--evil--{repo}/blobs"));
    std::fs::create_dir_all(&blobs).unwrap();
    blobs.join(format!("{}.dlm-part-0", dlm_datasets::hash::sha256(&rows())))
}

fn files_asked(hub: &LyingHub, repo: &str) -> usize {
    hub.asked(repo).iter().filter(|r| r.kind == Kind::File).count()
}

/// Parts that an ended run left: a whole one is not asked for, where a hub answers 416; half of one
/// goes on where it ended, also behind a hub that ignores the range; one that is too long begins
/// anew.
#[test]
fn parts_of_an_earlier_run() {
    let hub = LyingHub::start(|r, _| match (r.kind, r.repo.as_str()) {
        (Kind::File, "whole") => status(416),
        (Kind::File, "ignored") => Reply::Whole(200, Vec::new(), rows()),
        _ => truth(r),
    });
    let half = &rows()[..1000];
    for (repo, there, asked, first) in [
        ("whole", rows(), 0, None),
        ("half", half.to_vec(), 1, Some(1000)),
        ("ignored", half.to_vec(), 1, Some(1000)),
        ("long", [rows(), b"more".to_vec()].concat(), 1, Some(0)),
    ] {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(piece(dir.path(), repo), there).unwrap();
        let done = run(&hub, dir.path(), repo);
        assert_eq!(done.code, Some(0), "{repo}: {}", done.said);
        assert_eq!(files_asked(&hub, repo), asked, "{repo}");
        let range = hub.asked(repo).iter().find_map(|r| r.range).map(|(from, _)| from);
        assert_eq!(range, first, "{repo}");
        let blob = piece(dir.path(), repo).with_extension("");
        assert_eq!(std::fs::read(blob).unwrap(), rows(), "{repo}");
    }
}

/// A Link header that names another host is followed on the hub itself, and nothing is asked there.
#[test]
fn the_next_page_is_never_elsewhere() {
    let hub = LyingHub::start(|r, at| match r.kind {
        Kind::Tree if r.number == 0 => {
            let next = format!("<{}{}&cursor=1>; rel=\"next\"", at.elsewhere, r.target);
            let body = serde_json::to_vec(&[large("b.jsonl", b"{}\n")]).unwrap();
            Reply::Whole(200, vec![("Link", next)], body)
        }
        _ => truth(r),
    });
    let dir = tempfile::tempdir().unwrap();
    let done = run(&hub, dir.path(), "linked");
    assert_eq!(done.code, Some(0), "{}", done.said);
    let asked = hub.asked("linked");
    assert!(asked.iter().all(|r| !r.elsewhere), "{asked:?}");
    assert_eq!(asked.iter().filter(|r| r.kind == Kind::Tree).count(), 2);
}

/// Entries and answers that offer xet: the bytes come from the hub's own address, as for all other
/// files; no token for xet is asked for, and no storage.
#[test]
fn xet_is_not_used_for_reading() {
    let hub = LyingHub::start(|r, at| match r.kind {
        Kind::Tree => {
            let mut entry = large("a.jsonl", &rows());
            entry["xetHash"] = "cd".repeat(32).into();
            listing(&[entry])
        }
        Kind::File => {
            let Reply::Whole(code, mut headers, body) = part(r, &rows()) else { unreachable!() };
            headers.push(("X-Xet-Hash", "cd".repeat(32)));
            headers.push(("Link", format!("<{}/xet-auth>; rel=\"xet-auth\"", at.elsewhere)));
            Reply::Whole(code, headers, body)
        }
        _ => truth(r),
    });
    let dir = tempfile::tempdir().unwrap();
    let done = run(&hub, dir.path(), "xet");
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert!(hub.asked("xet").iter().all(|r| r.kind != Kind::Other && !r.elsewhere));
    for other in ["xet-auth", "xet-read-token", COMMIT] {
        assert!(hub.asked(other).is_empty(), "{other}");
    }
}

/// A file's address behind a redirect carries a signature: it is asked for without the token, and
/// whatever goes wrong there, no message shows it.
#[test]
fn signed_addresses_stay_secret() {
    const SIGNATURE: &str = "X-Amz-Signature=5ec4e7";
    let signed = |base: &str, repo: &str| format!("{base}/signed/{repo}?{SIGNATURE}&x=1");
    let hub = LyingHub::start(move |r, at| {
        let total = rows().len();
        let repo = r.repo.as_str();
        match (r.kind, r.elsewhere) {
            (Kind::File, _) if repo == "nobody" => redirect(signed("http://127.0.0.1:9", repo)),
            (Kind::File, _) if repo == "no-tls" => {
                redirect(signed(&at.elsewhere.replace("http:", "https:"), repo))
            }
            (Kind::File, _) if repo == "loop" => {
                redirect(format!("{}?{SIGNATURE}", r.target.split('?').next().unwrap()))
            }
            (Kind::File, _) if repo == "scheme" => redirect(format!("ftp://x/?{SIGNATURE}")),
            (Kind::File, _) => redirect(signed(&at.elsewhere, repo)),
            (Kind::Other, true) => match repo {
                "denied" => status(403),
                "broken" => status(500),
                "gone" => status(404),
                "garbage" => Reply::Stream(b"\0\x01\x02".to_vec(), Vec::new(), Default::default()),
                "closed" => Reply::Stream(Vec::new(), Vec::new(), Default::default()),
                "other-length" => Reply::Whole(200, Vec::new(), vec![b'x'; total - 1]),
                "other-bytes" => Reply::Whole(200, Vec::new(), vec![b'x'; total]),
                _ => part(r, &rows()),
            },
            _ => truth(r),
        }
    });
    for (repo, fine) in [
        ("right", true),
        ("denied", false),
        ("broken", false),
        ("gone", false),
        ("garbage", false),
        ("closed", false),
        ("other-length", false),
        ("other-bytes", false),
        ("nobody", false),
        ("no-tls", false),
        ("loop", false),
        ("scheme", false),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let done = run(&hub, dir.path(), repo);
        assert_eq!(done.code, Some(i32::from(!fine)), "{repo}: {}", done.said);
        assert!(
            !done.said.contains("Amz") && !done.said.contains("5ec4e7"),
            "{repo}: {}",
            done.said
        );
        assert!(!done.said.contains(TOKEN), "{repo}: {}", done.said);
        let elsewhere = hub.asked(repo);
        assert!(elsewhere.iter().all(|r| r.token != r.elsewhere), "{repo}: {elsewhere:?}");
    }
}

/// 100,000 files in pages of a thousand, of which one is read.
#[test]
fn a_long_listing() {
    let hub = LyingHub::start(|r, at| match r.kind {
        Kind::Tree => {
            let page: usize = r.target.split("cursor=").nth(1).map_or(0, |c| c.parse().unwrap());
            let file = |k: usize| {
                let path = format!("folder-{}/{k:06}.jsonl", k % 100);
                serde_json::json!({"type": "file", "path": path, "size": 5, "oid": format!("{k:040x}")})
            };
            let mut entries: Vec<_> = (page * 1000..(page + 1) * 1000).map(file).collect();
            if page == 99 {
                entries[999] = large("a.jsonl", &rows());
            }
            let path = r.target.split('?').next().unwrap();
            let next = format!("<{}{path}?cursor={}>; rel=\"next\"", at.hub, page + 1);
            let headers = if page < 99 { vec![("Link", next)] } else { Vec::new() };
            Reply::Whole(200, headers, serde_json::to_vec(&entries).unwrap())
        }
        _ => truth(r),
    });
    let dir = tempfile::tempdir().unwrap();
    let done = run(&hub, dir.path(), "long");
    assert_eq!(done.code, Some(0), "{}", done.said);
    assert_eq!(hub.asked("long").iter().filter(|r| r.kind == Kind::Tree).count(), 100);
    assert_eq!(files_asked(&hub, "long"), 1);
}
