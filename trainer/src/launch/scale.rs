//! The machine of a task: how many GPUs of which kind, where.

use clap::ValueEnum;

use crate::error::{Error, Result};

/// Clouds whose tasks a test reads with the real SkyPilot, by SkyPilot's names.
pub(crate) const CLOUDS: [&str; 6] = ["nebius", "gcp", "aws", "runpod", "lambda", "kubernetes"];

/// The word for no particular cloud.
const ANY: &str = "any";

/// Size of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Scale {
    /// 1 GPU.
    Dev,
    /// 1 GPU.
    Small,
    /// 2 GPUs.
    Medium,
    /// 4 GPUs.
    Large,
    /// 8 GPUs.
    Xlarge,
}

impl Scale {
    /// Number of GPUs of the machine.
    pub(crate) fn gpus(self) -> usize {
        match self {
            Scale::Dev | Scale::Small => 1,
            Scale::Medium => 2,
            Scale::Large => 4,
            Scale::Xlarge => 8,
        }
    }

    /// Why this scale is not rented, where a run that computes on `used` GPUs would leave some of
    /// it idle.
    pub(super) fn idle(self, gpu: &str, used: usize) -> Option<String> {
        let gpus = self.gpus();
        (gpus > used).then(|| {
            format!(
                "--scale {} rents {gpus} {gpu}, and this run computes on {used} of them: {} would be paid for and idle (Muon and train.engine=burn take one GPU, and every GPU needs a row of train.batch_rows); take a smaller --scale (with --gpu H200 for more memory), or --allow-idle",
                self.to_possible_value().map_or_else(String::new, |v| v.get_name().to_string()),
                gpus - used
            )
        })
    }
}

/// What is rented.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Machine {
    /// GPU model and count, for example `H100:1`; `None` for a machine without GPU.
    pub accelerators: Option<String>,
    /// `infra` of the task; `None`: the cheapest that SkyPilot may use.
    pub infra: Option<String>,
    /// May be taken away; the run continues on the next one.
    pub spot: bool,
    /// `docker:NAME`, an image that has the programs.
    pub image: Option<String>,
    /// Nodes that run the same task.
    pub nodes: usize,
}

/// `infra` for `--cloud`: one of [`CLOUDS`], with a region and zone where they are given; `None`
/// for `any`.
pub(super) fn infra(cloud: &str) -> Result<Option<String>> {
    if cloud == ANY {
        return Ok(None);
    }
    let (name, place) = cloud.split_once('/').map_or((cloud, None), |(n, p)| (n, Some(p)));
    let name = if name == "k8s" { "kubernetes" } else { name };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
    let known = CLOUDS.contains(&name);
    let placed = place.is_none_or(|p| !p.is_empty() && p.chars().all(plain));
    if !known || !placed {
        return Err(Error::Usage(format!(
            "--cloud {cloud:?}: expected {}, each with /region[/zone] if wanted, or any (the cheapest that SkyPilot may use)",
            CLOUDS.join(", ")
        )));
    }
    Ok(Some(place.map_or_else(|| name.to_string(), |place| format!("{name}/{place}"))))
}

/// Accepts words that SkyPilot cannot take for an option or for something else than a name.
pub(super) fn check_word(option: &str, word: &str, expected: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:@".contains(c);
    match word.starts_with(|c: char| c.is_ascii_alphanumeric()) && word.chars().all(plain) {
        true => Ok(()),
        false => Err(Error::Usage(format!("{option} {word:?}: expected {expected}"))),
    }
}

/// Accepts names that SkyPilot takes for a job and that are safe in a path: letters and digits with
/// at most two of - and _ between them.
pub(super) fn check_name(option: &str, name: &str) -> Result<()> {
    let mut joints = 0;
    let plain = name.chars().all(|c| {
        joints = if c == '-' || c == '_' { joints + 1 } else { 0 };
        joints <= 2 && (c.is_ascii_alphanumeric() || joints > 0)
    });
    match plain
        && name.len() <= 60
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.ends_with(|c: char| c.is_ascii_alphanumeric())
    {
        true => Ok(()),
        false => Err(Error::Usage(format!(
            "{option} {name:?}: expected at most 60 letters and digits, with one or two - or _ between them"
        ))),
    }
}

/// Seconds since 1970 in base 36: short, and names sort by time.
pub(super) fn stamp() -> String {
    let mut rest = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_secs());
    let mut digits = Vec::new();
    while rest > 0 {
        digits.push(char::from_digit((rest % 36) as u32, 36).unwrap_or('0'));
        rest /= 36;
    }
    digits.iter().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clouds_are_checked_by_name() {
        assert_eq!(infra("nebius").unwrap().as_deref(), Some("nebius"));
        assert_eq!(infra("k8s").unwrap().as_deref(), Some("kubernetes"));
        assert_eq!(
            infra("gcp/us-central1/us-central1-a").unwrap().as_deref(),
            Some("gcp/us-central1/us-central1-a")
        );
        assert_eq!(infra("any").unwrap(), None);
        for wrong in ["nebuis", "", "gcp/", "--cloud", "aws/us east", "NEBIUS"] {
            let error = infra(wrong).unwrap_err().to_string();
            assert!(error.contains("nebius, gcp, aws"), "{error}");
        }
    }

    #[test]
    fn names_are_those_that_sky_pilot_takes() {
        for name in ["a", "dlm-qwen3-4b-t0abc", "a--b", "a_b-c"] {
            check_name("--name", name).unwrap();
        }
        for name in ["", "-a", "a-", "a b", "a---b", "a.b", "ä", "a/b", &"a".repeat(61)] {
            assert!(check_name("--name", name).is_err(), "{name}");
        }
    }

    #[test]
    fn idle_gpus_are_counted() {
        assert_eq!(Scale::Dev.idle("H100", 1), None);
        assert_eq!(Scale::Large.idle("H100", 4), None);
        assert!(Scale::Large.idle("H200", 1).unwrap().contains("--scale large rents 4 H200"));
        assert!(Scale::Xlarge.idle("H100", 1).unwrap().contains("7 would be paid for"));
    }
}
