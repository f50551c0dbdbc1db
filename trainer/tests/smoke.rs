//! `wf smoke`: prepares, trains, exports and decodes here, and says which step failed.

use std::process::Command;

use dlm_test_support::{binaries, on_the_cpu};

#[test]
fn every_step_passes_here() {
    binaries::build().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let call = |more: &[&str]| {
        let mut command: Command = on_the_cpu(env!("CARGO_BIN_EXE_wf"));
        command.current_dir(dir.path()).args(["smoke", "--device", "cpu"]).args(more);
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code(), text(&output.stdout), text(&output.stderr))
    };
    let (code, shown, said) = call(&["--keep", "made"]);
    assert_eq!(code, Some(0), "{shown}{said}");
    for line in ["prepare: passed", "train and export: passed", "decode: passed", "smoke: passed"] {
        assert!(shown.contains(line), "{shown}");
    }
    assert!(dir.path().join("made/run/model.safetensors").is_file());
    // a step that fails is named, with what it said
    let (code, shown, said) = call(&["-s", "nowhere", "-m", "smollm2_135m"]);
    assert_eq!(code, Some(1), "{shown}{said}");
    assert!(shown.contains("prepare: FAILED") && shown.contains("smoke: FAILED"), "{shown}");
    assert!(said.contains("nowhere"), "{said}");
}
