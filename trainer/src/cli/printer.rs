//! What `dlm-train generate` prints of completions, in the order of the prompts.
//!
//! In: tokens and completions as they come, with the place of their prompt. Out, on stdout: JSON
//! objects, text after each pass, whole texts, or text as it becomes final.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;

use super::passes;
use crate::decode::TextStream;
use crate::decode::prompt::PromptCodec;
use crate::error::Result;
use crate::generate::{Completion, DecodeMode, Progress};
use crate::report::console::{self, Reader};

/// What is printed of a completion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// An object in one line.
    Json,
    /// The text after each pass, then the text.
    Passes { block_size: usize },
    /// The text when it is whole.
    Whole,
    /// The text as it becomes final.
    Stream,
}

/// What is known of a prompt whose turn has not come, or which is not finished.
#[derive(Default)]
struct Pending {
    /// Tokens that were not printed yet.
    ids: Vec<i64>,
    completion: Option<Box<Completion>>,
}

/// Prints completions.
pub(super) struct Printer {
    form: Form,
    mode: DecodeMode,
    codec: Option<Arc<PromptCodec>>,
    stops: Vec<String>,
    /// The prompt whose turn it is.
    turn: usize,
    pending: BTreeMap<usize, Pending>,
    /// The text of that prompt.
    stream: Option<TextStream>,
    /// Tokens printed of it where there is no tokenizer.
    printed: usize,
    tokens: usize,
    passes: usize,
    reader: Reader,
    out: Box<dyn FnMut(String) -> Result<Reader>>,
}

impl Printer {
    /// `stops` are the stop strings; `codec` is `None` for a model without a tokenizer, of which
    /// ids are printed. `out` writes text.
    pub(super) fn new(
        form: Form,
        mode: DecodeMode,
        codec: Option<Arc<PromptCodec>>,
        stops: Vec<String>,
        out: impl FnMut(String) -> Result<Reader> + 'static,
    ) -> Self {
        let stream = codec.clone().map(|codec| TextStream::new(codec, stops.clone()));
        Printer {
            form,
            mode,
            codec,
            stops,
            turn: 0,
            pending: BTreeMap::new(),
            stream,
            printed: 0,
            tokens: 0,
            passes: 0,
            reader: Reader::Present,
            out: Box::new(out),
        }
    }

    /// Whether nobody reads stdout any more.
    pub(super) fn has_no_reader(&self) -> bool {
        self.reader == Reader::Gone
    }

    /// Tokens and forward passes of the completions that were printed.
    pub(super) fn totals(&self) -> (usize, usize) {
        (self.tokens, self.passes)
    }

    /// Takes tokens or the completion of a prompt and prints what is next. False if nobody reads
    /// it.
    pub(super) fn take(&mut self, at: usize, progress: Progress) -> Result<bool> {
        let pending = self.pending.entry(at).or_default();
        match progress {
            Progress::Tokens(ids) => pending.ids.extend(ids),
            Progress::Done(completion) => pending.completion = Some(completion),
        }
        while !self.has_no_reader()
            && let Some(Pending { ids, completion }) = self.pending.remove(&self.turn)
        {
            if self.form == Form::Stream {
                let piece = self.piece(&ids)?;
                self.print(piece)?;
            }
            let Some(completion) = completion else { break };
            self.tokens += completion.ids.len();
            self.passes += completion.passes.total();
            let text = match self.form {
                Form::Json => object(&completion, self.mode),
                Form::Whole => text(&completion),
                Form::Passes { block_size } => {
                    let mut lines = self.lines(&completion, block_size)?;
                    lines.push(text(&completion));
                    lines.join("\n")
                }
                Form::Stream => {
                    let rest = self.stream.as_mut().map(TextStream::finish).transpose()?;
                    rest.unwrap_or_default()
                }
            };
            self.print(format!("{text}\n"))?;
            self.turn += 1;
            self.printed = 0;
            self.stream =
                self.codec.clone().map(|codec| TextStream::new(codec, self.stops.clone()));
        }
        Ok(!self.has_no_reader())
    }

    fn print(&mut self, text: String) -> Result<()> {
        if !text.is_empty() {
            self.reader = (self.out)(text)?;
        }
        Ok(())
    }

    /// The text that `ids` add, or the ids.
    fn piece(&mut self, ids: &[i64]) -> Result<String> {
        let mut piece = String::new();
        for id in ids {
            match &mut self.stream {
                Some(stream) => piece.push_str(&stream.push(*id)?),
                None if self.printed == 0 => piece.push_str(&id.to_string()),
                None => piece.push_str(&format!(",{id}")),
            }
            self.printed += 1;
        }
        Ok(piece)
    }

    /// The text of a completion after each of its passes.
    fn lines(&self, completion: &Completion, block_size: usize) -> Result<Vec<String>> {
        let pieces = match &self.codec {
            Some(codec) => passes::pieces(&completion.ids, |ids| codec.decode(ids))?,
            None => completion.ids.iter().map(|id| format!("{id} ")).collect(),
        };
        let (decided, prompt) = (&completion.decided, completion.prompt_ids.len());
        Ok(passes::lines(&pieces, decided, prompt, block_size, console::has_colours()))
    }
}

/// The text of a completion, or its ids where there is no text.
fn text(completion: &Completion) -> String {
    match &completion.text {
        Some(text) => text.clone(),
        None => completion.ids.iter().map(i64::to_string).collect::<Vec<_>>().join(","),
    }
}

/// A completion as a JSON object.
fn object(completion: &Completion, mode: DecodeMode) -> String {
    let Completion { prompt_ids, ids, decided, passes, .. } = completion;
    let mut object = json!({
        "prompt_ids": prompt_ids,
        "completion_ids": ids,
        "token_passes": decided.iter().map(|d| d.pass).collect::<Vec<_>>(),
        "token_logprobs": decided.iter().map(|d| d.probability.ln()).collect::<Vec<_>>(),
        "text": completion.text,
        "stopped": completion.stopped,
        "finish_reason": completion.finish_reason,
        "seed": completion.seed,
        "passes": {
            "prefill": passes.prefill,
            "block": passes.block,
            "small": passes.small,
            "commit": passes.commit,
            "total": passes.total(),
        },
        "tokens_per_forward": completion.tokens_per_forward(),
        "seconds": completion.seconds,
        "mode": mode.name(),
    });
    if let (Some(proposals), Some(object)) = (&completion.proposals, object.as_object_mut()) {
        object.insert("proposals".into(), json!(proposals));
    }
    object.to_string()
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;
    use std::rc::Rc;

    use super::*;
    use crate::decode::prompt::Prompt;
    use crate::decode::{DecodedSequence, FinishReason, Passes};

    fn sample() -> Arc<PromptCodec> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
        Arc::new(PromptCodec::load(&dir).unwrap())
    }

    fn done(ids: &[i64], text: Option<String>) -> Progress {
        let sequence = DecodedSequence {
            ids: [&[7], ids].concat(),
            prompt: 1,
            decided: Vec::new(),
            finish_reason: FinishReason::Length,
            text_end: None,
            passes: Passes { prefill: 1, ..Passes::default() },
            proposals: None,
        };
        Progress::Done(Box::new(Completion::new(sequence, text, None, 0.0)))
    }

    /// What is printed of two prompts whose tokens arrive mixed, the second one first.
    fn printed(form: Form, codec: Option<&Arc<PromptCodec>>, texts: [&str; 2]) -> Vec<String> {
        let out = Rc::new(RefCell::new(Vec::new()));
        let sink = out.clone();
        let write = move |text: String| {
            sink.borrow_mut().push(text);
            Ok(Reader::Present)
        };
        let mut printer = Printer::new(form, DecodeMode::Ar, codec.cloned(), Vec::new(), write);
        let codec = sample();
        let ids = texts.map(|text| codec.encode_raw(&Prompt::Text(text.into())).unwrap());
        for i in 0..ids[0].len().max(ids[1].len()) {
            for at in [1, 0] {
                if let Some(id) = ids[at].get(i) {
                    assert!(printer.take(at, Progress::Tokens(vec![*id])).unwrap());
                }
            }
        }
        for at in [1, 0] {
            let text = printer.codec.is_some().then(|| texts[at].to_string());
            assert!(printer.take(at, done(&ids[at], text)).unwrap());
        }
        assert_eq!(printer.totals(), (ids[0].len() + ids[1].len(), 2));
        out.borrow().clone()
    }

    #[test]
    fn a_stream_is_the_text_in_the_order_of_the_prompts() {
        let (codec, texts) = (sample(), ["name: Ada é 漢字", "kind"]);
        let whole = printed(Form::Whole, Some(&codec), texts);
        assert_eq!(whole, ["name: Ada é 漢字\n", "kind\n"]);
        let pieces = printed(Form::Stream, Some(&codec), texts);
        assert!(pieces.len() > 6, "{pieces:?}");
        assert_eq!(pieces.concat(), whole.concat());
        assert_eq!(
            printed(Form::Stream, None, texts).concat(),
            printed(Form::Whole, None, texts).concat()
        );
    }

    #[test]
    fn nothing_is_printed_for_nobody() {
        let mut calls = 0;
        let write = move |_| {
            calls += 1;
            assert_eq!(calls, 1, "written after the reader has gone");
            Ok(Reader::Gone)
        };
        let mut printer = Printer::new(Form::Stream, DecodeMode::Ar, None, Vec::new(), write);
        assert!(!printer.take(0, Progress::Tokens(vec![3])).unwrap());
        assert!(!printer.take(0, Progress::Tokens(vec![4])).unwrap());
        assert!(printer.has_no_reader());
    }
}
