//! Lies in single answers: status, redirect, header, JSON.

use crate::cases::End::{Fine, Says};
use crate::cases::{Case, case, check, large, listing, rows};
use dlm_test_support::lying_hub::{COMMIT, Kind, Reply, json, redirect, status};
use std::time::Duration;

const NONE: Duration = Duration::ZERO;

/// A redirect to another origin is followed, without the token.
#[test]
fn redirects() {
    let mut cases: Vec<Case> = Vec::new();
    for code in [301, 302, 303, 307, 308] {
        cases.push(case(format!("port-{code}"), Kind::Revision, Fine, move |r, at| {
            let to = format!("{}/steal/{}", at.elsewhere, r.repo);
            Reply::Whole(code, vec![("Location", to)], Vec::new())
        }));
    }
    // The same hub under another name.
    cases.push(case("other-host", Kind::Revision, Fine, |r, at| {
        redirect(format!("{}/steal/{}", at.hub.replace("127.0.0.1", "localhost"), r.repo))
    }));
    for (name, kind) in [("file-port", Kind::File), ("tree-port", Kind::Tree)] {
        let to = move |repo: &str| match kind {
            Kind::File => format!("/blob/{repo}"),
            _ => format!("/api/datasets/evil/{repo}/tree/{COMMIT}"),
        };
        cases.push(case(name, kind, Fine, move |r, at| {
            redirect(format!("{}{}", at.elsewhere, to(&r.repo)))
        }));
    }
    // A repository that has a new name: the hub redirects its old one.
    for (name, kind) in [
        ("renamed-rev", Kind::Revision),
        ("renamed-tree", Kind::Tree),
        ("renamed-file", Kind::File),
    ] {
        cases.push(case(name, kind, Fine, |r, at| {
            let to = r.target.replace(&r.repo, "new-name");
            redirect(if r.kind == Kind::Tree { to } else { format!("{}{to}", at.hub) })
        }));
    }
    cases.push(case("relative", Kind::File, Fine, |r, _| redirect(format!("/blob/{}", r.repo))));
    for (name, to, says) in [
        ("file-scheme", "file:///etc/passwd", "no http or https"),
        ("ftp", "ftp://127.0.0.1/x", "no http or https"),
        ("data", "data:text/plain,x", "no http or https"),
        ("script", "javascript:alert(1)", "no http or https"),
        ("metadata", "http://169.254.169.254/latest/meta-data/", "own network"),
        ("brackets", "http://[::bad/ /", "no http or https"),
        ("spaces", "http://a b/", "no http or https"),
        ("bad-port", "http://127.0.0.1:99999/", "no http or https"),
        ("no-host", "http:///x", "no http or https"),
        ("nowhere", "", "redirects to nowhere"),
    ] {
        for (kind, of) in [(Kind::Revision, "revision"), (Kind::Tree, "tree"), (Kind::File, "file")]
        {
            let one = case(format!("{name}-{of}"), kind, Says(says), move |_, _| redirect(to));
            cases.push(one.asked_at_most(1));
        }
    }
    cases.push(case("user-name", Kind::Revision, Says("a user name"), |_, at| {
        redirect(format!("{}@{}/steal", at.hub, at.elsewhere.trim_start_matches("http://")))
    }));
    let loops = "redirects more than 10 times";
    cases.push(
        case("loop", Kind::Revision, Says(loops), |r, _| redirect(r.target.clone()))
            .asked_at_most(11),
    );
    cases.push(
        case("chain", Kind::Revision, Says(loops), |r, _| {
            redirect(format!("{}?n={}", r.target.split('?').next().unwrap(), r.number))
        })
        .asked_at_most(11),
    );
    cases.push(
        case("growth", Kind::Revision, Says(""), |r, _| {
            redirect(format!("{}{}", r.target, "x".repeat(5000)))
        })
        .asked_at_most(11),
    );
    cases.push(
        case("no-location", Kind::Revision, Says("answers 302"), |_, _| status(302))
            .asked_at_most(1),
    );
    check(cases);
}

/// Only states that pass are asked for again, and not for ever.
#[test]
fn statuses() {
    let mut cases: Vec<Case> = Vec::new();
    let kinds = [(Kind::Revision, "revision"), (Kind::Tree, "tree"), (Kind::File, "file")];
    for code in [204, 400, 401, 402, 403, 405, 406, 410, 416, 418, 422, 451, 501, 505, 599] {
        let says = Box::leak(format!("answers {code}").into_boxed_str());
        for (kind, of) in kinds {
            let one = case(format!("{code}-{of}"), kind, Says(says), move |_, _| status(code));
            cases.push(one.asked_at_most(1));
        }
    }
    for (kind, of) in kinds {
        let one = case(format!("404-{of}"), kind, Says("404"), |_, _| status(404));
        cases.push(one.asked_at_most(1));
    }
    for code in [408, 429, 500, 502, 503, 504] {
        for (kind, of) in kinds {
            let says = Says("gave up after 8 attempts");
            let always = case(format!("{code}-{of}"), kind, says, move |_, _| status(code));
            cases.push(always.asked_at_most(8));
            let passes = case(format!("{code}-passes-{of}"), kind, Fine, move |r, _| {
                if r.number < 3 { status(code) } else { crate::cases::truth(r) }
            });
            // A revision is asked for twice: also where the hub keeps its own conversion.
            cases.push(passes.asked_at_most(5));
        }
    }
    let later = |wait: &'static str| {
        move |_: &_, _: &_| Reply::Whole(503, vec![("Retry-After", wait.to_string())], Vec::new())
    };
    let too_late = Says("asks to come back after");
    cases.push(case("too-late", Kind::Revision, too_late, later("100000000")).asked_at_most(1));
    cases.push(case("for-ever", Kind::Tree, too_late, later("18446744073709551615")));
    for (name, wait) in [("never", "-1"), ("a-date", "Fri, 31 Dec 9999 23:59:59 GMT")] {
        cases.push(case(name, Kind::Revision, Says("gave up after 8"), later(wait)));
    }
    check(cases);
}

/// Answers that are no JSON, have no end, or are too much of something.
#[test]
fn content() {
    let mut cases: Vec<Case> = Vec::new();
    let not_json = Says("not what a hub sends");
    for (name, text) in [
        ("html", "<html>captive portal</html>".to_string()),
        ("nothing", String::new()),
        ("half", "{\"sha\": \"aaaa".to_string()),
        ("number", "5".to_string()),
        ("text", "\"x\"".to_string()),
        ("deep", "[".repeat(1_000_000)),
        ("deep-object", "{\"sha\":".repeat(100_000)),
        ("not-utf8", "{\"sha\": \"\u{fffd}".to_string()),
    ] {
        let one = case(name, Kind::Revision, not_json, move |_, _| json(text.clone()));
        cases.push(one.asked_at_most(1));
    }
    for (name, sha) in [
        ("dots", "\"../..\"".to_string()),
        ("slash", format!("\"{}/{}\"", "a".repeat(20), "b".repeat(19))),
        ("null", "null".to_string()),
        ("of-number", "5".to_string()),
        ("of-list", "[]".to_string()),
        ("short", "\"aaaa\"".to_string()),
        ("long", format!("\"{}\"", "a".repeat(41))),
        ("huge", format!("\"{}\"", "a".repeat(1_000_000))),
    ] {
        let text = format!("{{\"sha\": {sha}}}");
        let says = Says("names no commit");
        cases.push(case(format!("sha-{name}"), Kind::Revision, says, move |_, _| {
            json(text.clone())
        }));
    }
    cases.push(case("sha-missing", Kind::Revision, Says("names no commit"), |_, _| json("{}")));
    let more = Says("bytes allowed");
    cases.push(case("large-length", Kind::Revision, more, |_, _| length("9223372036854775808")));
    cases.push(case("large-tree", Kind::Tree, more, |_, _| length("100000000")));
    cases.push(case("amp", Kind::Tree, more, |_, _| {
        json(format!("[{}{{}}]", "{},".repeat(3_000_000)))
    }));
    let chunk = |bytes: usize| format!("{bytes:x}\r\n{}\r\n", " ".repeat(bytes)).into_bytes();
    let chunked = b"HTTP/1.1 200 X\r\nTransfer-Encoding: chunked\r\n\r\n".to_vec();
    for (name, kind) in [("endless-revision", Kind::Revision), ("endless-tree", Kind::Tree)] {
        let (head, again) = (chunked.clone(), chunk(1 << 20));
        cases.push(
            case(name, kind, more, move |_, _| Reply::Stream(head.clone(), again.clone(), NONE))
                .asked_at_most(1),
        );
    }
    let until_closed = b"HTTP/1.1 200 X\r\n\r\n".to_vec();
    cases.push(case("endless-plain", Kind::Revision, more, move |_, _| {
        Reply::Stream(until_closed.clone(), vec![b' '; 1 << 20], NONE)
    }));
    let drip = Duration::from_millis(50);
    let (head, again) = (chunked, chunk(1));
    cases.push(
        case("drip", Kind::Revision, Says("gave up after"), move |_, _| {
            Reply::Stream(head.clone(), again.clone(), drip)
        })
        .patience(700),
    );
    cases.push(
        case("drip-header", Kind::Revision, Says("gave up after"), move |_, _| {
            Reply::Stream(b"HTTP/1.1 200 X\r\nX-A: ".to_vec(), b"x".to_vec(), drip)
        })
        .patience(700),
    );
    cases.push(
        case("silence", Kind::Tree, Says("gave up after"), |_, _| Reply::Silence).patience(700),
    );
    for (name, head, again) in [
        ("endless-headers", "HTTP/1.1 200 X\r\n", "X-A: a\r\n"),
        ("endless-header", "HTTP/1.1 200 X\r\nX-A: ", "aaaaaaaa"),
        ("endless-status", "HTTP/1.1 200 ", "aaaaaaaa"),
        ("endless-100", "HTTP/1.1 100 Continue\r\n\r\n", "HTTP/1.1 100 Continue\r\n\r\n"),
        ("garbage", "\u{0}\u{1}\u{2}", "\u{3}\u{4}\u{5}"),
    ] {
        cases.push(
            case(name, Kind::Revision, Says(""), move |_, _| {
                Reply::Stream(head.into(), again.repeat(1000).into_bytes(), NONE)
            })
            // Informational answers are read until the time is over, without being kept.
            .patience(if name == "endless-100" { 300 } else { 3_000 }),
        );
    }
    cases.push(case("closed", Kind::Revision, Says("gave up after 8"), |_, _| {
        Reply::Stream(Vec::new(), Vec::new(), NONE)
    }));
    cases.push(case("many-headers", Kind::Revision, Says(""), |_, _| {
        let headers = (0..10_000).map(|k| ("X-A", k.to_string())).collect();
        Reply::Whole(200, headers, format!("{{\"sha\": \"{COMMIT}\"}}").into_bytes())
    }));
    for (name, said) in [("length-more", "100000"), ("length-less", "10"), ("length-word", "x")] {
        cases.push(case(name, Kind::Tree, Says(""), move |_, _| {
            let body = serde_json::to_vec(&[large("a.jsonl", &rows())]).unwrap();
            Reply::Whole(200, vec![("Content-Length", said.to_string())], body)
        }));
    }
    for coding in ["gzip", "br", "deflate", "x"] {
        cases.push(case(
            format!("coding-{coding}"),
            Kind::Tree,
            Says("compresses"),
            move |_, _| {
                let Reply::Whole(_, _, body) = listing(&[]) else { unreachable!() };
                Reply::Whole(200, vec![("Content-Encoding", coding.to_string())], body)
            },
        ));
    }
    // What a header says is shown without control characters, which every case checks.
    cases.push(case("colours", Kind::Tree, Says(""), |_, _| {
        Reply::Whole(404, vec![("X-Error-Code", "\u{1b}[31mEVIL\u{1b}[0m".to_string())], vec![])
    }));
    check(cases);
}

/// A length without a body behind it.
fn length(said: &str) -> Reply {
    Reply::Whole(200, vec![("Content-Length", said.to_string())], b"{}".to_vec())
}
