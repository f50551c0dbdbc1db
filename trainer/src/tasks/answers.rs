//! Completions kept in a file, so that an evaluation that was killed goes on where it was.
//!
//! In and out: `answers.jsonl` of the output folder, one line per completion, appended as soon as
//! its batch is done. A completion is found again by a key over everything that decides it: the
//! weights, the settings, the device and the prompt's token ids. `judged.jsonl`, for people, has
//! the answers of the last evaluation beside the expected ones.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use dlm_datasets::{fs, hash};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::judged::{Answer, Judged};
use super::runs::Run;
use super::task_file::Task;
use crate::error::{Error, Result};
use crate::report::console::message;

#[derive(Serialize, Deserialize)]
struct Line {
    key: String,
    #[serde(flatten)]
    answer: Answer,
}

/// The key of a completion: a hash of what decides it.
pub(super) fn key(setting: &Value, prompt_ids: &[i64]) -> String {
    let mut key = hash::sha256(json!([setting, prompt_ids]).to_string().as_bytes());
    key.truncate(32);
    key
}

/// Completions by key, with the file that keeps them.
pub(super) struct AnswerStore {
    dir: Option<PathBuf>,
    file: Option<(PathBuf, File)>,
    known: HashMap<String, Answer>,
    /// Lines of `judged.jsonl`.
    judged: String,
}

impl AnswerStore {
    /// The completions of an output folder; without a folder nothing is kept.
    pub(super) fn open(dir: Option<&Path>) -> Result<Self> {
        let mut store = AnswerStore {
            dir: dir.map(Path::to_path_buf),
            file: None,
            known: HashMap::new(),
            judged: String::new(),
        };
        let Some(dir) = dir else { return Ok(store) };
        let path = dir.join("answers.jsonl");
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(error) => return Err(Error::io(&path, "reading the answers of before", error)),
        };
        let mut damaged = 0;
        for line in text.lines().filter(|line| !line.is_empty()) {
            match serde_json::from_str::<Line>(line) {
                Ok(line) => drop(store.known.insert(line.key, line.answer)),
                Err(_) => damaged += 1,
            }
        }
        if damaged > 0 {
            message(format_args!(
                "{}: {damaged} lines hold no answer (cut off by a kill?) and are not used",
                path.display()
            ));
        }
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .map_err(|error| Error::io(&path, "opening", error))?;
        if !text.is_empty() && !text.ends_with('\n') {
            file.write_all(b"\n").map_err(|error| Error::io(&path, "writing", error))?;
        }
        store.file = Some((path, file));
        Ok(store)
    }

    /// Whether completions outlive this process.
    pub(super) fn is_kept(&self) -> bool {
        self.file.is_some()
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.known.contains_key(key)
    }

    pub(super) fn get(&self, key: &str) -> Result<Answer> {
        let answer = self.known.get(key).cloned();
        answer.ok_or_else(|| Error::Model(format!("no completion was made for answer {key}")))
    }

    /// Keeps a completion.
    pub(super) fn keep(&mut self, key: &str, answer: Answer) -> Result<()> {
        if let Some((path, file)) = &mut self.file {
            let line = Line { key: key.into(), answer: answer.clone() };
            let mut text = serde_json::to_string(&line)
                .map_err(|error| Error::format(&*path, error.to_string()))?;
            text.push('\n');
            file.write_all(text.as_bytes())
                .map_err(|error| Error::io(&*path, "keeping an answer", error))?;
        }
        self.known.insert(key.into(), answer);
        Ok(())
    }

    /// Writes down how the answers of a run were judged.
    pub(super) fn record(&mut self, run: &Run, tasks: &[Task], judged: &[Judged]) -> Result<()> {
        let Some(dir) = &self.dir else { return Ok(()) };
        for (i, (task, judged)) in tasks.iter().zip(judged).enumerate() {
            let line = json!({
                "run": run.name,
                "task": i,
                "line_sha256": task.digest,
                "expected": task.answers,
                "answer": judged.score.answer,
                "right": judged.score.is_right,
                "text": judged.answer.text,
                "tokens": judged.answer.completion_ids.len(),
                "passes": judged.answer.passes,
                "stopped": judged.answer.stopped,
            });
            self.judged.push_str(&format!("{line}\n"));
        }
        Ok(fs::write_atomic(&dir.join("judged.jsonl"), self.judged.as_bytes())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(ids: &[i64]) -> Answer {
        Answer {
            completion_ids: ids.to_vec(),
            text: String::new(),
            passes: 3,
            stopped: true,
            seconds: 0.25,
            proposals: None,
        }
    }

    #[test]
    fn answers_survive_a_kill_in_the_middle_of_a_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("answers.jsonl");
        let keys: Vec<String> = (0..3).map(|i| key(&json!({"a": 1}), &[i])).collect();
        let mut store = AnswerStore::open(Some(dir.path())).unwrap();
        for (i, key) in keys.iter().enumerate() {
            store.keep(key, answer(&[i as i64])).unwrap();
        }
        drop(store);
        let whole = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 9]).unwrap();
        let mut store = AnswerStore::open(Some(dir.path())).unwrap();
        assert_eq!(keys.iter().map(|key| store.has(key)).collect::<Vec<_>>(), [true, true, false]);
        store.keep(&keys[2], answer(&[7])).unwrap();
        let store = AnswerStore::open(Some(dir.path())).unwrap();
        assert_eq!(store.get(&keys[2]).unwrap(), answer(&[7]));
        assert_eq!(store.get(&keys[0]).unwrap(), answer(&[0]));
    }

    #[test]
    fn a_key_depends_on_setting_and_prompt() {
        let usual = key(&json!({"threshold": 0.9}), &[1, 2]);
        assert_ne!(usual, key(&json!({"threshold": 0.95}), &[1, 2]));
        assert_ne!(usual, key(&json!({"threshold": 0.9}), &[1]));
        assert_eq!(usual, key(&json!({"threshold": 0.9}), &[1, 2]));
    }
}
