//! Whether a completion gives a right answer.
//!
//! In: the text of a completion and the right answers. Out: [`Score`]. The answer is the whole
//! text, the last match of a regular expression, or, for tasks in GSM8K's form, the number behind
//! the last `####`, or the last number of the text where there is no such mark. White space around
//! answers does not count; everything else does.

use regex::Regex;

use super::task_file::GSM8K_MARK;
use crate::error::{Error, Result};

/// A number as people write it: a sign, a currency, groups of digits, decimals.
const NUMBER: &str = r"-?\$?\d[\d,]*(?:\.\d+)?";

/// How the answer is found in a completion.
#[derive(Debug)]
pub(super) enum Scorer {
    /// It is the whole completion.
    Whole,
    /// It is the last match: its first group, or all of it where there is no group.
    Last(Regex),
    /// It is a number.
    Number(Regex),
}

/// The outcome for one completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Score {
    /// What the completion answers; `None` where no answer was found in it.
    pub(super) answer: Option<String>,
    pub(super) is_right: bool,
}

impl Scorer {
    /// The scorer for an expression of the user's, or for the form of the file.
    pub(super) fn new(extract: Option<&str>, is_gsm8k: bool) -> Result<Self> {
        let Some(expression) = extract else {
            let number = Regex::new(NUMBER).map_err(|e| Error::Usage(e.to_string()))?;
            return Ok(if is_gsm8k { Scorer::Number(number) } else { Scorer::Whole });
        };
        let regex = Regex::new(expression).map_err(|error| {
            Error::Usage(format!("--extract {expression}: not a regular expression: {error}"))
        })?;
        match regex.captures_len() {
            1 | 2 => Ok(Scorer::Last(regex)),
            n => Err(Error::Usage(format!(
                "--extract {expression}: {} groups; expected at most one, which holds the answer ((?:...) groups without capturing)",
                n - 1
            ))),
        }
    }

    /// How the answer is found, in words.
    pub(super) fn describe(&self) -> String {
        match self {
            Scorer::Whole => "the whole completion is the answer".into(),
            Scorer::Last(regex) => format!("the last match of {regex} is the answer"),
            Scorer::Number(_) => format!(
                "the number behind the last {GSM8K_MARK} is the answer, else the last number"
            ),
        }
    }

    /// Scores a completion.
    pub(super) fn score(&self, text: &str, answers: &[String]) -> Score {
        let found = match self {
            Scorer::Whole => Some(text),
            Scorer::Last(regex) => regex.captures_iter(text).last().and_then(|groups| {
                let whole = groups.get(0);
                if regex.captures_len() > 1 { groups.get(1) } else { whole }.map(|m| m.as_str())
            }),
            Scorer::Number(number) => match text.rsplit_once(GSM8K_MARK) {
                Some((_, behind)) => number.find(behind),
                None => number.find_iter(text).last(),
            }
            .map(|m| m.as_str()),
        };
        let canonical = |text: &str| match self {
            Scorer::Number(_) => canonical_number(text),
            _ => text.trim().to_string(),
        };
        let answer = found.map(canonical);
        let is_right = answer
            .as_ref()
            .is_some_and(|answer| answers.iter().any(|expected| canonical(expected) == *answer));
        Score { answer, is_right }
    }
}

/// One spelling for each number: `$1,234.50` is `1234.5`, `42.0` is `42`.
fn canonical_number(text: &str) -> String {
    let digits: String = text.chars().filter(|c| !matches!(c, ',' | '$' | ' ' | '\n')).collect();
    match digits.split_once('.') {
        Some((whole, decimals)) => match decimals.trim_end_matches('0') {
            "" => whole.to_string(),
            decimals => format!("{whole}.{decimals}"),
        },
        None => digits,
    }
}

/// The 95 % confidence interval of a share (Wilson's score interval), 0 to 1.
pub(super) fn interval(right: usize, of: usize) -> (f64, f64) {
    if of == 0 {
        return (0.0, 1.0);
    }
    let (n, z) = (of as f64, 1.959_964);
    let share = right as f64 / n;
    let centre = share + z * z / (2.0 * n);
    let spread = z * (share * (1.0 - share) / n + z * z / (4.0 * n * n)).sqrt();
    let scale = 1.0 + z * z / n;
    (((centre - spread) / scale).max(0.0), ((centre + spread) / scale).min(1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn right(scorer: &Scorer, text: &str, answer: &str) -> bool {
        scorer.score(text, &[answer.to_string()]).is_right
    }

    #[test]
    fn the_whole_text_but_for_white_space_around_it() {
        let scorer = Scorer::new(None, false).unwrap();
        assert!(right(&scorer, " Lima\n", "Lima"));
        assert!(!right(&scorer, "It is Lima", "Lima"));
        assert!(!right(&scorer, "lima", "Lima"));
        assert!(scorer.score("no", &["yes".into(), "no".into()]).is_right);
    }

    #[test]
    fn the_last_match_of_an_expression() {
        let group = Scorer::new(Some(r"answer is (\w+)"), false).unwrap();
        assert!(right(&group, "The answer is 3. No, the answer is four.", "four"));
        assert_eq!(group.score("I do not know", &["4".into()]).answer, None);
        let whole = Scorer::new(Some(r"\d+"), false).unwrap();
        assert!(right(&whole, "1 2 3", "3"));
        for (expression, words) in [("(", "not a regular"), ("(a)(b)", "2 groups")] {
            let error = Scorer::new(Some(expression), false).unwrap_err();
            assert!(error.to_string().contains(words) && error.exit_code() == 2, "{error}");
        }
    }

    #[test]
    fn numbers_of_gsm8k() {
        let scorer = Scorer::new(None, true).unwrap();
        for (text, answer) in [
            ("3*14=42\n#### 42", "42"),
            ("#### $1,234.50 in all", "1234.5"),
            ("She pays 5, then 70.00 dollars.", "70"),
            ("#### 7, not 8", "7"),
            ("-3", "-3"),
            ("12", "12"),
        ] {
            assert!(right(&scorer, text, answer), "{text}");
        }
        assert!(!right(&scorer, "#### 42.5", "42"));
        assert_eq!(scorer.score("none", &["1".into()]).answer, None);
    }

    #[test]
    fn the_interval_against_published_values() {
        // Wilson's interval for 24 of 32 and for 0 of 10
        let (low, high) = interval(24, 32);
        assert!((low - 0.5789).abs() < 1e-4 && (high - 0.8675).abs() < 1e-4, "{low} {high}");
        let (low, high) = interval(0, 10);
        assert!(low == 0.0 && (high - 0.2775).abs() < 1e-4, "{low} {high}");
    }
}
