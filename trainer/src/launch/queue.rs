//! The jobs in SkyPilot's queue, those that have ended included.
//!
//! In: the output of `sky jobs queue`. Out: the id of the newest job of a name. `sky jobs logs
//! --name` knows jobs that run only, and says nothing of a name that was never used.

use std::process::{Command, Output};

use serde_json::Value;

use crate::error::{Error, Result};
use crate::report::console::message;

use super::command::{failure, not_started};

/// Name of the old launcher's only job: stands for the newest run of `wf dlm`.
const LAUNCHER: &str = "wf-dlm-train";
/// How the names of training runs begin.
const TRAINING: &str = "dlm-";
/// Names that are listed in an error.
const SHOWN: usize = 5;

/// A job of the queue.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Job {
    id: u64,
    name: String,
}

/// The id of the newest job of a name: a job's, or a run's, which is the end of its job's. Without
/// a name the newest training run. A name that no job has is an error.
pub(super) fn newest(name: Option<&str>) -> Result<u64> {
    let jobs = jobs()?;
    let name = name.filter(|name| *name != LAUNCHER);
    let run = name.map(|name| format!("-{name}"));
    let matches: Vec<&Job> = match (name, &run) {
        (Some(name), Some(run)) => {
            let named: Vec<&Job> = jobs.iter().filter(|job| job.name == name).collect();
            match named.is_empty() {
                true => jobs.iter().filter(|job| is_ours(job) && job.name.ends_with(run)).collect(),
                false => named,
            }
        }
        _ => jobs
            .iter()
            .filter(|job| job.name.starts_with(TRAINING) || job.name == LAUNCHER)
            .collect(),
    };
    if let Some(job) = matches.into_iter().max_by_key(|job| job.id) {
        message(format_args!("wf: job {} ({})", job.id, job.name));
        return Ok(job.id);
    }
    let mut known: Vec<&str> = Vec::new();
    for job in &jobs {
        if !known.contains(&job.name.as_str()) {
            known.push(&job.name);
        }
    }
    let known = match known.as_slice() {
        [] => "the queue is empty".to_string(),
        names if names.len() <= SHOWN => format!("it has {}", names.join(", ")),
        names => {
            format!("it has {} and {} others", names[..SHOWN].join(", "), names.len() - SHOWN)
        }
    };
    let name = name.map_or("of `wf dlm`".into(), |name| format!("called {name}"));
    Err(Error::Usage(format!("no job {name} in SkyPilot's queue; {known}. `wf runs` lists them")))
}

/// The queue, newest job first.
fn jobs() -> Result<Vec<Job>> {
    const QUEUE: [&str; 4] = ["sky", "jobs", "queue", "--all"];
    let json = output(&[&QUEUE[..], &["--output", "json"]].concat())?;
    if json.status.success()
        && let Some(jobs) = from_json(&String::from_utf8_lossy(&json.stdout))
    {
        return Ok(jobs);
    }
    // older versions print a table only
    let table = output(&QUEUE)?;
    if !table.status.success() {
        message(format_args!("{}", String::from_utf8_lossy(&table.stderr).trim_end()));
        return Err(failure(&QUEUE.map(String::from), table.status));
    }
    from_table(&String::from_utf8_lossy(&table.stdout)).ok_or_else(|| {
        Error::Device(
            "the output of `sky jobs queue` cannot be read: expected JSON or a table with the columns ID and NAME; look with `sky jobs queue`, then `sky jobs logs ID`".into(),
        )
    })
}

fn output(command: &[&str]) -> Result<Output> {
    Command::new(command[0])
        .args(&command[1..])
        .output()
        .map_err(|error| not_started(command[0], error))
}

/// The jobs of `--output json`: a list of objects, which lines for people may precede.
fn from_json(text: &str) -> Option<Vec<Job>> {
    let list: Vec<Value> =
        serde_json::from_str(&text[text.find("[\n").or(text.find('['))?..]).ok()?;
    let job = |value: &Value| {
        let name = value.get("job_name").and_then(Value::as_str)?;
        Some(Job { id: value.get("job_id")?.as_u64()?, name: name.into() })
    };
    list.iter().map(job).collect()
}

/// The jobs of a table whose columns are at least two spaces apart. Rows of the tasks of a job
/// begin with spaces and have no id.
fn from_table(text: &str) -> Option<Vec<Job>> {
    let cells = |line: &str| -> Vec<String> {
        line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(Into::into).collect()
    };
    let mut lines = text.lines();
    let Some(columns) = lines.find_map(|line| Some(cells(line)).filter(|cells| is_header(cells)))
    else {
        return text.to_lowercase().contains("no ").then(Vec::new);
    };
    let name = columns.iter().position(|column| column == "NAME")?;
    let job = |line: &str| {
        let cells = cells(line);
        Some(Job { id: cells.first()?.parse().ok()?, name: cells.get(name)?.clone() })
    };
    Some(lines.filter_map(job).collect())
}

fn is_header(cells: &[String]) -> bool {
    cells.first().is_some_and(|cell| cell == "ID") && cells.iter().any(|cell| cell == "NAME")
}

/// Whether `wf` gave this job its name.
fn is_ours(job: &Job) -> bool {
    [TRAINING, "prep-", "smoke-"].iter().any(|kind| job.name.starts_with(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_are_read_from_json_and_from_tables() {
        let job = |id, name: &str| Job { id, name: name.into() };
        let json = r#"[{"job_id": 2, "job_name": "b", "status": "RUNNING"}, {"job_id": 1, "job_name": "a"}]"#;
        assert_eq!(from_json(json).unwrap(), [job(2, "b"), job(1, "a")]);
        assert_eq!(from_json("[]").unwrap(), []);
        assert!(from_json("Usage: sky jobs queue").is_none());
        let table = "Fetching managed job statuses...\nManaged jobs\nID  TASK  NAME     REQUESTED  SUBMITTED  TOT. DURATION  JOB DURATION  #RECOVERIES  STATUS\n12  -     dlm-a-1  1x[H100:1]  2 hrs ago  2h  1h  0  SUCCEEDED\n ↳  0  task  1x  -  -  -  0  -\n3   -     first    1x[H100:1]  1 day ago  2h  1h  0  FAILED\n";
        assert_eq!(from_table(table).unwrap(), [job(12, "dlm-a-1"), job(3, "first")]);
        assert_eq!(from_table("No in-progress managed jobs.\n").unwrap(), []);
        assert!(from_table("something else").is_none());
    }
}
