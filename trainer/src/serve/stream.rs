//! An answer as server-sent events, written as its parts come.
//!
//! In: parts of the request's outbox. Out: a response body: one `data:` line per piece, comments
//! while nothing comes, `[DONE]` at the end; after a failure an `error` object instead. When the
//! client goes away the body is dropped, which cancels the rows.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Bytes, Frame};
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::answer::{Chunk, Head, Usage};
use super::outbox::Part;
use super::prepare::Prepared;
use super::refusal::Refusal;
use super::ticket::Ticket;

/// A comment is sent after this long without a piece, so that nobody between server and client
/// takes the connection for dead.
const QUIET: Duration = Duration::from_secs(15);

/// How far a choice is.
#[derive(Debug, Clone, Default)]
struct Progress {
    began: bool,
    /// Characters of the tokens so far, which may come later than the text.
    characters: usize,
    echo: Option<String>,
}

/// See the file's comment.
pub(super) struct EventStream {
    ticket: Ticket,
    head: Head,
    include_usage: bool,
    choices: Vec<Progress>,
    open: usize,
    usage: Usage,
    /// Parts that came before the stream began.
    first: Vec<Part>,
    deadline: Pin<Box<Sleep>>,
    seconds: u64,
    quiet: Pin<Box<Sleep>>,
    is_over: bool,
}

impl EventStream {
    /// A stream that begins with the parts `first`.
    pub(super) fn new(
        prepared: Prepared,
        ticket: Ticket,
        first: Vec<Part>,
        deadline: Instant,
        seconds: u64,
    ) -> Self {
        let usage = Usage { prompt_tokens: prepared.prompt_tokens, ..Usage::default() };
        let progress = |echo| Progress { echo, ..Progress::default() };
        EventStream {
            ticket,
            head: prepared.head,
            include_usage: prepared.include_usage,
            open: prepared.rows.len(),
            choices: prepared.rows.into_iter().map(|row| progress(row.echo)).collect(),
            usage,
            first,
            deadline: Box::pin(sleep_until(deadline)),
            seconds,
            quiet: Box::pin(sleep(QUIET)),
            is_over: false,
        }
    }

    /// The events of some parts.
    fn events(&mut self, parts: Vec<Part>) -> String {
        let mut events = String::new();
        for part in parts {
            if self.is_over {
                break;
            }
            self.add(part, &mut events);
        }
        events
    }

    fn add(&mut self, part: Part, events: &mut String) {
        let (choice, text, tokens, reason) = match part {
            Part::Text { choice, text, tokens } => (choice, Some(text), tokens, None),
            Part::End { choice, reason, tokens, passes } => {
                self.usage.add(tokens, passes);
                self.open -= 1;
                (choice, None, Vec::new(), Some(reason))
            }
            Part::Failed(refusal) => return self.fail(&refusal, events),
        };
        let Some(progress) = self.choices.get_mut(choice) else { return };
        let mut chunk = Chunk {
            choice,
            text: None,
            tokens: &[],
            offset: progress.characters,
            reason: None,
            is_first: !progress.began,
        };
        let mut write = |chunk: Chunk<'_>| {
            events.push_str(&format!("data: {}\n\n", self.head.chunk(chunk, self.include_usage)));
        };
        if !progress.began {
            progress.began = true;
            let echo = progress.echo.take().unwrap_or_default();
            write(Chunk { text: Some(&echo), ..chunk });
            chunk.is_first = false;
        }
        write(Chunk { text: text.as_deref(), tokens: &tokens, reason, ..chunk });
        progress.characters += tokens.iter().map(|token| token.text.chars().count()).sum::<usize>();
        if self.open == 0 {
            if self.include_usage {
                events.push_str(&format!("data: {}\n\n", self.head.usage(self.usage)));
            }
            events.push_str("data: [DONE]\n\n");
            self.ticket.ends("ok");
            self.is_over = true;
        }
    }

    fn fail(&mut self, refusal: &Refusal, events: &mut String) {
        events.push_str(&format!("data: {}\n\n", refusal.body()));
        self.ticket.ends(refusal.code);
        self.is_over = true;
    }
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let stream = self.get_mut();
        let frame = |events: String| Poll::Ready(Some(Ok(Frame::data(Bytes::from(events)))));
        if stream.is_over {
            return Poll::Ready(None);
        }
        if stream.deadline.as_mut().poll(context).is_ready() {
            let mut events = String::new();
            stream.fail(&Refusal::too_slow(stream.seconds), &mut events);
            return frame(events);
        }
        let first = std::mem::take(&mut stream.first);
        let parts = match first.is_empty() {
            false => Poll::Ready(first),
            true => stream.ticket.outbox.poll_parts(context),
        };
        if let Poll::Ready(parts) = parts {
            stream.quiet.as_mut().reset(Instant::now() + QUIET);
            return frame(stream.events(parts));
        }
        if stream.quiet.as_mut().poll(context).is_ready() {
            stream.quiet.as_mut().reset(Instant::now() + QUIET);
            return frame(": nothing new yet\n\n".into());
        }
        Poll::Pending
    }
}
