//! Which files are read: local files, a dataset of a hub, or the sources of a recipe.
//!
//! In: an [`InputSelection`] and, if there is one, a recipe. Out: input files, and streams of them:
//! one per source of a recipe, else one of all files. Downloads begin here, in the background.

use crate::config::recipe::Recipe;
use crate::error::{Error, Result};
use crate::input::files::{LocalFile, list_files};
use crate::input::hub::cache::{RepoKind, check_id};
use crate::input::hub::client::HubClient;
use crate::input::hub::fetch::{DownloadAhead, HubSource};
use crate::input::hub::list::{self, FileSelection};
use crate::input::hub::settings::HubSettings;
use crate::input::source::{Input, RemoteInput};
use crate::progress::Progress;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

/// What a run reads, as its caller asked for it.
#[derive(Debug, Clone, Default)]
pub(crate) struct InputSelection {
    /// Local files and folders.
    pub paths: Vec<PathBuf>,
    /// Hub dataset, `ORG/NAME`. With a recipe: the dataset of sources that name none.
    pub dataset: Option<String>,
    /// Branch, tag or commit of hub datasets.
    pub revision: Option<String>,
    /// Only these splits or categories of the dataset.
    pub splits: Vec<String>,
    /// Only files of the dataset whose path matches one of these globs.
    pub globs: Vec<String>,
    /// Renamed columns, as pairs of (name used by this program, name in the files). A recipe says
    /// that for each of its sources.
    pub columns: Vec<(String, String)>,
}

/// The input files of a run.
pub(crate) struct Inputs {
    pub files: Vec<Input>,
    /// The range of `files` that each stream reads, one after another.
    pub streams: Vec<Range<usize>>,
}

/// Resolves a selection to files. Notices: the commit that a dataset was resolved to.
pub(crate) fn find_inputs(
    selection: &InputSelection,
    recipe: Option<&Recipe>,
    progress: &dyn Progress,
) -> Result<Inputs> {
    if let Some(recipe) = recipe {
        return recipe_inputs(selection, recipe, progress);
    }
    let files = match &selection.dataset {
        Some(id) => {
            let files = FileSelection {
                revision: selection.revision.clone(),
                splits: selection.splits.clone(),
                globs: selection.globs.clone(),
            };
            dataset_inputs(id, &files, progress)?
        }
        None if selection.paths.is_empty() => {
            return Err(Error::Usage(
                "nothing to read: give --input FILES, --dataset ORG/NAME or --recipe FILE"
                    .to_string(),
            ));
        }
        None => list_files(&selection.paths)?.into_iter().map(Input::from).collect(),
    };
    let columns = &selection.columns;
    let files: Vec<Input> =
        files.into_iter().map(|f| Input { columns: columns.clone(), ..f }).collect();
    let all = 0..files.len();
    Ok(Inputs { files, streams: vec![all] })
}

fn recipe_inputs(
    selection: &InputSelection,
    recipe: &Recipe,
    progress: &dyn Progress,
) -> Result<Inputs> {
    let (mut files, mut streams) = (Vec::new(), Vec::new());
    for s in &recipe.sources {
        let dataset = s.dataset.as_ref().or(selection.dataset.as_ref()).or(recipe.dataset.as_ref());
        let inputs = match dataset {
            Some(id) if s.input.is_empty() => {
                let revision = selection
                    .revision
                    .clone()
                    .or_else(|| s.revision.clone())
                    .or_else(|| recipe.revision.clone());
                let files =
                    FileSelection { revision, splits: s.split.clone(), globs: s.files.clone() };
                dataset_inputs(id, &files, progress)?
            }
            _ => list_files(&s.input)?.into_iter().map(Input::from).collect(),
        };
        let from = files.len();
        files.extend(inputs.into_iter().map(|f| Input {
            source: s.name.clone(),
            licence: s.licence.clone(),
            columns:
                s.columns.iter().map(|(ours, theirs)| (ours.clone(), theirs.clone())).collect(),
            ..f
        }));
        streams.push(from..files.len());
    }
    Ok(Inputs { files, streams })
}

fn dataset_inputs(
    id: &str,
    selection: &FileSelection,
    progress: &dyn Progress,
) -> Result<Vec<Input>> {
    let client = HubClient::new(HubSettings::from_env());
    let listing = list::list(&client, check_id(id)?, selection)?;
    progress.notice(&format!(
        "dataset    {id} at {} ({}), {} files",
        listing.commit,
        listing.revision,
        listing.files.len()
    ));
    let origin = (id.to_string(), listing.commit.clone());
    let source = HubSource::new(client, RepoKind::Dataset, id, listing);
    let files = source.files().to_vec();
    let downloads = Arc::new(DownloadAhead::new(source));
    let inputs = files.into_iter().enumerate().map(|(index, f)| Input {
        remote: Some(RemoteInput { downloads: downloads.clone(), index }),
        origin: Some(origin.clone()),
        ..Input::from(LocalFile { path: f.path.clone().into(), name: f.path, bytes: f.bytes })
    });
    Ok(inputs.collect())
}
