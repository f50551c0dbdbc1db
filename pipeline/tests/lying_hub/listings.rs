//! Lies in listings: paths, sizes, content ids, pages.

use crate::cases::End::{Fine, Says};
use crate::cases::{Case, case, check, large, listing, rows};
use dlm_test_support::lying_hub::{COMMIT, Kind, Reply, json, status};
use serde_json::{Value, json as value};

/// A path is taken as it is or refused; nothing is written outside of the cache.
#[test]
fn paths() {
    let mut cases: Vec<Case> = Vec::new();
    for (k, path) in [
        "../../x.jsonl",
        "a/../../../x.jsonl",
        "a\\..\\x.jsonl",
        "/etc/x.jsonl",
        "//etc/x.jsonl",
        "a\u{0}b.jsonl",
        "a\nb.jsonl",
        "\u{1b}[31ma.jsonl",
        "C:\\x.jsonl",
        "C:x.jsonl",
        "x.jsonl:stream.jsonl",
        "\u{202e}a.jsonl",
        "a\u{2028}b.jsonl",
        "a\u{85}b.jsonl",
        "a./x.jsonl",
        "a /x.jsonl",
        "./x.jsonl",
        "a//x.jsonl",
    ]
    .into_iter()
    .enumerate()
    {
        cases.push(case(
            format!("path-{k}"),
            Kind::Tree,
            Says("could leave the cache"),
            move |_, _| listing(&[large("a.jsonl", &rows()), large(path, &rows())]),
        ));
    }
    for (k, path) in
        [format!("{}.jsonl", "a".repeat(300)), vec!["a".repeat(200); 30].join("/") + ".jsonl"]
            .into_iter()
            .enumerate()
    {
        cases.push(case(
            format!("long-{k}"),
            Kind::Tree,
            Says("could leave the cache"),
            move |_, _| listing(&[large(&path, &rows())]),
        ));
    }
    for (k, path) in
        ["%2e%2e/%2e%2e/x.jsonl", "a?b#c.jsonl", "é ü.jsonl", "CON.jsonl", "a'b\"c;d&e.jsonl"]
            .into_iter()
            .enumerate()
    {
        cases.push(case(format!("odd-{k}"), Kind::Tree, Fine, move |_, _| {
            listing(&[large(path, &rows())])
        }));
    }
    for (name, path) in [("hidden", ".git/x.jsonl"), ("empty", ""), ("other", "x.csv")] {
        cases.push(case(
            format!("none-{name}"),
            Kind::Tree,
            Says("none of its files"),
            move |_, _| listing(&[large(path, &rows())]),
        ));
    }
    cases.push(case("two-cases", Kind::Tree, Fine, |_, _| {
        listing(&[large("A.jsonl", &rows()), large("a.jsonl", &rows())])
    }));
    cases.push(case("file-and-folder", Kind::Tree, Says("as a file and as a folder"), |_, _| {
        listing(&[large("a.jsonl", &rows()), large("a.jsonl/b.jsonl", &rows())])
    }));
    cases.push(case("again", Kind::Tree, Fine, |_, _| {
        listing(&vec![large("a.jsonl", &rows()); 10_000])
    }));
    check(cases);
}

/// Sizes and content ids are checked before anything is asked for or allocated.
#[test]
fn sizes_and_ids() {
    let mut cases: Vec<Case> = Vec::new();
    let mut entry = |name: &str, keys: &'static [&'static str], v: Value, end| {
        cases.push(case(name, Kind::Tree, end, move |_, _| {
            let mut entry = large("a.jsonl", &rows());
            for key in keys {
                match key.split_once('.') {
                    None => entry[*key] = v.clone(),
                    Some((a, b)) => entry[a][b] = v.clone(),
                }
            }
            listing(&[entry])
        }));
    };
    const BOTH: &[&str] = &["size", "lfs.size"];
    let (no_size, two) = (Says("no size"), Says("two different sizes"));
    for (name, size) in [
        ("negative", value!(-5)),
        ("text", value!("x")),
        ("float", value!(5.5)),
        ("null", Value::Null),
        ("object", value!({})),
        ("very-float", value!(1e300)),
    ] {
        entry(&format!("size-{name}"), BOTH, size.clone(), no_size);
        entry(&format!("size-one-{name}"), &["size"], size, no_size);
    }
    for (name, size) in [("2^63", 1u64 << 63), ("2^64", u64::MAX), ("1e15", 1_000_000_000_000_000)]
    {
        entry(&format!("size-{}", name.replace('^', "-")), BOTH, value!(size), Says("more than"));
    }
    entry("size-other", &["size"], value!(100), two);
    entry("size-other-lfs", &["lfs.size"], value!(100), two);
    // A right listing's file has another length.
    entry("size-less", BOTH, value!(100), Says("its listing says 100"));
    entry("size-more", BOTH, value!(1_000_000), Says("its listing says 1000000"));
    entry("size-huge", BOTH, value!(1_000_000_000_000u64), Says("its listing says"));
    entry("size-zero", BOTH, value!(0), Says(""));
    for (name, oid) in [
        ("slash", value!("../../evil")),
        ("long", value!("a".repeat(5000))),
        ("short", value!("abc")),
        ("empty", value!("")),
        ("number", value!(5)),
        ("no-hex", value!("g".repeat(64))),
    ] {
        entry(&format!("sha-{name}"), &["lfs.oid"], oid, Says("no sha256"));
    }
    let wrong = Says("twice the content is not what the hub lists");
    entry("sha-wrong", &["lfs.oid"], value!("0".repeat(64)), wrong);
    let upper = dlm_datasets::hash::sha256(&rows()).to_uppercase();
    entry("sha-upper", &["lfs.oid"], value!(upper), Fine);
    for (name, oid) in [
        ("slash", value!("../x")),
        ("long", value!("a".repeat(5000))),
        ("empty", value!("")),
        ("number", value!(5)),
        ("null", Value::Null),
    ] {
        cases.push(case(
            format!("git-{name}"),
            Kind::Tree,
            Says("no usable content id"),
            move |_, _| {
                let size = rows().len();
                listing(&[value!({"type": "file", "path": "a.jsonl", "size": size, "oid": oid})])
            },
        ));
    }
    cases.push(case("shared-id", Kind::Tree, Says("two different sizes"), |_, _| {
        let mut other = large("b.jsonl", b"x\n");
        other["lfs"]["oid"] = value!(dlm_datasets::hash::sha256(&rows()));
        listing(&[large("a.jsonl", &rows()), other])
    }));
    cases.push(case("two-contents", Kind::Tree, Says("twice, with different content"), |_, _| {
        listing(&[large("a.jsonl", &rows()), large("a.jsonl", b"x\n")])
    }));
    check(cases);
}

fn next(url: String) -> Vec<(&'static str, String)> {
    vec![("Link", format!("<{url}>; rel=\"next\""))]
}

/// A page with one file, and a link to another page.
fn page(url: String) -> Reply {
    let body = serde_json::to_vec(&[large("a.jsonl", &rows())]).unwrap();
    Reply::Whole(200, next(url), body)
}

/// A listing that is cut off or cannot be read is an error, never a shorter dataset.
#[test]
fn pages() {
    let mut cases: Vec<Case> = Vec::new();
    for (name, text, says) in [
        ("object", "{\"a\": 1}", "not what a hub sends"),
        ("null", "null", "not what a hub sends"),
        ("half", "[{\"type\": \"file\", \"path\": \"a.jsonl\"", "not what a hub sends"),
        ("half-list", "[{\"type\": \"directory\", \"path\": \"a\"},", "not what a hub sends"),
        ("empty", "[]", "none of its files"),
        ("of-numbers", "[7]", "no entry"),
        ("of-nulls", "[null]", "no entry"),
        ("no-type", "[{}]", "without a type"),
        ("no-path", "[{\"type\": \"file\"}]", "without a path"),
        ("path-number", "[{\"type\": \"file\", \"path\": 5}]", "without a path"),
        ("link", "[{\"type\": \"symlink\", \"path\": \"a.jsonl\"}]", "as a symlink"),
    ] {
        cases.push(case(name, Kind::Tree, Says(says), move |_, _| json(text)).asked_at_most(1));
        // The same on a second page.
        cases.push(
            case(
                format!("second-{name}"),
                Kind::Tree,
                if name == "empty" { Fine } else { Says(says) },
                {
                    move |r, at| match r.number {
                        0 => page(format!("{}{}&cursor=1", at.hub, r.target)),
                        _ => json(text),
                    }
                },
            )
            .asked_at_most(2),
        );
    }
    for (code, says) in [(404, "404"), (403, "403"), (410, "410"), (500, "gave up after 8")] {
        cases.push(case(format!("second-{code}"), Kind::Tree, Says(says), move |r, at| {
            match r.number {
                0 => page(format!("{}{}&cursor=1", at.hub, r.target)),
                _ => status(code),
            }
        }));
    }
    // A mirror passes on the links of the hub that it mirrors.
    for (name, base) in [("absolute", "https://huggingface.co"), ("elsewhere", "")] {
        cases.push(
            case(name, Kind::Tree, Fine, move |r, at| match r.number {
                0 if base.is_empty() => page(format!("{}{}&cursor=1", at.elsewhere, r.target)),
                0 => page(format!("{base}{}&cursor=1", r.target)),
                _ => listing(&[large("b.jsonl", &rows())]),
            })
            .asked_at_most(2),
        );
    }
    cases.push(case("relative", Kind::Tree, Fine, move |r, _| match r.number {
        0 => page(format!("{}&cursor=1", r.target)),
        _ => listing(&[large("b.jsonl", &rows())]),
    }));
    // The next page is found however it is named, or the listing is an error.
    for (name, header, end) in [
        ("unquoted", "<URL>; rel=next", Says("410")),
        ("after-prev", "</x>; rel=\"prev\", <URL>; rel=\"next\"", Says("410")),
        ("comma", "<URL,x>; rel=\"next\"", Says("410")),
        ("no-brackets", "URL; rel=\"next\"", Says("not understood")),
        ("no-end", "<URL; rel=\"next\"", Says("not understood")),
        ("two", "<URL>; rel=\"next\", <URL,x>; rel=\"next\"", Says("two next pages")),
    ] {
        cases.push(
            case(format!("header-{name}"), Kind::Tree, end, move |r, at| match r.number {
                0 => {
                    let url = format!("{}{}&cursor=1", at.hub, r.target);
                    let body = serde_json::to_vec(&[large("a.jsonl", &rows())]).unwrap();
                    Reply::Whole(200, vec![("Link", header.replace("URL", &url))], body)
                }
                // The first page alone would be a dataset, too.
                _ => status(410),
            })
            .asked_at_most(2),
        );
    }
    for (name, link) in [
        ("other-path", "/steal"),
        ("user-name", "@127.0.0.1:1/steal"),
        ("longer-host", ".evil.com/steal"),
        ("dots", "/api/datasets/../../tree/x"),
        ("whoami", "/api/whoami-v2"),
    ] {
        cases.push(case(name, Kind::Tree, Says("is no listing"), move |_, at| {
            page(format!("{}{link}", at.hub))
        }));
    }
    cases.push(case("file-scheme", Kind::Tree, Says("is no listing"), move |_, _| {
        page("file:///etc/passwd".to_string())
    }));
    cases.push(
        case("circle", Kind::Tree, Says("in a circle"), move |r, at| {
            page(format!("{}{}", at.hub, r.target))
        })
        .asked_at_most(1),
    );
    cases.push(
        case("endless", Kind::Tree, Says("more than 500000 data files"), move |r, at| {
            let file = |k| {
                let path = format!("{}-{k}.jsonl", r.number);
                value!({"type": "file", "path": path, "size": 5, "oid": "a".repeat(40)})
            };
            let body = serde_json::to_vec(&(0..20_000).map(file).collect::<Vec<_>>()).unwrap();
            Reply::Whole(200, next(format!("{}{}1", at.hub, r.target)), body)
        })
        .asked_at_most(26),
    );
    // Pages in all, of which none holds a file.
    cases.push(
        case("empty-pages", Kind::Tree, Says("more than 2500 pages"), move |r, at| {
            let path = r.target.split('?').next().unwrap();
            Reply::Whole(200, next(format!("{}{path}?cursor={}", at.hub, r.number)), b"[]".to_vec())
        })
        .asked_at_most(2_500),
    );
    // Each page comes in time, all of them do not.
    cases.push(
        case("slow-pages", Kind::Tree, Says("takes too long"), move |r, at| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            let path = r.target.split('?').next().unwrap();
            Reply::Whole(200, next(format!("{}{path}?cursor={}", at.hub, r.number)), b"[]".to_vec())
        })
        .patience(300)
        .asked_at_most(12),
    );
    // The revision names files that the listing lacks.
    for (name, names, end) in [
        ("all-listed", r#"[{"rfilename": "a.jsonl"}, {"rfilename": "x.md"}]"#, Fine),
        (
            "not-listed",
            r#"[{"rfilename": "a.jsonl"}, {"rfilename": "b.jsonl"}]"#,
            Says("was cut off"),
        ),
        ("no-siblings", "null", Fine),
        ("siblings-text", "\"x\"", Says("not what a hub sends")),
    ] {
        cases.push(case(name, Kind::Revision, end, move |_, _| {
            json(format!("{{\"sha\": \"{COMMIT}\", \"siblings\": {names}}}"))
        }));
    }
    check(cases);
}
