//! What a request may hold: malformed bodies, wrong types and fields that cannot be honoured are
//! refused by name in OpenAI's form; other unknown fields change nothing.

use serde_json::{Value, json};

use super::support::{CHAT, COMPLETIONS, Client, Running, ask, chat, settings, with};

#[test]
fn bodies_that_are_no_requests_are_refused() {
    let server = Running::start(settings());
    for body in ["", "{", "[]", "3", "\"text\"", "null", "{\"messages\": }", "\u{0}", "{}{}"] {
        for path in [CHAT, COMPLETIONS] {
            let mut client = Client::new(server.address);
            client.post(path, body, "");
            let reply = client.reply();
            assert_eq!((reply.status, reply.code().as_str()), (400, "invalid_value"), "{body:?}");
            assert_eq!(reply.json()["error"]["param"], "body", "{body:?}");
        }
    }
    let mut client = Client::new(server.address);
    client.post(CHAT, &"[".repeat(100_000), "");
    assert_eq!(client.reply().status, 400);
    let mut client = Client::new(server.address);
    client.send(b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: 3\r\n\r\n\"\xff\"");
    assert_eq!(client.reply().status, 400);
}

#[test]
fn every_wrong_value_is_refused_by_the_name_of_its_field() {
    let server = Running::start(settings());
    let wrong = |path: &str, base: &Value, field: &str, value: Value| {
        let reply = ask(server.address, path, &with(base.clone(), json!({field: value})));
        let error = reply.json()["error"].clone();
        assert_eq!(reply.status, 400, "{field} {value}: {error}");
        assert_eq!(error["param"], field, "{field} {value}: {error}");
        error["code"].as_str().unwrap().to_string()
    };
    let (talk, text) = (chat("hello"), json!({"prompt": "hello"}));
    for (field, value) in [
        ("max_tokens", json!(0)),
        ("max_tokens", json!(-1)),
        ("max_tokens", json!(1.5)),
        ("max_tokens", json!("7")),
        ("max_tokens", json!(5000)),
        ("max_tokens", json!(510)),
        ("max_tokens", json!(1e300)),
        ("temperature", json!(-0.1)),
        ("temperature", json!(2.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(0)),
        ("top_p", json!(1.1)),
        ("top_k", json!(-2)),
        ("seed", json!("x")),
        ("seed", json!(1.5)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("stream", json!("yes")),
        ("stream_options", json!({"include_usage": true})),
        ("stop", json!([""])),
        ("stop", json!("")),
        ("stop", json!(3)),
        ("stop", json!([3])),
        ("stop", json!(vec!["x"; 17])),
        ("stop_token_ids", json!([1000])),
        ("stop_token_ids", json!("x")),
        ("mode", json!("fast")),
        ("threshold", json!(1.5)),
        ("sub_block_size", json!(3)),
        ("sub_block_size", json!(0)),
        ("model", json!(3)),
        ("chat_template_kwargs", json!([])),
        ("chat_template_kwargs", json!({"messages": []})),
    ] {
        for (path, base) in [(CHAT, &talk), (COMPLETIONS, &text)] {
            assert_ne!(wrong(path, base, field, value.clone()), "unsupported_parameter");
        }
    }
    for value in [json!([]), json!({}), json!([[]]), json!([1, "x"]), json!(["x", 1]), json!(3)] {
        wrong(COMPLETIONS, &text, "prompt", value);
    }
    wrong(COMPLETIONS, &text, "prompt", Value::Null);
    wrong(COMPLETIONS, &text, "prompt", json!([400]));
    wrong(COMPLETIONS, &text, "prompt", json!((0..600).map(|_| 3).collect::<Vec<i64>>()));
    wrong(COMPLETIONS, &text, "logprobs", json!("x"));
    for value in [
        Value::Null,
        json!([]),
        json!("hello"),
        json!([{"role": "narrator", "content": "x"}]),
        json!([{"role": "user"}]),
        json!([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]),
    ] {
        wrong(CHAT, &talk, "messages", value);
    }
    wrong(CHAT, &talk, "tools", json!([3]));
    wrong(CHAT, &with(talk.clone(), json!({"max_completion_tokens": 5})), "max_tokens", json!(6));
    wrong(CHAT, &with(talk.clone(), json!({"mode": "ar"})), "threshold", json!(0.5));
    let reply = ask(server.address, CHAT, &with(talk, json!({"model": "gpt-4"})));
    assert_eq!((reply.status, reply.code().as_str()), (404, "model_not_found"));
}

#[test]
fn fields_that_cannot_be_honoured_are_refused_and_others_ignored() {
    let server = Running::start(settings());
    let (talk, text) = (chat("hello"), json!({"prompt": "hello"}));
    for (field, value) in [
        ("presence_penalty", json!(0.5)),
        ("frequency_penalty", json!(-1)),
        ("repetition_penalty", json!(1.1)),
        ("logit_bias", json!({"5": -100})),
        ("best_of", json!(2)),
        ("response_format", json!({"type": "json_object"})),
        ("response_format", json!({"type": "json_schema", "json_schema": {}})),
        ("functions", json!([{"name": "f"}])),
        ("suffix", json!("end")),
        ("use_beam_search", json!(true)),
        ("reasoning_effort", json!("high")),
        ("guided_regex", json!("a+")),
    ] {
        for (path, base) in [(CHAT, &talk), (COMPLETIONS, &text)] {
            let reply = ask(server.address, path, &with(base.clone(), json!({field: value})));
            let code = reply.code();
            assert_eq!((reply.status, code.as_str()), (400, "unsupported_parameter"), "{field}");
            assert_eq!(reply.json()["error"]["param"], field);
        }
    }
    for (path, base, field, value) in [
        (CHAT, &talk, "tool_choice", json!("required")),
        (CHAT, &talk, "tool_choice", json!({"type": "function", "function": {"name": "f"}})),
        (CHAT, &talk, "top_logprobs", json!(2)),
        (CHAT, &talk, "echo", json!(true)),
        (COMPLETIONS, &text, "logprobs", json!(5)),
        (COMPLETIONS, &with(text.clone(), json!({"logprobs": 0})), "echo", json!(true)),
    ] {
        let reply = ask(server.address, path, &with(base.clone(), json!({field: value})));
        assert_eq!(reply.code(), "unsupported_parameter", "{field} {value}");
        assert_eq!(reply.json()["error"]["param"], field);
    }
    let plain = ask(server.address, CHAT, &talk).json()["choices"].clone();
    let harmless = json!({
        "presence_penalty": 0, "frequency_penalty": 0.0, "logit_bias": {}, "best_of": 1,
        "response_format": {"type": "text"}, "tool_choice": "auto", "tools": null, "user": "u",
        "metadata": {"a": "b"}, "store": true, "service_tier": "auto", "modalities": ["text"],
        "n": 1.0, "stop": null, "logprobs": false, "no_such_field": [1], "model": "tiny",
        "temperature": 0, "top_p": 1, "seed": -5, "parallel_tool_calls": true
    });
    assert_eq!(ask(server.address, CHAT, &with(talk, harmless)).json()["choices"], plain);
}

#[test]
fn prompts_may_be_texts_or_ids_one_or_several() {
    let server = Running::start(settings());
    let texts = |prompt: Value, more: Value| {
        let body = with(json!({"prompt": prompt, "max_tokens": 6}), more);
        let reply = ask(server.address, COMPLETIONS, &body).json();
        let choices = reply["choices"].as_array().unwrap_or_else(|| panic!("{reply}"));
        let places: Vec<u64> = choices.iter().map(|c| c["index"].as_u64().unwrap()).collect();
        assert_eq!(places, (0..choices.len() as u64).collect::<Vec<_>>());
        choices.iter().map(|c| c["text"].as_str().unwrap().to_string()).collect::<Vec<_>>()
    };
    let (_dir, files) = super::support::folder();
    let ids = files.codec().unwrap().encode_raw(&crate::generate::Prompt::Text("a name".into()));
    let ids = ids.unwrap();
    let one = texts(json!("a name"), json!({}));
    let other = texts(json!("the map"), json!({}));
    assert_ne!(one, other);
    assert_eq!(texts(json!(ids), json!({})), one);
    assert_eq!(texts(json!([ids]), json!({})), one);
    assert_eq!(texts(json!(["a name", "the map"]), json!({})), [&one[..], &other[..]].concat());
    assert_eq!(
        texts(json!(["the map", "a name"]), json!({"n": 2})),
        [&other[..], &other[..], &one[..], &one[..]].concat()
    );
    for prompt in [json!("a name"), json!(ids)] {
        assert_eq!(texts(prompt, json!({"echo": true})), [format!("a name{}", one[0])]);
    }
}

#[test]
fn tools_and_parts_reach_the_template() {
    let server = Running::start(settings());
    let tokens = |body: Value| {
        let reply = ask(server.address, CHAT, &body).json();
        reply["usage"]["prompt_tokens"].as_u64().unwrap_or_else(|| panic!("{reply}"))
    };
    let plain = tokens(chat("one two"));
    let parts = json!([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}]);
    assert_eq!(tokens(json!({"messages": [{"role": "user", "content": parts}]})), plain);
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let turns = json!([
        {"role": "user", "content": "one two"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "three"},
    ]);
    assert!(tokens(json!({"messages": turns})) > plain);
}

#[test]
fn a_stream_tells_what_the_whole_answer_is() {
    let server = Running::start(settings());
    for (path, base) in [(CHAT, chat("hello")), (COMPLETIONS, json!({"prompt": "hello", "n": 2}))] {
        let logprobs = if path == CHAT { json!(true) } else { json!(0) };
        let base = with(base, json!({"logprobs": logprobs, "max_tokens": 11}));
        let whole = ask(server.address, path, &base).json();
        let more = json!({"stream": true, "stream_options": {"include_usage": true}});
        let reply = ask(server.address, path, &with(base, more));
        assert_eq!(reply.header("content-type"), Some("text/event-stream"));
        assert!(reply.text().ends_with("data: [DONE]\n\n"));
        let events = reply.events();
        let (last, chunks) = events.split_last().unwrap();
        assert_eq!(last["usage"], whole["usage"]);
        assert_eq!(last["choices"], json!([]));
        for choice in whole["choices"].as_array().unwrap() {
            let own: Vec<&Value> = chunks
                .iter()
                .map(|chunk| &chunk["choices"][0])
                .filter(|own| own["index"] == choice["index"])
                .collect();
            let (text, tokens) = if path == CHAT {
                assert_eq!(own[0]["delta"]["role"], "assistant");
                let text = own.iter().filter_map(|c| c["delta"]["content"].as_str());
                assert_eq!(text.collect::<String>(), choice["message"]["content"]);
                (&choice["message"]["content"], "content")
            } else {
                let text = own.iter().filter_map(|c| c["text"].as_str());
                assert_eq!(text.collect::<String>(), choice["text"]);
                (&choice["text"], "tokens")
            };
            let told =
                |own: &Value| own["logprobs"][tokens].as_array().cloned().unwrap_or_default();
            let all: Vec<Value> = own.iter().flat_map(|own| told(own)).collect();
            assert_eq!(Value::from(all.clone()), choice["logprobs"][tokens]);
            assert_eq!(all.len(), 11);
            let pieces = all.iter().map(|token| match path {
                CHAT => {
                    assert!((token["logprob"].as_f64().unwrap() + 2f64.ln()).abs() < 1e-6);
                    token["token"].as_str().unwrap()
                }
                _ => token.as_str().unwrap(),
            });
            assert_eq!(&Value::from(pieces.collect::<String>()), text);
            assert_eq!(own.last().unwrap()["finish_reason"], "length");
            assert_eq!(choice["finish_reason"], "length");
            assert!(own[..own.len() - 1].iter().all(|own| own["finish_reason"].is_null()));
        }
    }
}
