//! A request gets exactly the tokens that it gets alone, whatever else the model decodes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::super::schedule::ModelRows;
use super::super::{Server, Settings};
use super::support::{CHAT, COMPLETIONS, Controls, Running, ask, config, settings};
use crate::compute::{ComputePlan, device};
use crate::decode::Engine;
use crate::generate::{DecodeMode, GenerateOptions, Prompt};
use crate::model::decoder::Decoder;
use crate::model::{ModelConfig, Params, load};

/// A tiny model with random weights.
fn engine() -> Engine {
    let compute = ComputePlan::new(device::cpu(), None);
    let config = ModelConfig::from_json(config()).unwrap();
    let params = Params::new(&config);
    let host = load::random_host(&config, &params, 5);
    let weights = load::upload(host, &params, &compute.device.device);
    Engine::new(Decoder::new(config), weights, compute).unwrap()
}

fn server(slots: usize) -> Running {
    let load = move |_: &Server| Ok(ModelRows::new(engine(), slots, 600));
    Running::with(Settings { slots, ..settings() }, Arc::new(Controls::default()), load)
}

/// Requests of all kinds.
fn requests() -> Vec<(&'static str, Value)> {
    let words = ["a name of a town", "the map", "it is on a map of the town", "x"];
    (0..32)
        .map(|i| {
            let text = format!("{} {i} {}", words[i % 4], words[i % 3].repeat(i % 7));
            let mut body = json!({"max_tokens": 1 + (i * 5) % 37});
            if i % 3 == 0 {
                body["mode"] = json!("ar");
            } else if i % 3 == 1 {
                body["threshold"] = json!([0.05, 0.3, 0.9][i % 9 / 3]);
                body["sub_block_size"] = json!([4, 8][i % 2]);
            }
            if i % 4 == 1 {
                body["temperature"] = json!(0.9);
                body["top_p"] = json!([0.8, 1.0][i % 8 / 4]);
                body["seed"] = json!(i);
            }
            if i % 5 == 0 {
                body["stop"] = json!([["e", "zz"], ["a", "\n"]][i % 2]);
            }
            if i % 2 == 0 {
                body["prompt"] = json!(text);
                body["logprobs"] = json!(0);
                (COMPLETIONS, body)
            } else {
                body["messages"] = json!([{"role": "user", "content": text}]);
                body["logprobs"] = json!(true);
                (CHAT, body)
            }
        })
        .collect()
}

#[test]
fn thirty_two_at_once_get_what_each_gets_alone() {
    let alone = server(1);
    let expected: Vec<Value> = requests()
        .iter()
        .map(|(path, body)| {
            let reply = ask(alone.address, path, body).json();
            assert!(reply["choices"].is_array(), "{reply}");
            json!([reply["choices"], reply["usage"]])
        })
        .collect();
    let together = server(6);
    let address = together.address;
    let asked: Vec<_> = requests()
        .into_iter()
        .map(|(path, body)| std::thread::spawn(move || ask(address, path, &body).json()))
        .collect();
    let mut distinct = std::collections::BTreeSet::new();
    for (i, (asked, expected)) in asked.into_iter().zip(expected).enumerate() {
        let reply = asked.join().unwrap();
        assert_eq!(json!([reply["choices"], reply["usage"]]), expected, "request {i}");
        distinct.insert(expected.to_string());
    }
    assert!(distinct.len() > 25, "only {} distinct answers", distinct.len());
}

/// The tokens are those of `dlm-train generate`, cut at the limit.
#[test]
fn an_answer_is_what_the_library_decodes() {
    let server = server(3);
    let (_dir, files) = super::support::folder();
    let codec = files.codec().unwrap().clone();
    let mut engine = engine();
    for mode in [DecodeMode::Block, DecodeMode::Ar] {
        for (text, limit) in [("a name of a town", 16), ("x", 8), ("the map of", 13), ("it", 1)] {
            let options = GenerateOptions {
                mode,
                raw: true,
                max_new_tokens: 64,
                ..GenerateOptions::default()
            };
            let prompt = files.encode(&[Prompt::Text(text.into())], &options).unwrap().remove(0);
            let request = crate::decode::Request { prompt, ..files.request(&options).unwrap() };
            let mut generated = Vec::new();
            crate::decode::decode_list(&mut engine, 1, vec![request], |told| {
                if let crate::decode::Event::Finished { sequence, .. } = told.event {
                    generated = sequence.generated().to_vec();
                }
                Ok(true)
            })
            .unwrap();
            generated.truncate(limit);
            let name = if mode == DecodeMode::Ar { "ar" } else { "block" };
            let body = json!({"prompt": text, "max_tokens": limit, "mode": name});
            let reply = ask(server.address, COMPLETIONS, &body).json();
            assert_eq!(reply["choices"][0]["text"], json!(codec.decode(&generated).unwrap()));
            assert_eq!(reply["usage"]["completion_tokens"], json!(generated.len()), "{text}");
        }
    }
}

/// Choices of one request have seeds of their own, which follow each other, and a seed fixes an
/// answer.
#[test]
fn a_seed_fixes_the_answer_and_every_choice_has_its_own() {
    let server = server(3);
    let texts = |seed: i64, n: u64, more: Value| {
        let body = json!({"prompt": "the map of", "max_tokens": 24, "n": n, "seed": seed});
        let body = super::support::with(body, more);
        let reply = ask(server.address, COMPLETIONS, &body).json();
        let choices = reply["choices"].as_array().unwrap_or_else(|| panic!("{reply}"));
        choices.iter().map(|c| c["text"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    for mode in ["ar", "block"] {
        let warm = |seed, n| texts(seed, n, json!({"mode": mode, "temperature": 1.5}));
        let three = warm(7, 3);
        assert_eq!(three, [warm(7, 1), warm(8, 1), warm(9, 1)].concat(), "{mode}");
        assert!(three[0] != three[1] && three[1] != three[2], "{three:?}");
        assert_eq!(warm(7, 3), three);
        // top_p without a temperature draws at temperature 1; without both nothing is drawn
        let drawn = texts(7, 1, json!({"mode": mode, "top_p": 0.99}));
        assert_eq!(drawn, texts(7, 1, json!({"mode": mode, "top_p": 0.99, "temperature": 1})));
        let greedy = texts(7, 2, json!({"mode": mode}));
        assert_eq!(greedy[0], greedy[1]);
        assert_eq!(greedy[..1], texts(8, 1, json!({"mode": mode, "temperature": 0, "top_p": 0.5})));
    }
}
