//! The programs that a machine runs: sent from here, part of an image, or built there.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// How the machine gets its programs.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Programs {
    /// Files sent to the machine's `~/dlm/bin`, by name.
    Sent(Vec<(String, PathBuf)>),
    /// The image has them.
    InImage,
    /// The repository is sent and built there, with these cargo features.
    Built {
        /// Folder that is sent: that of the workspace's Cargo.toml.
        repository: PathBuf,
        /// Features of dlm-train.
        features: &'static str,
    },
    /// Nothing was found; the reason is an obstacle of the plan.
    Missing,
}

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted<'a> {
    /// Names of the programs; the first is the one that `--binary` names.
    pub names: &'a [&'a str],
    /// `--binary FILE`.
    pub binary: Option<&'a Path>,
    /// Whether an image was named that has them.
    pub image: bool,
    /// `--build-on-machine`.
    pub build: bool,
    /// Burn must compute on the GPU, which takes a build with the feature `cuda`.
    pub needs_burn: bool,
    /// GPU of the machine.
    pub gpu: Option<&'a str>,
}

/// Finds the programs; what prevents it is added to `obstacles`.
pub(super) fn find(
    wanted: Wanted<'_>,
    here: &Path,
    obstacles: &mut Vec<String>,
) -> Result<Programs> {
    let given = [wanted.binary.is_some(), wanted.image, wanted.build];
    if given.iter().filter(|given| **given).count() > 1 {
        return Err(Error::Usage(
            "--binary, --image and --build-on-machine say three different ways to the program; give one of them"
                .into(),
        ));
    }
    if wanted.image {
        return Ok(Programs::InImage);
    }
    if wanted.build {
        return built(wanted, here);
    }
    let mut files = Vec::new();
    for (i, name) in wanted.names.iter().enumerate() {
        let named = wanted.binary.filter(|_| i == 0);
        let file = match named {
            Some(path) if !path.is_file() => {
                return Err(Error::Usage(format!("--binary {}: no such file", path.display())));
            }
            Some(path) => {
                Some(std::path::absolute(here.join(path)).unwrap_or_else(|_| path.into()))
            }
            None => beside(name),
        };
        match file {
            Some(_) if named.is_none() && !runs_on(wanted.gpu) => {
                obstacles.push(format!("the {name} beside wf does not run on that machine (another kind of processor, or no native engine in it); give --binary FILE, --image NAME, or --build-on-machine"));
                return Ok(Programs::Missing);
            }
            Some(file) => files.push((name.to_string(), file)),
            None => {
                obstacles.push(format!("there is no {name} beside wf to be sent; give --binary FILE, --image NAME, or --build-on-machine"));
                return Ok(Programs::Missing);
            }
        }
    }
    if wanted.needs_burn && wanted.binary.is_none() && !cfg!(feature = "cuda") {
        obstacles.push("Muon and train.engine=burn need a dlm-train built with --features cuda, which the one beside wf is not; give --binary FILE, --image NAME, or --build-on-machine".into());
    }
    Ok(Programs::Sent(files))
}

fn built(wanted: Wanted<'_>, here: &Path) -> Result<Programs> {
    let is_repository =
        |dir: &&Path| dir.join("trainer/Cargo.toml").is_file() && dir.join("configs").is_dir();
    let repository = here.ancestors().find(is_repository).ok_or_else(|| {
        Error::Usage("--build-on-machine sends the repository: call wf inside it".into())
    })?;
    let features = if wanted.needs_burn { "dlm-train/cuda" } else { "" };
    Ok(Programs::Built { repository: repository.into(), features })
}

/// The program of this name in the folder of the running one.
pub(super) fn beside(name: &str) -> Option<PathBuf> {
    let own = std::env::current_exe().ok()?;
    Some(own.parent()?.join(name)).filter(|path| path.is_file())
}

/// Whether a program built here runs on the rented machine. Those with GH200 and GB200 have ARM
/// processors.
fn runs_on(gpu: Option<&str>) -> bool {
    let arm = gpu.is_some_and(|gpu| gpu.starts_with("GH") || gpu.starts_with("GB"));
    let machine = ("linux", if arm { "aarch64" } else { "x86_64" });
    let engine = cfg!(feature = "native") || gpu.is_none();
    machine == (std::env::consts::OS, std::env::consts::ARCH) && engine
}
