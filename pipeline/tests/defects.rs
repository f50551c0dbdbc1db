//! Defects that were found in use, each with the call that showed it.

use dlm_datasets::manifest::Manifest;
use serde_json::json;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const SAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../datasets/sample");

fn prep() -> Command {
    Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
}

/// The dataset of `input` in `out`.
fn build(input: &Path, out: &Path, more: &[&str]) -> Manifest {
    let done = prep()
        .arg("--input")
        .arg(input)
        .arg("--tokenizer")
        .arg(format!("{SAMPLE}/tokenizer"))
        .arg("--out")
        .arg(out)
        .args(["--engine", "fast"])
        .args(more)
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    Manifest::read(out).unwrap()
}

fn sample() -> PathBuf {
    Path::new(SAMPLE).join("train.parquet")
}

/// A flag that was typed comes before the recipe, even with the default's value.
#[test]
fn a_recipe_does_not_override_a_typed_flag() {
    let dir = tempfile::tempdir().unwrap();
    let recipe = dir.path().join("r.yaml");
    let text = format!(
        "name: r\nsettings: {{ seq_len: 1024, bd_size: 64 }}\nsources: [{{ name: a, input: [{:?}] }}]\n",
        sample()
    );
    std::fs::write(&recipe, text).unwrap();
    let out = dir.path().join("out");
    let done = prep()
        .arg("--recipe")
        .arg(&recipe)
        .arg("--tokenizer")
        .arg(format!("{SAMPLE}/tokenizer"))
        .arg("--out")
        .arg(&out)
        .args(["--engine", "fast", "--max-rows", "50", "--seq-len", "512"])
        .output()
        .unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    let m = Manifest::read(&out).unwrap();
    assert_eq!((m.seq_len, m.bd_size), (512, 64));
}

/// Conversations that differ in their tools alone are not duplicates.
#[test]
fn tools_distinguish_conversations() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("rows.jsonl");
    let row = |tool: &str| {
        let tools = json!([{"type": "function", "function": {"name": tool, "parameters": {}}}]);
        json!({"prompt": "What is 2 + 3?", "completion": "5", "tools": tools}).to_string()
    };
    std::fs::write(&input, [row("add"), row("sum"), row("add")].join("\n")).unwrap();
    let c = build(&input, &dir.path().join("out"), &["--dedup"]).counts;
    assert_eq!((c.rows_kept, c.dropped.get("duplicate")), (2, Some(&1)), "{c:?}");
}

/// Columns with other names are named on the command line; tools and system prompt stay.
#[test]
fn columns_are_named_on_the_command_line() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("rows.jsonl");
    let chat = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    std::fs::write(&input, json!({"chat": chat, "sys": "Be kind."}).to_string()).unwrap();
    let flags = ["--columns", "messages=chat,system=sys"];
    let m = build(&input, &dir.path().join("out"), &flags);
    assert_eq!(m.counts.rows_kept, 1, "{:?}", m.counts);
    assert_eq!(m.recipe["columns"], json!({"messages": "chat", "system": "sys"}));
    let with_system = m.counts.tokens;
    let m = build(&input, &dir.path().join("out2"), &["--columns", "messages=chat"]);
    assert!(m.counts.tokens < with_system, "{:?}", m.counts);
}

/// Beside each reason for dropping rows stand the first such row and what is wrong with it.
#[test]
fn reasons_come_with_an_example() {
    let dir = tempfile::tempdir().unwrap();
    let (input, template) = (dir.path().join("rows.jsonl"), dir.path().join("t.jinja"));
    let source = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}";
    std::fs::write(&template, source).unwrap();
    let good = json!({"prompt": "q", "completion": "a"}).to_string();
    let system = json!({"prompt": "q", "completion": "a", "system": "s"}).to_string();
    let lines = [&good, &system, "{\"prompt\": ", &good, "{\"text\": \"x\", \"n\": 1}", "[1"];
    std::fs::write(&input, lines.join("\n")).unwrap();
    let flags = ["--template", template.to_str().unwrap()];
    let out = dir.path().join("out");
    let m = build(&input, &out, &flags);
    for (reason, row, says) in [
        ("template_refused", 2, "no system"),
        ("bad_json", 3, "EOF while parsing"),
        ("unknown_shape", 5, "its columns are text, n; name"),
    ] {
        let e = &m.drop_examples[reason];
        assert_eq!((e.row, &*e.file), (row, "rows.jsonl"), "{reason}");
        assert!(e.message.contains(says), "{reason}: {}", e.message);
        let shown = prep().arg("stats").arg(&out).output().unwrap();
        let shown = String::from_utf8(shown.stdout).unwrap();
        assert!(shown.contains(&format!("{reason}, first in rows.jsonl row {row}: ")), "{shown}");
    }
}

/// Messages that the data excludes from the loss carry none, which the manifest counts.
#[test]
fn loss_flags_are_honoured_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("rows.jsonl");
    let row = |weight: u8| {
        json!({"messages": [
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "bad", "weight": weight},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "good", "weight": 1}]})
    };
    let labels = |weight: u8| {
        std::fs::write(&input, row(weight).to_string()).unwrap();
        let m = build(&input, &dir.path().join(format!("out{weight}")), &[]);
        (m.counts.label_runs, m.counts.notes.get("no_loss_turns").copied())
    };
    assert_eq!((labels(0), labels(1)), ((1, Some(1)), (2, None)));
}

/// The fingerprints of `--dedup` are in a side file of 16 bytes each, which the end of the run
/// removes, and not in the state file.
#[test]
fn seen_conversations_are_stored_compactly() {
    let dir = tempfile::tempdir().unwrap();
    let (input, out) = (dir.path().join("rows.jsonl"), dir.path().join("out"));
    let rows: String = (0..1_000)
        .map(|i| json!({"prompt": format!("{i}?"), "completion": "x"}).to_string() + "\n")
        .collect();
    std::fs::write(&input, rows).unwrap();
    let flags = ["--dedup", "--shard-rows", "8", "--seq-len", "64", "--pack-window", "1"];
    let mut child = prep()
        .arg("--input")
        .arg(&input)
        .arg("--tokenizer")
        .arg(format!("{SAMPLE}/tokenizer"))
        .arg("--out")
        .arg(&out)
        .args(["--engine", "fast", "--workers", "1"])
        .args(flags)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while !out.join("train-00003.arrow").exists() {
        assert!(child.try_wait().unwrap().is_none(), "the run ended before it was killed");
        std::thread::sleep(std::time::Duration::from_millis(1));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    let state = std::fs::read_to_string(out.join("prep-state.json")).unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let entries = state["seen"]["entries"].as_u64().expect("only a mark is in the state file");
    let bytes = std::fs::metadata(out.join("prep-state.seen")).unwrap().len();
    assert!(entries > 30 && bytes >= entries * 16, "{entries} entries in {bytes} bytes");
    // A run that was killed after the side file and before the state file: the rest is cut off.
    let mut seen =
        std::fs::OpenOptions::new().append(true).open(out.join("prep-state.seen")).unwrap();
    std::io::Write::write_all(&mut seen, &[7; 1000]).unwrap();
    let resumed = build(&input, &out, &flags);
    assert!(!out.join("prep-state.seen").exists() && !out.join("prep-state.json").exists());
    let whole = build(&input, &dir.path().join("whole"), &flags);
    assert_eq!(resumed.files, whole.files);
    assert_eq!(resumed.counts, whole.counts);
}

/// `dlm-prep … | head` ends with exit code 0 and without a panic; so does a closed standard error.
#[test]
fn closed_pipes_end_quietly() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("data");
    build(&sample(), &data, &["--seq-len", "256"]);
    let data = data.to_str().unwrap();
    for call in [
        &["inspect", data, "--rows", "200"][..],
        &["stats", data],
        &["stats", data, "--json"],
        &["verify", data],
    ] {
        let mut child =
            prep().args(call).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Nobody reads: the pipe is closed before anything is written.
        drop(child.stdout.take());
        let done = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success() && !said.contains("panicked"), "{call:?}: {said}");
    }
    let mut child =
        prep().args(["verify", "no-such-folder"]).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stderr.take());
    assert_eq!(child.wait().unwrap().code(), Some(1), "the exit code stays that of the error");
    // The work is whole although nobody reads its reports.
    let out = dir.path().join("unread");
    let mut child = prep()
        .arg("--input")
        .arg(sample())
        .arg("--tokenizer")
        .arg(format!("{SAMPLE}/tokenizer"))
        .arg("--out")
        .arg(&out)
        .args(["--engine", "fast", "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    assert_eq!(child.wait().unwrap().code(), Some(0));
    let mut report = String::new();
    let mut verify = prep().arg("verify").arg(&out).stdout(Stdio::piped()).spawn().unwrap();
    verify.stdout.take().unwrap().read_to_string(&mut report).unwrap();
    assert!(verify.wait().unwrap().success() && report.starts_with("ok:"), "{report}");
}

/// Variables for the template come from the command line or, first, from the row; the manifest
/// records the former.
#[test]
fn template_kwargs() {
    let dir = tempfile::tempdir().unwrap();
    let (input, template) = (dir.path().join("rows.jsonl"), dir.path().join("t.jinja"));
    let source = "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if deep is defined and deep and m.role == 'user' %}{{ 'deep ' * 60 }}{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}";
    std::fs::write(&template, source).unwrap();
    let row = |kwargs: serde_json::Value| {
        json!({"prompt": "q", "completion": "a", "chat_template_kwargs": kwargs}).to_string()
    };
    let tokens = |row: String, flags: &[&str], out: &str| {
        std::fs::write(&input, row).unwrap();
        let t = template.to_str().unwrap();
        let flags = [&["--template", t], flags].concat();
        build(&input, &dir.path().join(out), &flags)
    };
    let deep = r#"{"deep": true}"#;
    let flag = ["--template-kwargs", deep];
    let plain = tokens(row(json!(null)), &[], "a").counts.tokens;
    let with = tokens(row(json!({"deep": true})), &[], "b").counts.tokens;
    assert!(with > plain + 50, "{plain} {with}");
    assert_eq!(tokens(row(json!(deep)), &[], "c").counts.tokens, with);
    let m = tokens(row(json!(null)), &flag, "d");
    assert_eq!((m.counts.tokens, &m.recipe["template_kwargs"]), (with, &json!({"deep": true})));
    assert_eq!(tokens(row(json!({"deep": false})), &flag, "e").counts.tokens, plain);
    let good = row(json!(null));
    let m = tokens([good, row(json!([1])), row(json!({"tools": 1}))].join("\n"), &[], "f");
    assert_eq!(m.counts.dropped.get("bad_template_kwargs"), Some(&2), "{:?}", m.counts);
}

/// Tokens that only `tokenizer_config.json` names are tokens, and a second template is used for
/// rows with tools.
#[test]
fn tokens_and_templates_beside_the_tokenizer() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("tok");
    std::fs::create_dir_all(folder.join("additional_chat_templates")).unwrap();
    std::fs::copy(format!("{SAMPLE}/tokenizer/tokenizer.json"), folder.join("tokenizer.json"))
        .unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.join(name), text).unwrap();
    let template = "{% for m in messages %}<|turn|>{{ m.role }}\n{{ m.content }}{{ done_token }}\n{% endfor %}";
    put("chat_template.jinja", template);
    let tool_use = template.replace("{{ m.role }}", "{{ 'tools ' * 20 }}{{ m.role }}");
    put("additional_chat_templates/tool_use.jinja", &tool_use);
    put(
        "tokenizer_config.json",
        r#"{"eos_token": "<|im_end|>", "done_token": "<|done|>", "extra_special_tokens": ["<|turn|>"]}"#,
    );
    let input = dir.path().join("rows.jsonl");
    let prepared = |row: serde_json::Value, out: &str| {
        std::fs::write(&input, row.to_string()).unwrap();
        let out = dir.path().join(out);
        let flags = ["--engine", "fast", "--tokenizer"];
        let mut call = prep();
        call.arg("--input").arg(&input).arg("--out").arg(&out).args(flags).arg(&folder);
        let done = call.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        let text = std::fs::read_to_string(out.join("tokenizer/tokenizer.json")).unwrap();
        let added = text.contains("\"<|turn|>\"") && text.contains("\"<|done|>\"");
        (Manifest::read(&out).unwrap(), added)
    };
    let (m, added) = prepared(json!({"prompt": "hi", "completion": "ok"}), "a");
    assert!(added && m.counts.unfinished_runs == 0 && m.counts.tokens < 30, "{:?}", m.counts);
    let row = json!({"prompt": "hi", "completion": "ok", "tools": [{"name": "f"}]});
    assert!(prepared(row, "b").0.counts.tokens > m.counts.tokens + 30);
}
