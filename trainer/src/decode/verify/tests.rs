//! Rows against a source that is a function: whatever is proposed, the tokens are its own.

use dlm_datasets::rng;

use super::options::{TokenCost, VerifyOptions};
use super::plan::{Experience, Plan, plan};
use super::row::VerifyRow;
use super::settle::{Proposal, Uniforms, drawn};
use crate::decode::DecodedSequence;
use crate::decode::distribution::Distribution;
use crate::decode::engine::Prediction;
use crate::decode::row::{PassKind, Row, RowText};

fn options(propose: usize, most_masks: usize) -> VerifyOptions {
    VerifyOptions { propose, most_masks, mask_id: 99 }
}

/// The source: its next token is a function of the last three.
fn source(text: &[i64]) -> i64 {
    let last = text.iter().rev().take(3).fold(7, |sum, id| sum * 31 + id);
    last % 41
}

fn one_at_a_time(prompt: &[i64], new: usize, stops: &[i64]) -> Vec<i64> {
    let mut text = prompt.to_vec();
    while text.len() < prompt.len() + new {
        text.push(source(&text));
        if stops.contains(text.last().unwrap()) {
            break;
        }
    }
    text
}

/// Runs a row whose masks are right with probability `right`, and looks at every pass.
fn run(row: VerifyRow, right: f64, key: u64) -> DecodedSequence {
    let mut row: Box<dyn Row> = Box::new(row);
    let (prompt, mut drawn) = (row.text().prompt, 0);
    while let Some(pass) = row.next_pass() {
        let text = row.text().ids.clone();
        let ids = row.ids_of(&pass);
        assert_eq!(ids.len(), pass.len);
        let context = |offset: usize| {
            let clean = ids[..=offset].iter().copied();
            text[..pass.start].iter().copied().chain(clean).collect::<Vec<i64>>()
        };
        let mut predictions = Vec::new();
        for offset in pass.judged.iter().filter(|offset| **offset < pass.clean()) {
            predictions.push(Prediction { token: source(&context(*offset)), probability: 0.5 });
        }
        let mut masks = 0;
        for group in &pass.groups {
            assert!(group.len <= 5 && group.position > text.len() - 1);
            let mut ahead = context(group.position - 1 - pass.start);
            ahead.push(source(&ahead));
            for _ in 0..group.len {
                drawn += 1;
                let is_right = rng::uniform(key, drawn) < right;
                ahead.push(source(&ahead));
                let token = ahead.last().unwrap() + i64::from(!is_right);
                predictions.push(Prediction { token, probability: right as f32 });
                masks += 1;
            }
        }
        assert_eq!(predictions.len(), pass.judged.len());
        assert!(
            pass.kind == PassKind::Prefill || pass.len <= 10 && masks + pass.clean() == pass.len
        );
        row.take(&pass, &predictions);
    }
    assert!(prompt > 0);
    row.finish()
}

#[test]
fn tokens_are_the_source_s_whatever_is_proposed() {
    let mut passes = Vec::new();
    for right in [0.0, 0.3, 0.8, 0.95, 1.0] {
        let (mut tokens, mut forwards) = (0, 0);
        for case in 0..60u64 {
            let key = rng::key(&[case]);
            let prompt: Vec<i64> = (0..1 + case as i64 % 7).map(|i| i * 5 % 41).collect();
            let new = (case * 13 % 70) as usize;
            let stops: Vec<i64> = if case % 3 == 0 { vec![17] } else { Vec::new() };
            let expected = one_at_a_time(&prompt, new, &stops);
            let text = RowText::new(prompt.clone(), stops, None);
            let propose = 1 + case as usize % 9;
            let cost = TokenCost { share: 0.02, together: 1 + case as usize % 8 };
            let row = VerifyRow::new(text, options(propose, 5), new, None, cost);
            let found = run(row, right, key);
            assert_eq!(found.ids, expected, "{right}, case {case}");
            assert_eq!(found.decided.len(), found.generated().len());
            let proposals = found.proposals.unwrap();
            assert!(proposals.accepted <= proposals.verified);
            if propose >= 4 {
                tokens += found.generated().len();
                forwards += found.passes.total();
            }
        }
        passes.push(tokens as f64 / forwards as f64);
    }
    // wrong proposals cost nothing but width; right ones save passes
    assert!(passes[0] == 1.0 && passes.is_sorted() && passes[4] > 2.5, "{passes:?}");
}

/// Speculative sampling by hand: two tokens are decided from three over every proposal and every
/// outcome; the sum of their probabilities is what the source gives the two.
#[test]
fn drawn_tokens_are_distributed_as_the_source_s() {
    let of = |weights: &[f64]| {
        Distribution::new((0u32..).zip(weights.iter().copied()).collect::<Vec<_>>())
    };
    // p after the last token, and after each proposal; q of the first proposal and of the second
    let p0 = of(&[0.5, 0.3, 0.2, 0.0]);
    let p1 = [
        of(&[0.1, 0.2, 0.3, 0.4]),
        of(&[1.0, 0.0, 0.0, 0.0]),
        of(&[0.25, 0.25, 0.25, 0.25]),
        of(&[0.0, 0.0, 0.5, 0.5]),
    ];
    let (q0, q1) = (of(&[0.2, 0.6, 0.1, 0.1]), of(&[0.0, 0.5, 0.5, 0.0]));
    let steps = 400;
    let mut joint = [[0f64; 4]; 4];
    for (x0, x1) in (0..4).flat_map(|x0| (0..4).map(move |x1| (x0, x1))) {
        let proposed = q0.probability(x0) * q1.probability(x1);
        if proposed == 0.0 {
            continue;
        }
        let proposal =
            |token, q: &Distribution| Proposal { token, sure: 0.5, drawn_from: Some(q.clone()) };
        let proposals = [proposal(x0, &q0), proposal(x1, &q1)];
        // what follows both proposals does not matter here
        let source = [p0.clone(), p1[x0 as usize].clone(), of(&[1.0])];
        // acceptance and draw on a grid whose cells no probability of the example divides
        for accept in 0..steps {
            for draw in 0..steps {
                let at = |i: usize| (i as f64 + 0.5) / f64::from(steps as u32);
                let uniforms = Uniforms { accept: &|_| at(accept), draw: &|_| at(draw) };
                let tokens = drawn(&source, &proposals, &uniforms).unwrap();
                let share = proposed / f64::from((steps * steps) as u32);
                let first = tokens[0].token as usize;
                match tokens.get(1) {
                    // the same number for both acceptances: summed for the first token alone below
                    Some(_) => joint[first][0] += share,
                    None => joint[first][1] += share,
                }
            }
        }
    }
    for (token, sums) in joint.iter().enumerate() {
        let (found, wanted) = (sums[0] + sums[1], p0.probability(token as i64));
        assert!((found - wanted).abs() < 1e-9, "token {token}: {found}, not {wanted}");
    }
    // the second token, given that the first was accepted
    for x0 in 0..4 {
        let mut found = [0f64; 4];
        for x1 in [1, 2] {
            let proposal = |token, q: &Distribution| Proposal {
                token,
                sure: 0.5,
                drawn_from: Some(q.clone()),
            };
            let proposals = [proposal(x0, &of(&[0.25; 4])), proposal(x1, &q1)];
            let source = [of(&[0.25; 4]), p1[x0 as usize].clone(), of(&[1.0])];
            for (accept, draw) in (0..steps).flat_map(|a| (0..steps).map(move |d| (a, d))) {
                let at = |i: usize| (i as f64 + 0.5) / f64::from(steps as u32);
                let uniforms = Uniforms { accept: &|_| at(accept), draw: &|_| at(draw) };
                let tokens = drawn(&source, &proposals, &uniforms).unwrap();
                let share = q1.probability(x1) / f64::from((steps * steps) as u32);
                found[tokens[1].token as usize] += share;
            }
        }
        for (token, found) in found.iter().enumerate() {
            let wanted = p1[x0 as usize].probability(token as i64);
            assert!((found - wanted).abs() < 1e-9, "{x0}, {token}: {found}, not {wanted}");
        }
    }
}

/// A model may have rows that it never uses in its table, and one of them be the mask token's. A
/// mask leaves it out, of what is drawn too; where the source decides, it is a token like another.
#[test]
fn the_mask_token_is_not_proposed() {
    let text = RowText::new(vec![3, 1, 4], Vec::new(), None);
    let cost = TokenCost { share: 0.02, together: 8 };
    let row: Box<dyn Row> = Box::new(VerifyRow::new(text, options(7, 5), 20, None, cost));
    let pass = row.next_pass().unwrap();
    let never = |offset: &usize| row.never_at(&pass, *offset);
    let (clean, masks): (Vec<usize>, Vec<usize>) =
        pass.judged.iter().partition(|offset| **offset < pass.clean());
    assert!(!clean.is_empty() && !masks.is_empty());
    assert!(clean.iter().all(|offset| never(offset).is_none()));
    assert!(masks.iter().all(|offset| never(offset) == Some(99)));
}

/// The best plan by trying all of them.
#[test]
fn a_plan_is_the_best_of_all() {
    let options = options(5, 3);
    let experience = Experience::new(&options);
    let survival = [0.75, 0.75 * 0.75, 0.75f64.powi(3)];
    let value = |sure: &[f64], plan: &Plan, price: f64| {
        let reached = |j: usize| sure[..j].iter().product::<f64>();
        let verified: f64 = (1..=plan.verified).map(reached).sum();
        let masks = plan.masks.iter().enumerate().map(|(j, masks)| {
            let next = if j == plan.verified { 0.0 } else { sure[j] };
            let exactly = reached(j) * (1.0 - next);
            let gain = |i: usize| exactly * (survival[i] - price) - price;
            (0..*masks).map(gain).sum::<f64>()
        });
        verified - price * plan.verified as f64 + masks.sum::<f64>()
    };
    for (case, cost) in (0..200u64).zip([0.0, 0.02, 0.1, 0.2].into_iter().cycle()) {
        let key = rng::key(&[case]);
        let sure: Vec<f64> = (0..3).map(|i| rng::uniform(key, i)).collect();
        let token = TokenCost { share: cost, together: 1 };
        let found = plan(&options, &experience, &sure, 6, 40, token);
        let filled = TokenCost { share: cost, together: 6 };
        let filled = plan(&options, &experience, &sure, 6, 40, filled);
        let tokens = 1 + filled.verified + filled.masks.iter().sum::<usize>();
        let is_full = tokens == 6 || filled.masks.iter().all(|masks| *masks == 3);
        assert!(is_full, "{case}: {filled:?} leaves places that cost nothing");
        let mut best = f64::NEG_INFINITY;
        for verified in 0..=3usize {
            for code in 0..4usize.pow(verified as u32 + 1) {
                let masks: Vec<usize> =
                    (0..=verified).map(|j| code / 4usize.pow(j as u32) % 4).collect();
                let tokens = 1 + verified + masks.iter().sum::<usize>();
                if tokens <= 6 && (verified == 5 || masks.iter().any(|masks| *masks > 0)) {
                    best = best.max(value(&sure, &Plan { verified, masks }, cost));
                }
            }
        }
        let found_value = value(&sure, &found, cost);
        assert!(found_value > best - 1e-12, "{case}: {found:?} {found_value}, best {best}");
    }
}
