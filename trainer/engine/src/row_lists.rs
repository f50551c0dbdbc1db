//! Index arrays that say which rows are gathered and summed where.

/// Rows that are summed in one go for the embedding table's gradient; a token that occurs often
/// (the mask token) has several pieces.
pub(crate) const PIECE: usize = 64;

/// For each token the entries of `at` that name it: where they start, and their numbers.
pub(crate) fn picks(at: &[i32], tokens: usize) -> (Vec<i32>, Vec<i32>) {
    let mut start = vec![0i32; tokens + 1];
    for token in at {
        start[*token as usize + 1] += 1;
    }
    for i in 0..tokens {
        start[i + 1] += start[i];
    }
    let mut next = start.clone();
    let mut picks = vec![0i32; at.len()];
    for (i, token) in at.iter().enumerate() {
        let place = &mut next[*token as usize];
        picks[*place as usize] = i as i32;
        *place += 1;
    }
    (start, picks)
}

/// Which rows of a gradient go to which row of the embedding table, sorted so that every sum is
/// computed in one order.
#[derive(Debug, Default)]
pub(crate) struct Groups {
    pub order: Vec<i32>,
    pub pieces: Vec<i32>,
    pub firsts: Vec<i32>,
    pub rows: Vec<i32>,
}

impl Groups {
    /// Of rows of a gradient and the rows of the table that they go to.
    pub(crate) fn new(pairs: impl Iterator<Item = (usize, i32)>) -> Self {
        // id and row in one number: sorted in half the time of a stable sort by id
        let mut keys: Vec<u64> = pairs.map(|(row, id)| (id as u64) << 32 | row as u64).collect();
        keys.sort_unstable();
        let mut groups = Groups::default();
        for (at, key) in keys.iter().enumerate() {
            let row = (key >> 32) as i32;
            let full = groups.pieces.last().is_some_and(|first| at - *first as usize >= PIECE);
            if groups.rows.last() != Some(&row) {
                groups.rows.push(row);
                groups.firsts.push(groups.pieces.len() as i32);
                groups.pieces.push(at as i32);
            } else if full {
                groups.pieces.push(at as i32);
            }
            groups.order.push(*key as u32 as i32);
        }
        groups.firsts.push(groups.pieces.len() as i32);
        groups.pieces.push(groups.order.len() as i32);
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn picks_and_groups_list_every_row_once() {
        let (start, list) = picks(&[4, 1, 4, 0], 6);
        assert_eq!((start, list), (vec![0, 1, 2, 2, 2, 4, 4], vec![3, 1, 0, 2]));
        let ids: Vec<i32> = (0..300).map(|i| if i % 3 == 0 { 5 } else { i % 7 }).collect();
        let groups = Groups::new(ids.iter().copied().enumerate());
        for (r, row) in groups.rows.iter().enumerate() {
            let pieces = groups.firsts[r] as usize..=groups.firsts[r + 1] as usize;
            let cuts = &groups.pieces[pieces];
            assert!(cuts.windows(2).all(|c| c[1] - c[0] <= PIECE as i32 && c[1] > c[0]));
            let span = cuts[0] as usize..*cuts.last().unwrap() as usize;
            assert_eq!(span.len(), ids.iter().filter(|id| *id == row).count());
            assert!(groups.order[span].iter().all(|i| ids[*i as usize] == *row));
        }
    }
}
