//! `dlm-train plot` on metrics written here: complete files, a line truncated by a crash, several
//! runs, files that are not metrics.

mod families;

use std::fmt::Write;
use std::path::Path;

use families::dlm_train;

/// `n` steps: a falling loss, a spike that was skipped, clipped steps, evaluations.
fn metrics(dir: &Path, n: u64, offset: f64) -> String {
    let mut text = String::new();
    for step in 1..=n {
        let at = step as f64 / n as f64;
        let spike = step == n / 2;
        let calm = 2.0 + offset + 5.0 * (-6.0 * at).exp();
        let loss = calm
            + 0.4 * ((step * 7919 % 101) as f64 / 101.0 - 0.5)
            + if spike { 30.0 } else { 0.0 };
        let norm = 0.6 + 3.0 * (-9.0 * at).exp() + (step * 31 % 17) as f64 / 20.0;
        let eval = if step % (n / 10) == 0 {
            format!(",\"eval_loss\":{}", calm + 0.15)
        } else {
            String::new()
        };
        let skipped = if spike { ",\"skipped\":true" } else { "" };
        let _ = writeln!(
            text,
            "{{\"step\":{step},\"tokens\":{},\"loss\":{loss},\"lr\":{},\"grad_norm\":{norm},\"clip\":{},\"counted\":900,\"processed\":4000,\"tok_s\":{},\"seconds\":0.5,\"data_wait\":{},\"rss_mib\":{}{skipped}{eval}}}",
            step * 1000,
            2e-5 * (at / 0.03).min(1.0),
            if norm > 1.4 { 1.4 / norm } else { 1.0 },
            2000 + step * 37 % 150,
            0.001 + (step % 50 == 0) as u8 as f64 * 0.02,
            1500 + step / 20,
        );
    }
    std::fs::create_dir_all(dir).unwrap();
    std::fs::write(dir.join("metrics.jsonl"), &text).unwrap();
    text
}

/// Every tag is closed in order, and the page loads nothing from a network.
fn check_page(html: &str) {
    for outside in ["http://", "https://", "src=", "href=", "@import", "<script", "NaN", "inf\""] {
        assert!(
            !html.contains(outside),
            "{outside} in the page: {}",
            &html[html.find(outside).unwrap().saturating_sub(120)..][..200]
        );
    }
    let mut open: Vec<&str> = Vec::new();
    let body = &html[html.find("<body>").unwrap()..];
    for tag in body.split('<').skip(1).map(|t| t.split('>').next().unwrap()) {
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name), "</{name}> closes another tag"),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split_whitespace().next().unwrap()),
        }
    }
    // <html> was opened before <body>.
    assert!(open.is_empty() || open == ["body"], "{open:?}");
    assert!(html.contains("prefers-color-scheme: dark"));
}

#[test]
fn a_run_is_drawn_whole_although_its_last_line_is_cut() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("runs/first <run>");
    let text = metrics(&run, 600, 0.0);
    std::fs::write(run.join("metrics.jsonl"), &text[..text.len() - 40]).unwrap();
    let ran = dlm_train(&["plot", run.to_str().unwrap()]).ok().unwrap();
    assert!(ran.stderr.contains("1 of its lines"), "{}", ran.stderr);
    let out = run.join("report.html");
    assert_eq!(ran.stdout.trim(), out.to_str().unwrap());
    let html = std::fs::read_to_string(&out).unwrap();
    check_page(&html.replace("</body></html>", "</body>"));
    assert_eq!(html.matches("<svg").count(), 6);
    assert!(html.contains("first &lt;run&gt;") && !html.contains("<run>"));
    for text in [
        "<b>599</b><span>steps",
        "<b>599k</b><span>source tokens",
        "1 (0.2 %)</b><span>skipped",
        "1 above the axis",
        "skipped as a spike",
        "clipped",
        "evaluation",
    ] {
        assert!(html.contains(text), "no {text:?} in the page");
    }
    // The median of 2000 + (37 step mod 150) over the run: hours per billion tokens at 2,070 tokens
    // per second.
    assert!(
        html.contains("<b>134</b><span>hours per 1 B tokens"),
        "{}",
        &html[html.find("hours per").unwrap() - 60..][..80]
    );
    if let Some(keep) = std::env::var_os("DLM_KEEP_PLOT") {
        std::fs::copy(&out, Path::new(&keep).join("one.html")).unwrap();
    }
}

#[test]
fn what_evaluations_say_beside_the_loss_is_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let run = dir.path().join("run");
    let record = |step: u64, rest: &str| {
        format!(
            "{{\"step\":{step},\"tokens\":{step}000,\"loss\":2.0,\"counted\":200,\"sure\":50{rest}}}\n"
        )
    };
    let evaluated = |right: u64, passes: u64| {
        let position = format!("[[{right},40],[0,0],[0,40]]");
        let share = "[[0,0],[0,0],[0,0],[0,0],[30,40],[0,0],[0,0],[0,0],[0,0],[0,0],[0,40]]";
        format!(
            ",\"eval_loss\":1.5,\"eval_acceptance\":{{\"share\":{},\"right\":{right},\"hidden\":80,\"by_position\":{position},\"by_hidden_share\":{share}}},\"eval_decode\":{{\"tokens_per_forward\":{},\"tokens\":60,\"passes\":{passes},\"completions\":2,\"threshold\":0.9,\"sub_block_size\":8}}",
            right as f64 / 80.0,
            60.0 / passes as f64
        )
    };
    std::fs::create_dir_all(&run).unwrap();
    let lines = [
        record(1, ""),
        record(2, &evaluated(10, 60)),
        record(3, ""),
        // run again after a resume: the later record counts
        record(4, &evaluated(39, 7)),
        record(4, &evaluated(20, 24)),
    ];
    std::fs::write(run.join("metrics.jsonl"), lines.concat()).unwrap();
    dlm_train(&["plot", run.to_str().unwrap()]).ok().unwrap();
    let html = std::fs::read_to_string(run.join("report.html")).unwrap();
    check_page(&html.replace("</body></html>", "</body>"));
    for text in [
        "<b>25.0 % of 80</b><span>acceptance, last",
        "<b>2.50</b><span>tokens per forward at 0.9, last",
        "run: 25.00 %, 20 of 80 at 4",
        "run: 2.50, 60 tokens in 24 passes at 4",
        "step 4: 50.0 %, 20 of 40 at 0",
        "step 2: 25.0 %, 10 of 40 at 0",
        "step 4: 0.0 %, 0 of 40 at 2",
        "step 4: 75.0 %, 30 of 40 at 35",
        "Right token above 0.9",
    ] {
        assert!(html.contains(text), "no {text:?} in the page");
    }
    for absent in ["39 of", "in 7 passes", "0 of 0"] {
        assert!(!html.contains(absent), "{absent:?} in the page");
    }
    if let Some(keep) = std::env::var_os("DLM_KEEP_PLOT") {
        std::fs::copy(run.join("report.html"), Path::new(&keep).join("held_out.html")).unwrap();
    }
}

#[test]
fn several_runs_share_the_charts() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b, page) = (dir.path().join("a"), dir.path().join("b"), dir.path().join("both.html"));
    metrics(&a, 400, 0.0);
    metrics(&b, 3000, 0.7);
    // Runs of the same name are distinguished by their paths.
    let c = dir.path().join("c/a");
    metrics(&c, 20, 0.0);
    dlm_train(&["plot", a.to_str().unwrap(), c.to_str().unwrap(), "--out", page.to_str().unwrap()])
        .ok()
        .unwrap();
    assert!(std::fs::read_to_string(&page).unwrap().contains(c.to_str().unwrap()));
    dlm_train(&[
        "plot",
        a.to_str().unwrap(),
        b.join("metrics.jsonl").to_str().unwrap(),
        "--x",
        "tokens",
        "--out",
        page.to_str().unwrap(),
    ])
    .ok()
    .unwrap();
    let html = std::fs::read_to_string(&page).unwrap();
    check_page(&html.replace("</body></html>", "</body>"));
    assert_eq!(html.matches("class=\"main k0\"").count(), 6);
    assert_eq!(html.matches("class=\"main k1\"").count(), 6);
    assert!(html.contains("<td>400</td>") && html.contains("<td>3000</td>"));
    if let Some(keep) = std::env::var_os("DLM_KEEP_PLOT") {
        std::fs::copy(&page, Path::new(&keep).join("two.html")).unwrap();
    }
}

#[test]
fn what_is_not_a_run_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dlm_train(&["plot", dir.path().to_str().unwrap()]);
    assert_eq!(missing.code, Some(1), "{}", missing.stderr);
    assert!(missing.stderr.contains("metrics.jsonl"), "{}", missing.stderr);
    for (content, said) in
        [("", "none of its 0 lines"), ("{\"a\": 1}\n\u{0}\u{1}\nno\n", "none of its 3 lines")]
    {
        std::fs::write(dir.path().join("metrics.jsonl"), content).unwrap();
        let ran = dlm_train(&["plot", dir.path().to_str().unwrap()]);
        assert_eq!(ran.code, Some(1));
        assert!(ran.stderr.contains(said), "{}", ran.stderr);
    }
    // One step whose loss was NaN or infinite.
    std::fs::write(dir.path().join("metrics.jsonl"), "{\"step\": 1, \"loss\": null}\n").unwrap();
    dlm_train(&["plot", dir.path().to_str().unwrap()]).ok().unwrap();
    let many = [dir.path().to_str().unwrap(); 7];
    assert_eq!(dlm_train(&[&["plot"], &many[..]].concat()).code, Some(2));
}
