//! `wf prep`: data prepared on rented machines, from a bucket or the hub to a bucket.
//!
//! In: the arguments of dlm-prep. Out: a task that runs it on N nodes, each with its part of the
//! rows, and joins the parts on node 0. Prepared once, a dataset serves any number of runs.

use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};

use super::location;
use super::plan::{MachineOptions, job_name, machine};
use super::program::{self, Programs, Wanted};
use super::scale::{Machine, check_name};
use super::task::{Task, shell_words};

const PREP: &str = "launch/dlm_prep.yaml";

/// What `wf prep` launches.
#[derive(Debug, Clone)]
pub(crate) struct PrepOptions {
    /// Folder of the dataset: a bucket.
    pub out: String,
    /// Machines that share the rows.
    pub nodes: usize,
    /// Arguments of dlm-prep besides `--out` and `--shard`.
    pub arguments: Vec<String>,
    pub machine: MachineOptions,
}

/// A preparation that can be launched.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct PrepPlan {
    pub job: String,
    pub out: String,
    pub machine: Machine,
    pub programs: Programs,
    pub arguments: Vec<String>,
    /// Reasons why this plan cannot be launched.
    pub obstacles: Vec<String>,
}

/// Options of dlm-prep whose values are places.
const INPUTS: [&str; 4] = ["--input", "--recipe", "--tokenizer", "--template"];

impl PrepPlan {
    /// Checks the options.
    pub(super) fn new(options: &PrepOptions, stamp: &str, here: &Path) -> Result<PrepPlan> {
        if options.nodes == 0 {
            return Err(Error::Usage("--nodes 0: expected 1 or more".into()));
        }
        let out = location::bucket("--out ", &options.out)?;
        let mut obstacles = Vec::new();
        check_arguments(&options.arguments, here, &mut obstacles)?;
        let asked = &options.machine;
        let wanted = Wanted {
            names: &["dlm-prep"],
            binary: asked.binary.as_deref(),
            image: asked.image.is_some(),
            build: asked.build,
            needs_burn: false,
            gpu: None,
        };
        let programs = program::find(wanted, here, &mut obstacles)?;
        let run = asked.name.clone().unwrap_or_else(|| stamp.to_string());
        check_name("--name", &run)?;
        let folder = out.rsplit('/').next().unwrap_or_default();
        Ok(PrepPlan {
            job: job_name("prep", folder, &run),
            machine: machine(asked, None, options.nodes)?,
            out,
            programs,
            arguments: options.arguments.clone(),
            obstacles,
        })
    }

    /// The file of `configs/launch` with this plan's values.
    pub(super) fn task(&self) -> Result<Value> {
        let mut task = Task::new(PREP)?;
        task.machine(&self.job, &self.machine)?;
        task.programs(&self.programs)?;
        task.env("ARGUMENTS", &shell_words(&self.arguments))?;
        task.env("OUT", &self.out)?;
        Ok(task.tree())
    }

    /// The buckets that the machines must be able to open.
    pub(super) fn buckets(&self) -> Vec<&str> {
        let given = self.arguments.iter().map(|word| {
            word.split_once('=')
                .filter(|(option, _)| option.starts_with("--"))
                .map_or(word.as_str(), |(_, v)| v)
        });
        let buckets = given.filter(|text| location::has_scheme(text));
        std::iter::once(self.out.as_str()).chain(buckets).collect()
    }
}

/// Refuses what `wf prep` sets itself, and names what a machine elsewhere cannot read.
fn check_arguments(arguments: &[String], here: &Path, obstacles: &mut Vec<String>) -> Result<()> {
    let mut option = String::new();
    let mut sources = 0;
    for word in arguments {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) if name.starts_with("--") => (name.to_string(), Some(value)),
            _ if word.starts_with("--") => (word.clone(), None),
            _ => (option.clone(), Some(word.as_str())),
        };
        let instead = match name.as_str() {
            "--out" => Some("--out before the --"),
            "--shard" => Some("--nodes"),
            _ => None,
        };
        if let Some(instead) = instead {
            return Err(Error::Usage(format!("{name}: wf prep sets it itself; use {instead}")));
        }
        if ["--input", "--dataset", "--recipe"].contains(&name.as_str()) {
            sources += 1;
        }
        if let Some(value) = value
            && INPUTS.contains(&name.as_str())
            && !location::has_scheme(value)
            && here.join(value).exists()
        {
            obstacles.push(format!(
                "{name} {value} is on this machine and the rented ones cannot read it; copy it to a bucket and give gs://, s3:// or az:// (or prepare here: dlm-prep)"
            ));
        }
        option = name;
    }
    if sources == 0 {
        return Err(Error::Usage(
            "wf prep needs something to prepare: --input gs://BUCKET/FILES, --dataset ORG/NAME or --recipe NAME, after the --".into(),
        ));
    }
    Ok(())
}
