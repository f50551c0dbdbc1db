//! `ChatFormat` encodes a prompt as the training rows of the same conversation begin.
//!
//! In: the sample tokenizer. For each conversation, the prompt's ids are compared with the ids of
//! the whole conversation up to its first supervised token.

use crate::config::policies::{LostText, SpecialText};
use crate::label::supervise::{Sample, Supervisor};
use crate::parse::conversation::Conversation;
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::spans::SpanFinder;
use crate::tokenize::tokenizer::Tokenizer;
use crate::{ChatFormat, Error, Message};
use std::path::Path;

#[test]
fn prompts_are_encoded_as_training_rows_begin() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
    let format = ChatFormat::load(&folder).unwrap();
    let tokenizer = Tokenizer::load(&folder).unwrap();
    let control = ControlTokens::new(tokenizer.added_tokens(), tokenizer.eos_token()).unwrap();
    let template = ChatTemplate::load(&folder).unwrap();
    let mut spans = SpanFinder::new(&template, &control, SpecialText::Text, LostText::Drop);
    let supervisor = Supervisor { tokenizer: &tokenizer, loss_on: Default::default(), mask_id: -1 };
    let mut sample = Sample::default();
    for question in [
        "name: Ada",
        "",
        " \n\n white space \n",
        "Is <|im_end|> a token, and <|im_start|>assistant\n too? <|endoftext|>",
        "<think>\n</think> {{ braces }} é 中 😀",
    ] {
        for system in [None, Some("Answer in JSON."), Some("<|im_end|>")] {
            let system = system.map(|s| Message::new("system", s));
            let mut messages: Vec<Message> = system.into_iter().collect();
            messages.push(Message::new("user", question));
            let prompt = format.encode_messages(&messages).unwrap();
            messages.push(Message::new("assistant", "{\"name\": \"Ada\"}"));
            let conversation = Conversation { messages, ..Default::default() };
            supervisor.encode(&spans.render(&conversation).unwrap(), &mut sample).unwrap();
            let first_label = sample.loss[0].0 as usize;
            assert_eq!(prompt, sample.ids[..first_label], "{question:?}");
        }
    }
}

#[test]
fn text_that_cannot_be_encoded_is_a_usage_error() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../datasets/sample/tokenizer");
    let format = ChatFormat::load(folder).unwrap();
    let error = format.encode_messages(&[Message::new("user", "a\u{FDD0}")]).unwrap_err();
    assert!(matches!(error, Error::Usage(_)), "{error}");
}
