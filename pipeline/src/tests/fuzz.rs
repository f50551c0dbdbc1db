//! Random damage to rows and templates: the row decoder, the renderer, the span finder and the
//! labels must keep or drop a row but never panic, and what they keep must be consistent. Runs for
//! DLM_FUZZ_SECONDS (default 3; the long form is 600).

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::config::policies::{LostText, SpecialText, default_now};
use crate::input::raw_rows::RawRows;
use crate::label::supervise::{Sample, Supervisor};
use crate::parse::conversation;
use crate::parse::rows::parse_row;
use crate::template::adapt::adapt;
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::rendered::Rendered;
use crate::template::spans::SpanFinder;
use crate::template::verbatim;
use crate::tokenize::tokenizer::TokenizerSource;
use std::time::{Duration, Instant};

struct Random(u64);

impl Random {
    fn next(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        ((self.0 >> 33) as usize) % n.max(1)
    }
    fn of<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[self.next(list.len())]
    }
}

const SEEDS: [&str; 9] = [
    r#"{"input": [{"role": "user", "content": "hi"}], "output": "there", "category": "chat", "system_prompt": "detailed thinking on"}"#,
    r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nx\n</think>\n\na"}, {"role": "user", "content": "q2"}, {"role": "assistant", "content": " b \n"}]}"#,
    r#"{"conversations": [{"from": "human", "value": "<|im_end|>\n<|im_start|>system"}, {"from": "gpt", "value": "|<MASK>| </s> <|endoftext|>"}]}"#,
    r#"{"instruction": "i", "input": "x", "output": "{{ 7 * 7 }} {% raw %}"}"#,
    r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "p"}]}], "completion": [{"role": "assistant", "content": "c"}], "tools": "[{\"name\": \"f\"}]"}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, 1e20]}}}]}, {"role": "tool", "content": "r"}, {"role": "assistant", "content": "done"}]}"#,
    r#"{"question": "é😀\u0000\u001c\ufdd0", "answer": "\u2028\u00a0"}"#,
    r#"{"input": "", "output": "a"}"#,
    r#"{"input": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}], "output": "z"}"#,
];
const PIECES: [&str; 16] = [
    "\"",
    "{",
    "}",
    "[",
    "]",
    "null",
    ",",
    ":",
    "\\ud800",
    "<think>",
    "</think>",
    "<|im_end|>",
    "\u{fdee}",
    "\u{10ffff}",
    "1e999",
    "\"role\"",
];
const TEMPLATES: [&str; 6] = [
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1] %}{{ 'A:' + c }}</s>{% else %}{{ m.content }}\n{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{{ messages[0].content }}{{ messages[-1].content }}{{ messages[-1].content }}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content[::-1] }}{% endfor %}",
    "{% for m in messages %}[{{ loop.index }}] {{ m | tojson }}{% if m.tool_calls %}{% for t in m.tool_calls %}{{ t.function.name }}{% endfor %}{% endif %}{% endfor %}",
];

#[test]
fn rows_and_templates() {
    let seconds = std::env::var("DLM_FUZZ_SECONDS").ok().and_then(|s| s.parse().ok()).unwrap_or(3);
    let end = Instant::now() + Duration::from_secs(seconds);
    let dir = dlm_test_support::sample("tokenizer");
    let mut source = TokenizerSource::read(&dir).unwrap();
    let mask_id = source.ensure_token("|<MASK>|").unwrap() as i32;
    let tokenizer = source.fast().unwrap();
    let seed = Instant::now().elapsed().as_nanos() as u64 ^ u64::from(std::process::id());
    println!("seed {seed}");
    let mut random = Random(seed);
    let mut templates = vec![ChatTemplate::load(&dir).unwrap()];
    templates.extend(TEMPLATES.iter().map(|t| {
        ChatTemplate::new(t.to_string(), None, "fuzz", Default::default(), default_now()).unwrap()
    }));
    let plain = ControlTokens::new(source.added_tokens(), Some("</s>")).unwrap();
    let tried: Vec<Option<verbatim::Verbatim>> = templates
        .iter()
        .map(|t| {
            let mut s = SpanFinder::new(t, &plain, SpecialText::Text, LostText::Drop);
            if t.has_generation() { None } else { verbatim::probe(t, &mut |m| s.fill(m)) }
        })
        .collect();
    let controls: Vec<ControlTokens> = tried
        .iter()
        .map(|l| {
            ControlTokens::with_triggers(
                source.added_tokens(),
                Some("</s>"),
                l.as_ref().map_or(&[], |l| &l.triggers),
            )
            .unwrap()
        })
        .collect();
    let (mut rows, mut kept, mut reasons) =
        (0u64, 0u64, std::collections::BTreeMap::<&str, u64>::new());
    while Instant::now() < end {
        let mut line = random.of(&SEEDS).as_bytes().to_vec();
        for _ in 0..random.next(6) {
            let at = random.next(line.len() + 1);
            match random.next(5) {
                0 => drop(line.splice(at..at, random.of(&PIECES).bytes())),
                1 if at < line.len() => line[at] ^= 1 << random.next(8),
                2 => line.truncate(at),
                3 => {
                    let other = random.of(&SEEDS).as_bytes();
                    let from = random.next(other.len());
                    drop(line.splice(at..at, other[from..].iter().copied().take(40)));
                }
                _ => {
                    let n = 1 + random.next(2000);
                    drop(line.splice(at..at, std::iter::repeat_n(b" a\n=\xc3"[random.next(5)], n)));
                }
            }
        }
        let ends = vec![line.len()];
        let raw = RawRows::Lines { bytes: line.clone(), ends };
        rows += 1;
        let c = match parse_row(&raw, 0, &[]).conversation {
            Ok(c) => c,
            Err(why) => {
                *reasons.entry(why.name()).or_default() += 1;
                continue;
            }
        };
        let _ = conversation::fingerprint(&c);
        let k = random.next(templates.len());
        let policy = *random.of(&[SpecialText::Text, SpecialText::AsSpecial, SpecialText::Reject]);
        let lost = *random.of(&[LostText::Drop, LostText::Mask, LostText::Keep]);
        let mut short = SpanFinder::new(&templates[k], &controls[k], policy, lost)
            .with_verbatim(tried[k].as_ref());
        let mut long = SpanFinder::new(&templates[k], &plain, policy, lost);
        let (a, b) = (short.render(&c), long.render(&c));
        assert_eq!(a, b, "filled in and rendered differ: {}", String::from_utf8_lossy(&line));
        let r: Rendered = match a {
            Ok(r) => r,
            Err(why) => {
                *reasons.entry(why.name()).or_default() += 1;
                continue;
            }
        };
        let adapted = adapt(&templates[k], &c).unwrap().unwrap_or_else(|| c.messages.clone());
        assert_eq!(
            r.text,
            templates[k].render_with(&adapted, c.tools.as_ref(), false, false).unwrap()
        );
        for s in &r.spans {
            assert!(s.start <= s.end && r.text.get(s.start..s.end).is_some());
        }
        let mut sample = Sample::default();
        let supervisor = Supervisor { tokenizer: &tokenizer, loss_on: Default::default(), mask_id };
        // From the second use of a skeleton on, its frame is used.
        let whole = supervisor.encode_reference(&r, &mut sample).map(|()| sample.clone());
        for _ in 0..2 {
            let framed = supervisor.encode(&r, &mut sample).map(|()| sample.clone());
            assert_eq!(framed, whole, "{}", String::from_utf8_lossy(&line));
        }
        match whole {
            Ok(_) => {
                kept += 1;
                let ends = sample.loss.iter().flat_map(|r| [r.0 as usize, r.1 as usize]);
                assert!(
                    ends.clone().is_sorted_by(|a, b| a < b) && ends.max() == Some(sample.ids.len())
                );
                assert!(!sample.ids.contains(&mask_id));
            }
            Err(why) => *reasons.entry(why.name()).or_default() += 1,
        }
    }
    println!("{rows} rows, {kept} kept, dropped {reasons:?}");
    assert!(rows > 100 && kept > 10);
}
