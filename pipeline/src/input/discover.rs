//! Which files are read: local files, files in buckets, a dataset of a hub, or the sources of a
//! recipe.
//!
//! In: an [`InputSelection`] and, if there is one, a recipe. Out: input files, what was taken of
//! folders and datasets, and streams of files: one per source of a recipe, else one of all files.
//! Downloads begin here, in the background.

use crate::config::recipe::Recipe;
use crate::error::{Error, Result};
use crate::input::bucket_files::{address_of, bucket_inputs, tell_apart};
use crate::input::files::{LocalFile, list_files};
use crate::input::hub::cache::{RepoKind, check_id};
use crate::input::hub::client::HubClient;
use crate::input::hub::fetch::{DownloadAhead, HubSource};
use crate::input::hub::list;
use crate::input::hub::settings::HubSettings;
use crate::input::selection::{FileSelection, Taken};
use crate::input::source::{Input, RemoteInput};
use crate::progress::Progress;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// What a run reads, as its caller asked for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct InputSelection {
    /// Local files and folders, and addresses of such in buckets.
    pub paths: Vec<PathBuf>,
    /// Hub dataset, `ORG/NAME`. With a recipe: the dataset of sources that name none.
    pub dataset: Option<String>,
    /// Branch, tag or commit of hub datasets.
    pub revision: Option<String>,
    /// Which files of folders and datasets. A recipe says that for each of its sources.
    pub files: FileSelection,
    /// Renamed columns, as pairs of (name used by this program, name in the files). A recipe says
    /// that for each of its sources.
    pub columns: Vec<(String, String)>,
}

/// The input files of a run.
#[derive(Default)]
pub(crate) struct Inputs {
    pub files: Vec<Input>,
    /// The range of `files` that each stream reads, one after another.
    pub streams: Vec<Range<usize>>,
    /// The local files and folders that were named.
    pub roots: Vec<PathBuf>,
    /// What was taken of each folder and dataset, where that is not simply all of it.
    pub taken: Vec<Taken>,
}

/// Resolves a selection to files. Notices: the commit that a dataset was resolved to, what was
/// taken of it or of a folder, and what not.
pub(crate) fn find_inputs(
    selection: &InputSelection,
    recipe: Option<&Recipe>,
    progress: &dyn Progress,
) -> Result<Inputs> {
    let mut inputs = Inputs::default();
    match (recipe, &selection.dataset) {
        (Some(recipe), _) => recipe_inputs(selection, recipe, progress, &mut inputs)?,
        (None, Some(id)) => {
            let revision = selection.revision.as_deref();
            inputs.files = dataset_inputs(id, revision, &selection.files, progress, &mut inputs)?;
        }
        (None, None) if selection.paths.is_empty() => {
            return Err(Error::Usage(
                "nothing to read: give --input FILES, --dataset ORG/NAME or --recipe FILE"
                    .to_string(),
            ));
        }
        (None, None) => {
            inputs.files = local_inputs(&selection.paths, &selection.files, progress, &mut inputs)?;
        }
    }
    if recipe.is_none() {
        let columns = &selection.columns;
        inputs.files.iter_mut().for_each(|f| f.columns = columns.clone());
        let all = 0..inputs.files.len();
        inputs.streams = vec![all];
    }
    Ok(inputs)
}

fn recipe_inputs(
    selection: &InputSelection,
    recipe: &Recipe,
    progress: &dyn Progress,
    inputs: &mut Inputs,
) -> Result<()> {
    for s in &recipe.sources {
        let dataset = s.dataset.as_ref().or(selection.dataset.as_ref()).or(recipe.dataset.as_ref());
        let files = FileSelection {
            config: s.config.clone(),
            splits: s.split.clone(),
            globs: s.files.clone(),
        };
        let found = match dataset {
            Some(id) if s.input.is_empty() => {
                let revision = selection
                    .revision
                    .as_ref()
                    .or(s.revision.as_ref())
                    .or(recipe.revision.as_ref());
                dataset_inputs(id, revision.map(String::as_str), &files, progress, inputs)
            }
            _ => local_inputs(&s.input, &files, progress, inputs),
        };
        let from = inputs.files.len();
        inputs.files.extend(found?.into_iter().map(|f| Input {
            source: s.name.clone(),
            licence: s.licence.clone(),
            columns:
                s.columns.iter().map(|(ours, theirs)| (ours.clone(), theirs.clone())).collect(),
            ..f
        }));
        inputs.streams.push(from..inputs.files.len());
    }
    Ok(())
}

fn local_inputs(
    paths: &[PathBuf],
    selection: &FileSelection,
    progress: &dyn Progress,
    inputs: &mut Inputs,
) -> Result<Vec<Input>> {
    let mut found = Vec::new();
    let mut rest = paths;
    while let Some(first) = rest.first() {
        if let Some(text) = address_of(first) {
            let (files, taken) = bucket_inputs(text, selection, progress)?;
            taken.into_iter().for_each(|t| inputs.note(t, progress));
            found.extend(files);
            rest = &rest[1..];
            continue;
        }
        let local = rest.iter().take_while(|path| address_of(path).is_none()).count();
        let (local, behind) = rest.split_at(local);
        let (files, taken) = list_files(local, selection)?;
        inputs.roots.extend(local.iter().cloned());
        taken.into_iter().for_each(|t| inputs.note(t, progress));
        found.extend(files.into_iter().map(Input::from));
        rest = behind;
    }
    tell_apart(&mut found);
    Ok(found)
}

fn dataset_inputs(
    id: &str,
    revision: Option<&str>,
    selection: &FileSelection,
    progress: &dyn Progress,
    inputs: &mut Inputs,
) -> Result<Vec<Input>> {
    let settings = HubSettings::from_env();
    let client = HubClient::with_progress(settings.clone(), progress);
    let (listing, taken) = list::list(&client, check_id(id)?, revision, selection)?;
    progress.notice(&format!(
        "dataset    {id} at {} ({}), {} files",
        listing.commit,
        listing.revision,
        listing.files.len()
    ));
    inputs.note(taken, progress);
    let origin = (id.to_string(), listing.commit.clone());
    // Downloads go on in the background, where nothing is reported.
    let client = HubClient::new(settings);
    let source = HubSource::new(client, RepoKind::Dataset, id, listing);
    let files = source.files().to_vec();
    let downloads = Arc::new(DownloadAhead::new(source));
    let inputs = files.into_iter().enumerate().map(|(index, f)| Input {
        remote: Some(RemoteInput { downloads: downloads.clone(), index, stamp: 0 }),
        origin: Some(origin.clone()),
        ..Input::from(LocalFile { path: f.path.clone().into(), name: f.path, bytes: f.bytes })
    });
    Ok(inputs.collect())
}

impl Inputs {
    /// Reports and keeps what was taken of a folder or a dataset.
    fn note(&mut self, taken: Taken, progress: &dyn Progress) {
        taken.describe().iter().for_each(|line| progress.notice(line));
        if !taken.is_plain() {
            self.taken.push(taken);
        }
    }
}
