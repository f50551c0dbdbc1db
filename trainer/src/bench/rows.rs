//! Synthetic packed rows: random ids, equal documents, each opening with a prompt without labels.

use dlm_datasets::rng;

use super::options::TrainBenchOptions;
use crate::diffusion::{IGNORE, PackedRow};

/// Separates these ids from other draws of the same generator.
const STREAM: u64 = 77;

/// Row number `index`. Ids are below `vocab - 2`: the last id is used as the mask token.
pub(super) fn synthetic_row(options: &TrainBenchOptions, vocab: usize, index: u64) -> PackedRow {
    let document =
        options.seq.div_ceil(options.docs_per_row.max(1)).next_multiple_of(options.bd_size);
    let prompt = (document as f64 * options.prompt_fraction) as usize;
    let key = rng::key(&[STREAM, index]);
    let input_ids: Vec<i32> =
        (0..options.seq).map(|i| (rng::bits(key, i as u64) % (vocab as u64 - 2)) as i32).collect();
    let mut labels = input_ids.clone();
    let mut documents = Vec::new();
    for start in (0..options.seq).step_by(document) {
        let length = document.min(options.seq - start);
        documents.push((start, length));
        labels[start..start + prompt.min(length)].fill(IGNORE);
    }
    PackedRow { input_ids, labels, documents }
}
