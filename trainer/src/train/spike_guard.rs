//! The spike guard: skips the update of a step whose loss jumps far above the running mean.
//!
//! In: `train.spike_factor`, the running mean of the loss, the loss of a step. Out: whether the
//! step is skipped, and the new mean.
//!
//! A skipped step moves the mean too, as if its loss were exactly at the threshold: by a factor of
//! 1 + 0.05 (spike_factor - 1). A single spike therefore hardly moves the mean, while a lasting
//! rise is accepted after some steps; otherwise it would be skipped for the rest of the run.

/// Whether a step's update is skipped: its loss is above `factor` times the running mean.
pub(super) fn is_spike(factor: Option<f64>, mean: Option<f64>, loss: f64) -> bool {
    matches!((factor, mean), (Some(factor), Some(mean)) if loss > factor * mean)
}

/// The running mean after a step.
pub(super) fn updated_mean(factor: Option<f64>, mean: Option<f64>, loss: f64) -> f64 {
    match mean {
        Some(mean) => {
            let threshold = factor.map_or(f64::INFINITY, |factor| factor * mean);
            0.95 * mean + 0.05 * loss.min(threshold)
        }
        None => loss,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds losses to the guard; returns which of them were skipped.
    fn skipped(factor: Option<f64>, losses: &[f64]) -> Vec<bool> {
        let mut mean = None;
        losses
            .iter()
            .map(|loss| {
                let spike = is_spike(factor, mean, *loss);
                mean = Some(updated_mean(factor, mean, *loss));
                spike
            })
            .collect()
    }

    #[test]
    fn single_spikes_are_skipped() {
        let mut losses = vec![2.0; 40];
        losses[10] = 50.0;
        losses[30] = 4.5;
        let skipped = skipped(Some(2.0), &losses);
        let at: Vec<usize> = (0..40).filter(|i| skipped[*i]).collect();
        assert_eq!(at, [10, 30]);
    }

    #[test]
    fn lasting_rise_is_accepted_after_some_steps() {
        for (factor, level, limit) in [(2.0, 6.0, 9), (3.0, 20.0, 13), (1.5, 20.0, 77)] {
            let losses: Vec<f64> = [[2.0].repeat(20), [level].repeat(200)].concat();
            let skipped = skipped(Some(factor), &losses);
            let count = skipped.iter().filter(|s| **s).count();
            assert!(count > 0 && count <= limit, "factor {factor}: {count} steps were skipped");
            // once accepted, the new level stays accepted
            assert!(skipped[20 + count..].iter().all(|s| !s), "factor {factor}");
        }
    }

    #[test]
    fn without_a_factor_nothing_is_skipped_and_the_mean_is_plain() {
        assert_eq!(skipped(None, &[1.0, 100.0, 1.0]), [false; 3]);
        assert_eq!(updated_mean(None, Some(2.0), 4.0), 0.95 * 2.0 + 0.05 * 4.0);
    }
}
