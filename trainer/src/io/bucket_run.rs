//! A run in a bucket: `output.remote`.
//!
//! ```text
//! REMOTE/checkpoint-step-N/…           the files of checkpoints/step-N
//! REMOTE/checkpoint-step-N/files.json  their names, lengths and sha256, written after them
//! REMOTE/latest                        name of the newest whole checkpoint, written after that
//! REMOTE/metrics.jsonl, config.yaml, tensorboard/…
//! REMOTE/final/…, final.json           the exported folder; its list, written after it
//! ```
//!
//! A checkpoint is whole when its `files.json` is there and every file in it has the listed length;
//! a resume fetches the newest whole one and compares every sha256. What a killed upload left has
//! no `files.json`, is never read, and is removed with the next checkpoint.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use dlm_prep::Progress;
use dlm_prep::bucket::{BucketAddress, BucketFolder, BucketObject};
use dlm_prep::hub::{NAMED_TEMPLATES, TOKENIZER_FILES};

use crate::error::{Error, Result};
use crate::io::checkpoint;
use crate::io::file_list::{FORMAT_VERSION, FileList, files_below, list_of, text_of};
use crate::report::console::message;

/// Name of the newest whole checkpoint.
const LATEST: &str = "latest";
/// List of the files of a checkpoint.
const INDEX: &str = "files.json";
/// The exported folder, and the list of its files.
const FINAL: &str = "final";
const FINAL_INDEX: &str = "final.json";
/// The file of an export without which it is not whole.
const EXPORT_MARKER: &str = "dlm_config.json";
/// Longest list, and longest `latest`.
const INDEX_BYTES: u64 = 64 << 20;
const LATEST_BYTES: u64 = 1 << 10;

/// The folder of a run in a bucket.
#[derive(Debug)]
pub(crate) struct BucketRun {
    folder: BucketFolder<'static>,
}

/// Notices of the bucket as messages of the run.
struct Told;

impl Progress for Told {
    fn notice(&self, line: &str) {
        message(line);
    }
}

/// What of an upload is done, so that another try does not begin anew.
#[derive(Debug, Default)]
pub(crate) struct Sent(BTreeSet<String>);

impl BucketRun {
    /// The folder that `output.remote` names. Makes no request.
    pub(crate) fn open(remote: &str) -> Result<Self> {
        let address = BucketAddress::parse("output.remote", remote)?.ok_or_else(|| {
            Error::Usage(format!(
                "output.remote={remote}: expected gs://BUCKET/PATH, s3://BUCKET/PATH, az://CONTAINER/PATH or file:///PATH"
            ))
        })?;
        Ok(BucketRun { folder: BucketFolder::open(&address, &Told)? })
    }

    pub(crate) fn address(&self) -> &BucketAddress {
        self.folder.address()
    }

    /// The pause before a failed operation is first repeated.
    pub(crate) fn pause(&self) -> Duration {
        self.folder.pause()
    }

    /// Bytes sent and fetched so far.
    pub(crate) fn bytes_moved(&self) -> u64 {
        self.folder.bytes_moved()
    }

    /// Steps of the checkpoints of which anything is there, ascending; true for those with a list.
    pub(crate) fn steps(&self) -> Result<BTreeMap<u64, bool>> {
        let mut steps = BTreeMap::new();
        for object in self.folder.list()? {
            let Some((folder, name)) = object.name.split_once('/') else { continue };
            if let Some(step) = step_of(folder) {
                *steps.entry(step).or_default() |= name == INDEX;
            }
        }
        // the list of objects may be behind
        let latest = self.folder.read(LATEST, LATEST_BYTES)?.unwrap_or_default();
        if let Some(step) = step_of(String::from_utf8_lossy(&latest).trim()) {
            steps.insert(step, true);
        }
        Ok(steps)
    }

    /// The list of a checkpoint's files, if all of them are there.
    fn whole(&self, step: u64) -> Result<Option<FileList>> {
        let folder = folder_name(step);
        let name = format!("{folder}/{INDEX}");
        let Some(text) = self.folder.read(&name, INDEX_BYTES)? else { return Ok(None) };
        let list: FileList = match serde_json::from_slice(&text) {
            Ok(list) => list,
            Err(error) => {
                self.warn(step, &format!("its {INDEX} is not understood ({error})"));
                return Ok(None);
            }
        };
        if list.format_version != FORMAT_VERSION {
            return Err(Error::Format {
                path: self.folder.address().join(&name).to_string().into(),
                reason: format!(
                    "format_version {}; this program reads {FORMAT_VERSION}",
                    list.format_version
                ),
            });
        }
        for file in &list.files {
            let found = self.folder.stat(&format!("{folder}/{}", file.path))?;
            if found.as_ref().map(|object| object.bytes) != Some(file.bytes) {
                let found = found.map_or("is missing".into(), |o| format!("has {} bytes", o.bytes));
                let path = &file.path;
                self.warn(step, &format!("{path} {found}, its list says {} bytes", file.bytes));
                return Ok(None);
            }
        }
        Ok(Some(list))
    }

    fn warn(&self, step: u64, reason: &str) {
        let address = self.folder.address().join(&folder_name(step));
        message(format_args!("warning: {address} is not whole and is not used: {reason}"));
    }

    /// Fetches the newest whole checkpoint that is newer than `than` with `install`, which is given
    /// the step and a function that fills a folder. Returns its step.
    pub(crate) fn fetch_newest(
        &self,
        than: Option<u64>,
        mut install: impl FnMut(u64, &dyn Fn(&Path) -> Result<()>) -> Result<()>,
    ) -> Result<Option<u64>> {
        let steps = self.steps()?;
        let newer = steps.iter().rev().filter(|(step, listed)| **listed && Some(**step) > than);
        for (&step, _) in newer {
            match self.fetch(step, &mut install) {
                Ok(true) => return Ok(Some(step)),
                Ok(false) => {}
                Err(Error::Prep(dlm_prep::Error::Damaged { path, reason })) => {
                    self.warn(step, &format!("{path}: {reason}"));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(None)
    }

    /// Fetches a checkpoint, if it is whole.
    pub(crate) fn fetch(
        &self,
        step: u64,
        install: &mut dyn FnMut(u64, &dyn Fn(&Path) -> Result<()>) -> Result<()>,
    ) -> Result<bool> {
        let Some(list) = self.whole(step)? else { return Ok(false) };
        let fill = |dir: &Path| -> Result<()> {
            for file in &list.files {
                let name = format!("{}/{}", folder_name(step), file.path);
                let object = self.folder.stat(&name)?.ok_or_else(|| {
                    let path = self.folder.address().join(&name).to_string();
                    dlm_prep::Error::Damaged { path, reason: "it was removed meanwhile".into() }
                })?;
                if object.bytes != file.bytes {
                    let path = self.folder.address().join(&name).to_string();
                    let reason = "it was replaced meanwhile".into();
                    return Err(dlm_prep::Error::Damaged { path, reason }.into());
                }
                self.folder.fetch(&object, &dir.join(&file.path), Some(&file.sha256))?;
            }
            Ok(())
        };
        install(step, &fill)?;
        Ok(true)
    }

    /// Fetches the metrics of earlier sessions where `dir` has none.
    pub(crate) fn fetch_reports(&self, dir: &Path) -> Result<()> {
        let is_report = |o: &&BucketObject| is_report(&o.name);
        let objects = self.folder.list()?;
        for object in objects.iter().filter(is_report) {
            let to = dir.join(&object.name);
            if !to.exists() {
                self.folder.fetch(object, &to, None)?;
            }
        }
        Ok(())
    }

    /// Sends a file of the run's folder.
    pub(crate) fn send_file(&self, dir: &Path, name: &str) -> Result<()> {
        self.folder.upload(name, &dir.join(name), None)?;
        Ok(())
    }

    /// Sends what reports the run.
    pub(crate) fn send_reports(&self, dir: &Path) -> Result<()> {
        let files = files_below(dir)?;
        for (name, _) in files.iter().filter(|(name, _)| is_report(name)) {
            self.send_file(dir, name)?;
        }
        Ok(())
    }

    /// Sends the checkpoint of a step that lies in `dir`: its files, their list, and for the newest
    /// its name.
    pub(crate) fn send_checkpoint(
        &self,
        step: u64,
        dir: &Path,
        is_newest: bool,
        sent: &mut Sent,
    ) -> Result<()> {
        let folder = folder_name(step);
        let known = checkpoint::file_hashes(dir)?;
        let list = list_of(dir, |_| true, &known)?;
        let index = format!("{folder}/{INDEX}");
        let text = text_of(&list, &index)?;
        if self.folder.read(&index, INDEX_BYTES)?.as_ref() != Some(&text) {
            if sent.0.is_empty() {
                // what stands there under the same name is not whole from now on
                self.folder.remove(&index)?;
            }
            self.send(&folder, dir, &list, sent)?;
            self.folder.write(&index, &text)?;
        }
        if is_newest {
            self.folder.write(LATEST, folder.as_bytes())?;
        }
        Ok(())
    }

    /// Sends the files of a list that are not sent.
    fn send(&self, folder: &str, dir: &Path, list: &FileList, sent: &mut Sent) -> Result<()> {
        for file in &list.files {
            if !sent.0.contains(&file.path) {
                let name = format!("{folder}/{}", file.path);
                self.folder.upload(&name, &dir.join(&file.path), Some(&file.sha256))?;
                sent.0.insert(file.path.clone());
            }
        }
        Ok(())
    }

    /// Removes checkpoints other than the newest `keep` up to `newest`, and `best`. What has no
    /// list goes, too.
    pub(crate) fn prune(&self, newest: u64, best: Option<u64>, keep: usize) -> Result<()> {
        let objects = self.folder.list()?;
        let step_of_object =
            |object: &BucketObject| step_of(object.name.split_once('/').map_or("", |(f, _)| f));
        let with_list: BTreeSet<u64> = objects
            .iter()
            .filter(|object| object.name.ends_with(&format!("/{INDEX}")))
            .filter_map(step_of_object)
            .chain([newest])
            .collect();
        let kept: BTreeSet<u64> = with_list
            .range(..=newest)
            .rev()
            .take(keep.max(1))
            .copied()
            .chain(best.filter(|best| with_list.contains(best)))
            .collect();
        let foreign = foreign_steps(&objects);
        let gone = |object: &&BucketObject| {
            step_of_object(object).is_some_and(|step| {
                step <= newest && !kept.contains(&step) && !foreign.contains(&step)
            })
        };
        self.remove(objects.iter().filter(gone))
    }

    /// Removes all checkpoints.
    pub(crate) fn clear(&self) -> Result<()> {
        self.folder.remove(LATEST)?;
        let objects = self.folder.list()?;
        let foreign = foreign_steps(&objects);
        let own = |object: &&BucketObject| {
            let folder = object.name.split_once('/').map_or("", |(folder, _)| folder);
            step_of(folder).is_some_and(|step| !foreign.contains(&step))
        };
        self.remove(objects.iter().filter(own))
    }

    /// Removes files of checkpoints, lists first: without them the rest is not whole.
    fn remove<'o>(&self, objects: impl Iterator<Item = &'o BucketObject>) -> Result<()> {
        let (lists, others): (Vec<_>, Vec<_>) =
            objects.partition(|object| object.name.ends_with(&format!("/{INDEX}")));
        for object in lists.into_iter().chain(others) {
            let name = object.name.split_once('/').map_or("", |(_, name)| name);
            if is_of_a_checkpoint(name) {
                self.folder.remove(&object.name)?;
            }
        }
        Ok(())
    }

    /// Sends the exported folder, without checkpoints, and compares the bucket's listing with it.
    /// Returns the number of files and their bytes.
    pub(crate) fn send_final(&self, dir: &Path, sent: &mut Sent) -> Result<(usize, u64)> {
        let mut list = list_of(dir, is_result, &BTreeMap::new())?;
        // the marker of a whole export comes last
        list.files.sort_by_key(|file| (file.path == EXPORT_MARKER, file.path.clone()));
        let text = text_of(&list, FINAL_INDEX)?;
        if self.folder.read(FINAL_INDEX, INDEX_BYTES)?.as_ref() != Some(&text) {
            if sent.0.is_empty() {
                self.folder.remove(FINAL_INDEX)?;
                self.folder.remove(&format!("{FINAL}/{EXPORT_MARKER}"))?;
            }
            self.send(FINAL, dir, &list, sent)?;
        }
        let there = self.folder.list()?;
        let there: BTreeMap<&str, u64> = there
            .iter()
            .filter_map(|o| Some((o.name.strip_prefix(FINAL)?.strip_prefix('/')?, o.bytes)))
            .collect();
        let here: BTreeMap<&str, u64> =
            list.files.iter().map(|file| (file.path.as_str(), file.bytes)).collect();
        for old in there.keys().filter(|name| !here.contains_key(*name)) {
            self.folder.remove(&format!("{FINAL}/{old}"))?;
        }
        if let Some((name, bytes)) = here.iter().find(|(name, n)| there.get(*name) != Some(*n)) {
            sent.0.remove(*name);
            let found = there.get(name).map_or("is missing".into(), |n| format!("has {n} bytes"));
            return Err(Error::Format {
                path: self.folder.address().join(&format!("{FINAL}/{name}")).to_string().into(),
                reason: format!("{found} after the upload, expected {bytes}"),
            });
        }
        self.folder.write(FINAL_INDEX, &text)?;
        Ok((here.len(), here.values().sum()))
    }
}

/// Steps of folders without a list that hold a file which no checkpoint of this program has:
/// another program, which uses the same names, wrote them.
fn foreign_steps(objects: &[BucketObject]) -> BTreeSet<u64> {
    let (mut listed, mut foreign) = (BTreeSet::new(), BTreeSet::new());
    for object in objects {
        let Some((folder, name)) = object.name.split_once('/') else { continue };
        let Some(step) = step_of(folder) else { continue };
        if name == INDEX {
            listed.insert(step);
        } else if !is_of_a_checkpoint(name) {
            foreign.insert(step);
        }
    }
    foreign.difference(&listed).copied().collect()
}

/// Whether a file of a checkpoint's folder is one that this program writes there.
fn is_of_a_checkpoint(name: &str) -> bool {
    name == INDEX
        || checkpoint::FILES.contains(&name)
        || TOKENIZER_FILES.contains(&name)
        || name.starts_with(NAMED_TEMPLATES)
}

/// Whether a file reports the run; its name is a path below the run's folder.
fn is_report(name: &str) -> bool {
    name == "metrics.jsonl" || name.starts_with("tensorboard/")
}

/// Whether a file of the run's folder belongs to its result: not the checkpoints, and not what the
/// client of Weights & Biases keeps.
fn is_result(name: &str) -> bool {
    !name.starts_with("checkpoints/") && !name.starts_with("wandb/")
}

/// Name of a checkpoint's folder in the bucket.
fn folder_name(step: u64) -> String {
    format!("checkpoint-step-{step}")
}

/// The step of a name that [`folder_name`] makes.
fn step_of(name: &str) -> Option<u64> {
    let step = name.strip_prefix("checkpoint-step-")?.parse().ok()?;
    (folder_name(step) == name).then_some(step)
}
