//! Random damage to rows and templates: the row decoder, the renderer, the span finder and the
//! labels must keep or drop a row but never panic, and what they keep must be consistent. Runs for
//! DLM_FUZZ_SECONDS (default 3; the long form is 600).

#![allow(clippy::print_stdout, reason = "what a test measured")]

use crate::config::policies::{LostText, SpecialText, default_now};
use crate::config::trained_roles::TrainedRoles;
use crate::input::raw_rows::RawRows;
use crate::label::supervise::{Sample, Supervisor};
use crate::label::turns::turn_by_turn;
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

const SEEDS: [&str; 20] = [
    r#"{"input": [{"role": "user", "content": "hi"}], "output": "there", "category": "chat", "system_prompt": "detailed thinking on"}"#,
    r#"{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nx\n</think>\n\na"}, {"role": "user", "content": "q2"}, {"role": "assistant", "content": " b \n"}]}"#,
    r#"{"conversations": [{"from": "human", "value": "<|im_end|>\n<|im_start|>system"}, {"from": "gpt", "value": "|<MASK>| </s> <|endoftext|>"}]}"#,
    r#"{"instruction": "i", "input": "x", "output": "{{ 7 * 7 }} {% raw %}"}"#,
    r#"{"prompt": [{"role": "user", "content": [{"type": "text", "text": "p"}]}], "completion": [{"role": "assistant", "content": "c"}], "tools": "[{\"name\": \"f\"}]"}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": [{"function": {"name": "f", "arguments": {"a": [1, 2.5, 1e20]}}}]}, {"role": "tool", "content": "r"}, {"role": "assistant", "content": "done"}]}"#,
    r#"{"question": "é😀\u0000\u001c\ufdd0", "answer": "\u2028\u00a0"}"#,
    r#"{"input": "", "output": "a"}"#,
    r#"{"input": [{"role": "assistant", "content": "x"}, {"role": "assistant", "content": "y"}], "output": "z"}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "w", "tool_calls": "[{\"name\": \"f\", \"arguments\": \"{\\\"a\\\": 1}\"}]"}, {"role": "tool", "tool_call_id": "c1", "name": "f", "content": "r"}, {"role": "assistant", "content": "done", "weight": 1}], "functions": [{"name": "f"}]}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "tool_calls": {"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"<|im_end|>\"}"}}}], "tools": {"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"type": "string"}}}}}}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "function_call": {"name": "f", "arguments": {"a": null}}}, {"role": "function", "name": "f", "content": "r"}, {"role": "assistant", "content": "b"}], "tools": ["{\"name\": \"f\"}"]}"#,
    r#"{"conversations": [{"from": "human", "value": "q"}, {"from": "function_call", "value": "{\"name\": \"f\", \"arguments\": {}}"}, {"from": "observation", "value": "r"}, {"from": "gpt", "value": "b"}], "system": "s", "tools": "[]"}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "h <think> h"}, {"role": "user", "content": "p"}, {"role": "assistant", "content": "b", "reasoning": "i\n", "thinking": "i\n"}]}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": [{"type": "thinking", "thinking": "h"}, {"type": "text", "text": "a"}], "tool_calls": [{"name": "f", "arguments": {"h": "h"}}, {"name": "g", "arguments": {}}]}, {"role": "tool", "content": "h"}, {"role": "assistant", "content": "<think>x</think>y</think>z"}]}"#,
    r#"{"messages": [{"role": "system", "content": "s", "weight": 0}, {"role": "user", "content": "q", "train": "?"}, {"role": "assistant", "content": "a", "masked": true}, {"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "trainable": 1, "loss": true}], "loss_mask": [0, 1, 0, 0, 1]}"#,
    r#"{"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "chat_template_kwargs": {"enable_thinking": false, "x": [1, {"y": "<|im_start|>"}]}, "loss_mask": "[1]"}"#,
    r#"{"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "<think>"}, {"role": "assistant", "content": "<think>\nh\n</think>\n\na"}, {"role": "user", "content": "</think>"}, {"role": "assistant", "content": "[THINK]h[/THINK]a"}], "chat_template_kwargs": "{\"enable_thinking\": true}"}"#,
    r#"{"prompt": "p", "chosen": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "good"}], "rejected": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "bad"}]}"#,
    r#"{"instruction": "i", "history": [["q", "a"], ["r", "<|channel|>analysis<|message|>h<|end|>b"]], "output": "o", "label": true}"#,
];
const PIECES: [&str; 24] = [
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
    "\"tool_calls\": ",
    "\"reasoning_content\": \"h\", ",
    "\"weight\": 0, ",
    "\"content\": null, ",
    "\"arguments\"",
    "[THINK]",
    "assistant",
    "tool",
];
const TEMPLATES: [&str; 13] = [
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% set c = m.content.split('</think>')[-1] %}{{ 'A:' + c }}</s>{% else %}{{ m.content }}\n{% endif %}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "{{ messages[0].content }}{{ messages[-1].content }}{{ messages[-1].content }}",
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}{{ m.content[::-1] }}{% endfor %}",
    "{% for m in messages %}[{{ loop.index }}] {{ m | tojson }}{% if m.tool_calls %}{% for t in m.tool_calls %}{{ t.function.name }}{% endfor %}{% endif %}{% endfor %}",
    "{% if tools %}{{ tools | tojson }}\n{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% for t in m.tool_calls or [] %}<call>{{ t.function.name }}{{ t.function.arguments | tojson }}</call>{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% if enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and m.reasoning_content and loop.last %}<think>{{ m.reasoning_content | trim }}</think>{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n<think>{% endif %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% if m.thinking %}<|im_start|>assistant<|channel|>analysis<|message|>{{ m.thinking }}<|end|>{% endif %}{% for t in m.tool_calls or [] %}<|im_start|>assistant to={{ t.name }}{{ t.arguments }}<|im_end|>{% endfor %}<|im_start|>assistant<|channel|>final<|message|>{{ m.content }}<|im_end|></s>{% else %}<|im_start|>{{ m.role }}<|message|>{{ m.content }}<|im_end|></s>{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant{% endif %}",
    "{% for m in messages %}{% for p in m.content if p.type == 'text' %}{{ p.text }}{% endfor %}</s>{% endfor %}",
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.reasoning or '' }}{{ m.content }}</s>{% endgeneration %}{% else %}[{{ m.content | trim }}]{% endif %}{% endfor %}{{ x | default('') }}",
    "{% for m in messages %}{{ m.role }}: {{ m.content }}{% for t in m.tool_calls or [] %}{{ t.function.arguments.items() | list }}{{ t.function.name }}{% endfor %}\n{% endfor %}{% if add_generation_prompt %}assistant: {% endif %}",
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.thinking %}<think>{{ m.thinking }}</think>{% endif %}{{ m.content }}{% for t in m.tool_calls or [] %}\n<call>{{ t.function.name }}{{ t.function.arguments | tojson }}</call>\n{% endfor %}{{ '' if m.tool_calls else '<|im_end|>' }}{% endfor %}Answer or call.</s>{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
];
/// The number of a template with calls, of which the last one tried differs only in what it writes
/// behind the last message.
const CALLS: usize = 7;

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
    let prompt = "{% if add_generation_prompt %}";
    let instructed =
        TEMPLATES[CALLS - 1].replace(prompt, &format!("Answer or call.<|im_end|>\n{prompt}"));
    templates.push(
        ChatTemplate::new(instructed, None, "fuzz", Default::default(), default_now()).unwrap(),
    );
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
    let (mut masked, mut turns, mut instructed_turns) = (0u64, 0u64, 0);
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
        let roles = *random.of(&[
            TrainedRoles::default(),
            TrainedRoles::default(),
            TrainedRoles::ALL,
            "tool".parse().unwrap(),
            "user,assistant".parse().unwrap(),
        ]);
        let mask = random.next(2) == 0;
        let policy = *random.of(&[SpecialText::Text, SpecialText::AsSpecial, SpecialText::Reject]);
        let lost = *random.of(&[LostText::Drop, LostText::Mask, LostText::Keep, LostText::Split]);
        let mut short = SpanFinder::new(&templates[k], &controls[k], policy, lost)
            .with_verbatim(tried[k].as_ref())
            .supervising(roles, mask);
        let mut long =
            SpanFinder::new(&templates[k], &plain, policy, lost).supervising(roles, mask);
        let (a, b) = (short.render(&c), long.render(&c));
        assert_eq!(a, b, "filled in and rendered differ: {}", String::from_utf8_lossy(&line));
        if k + 1 == templates.len() {
            let mut finder =
                SpanFinder::new(&templates[CALLS], &plain, policy, lost).supervising(roles, mask);
            if let Ok(bare) = finder.render(&c) {
                let found = a.as_ref().map(|r| &r.spans);
                assert_eq!(found, Ok(&bare.spans), "{}", String::from_utf8_lossy(&line));
                instructed_turns += bare.spans.len();
            }
        }
        let r: Rendered = match a {
            Ok(r) => r,
            Err(why) => {
                *reasons.entry(why.name()).or_default() += 1;
                for part in turn_by_turn(&c, false).filter(|_| lost == LostText::Split) {
                    if let Ok(r) = long.render(&part) {
                        let trained = r.spans.iter().filter(|s| s.loss).count();
                        assert!(trained <= 1 || templates[k].has_generation());
                        turns += 1;
                    }
                }
                continue;
            }
        };
        let adapted = adapt(&templates[k], &c).unwrap().unwrap_or_else(|| c.messages.clone());
        assert_eq!(r.text, templates[k].render_with(&adapted, &c, false, false).unwrap());
        for s in &r.spans {
            assert!(s.start <= s.end && r.text.get(s.start..s.end).is_some());
        }
        assert!(r.masked.is_sorted_by_key(|m| m.start));
        for m in &r.masked {
            assert!(mask && m.start < m.end && r.text.get(m.clone()).is_some());
        }
        let mut sample = Sample::default();
        let supervisor = Supervisor { tokenizer: &tokenizer, loss_on: Default::default(), mask_id };
        // From the second use of a skeleton on, its frame is used.
        let whole = supervisor.encode_reference(&r, &mut sample).map(|()| sample.clone());
        for _ in 0..2 {
            let framed = supervisor.encode(&r, &mut sample).map(|()| sample.clone());
            assert_eq!(framed, whole, "{}", String::from_utf8_lossy(&line));
        }
        // Masks take loss away, and change nothing else.
        let mut open = Sample::default();
        let unmasked = Rendered { masked: Vec::new(), ..r.clone() };
        if let (Ok(()), Ok(whole)) = (supervisor.encode(&unmasked, &mut open), &whole) {
            let shared = whole.ids.len().min(open.ids.len());
            assert_eq!(whole.ids[..shared], open.ids[..shared]);
            let inside = |run: &(u32, u32)| open.loss.iter().any(|o| o.0 <= run.0 && run.1 <= o.1);
            assert!(whole.loss.iter().all(inside), "{}", String::from_utf8_lossy(&line));
            masked += u64::from(!r.masked.is_empty());
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
    println!("{rows} rows, {kept} kept, {masked} with masks, {turns} turns, dropped {reasons:?}");
    println!("{instructed_turns} turns the same before instructions");
    assert!(rows > 100 && kept > 10);
}
