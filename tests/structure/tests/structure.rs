//! How the source text must be: no circle of imports, rooms in order, short files, a listed public
//! API, comments that say something, no name that was given up.
//!
//! Needs nothing but the repository and runs first in `.ci/run`:
//! `cargo test --release --test structure`.

mod source;

use std::collections::BTreeSet;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use source::imports::{Import, circles, imports};
use source::public_api::public_items;
use source::tree::Tree;
use source::{repository, text};

/// Folder and name of each library crate.
const CRATES: [(&str, &str); 4] = [
    ("pipeline", "dlm_prep"),
    ("trainer", "dlm_train"),
    ("trainer/engine", "dlm_engine"),
    ("datasets", "dlm_datasets"),
];

/// The rooms (files and folders directly under `src`) of each crate, highest first. A file may
/// import from rooms below its own; rooms on one line are equal and may import from each other.
const ROOMS: [(&str, &[&[&str]]); 4] = [
    (
        "dlm_prep",
        &[
            &["main"],
            &["cli"],
            &["publish"],
            &["dataset"],
            &["prepare"],
            &["pack"],
            &["run"],
            &["label"],
            &["template"],
            &["tokenize"],
            &["parse"],
            &["input"],
            &["buckets"],
            &["config"],
            &["progress"],
            &["panics", "runtime", "manual", "model_names"],
            &["error"],
        ],
    ),
    (
        "dlm_train",
        &[
            &["main"],
            &["cli"],
            &["launch"],
            &["serve"],
            &["tasks"],
            &["conversion", "validate", "generate", "estimate"],
            &["publish"],
            &["bench", "parity"],
            &["train"],
            &["decode"],
            &["io"],
            &["native"],
            &["optim"],
            &["diffusion"],
            &["model"],
            &["attention"],
            &["kernels"],
            &["report"],
            &["compute"],
            &["config"],
            &["error"],
        ],
    ),
    (
        "dlm_engine",
        &[
            &["team"],
            &["decode"],
            &["engine"],
            &["backward"],
            &["forward"],
            &["distill"],
            &["beside"],
            &["places"],
            &["frozen_values"],
            &["model"],
            &["batch"],
            &["row_lists"],
            &["streams"],
            &["cache"],
            &["arena"],
            &["blas"],
            &["grids"],
            &["program"],
            &["profile"],
            &["graphs"],
            &["frozen"],
            &["adapters"],
            &["shape"],
            &["device"],
            &["options"],
            &["error"],
        ],
    ),
    (
        "dlm_datasets",
        &[
            &["writer"],
            &["verify"],
            &["reader"],
            &["order"],
            &["chart"],
            &["html"],
            &["schema"],
            &["manifest"],
            &["mask"],
            &["rng"],
            &["fs"],
            &["hash"],
            &["error"],
        ],
    ),
];

/// The longest that a source file may be.
const LINES: usize = 450;

/// Configuration keys and values that must not occur, and what replaced them. A line may name the
/// old one beside the new one.
const OLD_KEYS: [(&str, &str); 6] = [
    ("micro_rows", "micro_batch_rows"),
    ("train.recompute", "activation_checkpointing"),
    ("recompute: layer", "activation_checkpointing"),
    ("recompute: none", "activation_checkpointing"),
    ("document_mask: hub", "document_mask: none"),
    ("document_mask=hub", "document_mask=none"),
];

/// Files that read old keys, or test that they are refused with the new name.
const READ_OLD_KEYS: [&str; 3] =
    ["trainer/src/config/tests.rs", "trainer/src/io/checkpoint.rs", "trainer/tests/torture.rs"];

/// Other words that must not occur, and what replaced them.
const GIVEN_UP: [(&str, &str); 21] = [
    ("Recompute::", "ActivationCheckpointing::"),
    ("DocumentMask::Hub", "DocumentMask::None"),
    ("Chosen", "ComputeDevice"),
    ("Located", "ModelSource"),
    ("PreparedRun", "PreparedModel"),
    ("commands::", "cli::"),
    ("worker.rs", "row_processor.rs"),
    ("linear.rs", "verbatim.rs"),
    ("python.rs`", "jinja.rs"),
    ("the obvious form", "the reference implementation"),
    ("the obvious forms", "the reference implementations"),
    ("left the numbers", "a non-finite loss or gradient"),
    ("is no number", "is NaN or infinite"),
    ("was no number", "was NaN or infinite"),
    ("held against", "compared with"),
    ("told against", "relative to"),
    ("what became of", "the outcome of"),
    ("part the text", "split the text"),
    ("../../pipeline/tests/common", "dlm_test_support::hub"),
    ("shared/fixtures", "tests/fixtures"),
    ("parity_fixtures", "trainer/tests/parity.rs"),
];

/// What lies outside the repository and must not be cited in sources, scripts and configs.
const OUTSIDE: [&str; 9] = [
    "../shared",
    "DESIGN section",
    "DESIGN.md",
    "ANCHORS",
    "BURN.md",
    "DATA.md",
    "fixtures' README",
    "the design contract",
    "issue 13",
];

/// Files that say where third-party test data is looked for.
const KNOW_OUTSIDE: [&str; 3] = [
    "tests/support/src/lib.rs",
    "tests/python/check_prep_parity.py",
    "tests/structure/tests/structure.rs",
];

/// Files with all that is written by hand.
const WRITTEN: [&str; 8] = ["rs", "md", "toml", "yaml", "yml", "py", "sh", ""];

fn tree(folder: &str, name: &str) -> Tree {
    Tree::read(&repository(), folder, name).unwrap()
}

/// `file:line: imports to (path)` per import.
fn listed(imports: &[Import]) -> String {
    imports.iter().fold(String::new(), |mut text, i| {
        let (from, to) = (i.from.display(), i.to.display());
        let _ = writeln!(text, "  {from}:{}: imports {to} (`{}`)", i.line, i.path);
        text
    })
}

fn assert_empty(problems: &[String], advice: &str) {
    assert!(problems.is_empty(), "{advice}\n{}\n{} in all", problems.join("\n"), problems.len());
}

/// Files that import each other cannot be read, tested or changed alone.
#[test]
fn no_circle_of_imports_between_files() {
    let mut problems = Vec::new();
    for (folder, name) in CRATES {
        let all = imports(&tree(folder, name));
        assert!(all.len() > 10, "{name}: only {} imports were seen", all.len());
        problems
            .extend(circles(&all).iter().map(|c| format!("a circle in {name}:\n{}", listed(c))));
    }
    assert_empty(
        &problems,
        "Files import each other in a circle: move what both need into a file below them.",
    );
}

/// The room of a source file: the file or folder directly under `src`.
fn room(file: &Path) -> String {
    let parts: Vec<_> = file.iter().map(|p| p.to_string_lossy().into_owned()).collect();
    let at = parts.iter().position(|p| p == "src").map_or(0, |i| i + 1);
    parts.get(at).map_or("", String::as_str).trim_end_matches(".rs").to_string()
}

#[test]
fn no_import_from_a_lower_room_to_a_higher_one() {
    let mut problems = Vec::new();
    for ((folder, name), (_, rooms)) in CRATES.iter().zip(ROOMS) {
        let tree = tree(folder, name);
        let level = |room: &str| rooms.iter().position(|equal| equal.contains(&room));
        for file in tree.modules.values().map(|m| &m.file).collect::<BTreeSet<_>>() {
            let room = room(file);
            if level(&room).is_none() && room != "lib" {
                problems.push(format!(
                    "  {}: room {room:?} of {name} is not in the list of tests/structure/tests/structure.rs",
                    file.display()
                ));
            }
        }
        for import in imports(&tree) {
            if let (Some(from), Some(to)) = (level(&room(&import.from)), level(&room(&import.to)))
                && from > to
            {
                problems.push(listed(&[import]).trim_end().to_string());
            }
        }
    }
    assert_empty(
        &problems,
        "Imports point from a lower room to a higher one (order: ROOMS in this test, README.md of the crate).",
    );
}

#[test]
fn no_source_file_is_too_long() {
    let root = repository();
    let mut problems = Vec::new();
    for file in text::files(&root, &["rs"]) {
        let lines = text::read(&root, &file).lines().count();
        if lines > LINES && !file.iter().any(|part| part == "tests") {
            problems.push(format!("  {}: {lines} lines", file.display()));
        }
    }
    assert_empty(&problems, &format!("Files above {LINES} lines: split them by subject."));
}

/// Every item that other crates can name is listed in `tests/fixtures/public_api/<crate>.txt`.
#[test]
fn the_public_api_is_the_listed_one() {
    let folder = repository().join("tests/fixtures/public_api");
    let write = std::env::var_os("DLM_WRITE_PUBLIC_API").is_some();
    let mut problems = Vec::new();
    for (crate_folder, name) in CRATES {
        let file = folder.join(format!("{name}.txt"));
        let items = public_items(&tree(crate_folder, name));
        if write {
            std::fs::create_dir_all(&folder).unwrap();
            let lines: String = items.iter().map(|l| format!("{l}\n")).collect();
            std::fs::write(&file, lines).unwrap();
            continue;
        }
        let Ok(listed) = std::fs::read_to_string(&file) else {
            problems.push(format!("  {} is missing ({} items)", file.display(), items.len()));
            continue;
        };
        let listed: BTreeSet<String> = listed.lines().map(str::to_string).collect();
        problems.extend(items.difference(&listed).map(|l| format!("  public, not listed: {l}")));
        problems.extend(listed.difference(&items).map(|l| format!("  listed, not public: {l}")));
    }
    assert_empty(
        &problems,
        "The public items differ from tests/fixtures/public_api. Make what is not meant for users \
         pub(crate). After a change that is meant, write the listing again and say so in CHANGELOG.md: \
         DLM_WRITE_PUBLIC_API=1 cargo test --release --test structure",
    );
}

/// Lower-case words without articles and the like; plural and verb endings are cut.
fn words(text: &str) -> Vec<String> {
    let mut spaced = String::new();
    for c in text.chars() {
        if c.is_uppercase() && spaced.ends_with(|last: char| last.is_lowercase()) {
            spaced.push(' ');
        }
        spaced.push(if c.is_alphanumeric() { c.to_ascii_lowercase() } else { ' ' });
    }
    let skipped = ["a", "an", "the", "of", "this", "its", "all", "one"];
    spaced
        .split_whitespace()
        .filter(|w| !skipped.contains(w))
        .map(|w| w.trim_end_matches("ing").trim_end_matches("ed").trim_end_matches('s').to_string())
        .collect()
}

/// Whether a doc comment of three words or fewer has no word that is not in the item's name.
fn restates(name: &str, comment: &str) -> bool {
    let name = words(name);
    let known = |w: &String| {
        name.iter()
            .any(|n| n == w || n.len() > 3 && w.starts_with(n) || w.len() > 3 && n.starts_with(w))
    };
    comment.split_whitespace().count() <= 3 && words(comment).iter().all(known)
}

#[test]
fn no_short_doc_comment_restates_a_name() {
    assert!(restates("Config::mask_token", "The mask token."));
    assert!(restates("PackedRow", " A packed row.\n"));
    assert!(restates("Run::stdout", "Its stdout."));
    assert!(!restates("Run::time", "Wall time."));
    assert!(!restates("Config::mask_token", "The mask token that noise writes."));
    let root = repository();
    let mut problems = Vec::new();
    for file in text::files(&root, &["rs"]) {
        for item in text::documented(&text::read(&root, &file)).unwrap() {
            if restates(&item.name, &item.comment) {
                let (line, comment) = (item.line, item.comment.trim());
                problems.push(format!("  {}:{line}: `{}`: {comment}", file.display(), item.name));
            }
        }
    }
    assert_empty(&problems, "Doc comments that only restate a name: delete them, or say more.");
}

/// Lines of the files in `files` that `is_wrong`, as `file:line: text`.
fn lines(files: &[PathBuf], is_wrong: impl Fn(&Path, &str) -> Option<String>) -> Vec<String> {
    let root = repository();
    let mut problems = Vec::new();
    for file in files {
        for (n, line) in text::read(&root, file).lines().enumerate() {
            if let Some(why) = is_wrong(file, line) {
                let line: String = line.trim().chars().take(100).collect();
                problems.push(format!("  {}:{}: {why}: {line}", file.display(), n + 1));
            }
        }
    }
    problems
}

#[test]
fn names_and_phrases_that_were_given_up_do_not_occur() {
    let kept = ["CHANGELOG.md", "docs/log.md", "tests/structure/tests/structure.rs"];
    let mut files = text::files(&repository(), &WRITTEN);
    files.retain(|f| !kept.iter().any(|k| f == Path::new(k)));
    assert!(files.len() > 200, "only {} files were seen", files.len());
    let problems = lines(&files, |file, line| {
        let lower = line.to_lowercase();
        let reads_old_keys = READ_OLD_KEYS.iter().any(|f| file == Path::new(f));
        let keys: &[_] = if reads_old_keys { &[] } else { &OLD_KEYS };
        GIVEN_UP.iter().chain(keys).find_map(|(old, new)| {
            let phrase = old.contains(' ') && !old.contains(':');
            let occurs = if phrase { lower.contains(old) } else { occurrences(line, old) };
            (occurs && !line.contains(new)).then(|| format!("{old:?}, now {new:?}"))
        })
    });
    assert_empty(
        &problems,
        "Names and phrases that were given up (lists: GIVEN_UP and OLD_KEYS in this test).",
    );
}

/// Whether `word` occurs in `line` as a whole name, not as a part of a longer one.
fn occurrences(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word).any(|(at, _)| {
        let before = line[..at].chars().next_back().is_some_and(part);
        let after = line[at + word.len()..].chars().next().is_some_and(part);
        !(before && word.starts_with(part) || after && word.ends_with(part))
    })
}

#[test]
fn sources_cite_nothing_outside_the_repository() {
    let root = repository();
    let mut files = text::files(&root, &["rs", "toml", "yaml", "yml", "py", "sh", ""]);
    files.retain(|f| !KNOW_OUTSIDE.iter().any(|k| f == Path::new(k)));
    let mut problems = lines(&files, |_, line| {
        OUTSIDE.iter().find(|o| line.contains(**o)).map(|o| format!("{o:?}"))
    });
    // Documents that are cited must exist.
    problems.extend(lines(&files, |_, line| {
        line.split(|c: char| !(c.is_alphanumeric() || "/_.-".contains(c)))
            .filter(|word| word.ends_with(".md"))
            .filter(|word| ["docs/", "tests/", "datasets/"].iter().any(|p| word.starts_with(p)))
            .find(|word| !root.join(word).is_file())
            .map(|word| format!("{word} does not exist"))
    }));
    assert_empty(
        &problems,
        "Comments cite files outside the repository or documents that do not exist: cite docs/.",
    );
}

/// rustfmt does not wrap comments.
#[test]
fn comments_are_at_most_100_columns_wide() {
    // Tables and code examples cannot be wrapped.
    let code = std::cell::Cell::new(false);
    let problems = lines(&text::files(&repository(), &["rs"]), |_, line| {
        if !line.trim_start().starts_with("//") {
            code.set(false);
            return None;
        }
        let text = line.trim_start().trim_start_matches(['/', '!']);
        if text.trim_start().starts_with("```") {
            code.set(!code.get());
        }
        let wrapped = !(code.get() || text.starts_with(" |") || text.starts_with("    "));
        let columns = line.chars().count();
        (wrapped && columns > 100).then(|| format!("{columns} columns"))
    });
    assert_empty(&problems, "Comments wider than 100 columns.");
}

/// A module that is included by path belongs to no crate: shared test code is in tests/support.
#[test]
fn no_module_is_included_by_path() {
    let problems = lines(&text::files(&repository(), &["rs"]), |_, line| {
        line.trim_start().starts_with("#[path").then(|| "#[path]".to_string())
    });
    assert_empty(&problems, "Modules included by path: share test code through dlm-test-support.");
}
