//! How many proposed tokens the source would accept: counts by distance in the run of masks, and
//! what they say about a pass of decoding. Definitions: `docs/objective.md`, "Lossless".

use serde::{Deserialize, Serialize};

use super::held_out::share;

/// Counts over runs of masks; pairs by distance, the first mask of a run at 0.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ProposalCounts {
    /// `[same, all]`.
    by_distance: Vec<[u64; 2]>,
    /// `[same, all]` of those whose earlier proposals in the run were all the same.
    leading: Vec<[u64; 2]>,
    /// Whether the last run counted is the same so far.
    unbroken: bool,
}

impl ProposalCounts {
    /// Counts the proposal at `distance`; those of a run follow each other, from its first one on.
    pub(crate) fn count(&mut self, distance: usize, same: bool) {
        if distance == 0 {
            self.unbroken = true;
        }
        if self.by_distance.len() <= distance {
            self.by_distance.resize(distance + 1, [0; 2]);
            self.leading.resize(distance + 1, [0; 2]);
        }
        let pair = [u64::from(same), 1];
        add(&mut self.by_distance[distance], pair);
        if self.unbroken {
            add(&mut self.leading[distance], pair);
        }
        self.unbroken &= same;
    }

    /// Adds the counts of other runs.
    pub(crate) fn add(&mut self, other: &ProposalCounts) {
        for (own, other) in
            [(&mut self.by_distance, &other.by_distance), (&mut self.leading, &other.leading)]
        {
            own.resize(own.len().max(other.len()), [0; 2]);
            own.iter_mut().zip(other).for_each(|(own, other)| add(own, *other));
        }
    }

    /// The counts with what follows from them; nothing where nothing was proposed.
    pub(crate) fn finish(&self) -> Option<ProposalAcceptance> {
        let [same, all] = self.by_distance.iter().fold([0; 2], |mut sum, pair| {
            add(&mut sum, *pair);
            sum
        });
        let reached = self.leading.iter().filter(|[_, all]| *all > 0);
        let kept = reached.scan(1.0, |kept, pair| {
            *kept *= share(*pair);
            Some(*kept)
        });
        (all > 0).then(|| ProposalAcceptance {
            share: share([same, all]),
            tokens_per_pass: 1.0 + kept.sum::<f64>(),
            by_distance: self.by_distance.clone(),
            leading: self.leading.clone(),
        })
    }
}

fn add(own: &mut [u64; 2], other: [u64; 2]) {
    own[0] += other[0];
    own[1] += other[1];
}

/// Proposals of runs of mask tokens beside the source's own most probable tokens behind the same
/// clean tokens. Pairs are `[same, proposed]`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct ProposalAcceptance {
    /// Proposals that are what the source says, 0 to 1.
    pub share: f64,
    /// Tokens of a decoding pass: the source's own and the expected number of proposals that it
    /// accepts, one after the other up to the first that differs.
    pub tokens_per_pass: f64,
    /// By distance in the run, from its first mask on.
    pub by_distance: Vec<[u64; 2]>,
    /// The same for proposals whose earlier ones in the run are all what the source says.
    pub leading: Vec<[u64; 2]>,
}

/// The two parts of a loss for a line of the console, from a space on; empty without them.
pub(crate) fn parts_in_words(cross_entropy: Option<f64>, divergence: Option<f64>) -> String {
    match (cross_entropy, divergence) {
        (Some(ce), Some(kl)) => format!(" (ce {ce:.4} kl {kl:.4})"),
        _ => String::new(),
    }
}

/// What a line of the console says, from a space on.
pub(crate) fn in_words(proposals: &ProposalAcceptance) -> String {
    let [same, all] = proposals
        .by_distance
        .iter()
        .fold([0; 2], |[same, all], pair| [same + pair[0], all + pair[1]]);
    format!(
        " accepted {:.1}% ({same} of {all}) tok/pass {:.2}",
        100.0 * proposals.share,
        proposals.tokens_per_pass
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs as rows of what was the same.
    fn counted(runs: &[&[bool]]) -> ProposalCounts {
        let mut counts = ProposalCounts::default();
        for run in runs {
            run.iter().enumerate().for_each(|(at, same)| counts.count(at, *same));
        }
        counts
    }

    #[test]
    fn whole_runs_give_the_mean_number_accepted() {
        let runs: [&[bool]; 4] = [
            &[true, true, false, true],
            &[false, true, true, true],
            &[true, true, true, true],
            &[true, false, false, true],
        ];
        let all = counted(&runs).finish().unwrap();
        // 2, 0, 4 and 1 leading ones
        assert!((all.tokens_per_pass - (1.0 + 7.0 / 4.0)).abs() < 1e-12, "{all:?}");
        assert_eq!(all.by_distance, [[3, 4], [3, 4], [2, 4], [4, 4]]);
        assert_eq!(all.leading, [[3, 4], [2, 3], [1, 2], [1, 1]]);
        assert_eq!(all.share, 12.0 / 16.0);
        let mut parts = counted(&runs[..1]);
        parts.add(&counted(&runs[1..]));
        assert_eq!(parts.finish(), Some(all));
    }

    /// A run that ends with its text says nothing about what would have come.
    #[test]
    fn short_runs_count_as_far_as_they_go() {
        let runs: [&[bool]; 3] = [&[true], &[true, true, true], &[true, false, true]];
        let all = counted(&runs).finish().unwrap();
        assert!((all.tokens_per_pass - (1.0 + 1.0 + 0.5 + 0.5)).abs() < 1e-12, "{all:?}");
        assert_eq!(ProposalCounts::default().finish(), None);
        let none = counted(&[&[false, true]]).finish().unwrap();
        assert_eq!((none.tokens_per_pass, none.share), (1.0, 0.5));
    }
}
