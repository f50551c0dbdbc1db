//! Lies in the content of files.

use crate::cases::End::{Fine, Says};
use crate::cases::{Case, case, check, rows, truth};
use dlm_test_support::lying_hub::{Kind, Reply, Request, redirect};
use std::time::Duration;

const NONE: Duration = Duration::ZERO;

/// A part of the rows under headers of its own.
fn part(headers: &[(&'static str, String)], body: &[u8]) -> Reply {
    Reply::Whole(206, headers.to_vec(), body.to_vec())
}

fn place(text: String) -> Vec<(&'static str, String)> {
    vec![("Content-Range", text)]
}

#[test]
fn content_of_files() {
    let total = rows().len();
    let all = move || place(format!("bytes 0-{}/{total}", total - 1));
    let mut cases: Vec<Case> = Vec::new();
    let chunked = |status: u16, more: &str| {
        format!("HTTP/1.1 {status} X\r\nTransfer-Encoding: chunked\r\n{more}\r\n").into_bytes()
    };
    let chunk =
        |bytes: &[u8]| [format!("{:x}\r\n", bytes.len()).as_bytes(), bytes, b"\r\n"].concat();
    let wrong = Says("twice the content is not what the hub lists");
    let (head, again) = (chunked(200, ""), chunk(&[b'a'; 1 << 16]));
    cases.push(case("endless", Kind::File, wrong, move |_, _| {
        Reply::Stream(head.clone(), again.clone(), NONE)
    }));
    let head = chunked(206, &format!("Content-Range: bytes 0-{}/{total}\r\n", total - 1));
    let again = chunk(&[b'a'; 1 << 16]);
    cases.push(case("endless-part", Kind::File, wrong, move |_, _| {
        Reply::Stream(head.clone(), again.clone(), NONE)
    }));
    // A byte now and then: each response is given up, and in the end the file.
    let head = format!("HTTP/1.1 200 X\r\nContent-Length: {total}\r\n\r\n").into_bytes();
    cases.push(
        case("drip", Kind::File, Says("sends hardly anything"), move |_, _| {
            Reply::Stream(head.clone(), b"x".to_vec(), Duration::from_millis(50))
        })
        .patience(200),
    );
    cases.push(
        case("silence", Kind::File, Says("gave up after"), |_, _| Reply::Silence).patience(700),
    );
    // Cut in the middle, again and again, but each time some bytes arrive.
    cases.push(case("cut", Kind::File, Fine, move |r: &Request, _| {
        let (from, to) = r.range.unwrap();
        let body = &rows()[from..(from + 1000).min(to + 1)];
        let head = [
            ("Content-Range", format!("bytes {from}-{to}/{total}")),
            ("Content-Length", (to + 1 - from).to_string()),
        ];
        part(&head, body)
    }));
    cases.push(case("nothing", Kind::File, Says("the hub stops sending"), move |_, _| {
        part(&all(), b"")
    }));
    cases.push(case("short-length", Kind::File, Fine, move |r: &Request, _| {
        let (from, to) = r.range.unwrap();
        let head = [
            ("Content-Range", format!("bytes {from}-{to}/{total}")),
            ("Content-Length", "600".to_string()),
        ];
        part(&head, &rows()[from..])
    }));
    cases.push(case("no-range", Kind::File, Fine, |_, _| Reply::Whole(200, Vec::new(), rows())));
    for (name, at) in [
        ("later", format!("bytes 5-9/{total}")),
        ("no-place", "x".to_string()),
        ("no-first", format!("bytes */{total}")),
        ("negative", format!("bytes -5-9/{total}")),
    ] {
        cases.push(
            case(name, Kind::File, Says("asked for byte 0 on"), move |_, _| {
                part(&place(at.clone()), &rows()[5..10])
            })
            .asked_at_most(1),
        );
    }
    for (name, of) in [("total-less", total - 1), ("total-more", total + 1), ("total-zero", 0)] {
        cases.push(
            case(name, Kind::File, Says("its listing says"), move |_, _| {
                part(&place(format!("bytes 0-{}/{of}", total - 1)), &rows())
            })
            .asked_at_most(1),
        );
    }
    cases.push(
        case("whole-less", Kind::File, Says("its listing says"), |_, _| {
            Reply::Whole(200, Vec::new(), rows()[1..].to_vec())
        })
        .asked_at_most(1),
    );
    cases.push(case("other-bytes", Kind::File, wrong, move |_, _| {
        Reply::Whole(200, Vec::new(), vec![b'x'; total])
    }));
    // Other bytes once: downloaded again.
    cases.push(case("once-other", Kind::File, Fine, move |r, _| match r.number {
        0 => Reply::Whole(200, Vec::new(), vec![b'x'; total]),
        _ => truth(r),
    }));
    for coding in ["gzip", "br", "x"] {
        cases.push(case(
            format!("coding-{coding}"),
            Kind::File,
            Says("compresses"),
            move |r, _| {
                let Reply::Whole(code, mut headers, body) = truth(r) else { unreachable!() };
                headers.push(("Content-Encoding", coding.to_string()));
                Reply::Whole(code, headers, body)
            },
        ));
    }
    cases.push(case("names-in-headers", Kind::File, Fine, |r, _| {
        let Reply::Whole(code, mut headers, body) = truth(r) else { unreachable!() };
        for k in ["ETag", "X-Linked-Etag", "X-Repo-Commit", "Content-Disposition"] {
            headers.push((k, "\"../../../../pwn\"".to_string()));
        }
        Reply::Whole(code, headers, body)
    }));
    cases.push(case("two-steps", Kind::File, Fine, |r, at| {
        redirect(format!("{}/blob/{}", at.elsewhere, r.repo))
    }));
    check(cases);
}
