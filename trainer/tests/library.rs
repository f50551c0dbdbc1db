//! The library calls: converting gives what the command line gives, and the exported folder
//! validates and completes prompts.

mod common;

use std::fs;

use common::{MASK, VOCAB, dataset, ok, train, workplace};
use dlm_train::{
    Conversion, DatasetOptions, Error, GenerateOptions, Model, ModelOptions, Prompt, Reference,
    Resume, ValidationReport, convert, validate,
};

fn conversion(config: &str) -> Conversion {
    Conversion::new()
        .random_init(config)
        .token_budget(600)
        .set("export.dtype", "fp32")
        .device("cpu")
}

#[test]
fn a_model_is_converted_validated_and_completes_prompts() {
    let dir = workplace();
    let place = |name: &str| dir.path().join(name);
    ok(&mut train(dir.path(), "typed", &["export.dtype=fp32", "conversion.total_tokens=600"]));
    // what `train` types
    let settings = conversion(place("config.json").to_str().unwrap())
        .set("model.name", "t")
        .set("optim.lr", "3e-3")
        .set("train.batch_rows", "4")
        .with_override("train.eval_every=0");
    let converted = convert(&settings, place("data"), place("called")).unwrap();
    assert_eq!(converted.export, place("called"));
    assert!(converted.steps > 0 && converted.tokens >= 600 && converted.loss.is_some());
    let weights = |run: &str| fs::read(place(run).join("model.safetensors")).unwrap();
    assert!(weights("typed") == weights("called"), "the exported weights differ");

    let on_the_cpu = |data| DatasetOptions { device: "cpu".into(), ..DatasetOptions::new(data) };
    let report = validate(&converted.export, on_the_cpu(place("data"))).unwrap();
    let ValidationReport::Dataset(losses) = &report else { panic!("{report:?}") };
    assert!(report.ok() && losses.block_diffusion_loss.unwrap().is_finite());

    let options = ModelOptions { device: "cpu".into(), ..ModelOptions::default() };
    let mut model = Model::load(&converted.export, &options).unwrap();
    assert_eq!(model.device(), "cpu");
    let prompts = [Prompt::Ids(vec![2, 3, 4]), Prompt::Ids(vec![5])];
    let limit = GenerateOptions { max_new_tokens: 4, ..GenerateOptions::default() };
    let completions = model.generate(&prompts, &limit).unwrap();
    assert_eq!(completions[0].prompt_ids, [2, 3, 4]);
    for completion in &completions {
        assert!(!completion.ids.is_empty() && completion.ids.len() <= 4);
        assert!(completion.ids.iter().all(|id| *id != i64::from(MASK) && *id < VOCAB as i64));
        assert!(completion.tokens_per_forward() > 0.0);
    }
    let error = model.generate(&[Prompt::Ids(vec![VOCAB as i64])], &limit).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
}

#[test]
fn a_dataset_that_does_not_fit_is_refused() {
    let dir = workplace();
    let place = |name: &str| dir.path().join(name);
    ok(&mut train(dir.path(), "run", &["conversion.total_tokens=300"]));
    dataset(&place("other"), 4, MASK - 1, VOCAB);
    let against = Reference::from(DatasetOptions::new(place("other")));
    let error = validate(place("run"), against).unwrap_err();
    assert!(matches!(error, Error::Mismatch(_)), "{error:?}");
    assert!(error.to_string().contains("mask id"), "{error}");
}

#[test]
fn settings_are_checked_as_on_the_command_line() {
    let wrong = |conversion: Conversion| conversion.config_yaml().unwrap_err().to_string();
    let usual = || conversion("configs/model/sample.json");
    assert!(usual().config_yaml().is_ok());
    assert!(wrong(usual().set("optim.lrr", "1")).contains("optim.lr"));
    assert!(wrong(usual().set("optim.lr", "-1")).contains("above 0"));
    assert!(wrong(usual().group("model", "no_such_model")).contains("no choice"));
    // the later of two settings wins
    let yaml = usual().token_budget(7).config_yaml().unwrap();
    assert!(yaml.contains("total_tokens: 7"), "{yaml}");
    let dir = workplace();
    let settings = usual().resume(Resume::Must);
    let error = convert(&settings, dir.path().join("data"), dir.path().join("none")).unwrap_err();
    assert_eq!(error.exit_code(), 2, "{error}");
}

/// Runs an example that `cargo test` has built (`cargo test --test library` alone builds none);
/// returns its stdout.
fn example(name: &str, place: &std::path::Path, arguments: &[&str]) -> Option<String> {
    let test = std::env::current_exe().unwrap();
    let program = test.ancestors().nth(2).unwrap().join("examples").join(name);
    if !program.exists() {
        dlm_test_support::skip(&format!("{} is not built", program.display()));
        return None;
    }
    let done = std::process::Command::new(program)
        .args(arguments)
        .current_dir(place)
        .env("TMPDIR", place)
        .output()
        .unwrap();
    assert!(done.status.success(), "{name}: {}", String::from_utf8_lossy(&done.stderr));
    Some(String::from_utf8_lossy(&done.stdout).into_owned())
}

#[test]
fn the_examples_run_on_the_sample() {
    let dir = tempfile::tempdir().unwrap();
    let Some(converted) = example("convert", dir.path(), &[]) else { return };
    assert!(converted.contains("output/example fits"), "{converted}");
    let Some(answer) = example("generate", dir.path(), &["output/example", "name: Ada"]) else {
        return;
    };
    assert!(answer.contains("tokens per forward pass"), "{answer}");
}
