//! Tasks with known answers, read from a JSONL file.
//!
//! In: one JSON object per line: a prompt as `dlm-train generate --input` takes it (`messages` with
//! `tools`, `prompt` or `ids`), or a `question`; and what a right answer is: `answer`, `answers` or
//! `expected`, or a last message of the assistant. `task` may name the kind of task. Out:
//! [`Task`]s, and whether the file has GSM8K's form (a worked answer that ends in `#### 42`).

use std::path::Path;

use dlm_datasets::hash;
use serde_json::{Value, json};

use crate::decode::prompt::{self, Prompt};
use crate::error::{Error, Result};

/// A prompt and what counts as a right answer to it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Task {
    pub(super) prompt: Prompt,
    /// Right answers; at least one.
    pub(super) answers: Vec<String>,
    /// Kind of task, for a table by kinds.
    pub(super) kind: Option<String>,
    /// sha256 of the line.
    pub(super) digest: String,
    /// GSM8K's form: the answer is the number behind the last `####`.
    is_gsm8k: bool,
}

/// The tasks of a file.
#[derive(Debug, PartialEq)]
pub(super) struct TaskFile {
    pub(super) tasks: Vec<Task>,
    /// Whether the answers are numbers in GSM8K's form.
    pub(super) is_gsm8k: bool,
}

/// Mark before the final number of a worked answer.
pub(super) const GSM8K_MARK: &str = "####";

/// Reads the file; `limit` keeps the first tasks only.
pub(super) fn read(path: &Path, limit: Option<usize>) -> Result<TaskFile> {
    let mut tasks = prompt::read_lines(path, task)?;
    let is_gsm8k = tasks.first().is_some_and(|task| task.is_gsm8k);
    if let Some(at) = tasks.iter().position(|task| task.is_gsm8k != is_gsm8k) {
        return Err(Error::Usage(format!(
            "{}: its first task {} GSM8K's form (question, and an answer that ends in `{GSM8K_MARK} 42`), but task {} {}; evaluate the two kinds from two files",
            path.display(),
            if is_gsm8k { "has" } else { "has not" },
            at + 1,
            if is_gsm8k { "has not" } else { "has" },
        )));
    }
    tasks.truncate(limit.unwrap_or(usize::MAX));
    match tasks.is_empty() {
        true => Err(Error::Usage("--limit 0 leaves no task; expected 1 or more".into())),
        false => Ok(TaskFile { tasks, is_gsm8k }),
    }
}

/// The task of a line, or what is wrong with it.
fn task(line: &str) -> std::result::Result<Task, String> {
    let mut value: Value = serde_json::from_str(line).map_err(|error| error.to_string())?;
    let Some(object) = value.as_object_mut() else {
        return Err("expected a JSON object with a prompt and an answer".into());
    };
    let keys = object.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
    let mut is_question = false;
    if let Some(question) = object.remove("question") {
        if let Some(other) = ["messages", "prompt", "ids"].iter().find(|k| object.contains_key(**k))
        {
            return Err(format!("both `question` and `{other}`; expected one prompt"));
        }
        is_question = true;
        object.insert("prompt".into(), question);
    }
    let given: Vec<&str> =
        ["answer", "answers", "expected"].into_iter().filter(|k| object.contains_key(*k)).collect();
    let mut answers = match given.as_slice() {
        [] => vec![last_answer(object).ok_or_else(|| {
            format!(
                "no answer; expected one of the keys answer, answers, expected, or a last message of the assistant; the keys here are {keys}"
            )
        })?],
        [key] => answers(key, object.get(*key).unwrap_or(&Value::Null))?,
        [first, second, ..] => return Err(format!("both `{first}` and `{second}`; expected one")),
    };
    let is_gsm8k = is_question && answers.iter().all(|answer| answer.contains(GSM8K_MARK));
    if is_gsm8k {
        for answer in &mut answers {
            let number = answer.rsplit(GSM8K_MARK).next().unwrap_or_default().trim();
            *answer = number.to_string();
        }
    }
    let kind = ["task", "category"].iter().find_map(|key| object.get(*key)?.as_str());
    let kind = kind.map(str::to_string);
    let prompt = prompt::of_value(value)?;
    Ok(Task { prompt, answers, kind, digest: hash::sha256(line.as_bytes()), is_gsm8k })
}

/// The text of a last message by the assistant, which is taken away from the prompt.
fn last_answer(object: &mut serde_json::Map<String, Value>) -> Option<String> {
    let messages = object.get_mut("messages")?.as_array_mut()?;
    let last = messages.last()?;
    let is_the_assistants = last.get("role").and_then(Value::as_str) == Some("assistant");
    let text = last.get("content").and_then(Value::as_str).filter(|_| is_the_assistants)?;
    let text = text.to_string();
    messages.pop();
    Some(text)
}

/// The right answers under a key: a text, a number or a truth value, or a list of them.
fn answers(key: &str, value: &Value) -> std::result::Result<Vec<String>, String> {
    let wrong = |found: &Value| {
        let found: String = found.to_string().chars().take(60).collect();
        format!("`{key}` is {found}; expected a text or a number, or a list of them")
    };
    let one = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(_) | Value::Bool(_) => Ok(value.to_string()),
        other => Err(wrong(other)),
    };
    match value {
        Value::Array(list) if list.is_empty() => Err(wrong(&json!([]))),
        Value::Array(list) => list.iter().map(one).collect(),
        value => Ok(vec![one(value)?]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<TaskFile> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("tasks.jsonl");
        std::fs::write(&path, text).unwrap();
        read(&path, None)
    }

    #[test]
    fn every_form_of_a_task() {
        let file = read_text(concat!(
            "{\"prompt\": \"2+2?\", \"answer\": 4, \"task\": \"sum\"}\n\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}], \"expected\": \"a\"}\n",
            "{\"ids\": [1, 2], \"answers\": [\"yes\", true]}\n",
            "{\"messages\": [{\"role\": \"user\", \"content\": \"q\"}, {\"role\": \"assistant\", \"content\": \"held\"}]}\n",
            "{\"question\": \"who?\", \"answer\": \"I\"}\n",
        ))
        .unwrap();
        assert!(!file.is_gsm8k);
        let answers: Vec<_> = file.tasks.iter().map(|task| task.answers.join("|")).collect();
        assert_eq!(answers, ["4", "a", "yes|true", "held", "I"]);
        assert_eq!(file.tasks[0].kind.as_deref(), Some("sum"));
        assert_eq!(file.tasks[1].prompt, file.tasks[3].prompt);
        assert_eq!(file.tasks[4].prompt, Prompt::Text("who?".into()));
    }

    #[test]
    fn gsm8k_by_its_mark() {
        let file =
            read_text("{\"question\": \"q\", \"answer\": \"3 * 14 = <<3*14=42>>42\\n#### 42\"}");
        let file = file.unwrap();
        assert!(file.is_gsm8k);
        assert_eq!(file.tasks[0].answers, ["42"]);
    }

    #[test]
    fn wrong_lines_are_named() {
        for (text, words) in [
            (
                "{\"prompt\": \"q\", \"answer\": \"a\"}\n{\"prompt\": \"q\", \"reply\": \"a\"}",
                "line 2: no answer",
            ),
            ("{\"prompt\": \"q\", \"reply\": \"a\"}", "prompt, reply"),
            ("{\"prompt\": \"q\", \"answer\": null}", "`answer` is null"),
            ("{\"prompt\": \"q\", \"answers\": []}", "`answers` is []"),
            (
                "{\"prompt\": \"q\", \"answer\": \"a\", \"expected\": \"a\"}",
                "both `answer` and `expected`",
            ),
            (
                "{\"prompt\": \"q\", \"question\": \"q\", \"answer\": \"a\"}",
                "both `question` and `prompt`",
            ),
            ("{\"answer\": \"a\"}", "exactly one of the keys messages, prompt, ids"),
            ("[1]", "expected a JSON object"),
            (
                "{\"messages\": [{\"role\": \"assistant\", \"content\": \"a\"}]}",
                "`messages` is empty",
            ),
            (
                "{\"question\": \"q\", \"answer\": \"#### 1\"}\n{\"question\": \"q\", \"answer\": \"1\"}",
                "task 2 has not",
            ),
            ("\n", "no prompts"),
        ] {
            let error = read_text(text).unwrap_err();
            assert_eq!(error.exit_code(), 2, "{error}");
            assert!(error.to_string().contains(words), "{text}: {error}");
        }
    }
}
