//! What `dlm-train generate --show-passes` prints: the text after each forward pass.
//!
//! In: a completion and the text of each of its tokens. Out: one line per pass that decided tokens:
//! those of this pass in brackets (on a terminal: highlighted), those of earlier passes plain, and
//! a `░` for each position of a begun block that is still hidden.

use crate::decode::Decided;

/// Sign for a hidden position.
const HIDDEN: char = '░';

/// The lines of a completion. `pieces` is the text of each token; the token at `i` is in block
/// `(prompt_tokens + i) / block_size`.
pub(super) fn lines(
    pieces: &[String],
    decided: &[Decided],
    prompt_tokens: usize,
    block_size: usize,
    colours: bool,
) -> Vec<String> {
    let mut passes: Vec<usize> = decided.iter().map(|decided| decided.pass).collect();
    passes.sort_unstable();
    passes.dedup();
    let width = passes.last().map_or(0, |last| last.to_string().len());
    let block = |i: usize| (prompt_tokens + i) / block_size.max(1);
    let (open, close) = if colours { ("\x1b[1;7m", "\x1b[0m") } else { ("[", "]") };
    passes
        .into_iter()
        .map(|pass| {
            let begun = (0..decided.len()).filter(|&i| decided[i].pass <= pass).map(block).max();
            let mut line = format!("{pass:>width$} ");
            let mut is_marked = false;
            for (i, (piece, decided)) in pieces.iter().zip(decided).enumerate() {
                if Some(block(i)) > begun {
                    break;
                }
                let is_new = decided.pass == pass;
                if is_new != is_marked {
                    line.push_str(if is_new { open } else { close });
                    is_marked = is_new;
                }
                match decided.pass <= pass {
                    true => line.push_str(piece),
                    false => line.push(HIDDEN),
                }
            }
            if is_marked {
                line.push_str(close);
            }
            line
        })
        .collect()
}

/// The text that each token adds: what the text of the tokens up to it has more than the text of
/// those before it. A token in the middle of a character adds nothing, and neither does a control
/// token, for which `■` stands. Line breaks are shown as `⏎`.
pub(super) fn pieces<E>(
    ids: &[i64],
    decode: impl Fn(&[i64]) -> Result<String, E>,
) -> Result<Vec<String>, E> {
    let mut pieces = Vec::with_capacity(ids.len());
    let mut before = String::new();
    for end in 1..=ids.len() {
        let text = decode(&ids[..end])?;
        let whole = text.trim_end_matches('\u{fffd}');
        let more = whole.strip_prefix(before.as_str()).unwrap_or_default().to_string();
        let is_control = more.is_empty() && text == before;
        if whole.len() >= before.len() {
            before = whole.to_string();
        }
        let shown: String = more
            .chars()
            .map(|c| match c {
                '\n' => '⏎',
                c if c.is_control() => '·',
                c => c,
            })
            .collect();
        pieces.push(if is_control { "■".into() } else { shown });
    }
    Ok(pieces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pass_shows_what_it_decided() {
        let decided: Vec<Decided> =
            [1, 2, 3, 2, 4, 5].into_iter().map(|pass| Decided { pass, probability: 0.5 }).collect();
        let pieces: Vec<String> = ["a", "b", "c", "d", "e", "f"].map(String::from).to_vec();
        assert_eq!(
            lines(&pieces, &decided, 4, 4, false),
            ["1 [a]░░░", "2 a[b]░[d]", "3 ab[c]d", "4 abcd[e]░", "5 abcde[f]"]
        );
        let coloured = lines(&pieces, &decided, 4, 4, true);
        assert_eq!(coloured[0], "1 \x1b[1;7ma\x1b[0m░░░");
    }

    #[test]
    fn parts_of_characters_and_control_tokens() {
        // 1: first byte of é, 2: second byte, 3: x, 9: a control token
        let decode = |ids: &[i64]| -> Result<String, ()> {
            let bytes: Vec<u8> = ids
                .iter()
                .flat_map(|id| match id {
                    1 => vec![0xc3],
                    2 => vec![0xa9],
                    3 => b"x".to_vec(),
                    4 => b"\n".to_vec(),
                    _ => Vec::new(),
                })
                .collect();
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        assert_eq!(pieces(&[3, 1, 2, 4, 9], decode).unwrap(), ["x", "", "é", "⏎", "■"]);
    }
}
