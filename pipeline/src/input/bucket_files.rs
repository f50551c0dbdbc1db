//! Data files in buckets: `gs://BUCKET/FOLDER`, `s3://BUCKET/FOLDER/*.parquet`, `…/file.jsonl`.
//!
//! In: an address, which may end in a glob, config and split. Out: [`Input`]s that are fetched into
//! the cache in the background, in the order in which they are read. Of a folder the files are
//! chosen as of a local one (`selection.rs`).

use crate::buckets::address::{BucketAddress, is_plain};
use crate::buckets::folder::{BucketFolder, BucketObject};
use crate::buckets::settings::BucketSettings;
use crate::error::{Error, Result};
use crate::input::files::{CARD, CARD_BYTES, LocalFile, not_data, parse_card};
use crate::input::glob::Glob;
use crate::input::selection::{FileSelection, Layout, Taken, choose};
use crate::input::source::{Downloads, Input, RemoteInput};
use crate::progress::{Progress, Silent};
use dlm_datasets::hash::sha256;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Objects fetched ahead of the one that is read.
const AHEAD: usize = 2;
const KEY: &str = "--input";

/// The address in a path of `--input`, if it is one.
pub(crate) fn address_of(path: &Path) -> Option<&str> {
    path.to_str().filter(|text| BucketAddress::looks_like_one(text))
}

/// The files that an address stands for, and what was taken of a folder.
pub(crate) fn bucket_inputs(
    text: &str,
    selection: &FileSelection,
    progress: &dyn Progress,
) -> Result<(Vec<Input>, Option<Taken>)> {
    let (folder, objects, taken) = match glob_of(text)? {
        Some((folder, pattern)) => {
            refuse_selection(selection)?;
            let bucket = BucketFolder::open(&folder, progress)?;
            let glob = Glob::new(&pattern);
            let listed = bucket.list()?;
            let fits = |o: &&BucketObject| glob.matches(&o.name) && not_data(&o.name).is_none();
            let objects: Vec<_> = listed.iter().filter(fits).cloned().collect();
            if objects.is_empty() {
                let first: Vec<&str> = listed.iter().take(5).map(|o| o.name.as_str()).collect();
                let there = match first.is_empty() {
                    true => "nothing".to_string(),
                    false => format!("{} files, as {}", listed.len(), first.join(", ")),
                };
                return Err(Error::Usage(format!(
                    "{KEY} {text}: no parquet, JSONL or Arrow file fits; {folder} holds {there}"
                )));
            }
            (folder, objects, None)
        }
        None => plain(text, selection, progress)?,
    };
    Ok((inputs(&folder, objects)?, taken))
}

/// The files of an address without a glob: an object, or those of a folder.
fn plain(
    text: &str,
    selection: &FileSelection,
    progress: &dyn Progress,
) -> Result<(BucketAddress, Vec<BucketObject>, Option<Taken>)> {
    let not_one = || Error::Internal(format!("{text} is no address"));
    let address = BucketAddress::parse(KEY, text)?.ok_or_else(not_one)?;
    if let Some((folder, name)) = address.split().filter(|(_, name)| not_data(name).is_none())
        && let Some(object) = BucketFolder::open(&folder, progress)?.stat(name)?
    {
        refuse_selection(selection)?;
        return Ok((folder, vec![object], None));
    }
    let bucket = BucketFolder::open(&address, progress)?;
    let listed = bucket.list()?;
    let refuse = |reason: String| Error::Input { path: address.to_string(), reason };
    if listed.is_empty() {
        return Err(refuse("there is no such object or folder in the bucket".to_string()));
    }
    let mut taken = Taken { place: address.to_string(), ..Default::default() };
    let mut data = Vec::new();
    for object in listed {
        let hidden = object.name.split('/').any(|part| part.starts_with(['.', '_']));
        match not_data(&object.name) {
            _ if hidden => taken.not_read.add("with a hidden name", &object.name),
            Some(_) if object.name == CARD => {}
            Some(why) => taken.not_read.add(why, &object.name),
            None => data.push(object),
        }
    }
    if data.is_empty() {
        let others = match taken.not_read.is_empty() {
            true => String::new(),
            false => format!("; it holds {}", taken.not_read),
        };
        return Err(refuse(format!("no parquet, JSONL or Arrow file in this folder{others}")));
    }
    let card = match selection.globs.is_empty() {
        true => bucket.read(CARD, CARD_BYTES)?,
        false => None,
    };
    let card = card.map(|bytes| parse_card(&bytes)).transpose().map_err(refuse)?.flatten();
    let names: Vec<&str> = data.iter().map(|o| o.name.as_str()).collect();
    let chosen =
        choose(&names, Layout::Card(card.as_ref()), selection, &mut taken).map_err(refuse)?;
    if chosen.is_empty() {
        return Err(refuse(format!("none of its files is taken: {}", taken.not_read)));
    }
    let objects = chosen.into_iter().map(|k| data[k].clone()).collect();
    Ok((address, objects, Some(taken)))
}

/// The folder and the pattern of an address with a glob; none without one.
fn glob_of(text: &str) -> Result<Option<(BucketAddress, String)>> {
    let Some(at) = text.find(['*', '?', '[']) else { return Ok(None) };
    let scheme = text.find("://").map_or(0, |at| at + 3);
    let slash = text[..at].rfind('/').filter(|slash| *slash >= scheme);
    let (folder, pattern) = match slash {
        Some(slash) => (&text[..slash], &text[slash + 1..]),
        None => ("", ""),
    };
    let query = pattern.find('?').is_some_and(|at| pattern[at..].contains(['=', '&']));
    if query || pattern.contains('#') || pattern.is_empty() {
        let scheme = &text[..scheme];
        return Err(Error::Usage(format!(
            "{KEY} {scheme}…: expected a glob behind a folder, as {scheme}BUCKET/FOLDER/*.parquet; a query, where secrets would be seen, is refused"
        )));
    }
    let folder = BucketAddress::parse(KEY, folder)?;
    Ok(folder.map(|folder| (folder, pattern.to_string())))
}

fn refuse_selection(selection: &FileSelection) -> Result<()> {
    let FileSelection { config, splits, globs } = selection;
    if config.is_none() && splits.is_empty() && globs.is_empty() {
        return Ok(());
    }
    Err(Error::Usage(
        "--config, --split and --files choose among the files of a folder or a dataset; this --input names its files itself".to_string(),
    ))
}

/// Objects of a folder as inputs, whose fetching begins.
fn inputs(folder: &BucketAddress, objects: Vec<BucketObject>) -> Result<Vec<Input>> {
    if let Some(bad) = objects.iter().find(|o| !is_plain(&o.name)) {
        let reason = "the bucket lists a name that could lead out of the cache; refused";
        let path = format!("{:?}", bad.name);
        return Err(Error::Input { path, reason: reason.to_string() });
    }
    let lines: Vec<String> =
        objects.iter().map(|o| format!("{} {} {:?}", o.name, o.bytes, o.tag)).collect();
    let version = sha256(lines.join("\n").as_bytes())[..16].to_string();
    let origin = (folder.to_string(), version);
    let downloads: Arc<dyn Downloads> = Arc::new(FetchAhead::new(folder, objects.clone()));
    let input = |(index, object): (usize, BucketObject)| {
        let stamp = u64::from_str_radix(&sha256(lines[index].as_bytes())[..15], 16);
        Input {
            remote: Some(RemoteInput {
                downloads: downloads.clone(),
                index,
                stamp: stamp.unwrap_or_default(),
            }),
            origin: Some(origin.clone()),
            ..Input::from(LocalFile {
                path: folder.join(&object.name).to_string().into(),
                name: object.name,
                bytes: object.bytes,
            })
        }
    };
    Ok(objects.into_iter().enumerate().map(input).collect())
}

/// Names inputs by their whole address where others of another folder have the same name.
pub(crate) fn tell_apart(inputs: &mut [Input]) {
    let mut names: HashMap<String, usize> = HashMap::new();
    inputs.iter().for_each(|i| *names.entry(i.name.clone()).or_default() += 1);
    for input in inputs.iter_mut().filter(|i| i.remote.is_some() && names[&i.name] > 1) {
        input.name = input.path.to_string_lossy().into_owned();
        input.source = input.name.clone();
    }
}

/// Fetches objects in the background, a few ahead of the one that is read.
struct FetchAhead {
    shared: Arc<Shared>,
}

struct Shared {
    folder: BucketAddress,
    objects: Vec<BucketObject>,
    state: Mutex<State>,
    changed: Condvar,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    /// The last object that was asked for.
    requested: usize,
    /// Local path or error message of every object that has been dealt with.
    finished: HashMap<usize, std::result::Result<PathBuf, String>>,
}

impl FetchAhead {
    fn new(folder: &BucketAddress, objects: Vec<BucketObject>) -> FetchAhead {
        let shared = Arc::new(Shared {
            folder: folder.clone(),
            objects,
            state: Mutex::default(),
            changed: Condvar::new(),
            stop: AtomicBool::new(false),
        });
        let own = shared.clone();
        std::thread::spawn(move || own.fetch_all());
        FetchAhead { shared }
    }
}

impl Downloads for FetchAhead {
    fn wait(&self, index: usize) -> Result<PathBuf> {
        let shared = &self.shared;
        let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.requested = state.requested.max(index);
        shared.changed.notify_all();
        loop {
            match state.finished.get(&index) {
                Some(Ok(path)) => return Ok(path.clone()),
                Some(Err(e)) => return Err(Error::Remote(e.clone())),
                None if index >= shared.objects.len() => {
                    return Err(Error::Internal(format!("no object {index}")));
                }
                None => {
                    let tick = Duration::from_millis(200);
                    let waited = shared.changed.wait_timeout(state, tick);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }
}

impl Drop for FetchAhead {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.changed.notify_all();
    }
}

impl Shared {
    fn fetch_all(&self) {
        for (index, object) in self.objects.iter().enumerate() {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            while index > state.requested + AHEAD && !self.stop.load(Ordering::Relaxed) {
                let waited = self.changed.wait_timeout(state, Duration::from_millis(500));
                state = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            drop(state);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            let got = fetch(&self.folder, object).map_err(|e| e.to_string());
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.finished.insert(index, got);
            self.changed.notify_all();
        }
    }
}

/// The local file of an object, fetched if the cache has not this version of it.
fn fetch(folder: &BucketAddress, object: &BucketObject) -> Result<PathBuf> {
    if let Some(path) = folder.join(&object.name).local_path() {
        return Ok(path);
    }
    let version = sha256(format!("{:?} {}", object.tag, object.bytes).as_bytes());
    let dir = BucketSettings::from_env().folder(&folder.join(&object.name), &version[..16]);
    let name = object.name.rsplit('/').next().unwrap_or(&object.name);
    let to = dir.join(name);
    if std::fs::metadata(&to).is_ok_and(|m| m.is_file() && m.len() == object.bytes) {
        return Ok(to);
    }
    BucketFolder::open(folder, &Silent)?.fetch(object, &to, None)?;
    Ok(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(path: &Path) -> String {
        format!("file://{}", path.display())
    }

    fn names(text: &str) -> std::result::Result<Vec<String>, String> {
        let found = bucket_inputs(text, &FileSelection::default(), &Silent);
        let names = |inputs: Vec<Input>| inputs.into_iter().map(|i| i.name).collect();
        found.map(|(inputs, _)| names(inputs)).map_err(|e| e.to_string())
    }

    #[test]
    fn files_of_a_bucket_are_chosen_as_those_of_a_folder() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["train-1.jsonl", "train-0.jsonl", "x/part-0.parquet", "_h.jsonl", "notes.txt"]
        {
            let path = dir.path().join("in").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "{\"prompt\": \"a\", \"response\": \"b\"}\n").unwrap();
        }
        let text = address(&dir.path().join("in"));
        assert_eq!(names(&text).unwrap(), ["train-0.jsonl", "train-1.jsonl"]);
        assert_eq!(names(&format!("{text}/train-1.jsonl")).unwrap(), ["train-1.jsonl"]);
        assert_eq!(names(&format!("{text}/*.jsonl")).unwrap().len(), 3);
        assert_eq!(names(&format!("{text}/train-?.jsonl")).unwrap().len(), 2);
        assert_eq!(names(&format!("{text}/**/*.parquet")).unwrap(), ["x/part-0.parquet"]);
        for (text, says) in [
            (format!("{text}/no"), "no such object or folder"),
            (format!("{text}/*.arrow"), "no parquet, JSONL or Arrow file fits"),
            (format!("{text}/x?sig=hunter2"), "a query"),
            ("s3://*".to_string(), "expected a glob behind a folder"),
            ("s3a://b/*.jsonl".to_string(), "give s3://"),
        ] {
            let e = names(&text).unwrap_err();
            assert!(e.contains(says) && !e.contains("hunter2"), "{text}: {e}");
        }
    }

    #[test]
    fn a_changed_object_has_another_stamp_and_a_file_in_the_cache() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.jsonl");
        let text = address(&path);
        let input = || {
            let (inputs, _) = bucket_inputs(&text, &FileSelection::default(), &Silent).unwrap();
            inputs.into_iter().next().unwrap()
        };
        std::fs::write(&path, "{\"x\": 1}\n").unwrap();
        let first = input();
        assert_eq!(first.path, PathBuf::from(&text));
        let stamp = |input: &Input| input.remote.as_ref().unwrap().stamp;
        assert_eq!(stamp(&first), stamp(&input()));
        let time = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1);
        std::fs::File::options().write(true).open(&path).unwrap().set_modified(time).unwrap();
        assert_ne!(stamp(&first), stamp(&input()));
    }
}
