//! The micro-batches of a step as they were given to the engines, and what the engines say of them.

use crate::diffusion::{Batch, Losses};

/// Micro-batches since the gradients were cleared.
#[derive(Default)]
pub(super) struct Given {
    /// For each target of each micro-batch its distance in the run; empty without teachers.
    distances: Vec<Vec<usize>>,
}

fn distances(batch: &Batch) -> Vec<usize> {
    if batch.teachers.is_empty() { Vec::new() } else { batch.distances() }
}

/// The losses of one batch from what an engine says of its targets.
pub(super) fn losses_of(batch: &Batch, values: &[f32], distill: f64) -> Losses {
    of_pass(&distances(batch), values, distill)
}

fn of_pass(distances: &[usize], values: &[f32], distill: f64) -> Losses {
    match distances.is_empty() {
        true => Losses::of(values),
        false => Losses::of_judged(values, distances, distill),
    }
}

impl Given {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.distances.len()
    }

    pub(super) fn push(&mut self, batch: &Batch) {
        self.distances.push(distances(batch));
    }

    pub(super) fn clear(&mut self) {
        self.distances.clear();
    }

    /// The losses of the micro-batches that the engine `rank` of `engines` had, from what it says
    /// of their targets one after the other.
    pub(super) fn losses(
        &self,
        (rank, engines): (usize, usize),
        values: &[f32],
        distill: f64,
    ) -> Losses {
        let own = self.distances.iter().skip(rank).step_by(engines.max(1));
        let mut taught = own.filter(|distances| !distances.is_empty()).peekable();
        if taught.peek().is_none() {
            return Losses::of(values);
        }
        let (mut found, mut rest) = (Losses::default(), values);
        for distances in taught {
            let (of_batch, others) = rest.split_at((3 * distances.len()).min(rest.len()));
            found.add(&of_pass(distances, of_batch, distill));
            rest = others;
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two engines with two micro-batches and one: together as one engine with all three.
    #[test]
    fn engines_add_up() {
        let given = Given { distances: vec![vec![0, 1], vec![1], vec![0, 1, 2]] };
        // cross-entropy, divergence, same
        let batches: [&[f32]; 3] = [
            &[1.0, 0.5, 1.0, 2.0, 0.25, 1.0],
            &[0.05, 4.0, 1.0],
            &[3.0, 1.0, 1.0, 0.01, 2.0, 0.0, 1.5, 8.0, 1.0],
        ];
        let mut all = given.losses((0, 2), &[batches[0], batches[2]].concat(), 0.25);
        all.add(&given.losses((1, 2), batches[1], 0.25));
        let one = given.losses((0, 1), &batches.concat(), 0.25);
        assert_eq!(all, one);
        let taught = one.taught.as_ref().unwrap();
        let (ce, kl) = (f64::from(0.05f32) + f64::from(0.01f32) + 7.5, 15.75);
        assert!((taught.cross_entropy - ce).abs() < 1e-12 && taught.divergence == kl);
        assert!((one.sum - (0.75 * ce + 0.25 * kl)).abs() < 1e-12);
        assert_eq!(one.sure, 2);
        // a micro-batch that begins within a run says nothing of what leads there
        let counted = serde_json::to_value(taught.proposals.finish()).unwrap();
        assert_eq!(counted["by_distance"], serde_json::json!([[2, 2], [2, 3], [1, 1]]));
        assert_eq!(counted["leading"], serde_json::json!([[2, 2], [1, 2], [0, 0]]));
    }

    #[test]
    fn without_teachers_they_are_cross_entropies() {
        let given = Given { distances: vec![vec![], vec![]] };
        assert_eq!(given.losses((0, 1), &[1.0, 2.5, 0.01], 1.0), Losses::of(&[1.0, 2.5, 0.01]));
    }
}
