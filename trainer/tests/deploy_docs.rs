//! docs/deploy.md and docs/migrating.md name only what exists: commands, options and keys.

use std::collections::BTreeSet;
use std::process::Command;

use dlm_test_support::{binaries, repository};
use serde_json::Value;

fn document(name: &str) -> String {
    std::fs::read_to_string(repository().join("docs").join(name)).unwrap()
}

fn help(program: &str, arguments: &[&str]) -> String {
    let bin = binaries::build().unwrap();
    let output = Command::new(bin.join(program)).args(arguments).arg("--help").output().unwrap();
    assert!(output.status.success(), "{program} {arguments:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// `a.{b,c}` as `a.b` and `a.c`.
fn expanded(word: &str) -> Vec<String> {
    match (word.split_once('{'), word.find('}')) {
        (Some((head, rest)), Some(end)) => {
            let tail = &word[end + 1..];
            let inner = rest.split('}').next().unwrap();
            inner.split(',').map(|part| format!("{head}{part}{tail}")).collect()
        }
        _ => vec![word.to_string()],
    }
}

/// The keys of the configuration, with their sections.
fn keys() -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_dlm-train")).arg("--print-config").output();
    let tree: Value = serde_saphyr::from_slice(&output.unwrap().stdout).unwrap();
    let mut keys = BTreeSet::new();
    fn walk(tree: &Value, prefix: &str, keys: &mut BTreeSet<String>) {
        for (name, value) in tree.as_object().into_iter().flatten() {
            let key = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
            walk(value, &key, keys);
            keys.insert(key);
        }
    }
    walk(&tree, "", &mut keys);
    keys
}

/// Words in backquotes.
fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[test]
fn keys_in_the_documents_exist() {
    let keys = keys();
    let known = |text: &str, file: &str| {
        let mut seen = 0;
        for word in quoted(text).flat_map(str::split_whitespace) {
            let word = word.split('=').next().unwrap();
            let section = word.split('.').next().unwrap();
            let own = ["train", "optim", "report", "conversion", "source", "export"];
            let is_key = own.contains(&section)
                && word.contains('.')
                && word.chars().all(|c| c.is_ascii_alphanumeric() || "._{},*".contains(c));
            if !is_key {
                continue;
            }
            for key in expanded(word) {
                seen += 1;
                let found = match key.strip_suffix('*') {
                    Some(prefix) => keys.iter().any(|other| other.starts_with(prefix)),
                    None => keys.contains(&key),
                };
                assert!(found, "{file}: {key} is no key");
            }
        }
        seen
    };
    assert!(known(&document("deploy.md"), "deploy.md") > 8);
    let migrating = document("migrating.md");
    let section = migrating.split("\n## Configuration\n").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let ours = section.lines().filter(|line| line.starts_with("| ")).skip(1);
    let ours: Vec<&str> = ours.filter_map(|line| line.split(" | ").nth(1)).collect();
    assert!(known(&ours.join("\n"), "migrating.md") > 25);
}

#[test]
fn commands_and_options_in_the_documents_exist() {
    let all = help("wf", &[]);
    let commands = ["dlm", "prep", "logs", "cancel", "runs", "smoke"];
    let mut options = String::new();
    for command in commands {
        assert!(all.contains(&format!("\n  {command}")), "{command}: {all}");
        options += &help("wf", &[command]);
    }
    for command in ["plan", "serve", "generate", "eval"] {
        options += &help("dlm-train", &[command]);
    }
    options += &help("dlm-train", &[]);
    options += &help("dlm-prep", &[]);
    // of other programs, and of the old one
    options += "--features --release --build-arg --logdir --format --secret --env --no-push --use-dlm --locked";
    for file in ["deploy.md", "migrating.md"] {
        let text = document(file);
        let used: BTreeSet<&str> = text
            .split(|c: char| !(c.is_ascii_alphanumeric() || c == '-' || c == '_'))
            .filter(|word| word.starts_with("--") && word.len() > 3)
            .collect();
        for option in used {
            assert!(options.contains(option), "{file}: {option} is no option");
        }
        for line in text.lines().filter(|line| line.starts_with("wf ")) {
            let command = line.split_whitespace().nth(1).unwrap();
            assert!(commands.contains(&command), "{file}: {line}");
        }
    }
}

/// The plan in docs/deploy.md is what the program prints.
#[test]
fn the_plan_in_the_document_is_printed() {
    let text = document("deploy.md");
    let block = text.split("```\n$ dlm-train ").nth(1).unwrap().split("\n```").next().unwrap();
    let (call, expected) = block.split_once('\n').unwrap();
    let output = Command::new(env!("CARGO_BIN_EXE_dlm-train")).args(call.split(' ')).output();
    assert_eq!(String::from_utf8(output.unwrap().stdout).unwrap().trim_end(), expected);
}
