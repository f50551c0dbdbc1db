//! A converted model stops: its export names every id that ends a completion, the source's and the
//! dataset's.

mod common;

use std::fs;

use common::{ok, train, workplace};
use serde_json::{Value, json};

#[test]
fn the_export_stops_at_the_ends_of_the_source_and_of_the_dataset() {
    let dir = workplace();
    ok(&mut train(dir.path(), "source", &["conversion.total_tokens=300"]));
    let edit = |name: &str, change: &dyn Fn(&mut Value)| {
        let path = dir.path().join("source").join(name);
        let mut value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        change(&mut value);
        fs::write(path, value.to_string()).unwrap();
    };
    let more = ["source.init=pretrained", "source.path=source", "conversion.total_tokens=300"];
    let exported = |out: &str, name: &str| -> Value {
        let path = dir.path().join(out).join(name);
        serde_json::from_slice::<Value>(&fs::read(path).unwrap()).unwrap()["eos_token_id"].clone()
    };
    // the dataset's end of turn is 1; the base model ended texts with 0
    edit("config.json", &|config| config["eos_token_id"] = json!(0));
    edit("generation_config.json", &|config| config["eos_token_id"] = json!([0, 5]));
    ok(&mut train(dir.path(), "both", &more));
    for name in ["config.json", "generation_config.json"] {
        assert_eq!(exported("both", name), json!([0, 5, 1]), "{name}");
    }
    edit("config.json", &|config| config["eos_token_id"] = Value::Null);
    edit("generation_config.json", &|config| *config = json!({"temperature": 0.7}));
    ok(&mut train(dir.path(), "one", &more));
    for name in ["config.json", "generation_config.json"] {
        assert_eq!(exported("one", name), json!(1), "{name}");
    }
}
