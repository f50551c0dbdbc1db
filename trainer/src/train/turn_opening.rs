//! How the assistant's last turn opens in a dataset, beyond what the chat template writes when it
//! asks for an answer: Qwen3's template puts an empty `<think>` shell before the answers of the
//! data, but not behind a prompt.
//!
//! In: the packed rows and the dataset's tokenizer. Out: the token ids of that opening, which
//! `generate` writes before it decodes, so that a model is prompted as it was trained.

use std::collections::BTreeMap;

use dlm_datasets::{Dataset, IGNORE, Split};
use dlm_prep::{ChatFormat, Message};

use crate::error::Result;

/// Documents that are looked at, from the first on.
const DOCUMENTS: usize = 512;
/// Longest opening, tokens.
const LONGEST: usize = 64;

/// The ids of the opening, where more than half of the documents share one; empty where the answers
/// begin where a prompt ends. `None` where the dataset's tokenizer or template cannot tell.
pub(super) fn of(data: &Dataset) -> Result<Option<Vec<i32>>> {
    let Ok(format) = ChatFormat::load(data.dir().join("tokenizer")) else { return Ok(None) };
    let prompt = |text: &str| format.encode_messages(&[Message::new("user", text)]);
    let (Ok(a), Ok(b)) = (prompt("a"), prompt("7 b")) else { return Ok(None) };
    let end = common_end(&a, &b);
    let (mut openings, mut seen) = (BTreeMap::<Vec<i32>, usize>::new(), 0);
    'rows: for i in 0..data.rows(Split::Train) {
        let row = data.row(Split::Train, i)?;
        for document in &row.documents {
            if seen == DOCUMENTS {
                break 'rows;
            }
            seen += 1;
            let span = document.start..document.start + document.length;
            let (ids, labels) = (&row.input_ids[span.clone()], &row.labels[span]);
            if let Some(opening) = last_opening(ids, labels, end) {
                *openings.entry(opening.to_vec()).or_default() += 1;
            }
        }
    }
    let most = openings.into_iter().max_by_key(|(_, count)| *count);
    Ok(most.filter(|(_, count)| 2 * count > seen).map(|(opening, _)| opening))
}

/// The longest end that two sequences share.
fn common_end<'a>(a: &'a [i32], b: &[i32]) -> &'a [i32] {
    let shared = a.iter().rev().zip(b.iter().rev()).take_while(|(x, y)| x == y).count();
    &a[a.len() - shared..]
}

/// The ids between the last place that reads like the end of a prompt and the first label after it.
fn last_opening<'a>(ids: &'a [i32], labels: &[i32], end: &[i32]) -> Option<&'a [i32]> {
    let last = labels.iter().rposition(|label| *label != IGNORE)?;
    let first = labels[..last].iter().rposition(|label| *label == IGNORE)? + 1;
    let before = &ids[..first];
    let at = before.windows(end.len().max(1)).rposition(|window| window == end)? + end.len();
    Some(&before[at..]).filter(|opening| opening.len() <= LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_opening_stands_between_the_prompt_and_the_answer() {
        let n = IGNORE;
        let end = [8, 9];
        assert_eq!(common_end(&[1, 2, 8, 9], &[4, 8, 9]), end);
        let ids = [1, 8, 9, 5, 8, 9, 6, 6, 7, 7];
        let of = |labels: [i32; 10]| last_opening(&ids, &labels, &end).map(<[i32]>::to_vec);
        assert_eq!(of([n, n, n, 5, n, n, n, n, 7, 7]), Some(vec![6, 6]));
        assert_eq!(of([n, n, n, n, n, n, 6, 6, 7, n]), Some(vec![]));
        assert_eq!(of([n; 10]), None);
        assert_eq!(last_opening(&ids, &[n, n, n, n, n, n, n, n, 7, 7], &[3]), None);
    }
}
