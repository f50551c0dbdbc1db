//! `dlm-prep stats --html`: one page without external files that shows what the manifest counts and
//! a few rows, and in which text from the data stays text.

use dlm_test_support::sample;
use serde_json::json;
use std::path::Path;
use std::process::Command;

/// Text that would be markup, end an element or load a file if it were not escaped.
const HOSTILE: &str = "</pre></title></style><script>alert('x')</script><img src=x onerror=\"y\">&lt;{{ 1 }}\u{1b}[31m\u{0}";

fn prep(args: &[&str]) -> String {
    let done = Command::new(env!("CARGO_BIN_EXE_dlm-prep")).args(args).output().unwrap();
    assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    String::from_utf8(done.stdout).unwrap()
}

/// The page of the dataset that `lines`, of a file called `name`, become.
fn page(dir: &Path, name: &str, lines: &[String]) -> String {
    let (input, out, html) = (dir.join(name), dir.join("out"), dir.join("page.html"));
    std::fs::write(&input, lines.join("\n")).unwrap();
    let tokenizer = sample("tokenizer");
    let [input, out, html, tokenizer] =
        [&input, &out, &html, &tokenizer].map(|p| p.to_str().unwrap());
    prep(&[
        "--input",
        input,
        "--tokenizer",
        tokenizer,
        "--out",
        out,
        "--seq-len",
        "256",
        "--engine",
        "fast",
    ]);
    prep(&["stats", out, "--html", html]);
    std::fs::read_to_string(html).unwrap()
}

/// Every tag of the page with its attributes.
fn tags(page: &str) -> Vec<&str> {
    page.split('<').skip(1).map(|rest| rest.split('>').next().unwrap()).collect()
}

#[test]
fn text_from_the_data_stays_text() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines: Vec<String> = (0..60)
        .map(|i| json!({"prompt": format!("{i} {HOSTILE}"), "completion": HOSTILE, "category": HOSTILE, "license": HOSTILE}).to_string())
        .collect();
    lines.push(json!({HOSTILE: 1}).to_string());
    lines.push("{\"prompt\": ".to_string());
    let page = page(dir.path(), "<img src=x onerror=y>.jsonl", &lines);
    let known = "!doctype html head meta title style body h1 h2 h3 h4 p div b span section figure figcaption svg defs clipPath rect path text g table tr th td pre i input label code";
    for tag in tags(&page) {
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap();
        assert!(known.split(' ').any(|k| k == name), "{tag}");
        assert!(!tag.contains("onerror") && !tag.contains("src="), "{tag}");
    }
    assert!(page.contains("&lt;script&gt;alert"), "the rows show the text itself");
    assert!(page.contains("&lt;img src=x onerror=y&gt;.jsonl"), "the source has its name");
    assert!(!page.contains(['\u{1b}', '\0']), "control characters are replaced");
    // Nothing is loaded: no addresses, no imports, no scripts.
    for outside in ["http:", "https:", "url(h", "@import", "<link", "<script"] {
        assert!(!page.contains(outside), "{outside}");
    }
}

#[test]
fn the_page_shows_what_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let mut lines: Vec<String> = (0..40)
        .map(|i| json!({"prompt": format!("question {i}"), "completion": "word ".repeat(i), "category": if i % 2 == 0 { "one" } else { "two" }}).to_string())
        .collect();
    lines.push("{\"prompt\": ".to_string());
    let page = page(dir.path(), "rows.jsonl", &lines);
    let reason = "<tr><td>bad_json</td><td>1</td><td>2.44 %</td><td class=\"text\">rows.jsonl row 41</td><td class=\"text\">";
    assert!(page.contains(reason), "{page}");
    for (category, read) in [("one", 20), ("two", 20)] {
        let source = format!("<tr><td>rows.jsonl [{category}]</td><td>{read}</td>");
        assert!(page.contains(&source), "{source}\n{page}");
    }
    for part in ["prompt", "loss a", "loss b", "padding", "border"] {
        assert!(page.contains(&format!("<i class=\"{part}\">")), "{part}");
    }
    let hidden: Vec<&str> = page.matches("class=\"bar k0\"").collect();
    assert!(hidden.len() > 6, "{}", hidden.len());
    // Without its tokenizer the dataset still has a page, which says what is missing.
    std::fs::remove_dir_all(dir.path().join("out/tokenizer")).unwrap();
    let (out, html) = (dir.path().join("out"), dir.path().join("page.html"));
    prep(&["stats", out.to_str().unwrap(), "--html", html.to_str().unwrap()]);
    let page = std::fs::read_to_string(html).unwrap();
    assert!(page.contains("Not shown: tokenizer ") && page.contains("no tokenizer.json there"));
}
