//! Which tokens carry loss: `--train-on-roles`, `--mask-thinking`, `--lost-text split`. Rows go
//! through the whole program, with the sample's tokenizer and a template of each format.

use crate::config::policies::LostText;
use crate::config::trained_roles::TrainedRoles;
use crate::prepare::builder::Prepare;
use crate::tokenize::tokenizer::Tokenizer;
use arrow::array::{
    Array, ArrayRef, BooleanArray, Float64Array, Int64Array, ListArray, RecordBatch, StringArray,
    StructArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::datatypes::Field;
use dlm_datasets::manifest::{LossOn, Manifest, Split};
use dlm_datasets::reader::Dataset;
use dlm_test_support::sample;
use parquet::arrow::ArrowWriter;
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const END: &str =
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// A template in ChatML that writes `body` for each message `m`.
fn chatml(body: &str) -> String {
    format!("{{% for m in messages %}}<|im_start|>{{{{ m.role }}}}\n{body}{END}")
}

/// The documents of some rows, in order, with the tokens that carry loss between ⟦ and ⟧.
fn documents(
    template: &str,
    rows: &[Value],
    configure: impl Fn(Prepare) -> Prepare,
) -> (Manifest, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let input = dir.path().join("rows.jsonl");
    let lines: Vec<String> = rows.iter().map(Value::to_string).collect();
    std::fs::write(&input, lines.join("\n")).unwrap();
    documents_of(template, &input, configure)
}

/// Like [`documents`], of the rows in a file.
fn documents_of(
    template: &str,
    input: &Path,
    configure: impl Fn(Prepare) -> Prepare,
) -> (Manifest, Vec<String>) {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    std::fs::write(path("t.jinja"), template).unwrap();
    let prepare = Prepare::new(sample("tokenizer"))
        .input(input)
        .template(path("t.jinja").to_string_lossy())
        .seq_len(512)
        .bd_size(16)
        .max_unsupervised(1.0);
    let prepared = configure(prepare).run(path("out"));
    let tokenizer = Tokenizer::load(&path("out/tokenizer")).unwrap();
    let manifest = match prepared {
        Ok(p) => p.manifest,
        // Nothing was kept.
        Err(_) => return (Manifest::new(0, 0, 0, 0, 0, 0), Vec::new()),
    };
    let data = Dataset::open(&path("out")).unwrap();
    let mut out = Vec::new();
    for row in data.split(Split::Train).iter() {
        let row = row.unwrap();
        for d in row.documents.iter() {
            let range = d.start..d.start + d.length;
            let mut text = String::new();
            let mut at = range.start;
            while at < range.end {
                let loss = |i: usize| row.labels[i] != -100;
                let to = (at..range.end).find(|&i| loss(i) != loss(at)).unwrap_or(range.end);
                let ids = row.input_ids[at..to].iter();
                let ids: Vec<u32> =
                    ids.filter(|i| **i != manifest.mask_token_id).map(|i| *i as u32).collect();
                let piece = tokenizer.decode(&ids, false).unwrap();
                text += &if loss(at) { format!("⟦{piece}⟧") } else { piece };
                at = to;
            }
            out.push(text);
        }
    }
    out.sort();
    (manifest, out)
}

pub(super) fn only(template: &str, row: Value, configure: impl Fn(Prepare) -> Prepare) -> String {
    let (manifest, documents) = documents(template, &[row], configure);
    match documents.as_slice() {
        [one] => one.clone(),
        _ => format!("{documents:?} {:?}", manifest.counts.dropped),
    }
}

fn talk() -> Value {
    json!({"messages": [
        {"role": "system", "content": "be"}, {"role": "user", "content": "ask"},
        {"role": "assistant", "content": "call"}, {"role": "tool", "content": "data"},
        {"role": "assistant", "content": "answer"}]})
}

#[test]
fn roles_that_carry_loss() {
    let template = chatml("{{ m.content }}");
    for (roles, trained) in [
        ("assistant", "call answer"),
        ("assistant,tool", "call data answer"),
        ("user", "ask"),
        ("all", "be ask call data answer"),
    ] {
        let roles: TrainedRoles = roles.parse().unwrap();
        let got = only(&template, talk(), |p| p.train_on_roles(roles));
        let runs: Vec<&str> = got.split('⟦').skip(1).filter_map(|t| t.split('⟧').next()).collect();
        let want: Vec<String> =
            trained.split(' ').map(|word| format!("{word}<|im_end|>")).collect();
        assert_eq!(runs, want, "{got}");
    }
    let tool: TrainedRoles = "tool".parse().unwrap();
    // What the data excludes stays excluded, for every role, and is counted.
    let mut row = talk();
    row["messages"][1]["weight"] = json!(0);
    row["messages"][3]["masked"] = json!("?");
    let (manifest, got) = documents(&template, &[row], |p| p.train_on_roles(TrainedRoles::ALL));
    assert!(got[0].contains("\nask<") && got[0].contains("\ndata<"), "{got:?}");
    assert_eq!(manifest.counts.notes["no_loss_turns"], 2);
    assert_eq!(manifest.recipe["train_on_roles"], "all");
    // Text that the template rewrites is not trained by another wording.
    let upper = chatml("{{ m.content if m.role == 'assistant' else m.content | upper }}");
    let rows = [talk(), json!({"messages": [talk()["messages"][1], talk()["messages"][4]]})];
    let tool = |p: Prepare| p.train_on_roles(tool);
    let (_, kept) = documents(&upper, &rows, tool);
    assert!(kept.is_empty(), "{kept:?}");
    let (manifest, _) = documents(&upper, &[rows[0].clone(), talk()], |p| p);
    assert!(manifest.recipe.get("train_on_roles").is_none());
    for both in [LostText::Split, LostText::Drop] {
        let loss_on = if both == LostText::Split { LossOn::All } else { LossOn::Last };
        let refused = Prepare::new(sample("tokenizer"))
            .input(sample("train.parquet"))
            .train_on_roles(TrainedRoles::ALL)
            .lost_text(both)
            .loss_on(loss_on)
            .estimate();
        assert!(refused.unwrap_err().to_string().contains("--train-on-roles all"));
    }
}

/// Thoughts carry no loss, in whatever markup they stand; the rest of the turn does.
#[test]
fn thoughts_without_loss() {
    let plain = chatml("{{ m.content }}");
    let field = |open: &str, close: &str| {
        chatml(&format!(
            "{{% if m.reasoning_content %}}{open}{{{{ m.reasoning_content }}}}{close}{{% endif %}}{{{{ m.content }}}}"
        ))
    };
    let row = |answer: Value| json!({"messages": [{"role": "user", "content": "ask"}, answer]});
    let inline = |content: &str| row(json!({"role": "assistant", "content": content}));
    let own =
        || row(json!({"role": "assistant", "content": "answer", "reasoning_content": "zqthought"}));
    let head = "<|im_start|>user\nask<|im_end|>\n<|im_start|>assistant\n";
    let end = "⟦answer<|im_end|>⟧";
    let masked = |template: &str, row: Value| only(template, row, |p| p.mask_thinking(true));
    for (open, close) in [
        ("<think>\n", "\n</think>\n\n"),
        ("<think>", "</think>"),
        ("<seed:think>", "</seed:think>"),
        ("[THINK]", "[/THINK]"),
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        ("<|channel|>analysis<|message|>", "<|end|>"),
        ("◁think▷", "◁/think▷\n"),
    ] {
        let text = format!("{open}zqthought{close}");
        let want = format!("{head}{text}{end}");
        assert_eq!(masked(&plain, inline(&format!("{text}answer"))), want);
        assert_eq!(masked(&field(open, close), own()), want);
    }
    // Marks that are not known: what stands between thoughts and answer keeps its loss.
    assert_eq!(masked(&field("((", "))"), own()), format!("{head}((zqthought⟦))answer<|im_end|>⟧"));
    // Thoughts in several places, and an opening that the prompt has written.
    assert_eq!(
        masked(&plain, inline("<think>a</think>b<think>c</think>answer")),
        format!("{head}<think>a</think>⟦b⟧<think>c</think>{end}")
    );
    assert_eq!(masked(&plain, inline("a</think>answer")), format!("{head}a</think>{end}"));
    // Thoughts in front of a call, by a template that strips them.
    let calling = chatml(
        "{% if m.thinking %}<think>{{ m.thinking | trim }}</think>{% endif %}{{ m.content }}{% for t in m.tool_calls or [] %}{{ t.function | tojson }}{% endfor %}",
    );
    let call = json!({"role": "assistant", "content": "", "reasoning": " zqthought\n",
        "tool_calls": [{"function": {"name": "f", "arguments": {"zqthought": 1}}}]});
    assert_eq!(
        masked(&calling, row(call)),
        format!(
            "{head}<think>zqthought</think>⟦{{\"name\": \"f\", \"arguments\": {{\"zqthought\": 1}}}}<|im_end|>⟧"
        )
    );
    // Without an end they cannot be told from the answer.
    let (manifest, kept) =
        documents(&plain, &[inline("<think>a answer"), own()], |p| p.mask_thinking(true));
    assert_eq!(kept, [format!("{head}<think>\nzqthought\n</think>\n\n{end}")]);
    assert_eq!(manifest.counts.dropped["thoughts_not_found"], 1);
    assert_eq!(manifest.counts.notes["masked_thoughts_turns"], 1);
    assert_eq!(manifest.recipe["mask_thinking"], true);
    // The ids are those of a run without the option.
    let strip = |text: String| text.replace(['⟦', '⟧'], "");
    let usual = only(&plain, inline("<think>\na\n</think>\n\n answer"), |p| p);
    assert_eq!(strip(usual), strip(masked(&plain, inline("<think>\na\n</think>\n\n answer"))));
}

/// A template that deletes old thoughts: one document of each turn, as decoding sees it.
#[test]
fn one_document_of_each_turn() {
    let template = chatml(
        "{% if m.reasoning_content and loop.last %}<think>{{ m.reasoning_content }}</think>{% endif %}{{ m.content }}",
    );
    let thinks = |text: &str, thoughts: &str| json!({"role": "assistant", "content": text, "reasoning_content": thoughts});
    let user = |text: &str| json!({"role": "user", "content": text});
    let long =
        json!({"messages": [user("one"), thinks("two", "a"), user("three"), thinks("four", "b")]});
    let whole = json!({"messages": [user("five"), {"role": "assistant", "content": "six"}, user("seven"), thinks("eight", "c")]});
    let (manifest, kept) = documents(&template, &[long.clone(), whole.clone()], |p| p);
    assert_eq!(kept.len(), 1);
    let example = &manifest.drop_examples["assistant_text_lost"];
    assert!(example.message.contains("--lost-text split"), "{example:?}");

    let split = |p: Prepare| p.lost_text(LostText::Split);
    let (manifest, kept) = documents(&template, &[long.clone(), whole], split);
    let turn = |user: &str, answer: &str| {
        format!("<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{answer}<|im_end|>")
    };
    let ends = |answer: &str| format!("⟦{answer}<|im_end|>⟧");
    let answered = |user: &str, answer: &str| {
        format!("<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n{}", ends(answer))
    };
    let mut want = vec![
        answered("one", "<think>a</think>two"),
        format!("{}\n{}", turn("one", "two"), answered("three", "<think>b</think>four")),
        format!("{}\n{}", answered("five", "six"), answered("seven", "<think>c</think>eight")),
    ];
    want.sort();
    assert_eq!(kept, want);
    assert_eq!(manifest.counts.notes["split_conversations"], 1);
    assert_eq!(manifest.counts.notes["split_turns"], 2);
    assert_eq!(manifest.counts.rows_kept, 2);
    assert_eq!(manifest.counts.documents, 3);

    // The last turn alone, turns without loss, and a turn with no place in a row.
    let last = only(&template, long.clone(), |p| split(p).loss_on(LossOn::Last));
    assert!(last.contains("<think>b</think>") && !last.contains("⟦<think>a"), "{last}");
    let mut weighed = long.clone();
    weighed["messages"][1]["weight"] = json!(0);
    let weighed = only(&template, weighed, split);
    assert!(weighed.contains("<think>b</think>") && !weighed.contains("⟦two"), "{weighed}");
    let mut far = long;
    far["messages"][2]["content"] = json!("three ".repeat(1000));
    let (manifest, kept) = documents(&template, &[far], split);
    assert_eq!((kept.len(), manifest.counts.notes["split_turns_too_long"]), (1, 1));

    // A template that deletes thoughts everywhere.
    let never = chatml("{{ m.content.split('</think>')[-1] }}");
    let inline = json!({"role": "assistant", "content": "<think>a</think>two"});
    let rows = [
        json!({"messages": [user("one"), inline]}),
        json!({"messages": [user("one"), {"role": "assistant", "content": "two"}]}),
    ];
    let (manifest, _) = documents(&never, &rows, split);
    let example = &manifest.drop_examples["assistant_text_lost"];
    assert!(example.message.contains("even where it is in the last turn"), "{example:?}");
}

/// A parquet file with one conversation of two turns, whose messages have a field `name` with the
/// values `flags`; with `mask`, the row has a column `loss_mask` too.
fn parquet(path: &Path, name: &str, flags: ArrayRef, mask: Option<ArrayRef>) {
    let text = |values: [&str; 4]| Arc::new(StringArray::from(values.to_vec())) as ArrayRef;
    let messages = StructArray::try_from(vec![
        ("role", text(["user", "assistant", "user", "assistant"])),
        ("content", text(["ask", "bad", "again", "good"])),
        (name, flags),
    ]);
    let list = |values: ArrayRef| {
        let item = Field::new_list_field(values.data_type().clone(), true);
        let offsets = OffsetBuffer::from_lengths([values.len()]);
        Arc::new(ListArray::new(item.into(), offsets, values, None)) as ArrayRef
    };
    let mut columns = vec![("messages", list(Arc::new(messages.unwrap())))];
    columns.extend(mask.map(|m| ("loss_mask", list(m))));
    let batch = RecordBatch::try_from_iter(columns).unwrap();
    let file = std::fs::File::create(path).unwrap();
    let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
    writer.write(&batch).unwrap();
    writer.close().unwrap();
}

/// What the data says about the loss is honoured and counted, in JSON and in parquet alike.
#[test]
fn flags_in_json_and_parquet() {
    let template = chatml("{{ m.content }}");
    let whole = |flags: [bool; 2]| -> [ArrayRef; 3] {
        let [a, b] = flags;
        let (x, y) = (i64::from(a), i64::from(b));
        [
            Arc::new(Int64Array::from(vec![None, Some(x), None, Some(y)])),
            Arc::new(BooleanArray::from(vec![None, Some(a), None, Some(b)])),
            Arc::new(Float64Array::from(vec![None, Some(x as f64), None, Some(y as f64)])),
        ]
    };
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("rows.parquet");
    let expected = |(manifest, documents): (Manifest, Vec<String>), what: &str| {
        let one = documents.first().map_or("", String::as_str);
        assert!(
            one.contains("\nbad<") && one.contains("⟦good<|im_end|>⟧"),
            "{what}: {documents:?}"
        );
        assert_eq!(manifest.counts.notes["no_loss_turns"], 1, "{what}");
        assert_eq!(manifest.counts.label_runs, 1, "{what}");
    };
    let names = ["weight", "train", "trainable", "training", "loss", "loss_mask", "masked"];
    for name in names {
        let flags = if name == "masked" { [true, false] } else { [false, true] };
        for values in whole(flags) {
            let what = format!("{name} {}", values.data_type());
            parquet(&file, name, values, None);
            expected(documents_of(&template, &file, |p| p), &what);
        }
        let said = |on: bool| json!({"role": "assistant", "content": if on == flags[0] { "bad" } else { "good" }, name: on});
        let user = |text: &str| json!({"role": "user", "content": text});
        let row = json!({"messages": [user("ask"), said(flags[0]), user("again"), said(flags[1])]});
        expected(documents(&template, &[row], |p| p), name);
    }
    // Of a row.
    let nothing = || Arc::new(StringArray::from(vec![None::<&str>; 4])) as ArrayRef;
    for mask in [vec![0, 0, 0, 1], vec![0, 1]] {
        let values = Arc::new(Int64Array::from(mask));
        parquet(&file, "name", nothing(), Some(values));
        expected(documents_of(&template, &file, |p| p), "loss_mask of a row");
    }
    let mut row = talk();
    row["loss_mask"] = json!([0, 0, 1, 0, 0]);
    let (manifest, got) = documents(&template, &[row], |p| p);
    assert!(got[0].contains("⟦call<|im_end|>⟧") && !got[0].contains("⟦answer"), "{got:?}");
    assert_eq!(manifest.counts.notes["no_loss_turns"], 1);
}
