//! Processes batches of raw rows; no row depends on another.
//!
//! In: raw rows. Out: [`ProcessedBatch`]: each row parsed, rendered, encoded, labelled, cut and
//! padded, or dropped with a reason. The result does not depend on the thread that makes it.

use crate::config::policies::LostText;
use crate::config::settings::Settings;
use crate::error::{Error, Result};
use crate::input::raw_rows::RawRows;
use crate::input::source::Input;
use crate::label::block::Grid;
use crate::label::supervise::{Sample, Supervisor};
use crate::label::truncate::{self, DocumentRange};
use crate::label::turns::turn_by_turn;
use crate::parse::conversation::{self, Conversation, ParsedRow};
use crate::parse::drop_reason::DropReason;
use crate::parse::rows::RowParser;
use crate::run::batch::{Cursor, ProcessedBatch, ProcessedDocument, ProcessedRow};
use crate::template::adapt::adapt;
use crate::template::budget::Account;
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::limits::RENDERS_PER_ROW;
use crate::template::rendered::Rendered;
use crate::template::spans::{RenderError, SpanFinder};
use crate::template::verbatim::{CHECK_EVERY, Verbatim};
use crate::tokenize::tokenizer::Tokenizer;
use dlm_datasets::manifest::{LossOn, Manifest};
use dlm_datasets::verify::summarize_runs;

/// What all row processors of a run share.
pub(crate) struct Stages<'a> {
    /// Settings of the run.
    pub settings: &'a Settings,
    pub tokenizer: &'a Tokenizer,
    /// The tokenizer's control tokens.
    pub control: &'a ControlTokens,
    pub template: &'a ChatTemplate,
    /// Which content the template copies verbatim; none if every row is rendered.
    pub verbatim: Option<&'a Verbatim>,
    /// Token ids and policies.
    pub manifest: &'a Manifest,
    /// All input files, for their renamed columns.
    pub inputs: &'a [Input],
}

/// Processes batches on one thread, with scratch memory of its own.
pub(crate) struct RowProcessor<'a> {
    settings: &'a Settings,
    manifest: &'a Manifest,
    inputs: &'a [Input],
    template: &'a ChatTemplate,
    spans: SpanFinder<'a>,
    supervisor: Supervisor<'a>,
    grid: Grid,
    rendered: Rendered,
    sample: Sample,
    cuts: Vec<DocumentRange>,
    wants_fingerprint: bool,
}

impl<'a> RowProcessor<'a> {
    /// A processor for one thread.
    pub(crate) fn new(stages: &Stages<'a>) -> Self {
        let (s, m) = (stages.settings, stages.manifest);
        let fill_id = match s.padding {
            dlm_datasets::manifest::Padding::Mask => m.mask_token_id,
            dlm_datasets::manifest::Padding::Eos => m.eos_token_id,
        };
        RowProcessor {
            settings: s,
            manifest: m,
            inputs: stages.inputs,
            template: stages.template,
            spans: SpanFinder::new(stages.template, stages.control, s.special_text, s.lost_text)
                .with_verbatim(stages.verbatim)
                .supervising(s.train_on_roles, s.mask_thinking),
            supervisor: Supervisor {
                tokenizer: stages.tokenizer,
                loss_on: s.loss_on,
                mask_id: m.mask_token_id,
            },
            grid: Grid {
                bd_size: s.bd_size,
                seq_len: s.seq_len,
                alignment: s.alignment,
                fill_id,
                pad_id: m.pad_token_id,
            },
            rendered: Rendered::default(),
            sample: Sample::default(),
            cuts: Vec::new(),
            wants_fingerprint: s.dedup || s.eval_fraction > 0.0,
        }
    }

    /// Processes all rows of a batch. `used` is a batch whose memory is reused.
    pub(crate) fn process(
        &mut self,
        number: u64,
        from: Cursor,
        raw: RawRows,
        used: Option<ProcessedBatch>,
    ) -> Result<ProcessedBatch> {
        let n = raw.len();
        let mut out = used.unwrap_or_default();
        out.clear();
        (out.number, out.from) = (number, from);
        let raw = RowParser::new(&raw, self.inputs.get(from.file).map_or(&[][..], |i| &i.columns));
        // The memory of a row's message list is reused for the next row.
        let mut messages = Vec::new();
        for i in 0..n {
            if let Some((index, of)) = self.settings.shard
                && (from.row + i as u64) % of != index
            {
                out.rows.push(ProcessedRow::default());
                continue;
            }
            let _account = Account::open(RENDERS_PER_ROW);
            let mut row = ProcessedRow::default();
            let parsed = raw.parse(i, std::mem::take(&mut messages));
            let key = (parsed.category.as_deref(), parsed.licence.as_deref());
            let known = out.keys.iter().position(|k| (k.0.as_deref(), k.1.as_deref()) == key);
            row.key = known.or_else(|| {
                out.keys.push((key.0.map(String::from), key.1.map(String::from)));
                Some(out.keys.len() - 1)
            });
            let (ids, loss, documents) = (out.ids.len(), out.loss.len(), out.documents.len());
            let check = (from.row + i as u64) % CHECK_EVERY == 0;
            let done = parsed.conversation.map_err(RenderError::from).and_then(|mut c| {
                let done = self.conversation(&c, check, &mut row, &mut out);
                c.messages.clear();
                messages = c.messages;
                done
            });
            if let Err(fault) = done {
                let RenderError::Drop(reason) = fault else {
                    return Err(Error::Unfit(format!(
                        "row {} of input {}: the template changes its text, although the probes showed that it copies such text verbatim; run again with --render each",
                        from.row + i as u64,
                        from.file
                    )));
                };
                out.ids.truncate(ids);
                out.loss.truncate(loss);
                out.documents.truncate(documents);
                row.cut = 0;
                row.dropped = Some(reason);
                if out.examples.iter().all(|e| e.0 != reason) {
                    let message = self.explain(reason, raw.reference(i), raw.explain(i, reason));
                    out.examples.push((reason, out.rows.len(), message));
                }
            }
            row.documents = out.documents.len() - documents;
            out.rows.push(row);
        }
        Ok(out)
    }

    /// What is wrong with a row that was dropped for `reason`; `parsed` is the row once more.
    fn explain(&self, reason: DropReason, parsed: ParsedRow, found: Option<String>) -> String {
        let refusal = || {
            let c = parsed.conversation.as_ref().ok()?;
            let messages = adapt(self.template, c).ok()?.unwrap_or_else(|| c.messages.clone());
            self.template.render_with(&messages, c, false, false).err()
        };
        let failure = || {
            let c = parsed.conversation.as_ref().ok()?;
            let encode = |text| self.supervisor.tokenizer.encode(text, &mut Vec::new()).err();
            c.messages.iter().find_map(|m| encode(&m.content))
        };
        let message = match reason {
            DropReason::TokenizerFailed => failure().map(|e| e.to_string()),
            DropReason::TemplateRefused => refusal().map(|e| e.to_string()),
            DropReason::AssistantTextLost => Some(self.advice(&parsed)),
            _ => found.or_else(|| reason.advice().map(String::from)),
        };
        message.unwrap_or_default()
    }

    /// What helps where the template deletes text.
    fn advice(&self, parsed: &ParsedRow) -> String {
        let turns = parsed
            .conversation
            .as_ref()
            .map_or(0, |c| c.messages.iter().filter(|m| m.is_assistant()).count());
        let says = "the template deletes or rewrites text that should carry loss";
        match self.settings.lost_text {
            LostText::Split => format!("{says}, even where it is in the last turn"),
            _ if turns > 1 => format!(
                "{says}; --lost-text split makes one document of each turn, as decoding sees it"
            ),
            _ => format!("{says}; --lost-text mask keeps such turns without loss"),
        }
    }

    /// Makes the documents of a conversation: one, or one of each turn where the template would
    /// otherwise delete text and the settings ask for it.
    fn conversation(
        &mut self,
        c: &Conversation,
        check: bool,
        row: &mut ProcessedRow,
        out: &mut ProcessedBatch,
    ) -> std::result::Result<(), RenderError> {
        if self.wants_fingerprint {
            row.fingerprint = conversation::fingerprint(c);
        }
        let roles = self.settings.train_on_roles;
        row.no_loss_turns =
            c.messages.iter().filter(|m| m.no_loss && roles.includes(&m.role)).count() as u64;
        let split = self.settings.lost_text == LostText::Split;
        match self.document(c, check, row, out) {
            Err(RenderError::Drop(reason)) if split && reason.is_about_earlier_turns() => {
                let last_only = self.settings.loss_on == LossOn::Last;
                for part in turn_by_turn(c, last_only) {
                    match self.document(&part, false, row, out) {
                        Ok(()) => row.turn_documents.0 += 1,
                        Err(RenderError::Drop(reason)) if reason.is_about_length() => {
                            row.turn_documents.1 += 1;
                        }
                        Err(e) => return Err(e),
                    }
                }
                row.rewritten_turns = 0;
                match row.turn_documents.0 {
                    0 => Err(DropReason::PromptTooLong.into()),
                    _ => Ok(()),
                }
            }
            done => done,
        }
    }

    /// Makes the documents of a conversation that is rendered as a whole.
    fn document(
        &mut self,
        c: &Conversation,
        check: bool,
        row: &mut ProcessedRow,
        out: &mut ProcessedBatch,
    ) -> std::result::Result<(), RenderError> {
        let s = self.settings;
        let rendered = &mut self.rendered;
        self.spans.render_into(c, check, rendered)?;
        out.text_bytes += rendered.text.len() as u64;
        row.has_control_text |= rendered.control.is_some();
        row.whitespace_changed_turns += rendered.whitespace_changed_turns;
        row.rewritten_turns += rendered.rewritten_turns;
        row.masked_turns += rendered.masked_turns;
        self.supervisor.encode(rendered, &mut self.sample)?;
        row.over_long |= self.sample.ids.len() > s.seq_len;
        let lost = truncate::split_into_documents(
            &self.sample,
            s.over_long,
            s.seq_len,
            s.bd_size,
            s.split_context,
            &mut self.cuts,
        )?;
        row.cut += lost as u64;
        let documents = out.documents.len();
        for cut in &self.cuts {
            let (from, runs) = (out.ids.len(), out.loss.len());
            out.ids.extend_from_slice(&self.sample.ids[cut.start..cut.end]);
            // The last turn of this cut, for the `response` grid.
            let turn = self
                .sample
                .turns
                .partition_point(|t| t.0 < cut.end)
                .checked_sub(1)
                .map_or(0, |k| self.sample.turns[k].0);
            let turn = turn.saturating_sub(cut.start);
            let beyond = self.grid.pad(&mut out.ids, from, turn);
            row.cut += beyond as u64;
            // Context carries no loss, and neither does the first token: nothing precedes it.
            let (first, end) = (cut.start + cut.context.max(1), cut.end - beyond);
            let inside = self.sample.loss_within(first, end).iter();
            let inside = inside.map(|r| {
                ((r.0 as usize).max(first) - cut.start, (r.1 as usize).min(end) - cut.start)
            });
            out.loss.extend(inside.map(|r| (r.0 as u32, r.1 as u32)));
            let summary = summarize_runs(&out.ids[from..], &out.loss[runs..], self.manifest);
            if summary.response_tokens == 0 {
                row.cut +=
                    (out.ids.len() - from) as u64 - summary.block_padding - cut.context as u64;
                out.ids.truncate(from);
                continue;
            }
            out.documents.push(ProcessedDocument {
                tokens: out.ids.len() - from,
                runs: out.loss.len() - runs,
                summary,
            });
        }
        if out.documents.len() == documents { Err(DropReason::NoLabel.into()) } else { Ok(()) }
    }
}
