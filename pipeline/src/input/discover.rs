//! What is read: local files, a dataset on a hub, or the sources of a recipe.
//!
//! In: the command line and a recipe. Out: inputs, and streams over them, one per source of a
//! recipe (else one for all).

use crate::cli::args::PrepareArgs;
use crate::config::recipe::Recipe;
use crate::error::{Error, Result};
use crate::input::hub::client::{self, HubClient};
use crate::input::hub::fetch::{DownloadAhead, HubSource};
use crate::input::hub::list::FileSelection;
use crate::input::hub::{self, ShardSource};
use crate::input::source::{self, Input, Remote};
use std::ops::Range;
use std::sync::Arc;

/// Inputs and streams over them.
pub struct Inputs {
    /// All files.
    pub files: Vec<Input>,
    /// One range per stream.
    pub streams: Vec<Range<usize>>,
}

/// Finds what is to be read; downloads begin.
pub fn find(b: &PrepareArgs, recipe: Option<&Recipe>) -> Result<Inputs> {
    if let Some(r) = recipe {
        return of_recipe(b, r);
    }
    let files = match &b.dataset {
        Some(id) => {
            let wanted = FileSelection {
                revision: b.revision.clone(),
                splits: b.split.clone(),
                globs: b.files.clone(),
            };
            of_dataset(id, &wanted)?
        }
        None if b.input.is_empty() => {
            return Err(Error::Usage(
                "nothing to read: give --input FILES, --dataset ORG/NAME or --recipe FILE"
                    .to_string(),
            ));
        }
        None => source::expand(&b.input)?,
    };
    let all = 0..files.len();
    Ok(Inputs { files, streams: vec![all] })
}

fn of_recipe(b: &PrepareArgs, r: &Recipe) -> Result<Inputs> {
    let (mut files, mut streams) = (Vec::new(), Vec::new());
    for s in &r.sources {
        let dataset = s.dataset.as_ref().or(b.dataset.as_ref()).or(r.dataset.as_ref());
        let found = match dataset {
            Some(id) if s.input.is_empty() => {
                let revision = b
                    .revision
                    .clone()
                    .or_else(|| s.revision.clone())
                    .or_else(|| r.revision.clone());
                of_dataset(
                    id,
                    &FileSelection { revision, splits: s.split.clone(), globs: s.files.clone() },
                )?
            }
            _ => source::expand(&s.input)?,
        };
        let from = files.len();
        files.extend(found.into_iter().map(|f| Input {
            label: s.name.clone(),
            licence: s.licence.clone(),
            columns:
                s.columns.iter().map(|(ours, theirs)| (ours.clone(), theirs.clone())).collect(),
            ..f
        }));
        streams.push(from..files.len());
    }
    Ok(Inputs { files, streams })
}

fn of_dataset(id: &str, wanted: &FileSelection) -> Result<Vec<Input>> {
    let client = HubClient::new(client::HubSettings::from_env());
    let listing = hub::list::list(&client, hub::cache::check_id(id)?, wanted)?;
    eprintln!(
        "dataset    {id} at {} ({}), {} files",
        listing.commit,
        listing.revision,
        listing.files.len()
    );
    let origin = (id.to_string(), listing.commit.clone());
    let source = HubSource::new(client, hub::cache::RepoKind::Dataset, id, listing);
    let files: Vec<_> = source.files().to_vec();
    let ahead = Arc::new(DownloadAhead::new(Box::new(source), 0));
    let inputs = files.into_iter().enumerate().map(|(index, f)| Input {
        remote: Some(Remote { ahead: ahead.clone(), index }),
        origin: Some(origin.clone()),
        ..Input::local(f.path.clone().into(), f.path, f.bytes)
    });
    Ok(inputs.collect())
}
