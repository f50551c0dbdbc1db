//! A row whose passes verify proposals and make new ones.

use super::options::{Proposals, TokenCost, VerifyOptions};
use super::plan::{Experience, Plan, plan};
use super::settle::{self, Proposal, Uniforms};
use crate::decode::DecodedSequence;
use crate::decode::distribution::Distribution;
use crate::decode::engine::Prediction;
use crate::decode::placed::Group;
use crate::decode::row::{PassKind, Row, RowPass, RowText};
use crate::decode::sampling::{Purpose, Sampling};

/// Most tokens that a proposal is drawn from; any distribution will do.
const PROPOSED_FROM: usize = 64;

/// One prompt and the tokens decided for it so far.
pub(in crate::decode) struct VerifyRow {
    text: RowText,
    options: VerifyOptions,
    max_new_tokens: usize,
    /// A token that the source never produces.
    never: Option<i64>,
    token_cost: TokenCost,
    /// Positions whose keys and values are cached for good.
    cached: usize,
    proposals: Vec<Proposal>,
    experience: Experience,
    plan: Plan,
    counts: Proposals,
    is_stopped: bool,
}

impl VerifyRow {
    pub(in crate::decode) fn new(
        text: RowText,
        options: VerifyOptions,
        max_new_tokens: usize,
        never: Option<i64>,
        token_cost: TokenCost,
    ) -> Self {
        let mut row = VerifyRow {
            text,
            options,
            max_new_tokens,
            never,
            token_cost,
            cached: 0,
            proposals: Vec::new(),
            experience: Experience::new(&options),
            plan: Plan::default(),
            counts: Proposals::default(),
            is_stopped: false,
        };
        row.make_plan();
        row
    }

    /// Tokens that may still be decided.
    fn left(&self) -> usize {
        self.max_new_tokens.saturating_sub(self.text.generated().len())
    }

    fn make_plan(&mut self) {
        let left = self.left();
        let sure = self.proposals.iter().map(|proposal| self.experience.accepted(proposal.sure));
        let sure: Vec<f64> = sure.collect();
        // no place behind the last position that the row may come to need
        let room = (self.options.propose + 1).min(left + 1);
        let (options, cost) = (&self.options, self.token_cost);
        self.plan = plan(options, &self.experience, &sure, room, left, cost);
    }

    /// The groups of the planned masks in a pass whose last decided token is at `last`.
    fn groups(&self, last: usize) -> Vec<Group> {
        let groups = self.plan.masks.iter().enumerate();
        let group = |(j, len): (usize, &usize)| Group { position: last + 1 + j, len: *len };
        groups.map(group).filter(|group| group.len > 0).collect()
    }

    /// Decides `tokens`, the source's own, and makes proposals of the masks behind the last.
    fn decide(&mut self, pass: &RowPass, tokens: &[Prediction], masks: Vec<Vec<Proposal>>) {
        let verified = self.plan.verified;
        let kind = pass.kind;
        match kind {
            PassKind::Prefill => self.text.passes.prefill += 1,
            _ => self.text.passes.block += 1,
        }
        let accepted = tokens.len().saturating_sub(1).min(verified);
        self.cached = self.text.ids.len() + accepted;
        for token in tokens {
            self.text.set(self.text.ids.len(), *token);
            if self.text.stops(token.token) {
                self.is_stopped = true;
                break;
            }
        }
        self.counts.verified += verified;
        self.counts.accepted += accepted;
        // what stands behind a refused proposal was not judged
        for (i, proposal) in self.proposals.iter().take(verified.min(accepted + 1)).enumerate() {
            self.experience.judge(proposal.sure, i < accepted);
        }
        self.proposals = masks.into_iter().nth(accepted).unwrap_or_default();
        if kind != PassKind::Prefill {
            let cost = 1.0 + self.token_cost.share * (pass.len - 1) as f64;
            let sure = self.proposals.iter().map(|p| self.experience.accepted(p.sure));
            let sure: Vec<f64> = sure.collect();
            self.experience.learn(sure.into_iter(), tokens.len(), cost);
        }
        self.make_plan();
    }

    /// What the masks of each group say, in order.
    fn by_group(&self, mut proposals: impl Iterator<Item = Proposal>) -> Vec<Vec<Proposal>> {
        let group = |len: &usize| proposals.by_ref().take(*len).collect();
        self.plan.masks.iter().map(group).collect()
    }

    /// Positions that the masks of a pass speak of, in order.
    fn spoken_of(pass: &RowPass) -> impl Iterator<Item = usize> + '_ {
        pass.groups.iter().flat_map(|group| group.position + 1..group.position + 1 + group.len)
    }

    /// Whether `pass` is over prompt tokens before the last.
    fn is_before_the_end(&self, pass: &RowPass) -> bool {
        pass.start + pass.clean() < self.text.prompt
    }
}

impl Row for VerifyRow {
    fn text(&self) -> &RowText {
        &self.text
    }

    fn never(&self) -> Option<i64> {
        self.never
    }

    /// A mask token cannot be proposed, since it could not run as a clean token. It is left out
    /// before anything is drawn: a proposal that is given up afterwards would bias what is drawn.
    fn never_at(&self, pass: &RowPass, offset: usize) -> Option<i64> {
        if offset < pass.clean() { self.never } else { Some(self.options.mask_id) }
    }

    fn next_pass(&self) -> Option<RowPass> {
        if self.is_stopped || self.left() == 0 {
            return None;
        }
        let (kind, mut pass, clean) = match self.cached < self.text.prompt {
            true => {
                let pass = RowPass::prefill(self.cached, self.text.prompt, 1, true);
                (PassKind::Prefill, pass.clone(), pass.len)
            }
            false => {
                let clean = 1 + self.plan.verified;
                (
                    PassKind::Block,
                    RowPass::prefill(self.cached, self.cached + clean, 1, true),
                    clean,
                )
            }
        };
        pass.kind = kind;
        if pass.start + clean < self.text.prompt {
            return Some(pass);
        }
        let first_judged = if kind == PassKind::Prefill { clean - 1 } else { 0 };
        pass.groups = self.groups(self.text.ids.len() - 1);
        pass.tail = pass.groups.iter().map(|group| group.len).sum();
        pass.len = clean + pass.tail;
        pass.visible = pass.start + pass.len;
        pass.judged = (first_judged..pass.len).collect();
        Some(pass)
    }

    fn ids_of(&self, pass: &RowPass) -> Vec<i64> {
        let text = self.text.ids.iter().skip(pass.start).copied();
        let proposals = self.proposals.iter().map(|proposal| proposal.token);
        let mut ids: Vec<i64> = text.chain(proposals).take(pass.clean()).collect();
        // a mask's embedding is not in the table
        ids.resize(pass.len, 0);
        ids
    }

    fn take(&mut self, pass: &RowPass, predictions: &[Prediction]) {
        if self.is_before_the_end(pass) {
            self.cached = pass.start + pass.len;
            return;
        }
        let (source, masks) = predictions.split_at((self.plan.verified + 1).min(predictions.len()));
        let proposal = |p: &Prediction| Proposal {
            token: p.token,
            sure: f64::from(p.probability),
            drawn_from: None,
        };
        let masks = self.by_group(masks.iter().map(proposal));
        let proposals = &self.proposals[..self.plan.verified.min(self.proposals.len())];
        let tokens = settle::most_probable(source, proposals);
        self.decide(pass, &tokens, masks);
    }

    fn draws_from(&self, pass: &RowPass, offset: usize) -> Option<Sampling> {
        let sampling = self.text.sampling?;
        let few = if sampling.top_k == 0 { PROPOSED_FROM } else { sampling.top_k };
        let proposed = Sampling { top_k: few.min(PROPOSED_FROM), ..sampling };
        Some(if offset < pass.clean() { sampling } else { proposed })
    }

    fn take_distributions(&mut self, pass: &RowPass, mut all: Vec<Distribution>) -> Option<()> {
        if self.is_before_the_end(pass) {
            self.cached = pass.start + pass.len;
            return Some(());
        }
        let sampling = self.text.sampling?;
        let number = self.text.passes.total() + 1;
        let masks = all.split_off((self.plan.verified + 1).min(all.len()));
        let mut proposed = Vec::with_capacity(masks.len());
        for (position, q) in Self::spoken_of(pass).zip(masks) {
            let token = q.draw(sampling.uniform_for(Purpose::Propose, position, number))?.token;
            proposed.push(Proposal { token, sure: q.largest(), drawn_from: Some(q) });
        }
        let masks = self.by_group(proposed.into_iter());
        let next = self.text.ids.len();
        let accept = |i: usize| sampling.uniform_for(Purpose::Accept, next + i, number);
        let draw = |i: usize| sampling.uniform_for(Purpose::Draw, next + i, number);
        let proposals = &self.proposals[..self.plan.verified.min(self.proposals.len())];
        let uniforms = Uniforms { accept: &accept, draw: &draw };
        let tokens = settle::drawn(&all, proposals, &uniforms)?;
        self.decide(pass, &tokens, masks);
        Some(())
    }

    fn settled(&self) -> usize {
        self.text.generated().len()
    }

    fn finish(self: Box<Self>) -> DecodedSequence {
        DecodedSequence { proposals: Some(self.counts), ..self.text.finish() }
    }
}
