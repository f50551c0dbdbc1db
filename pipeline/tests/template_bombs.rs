//! Chat templates that would take the stack, the memory or the clock: each is refused by name, in a
//! process that has 640 MB of addresses and 20 seconds of a processor.

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Mutex;

/// Renders one short conversation.
fn render(template: &str, folder: &Path, k: usize) -> Output {
    let (file, input) = (folder.join(format!("{k}.jinja")), folder.join("one.jsonl"));
    std::fs::write(&file, template).unwrap();
    let limited = "ulimit -v 655360; ulimit -t 20; ulimit -c 0; exec \"$@\"";
    Command::new("sh")
        .args(["-c", limited, "sh", env!("CARGO_BIN_EXE_dlm-prep"), "render", "--template"])
        .arg(file)
        .arg("--input")
        .arg(input)
        .output()
        .unwrap()
}

/// Expressions whose result grows with N.
const GROWING: [&str; 35] = [
    "1.5|round(N)",
    "'{:.{}f}'.format(1.5, N)",
    "'%.*f' % (N, 1.5)",
    "'%*d' % (N, 1)",
    "'%(a)Nd' % {'a': 1}",
    "'a' * N",
    "[1] * N",
    "(1, 2) * N",
    "'%Nd' % 1",
    "'%.Nf' % 1",
    "'%Nd'|format(1)",
    "'{:N}'.format(1)",
    "'{:.Nf}'.format(1.5)",
    "'a'.center(N)",
    "'a'.ljust(N)",
    "'a'.rjust(N, 'é')",
    "'1'.zfill(N)",
    "'\\t'.expandtabs(N)",
    "'a'|center(N)",
    "'a\\nb'|indent(N)",
    "'a\\nb'|indent(width='x' * N)",
    "[1, [2]]|tojson(indent=N)",
    "[1, 2]|tojson(separators=('x' * N, ':'))",
    "range(N)|list|length",
    "range(N)|join('xxxxxxxxxxxxxxxx')",
    "range(100)|join('x' * N)",
    "range(10)|batch(N, 'x')|list|length",
    "range(10)|slice(N)|list|length",
    "range(N)|map('string')|join",
    "range(N)|sort|first",
    "'abc'.replace('', 'x' * N)",
    "('a b ' * N)|wordwrap(1, wrapstring='xxxxxxxx')|length",
    "('a' * N).split('a')|length",
    "strftime_now('%Y' * N)",
    "('a' * N)|pprint|length",
];

/// Parts that nest, or form a chain, when they are repeated: the start of the template, what is
/// repeated, the middle, what is repeated behind it, and the end.
const NESTED: [[&str; 5]; 24] = [
    ["{{ ", "(", "1", ")", " }}"],
    ["{{ ", "[", "1", "]", " }}"],
    ["{{ ", "{'a': ", "1", "}", " }}"],
    ["{{ ", "not ", "1", "", " }}"],
    ["{{ ", "- ", "1", "", " }}"],
    ["{{ 1", " if 1 else 1", "", "", " }}"],
    ["{{ 'a'", "|lower", "", "", " }}"],
    ["{{ a", ".a", "", "", " }}"],
    ["{{ a", "[0]", "", "", " }}"],
    ["{{ a", "()", "", "", " }}"],
    ["{{ 1", " + 1", "", "", " }}"],
    ["{{ 1", " ~ 1", "", "", " }}"],
    ["{{ 1", " ** 1", "", "", " }}"],
    ["{{ 1", " == 1", "", "", " }}"],
    ["{{ 1", " and 1", "", "", " }}"],
    ["{{ 'a'", " in 'a'", "", "", " }}"],
    ["{{ 1", " is defined", "", "", " }}"],
    ["", "{% if 1 %}", "x", "{% endif %}", ""],
    ["{% if 0 %}", "{% elif 0 %}", "x", "", "{% endif %}"],
    ["", "{% for x in [1] %}", "x", "{% endfor %}", ""],
    ["", "{% with %}", "x", "{% endwith %}", ""],
    ["", "{% filter upper %}", "x", "{% endfilter %}", ""],
    ["", "{% set x %}", "x", "{% endset %}", ""],
    ["", "{% macro m() %}", "x", "{% endmacro %}", ""],
];

/// Programs that grow; every one is refused.
const PROGRAMS: [&str; 27] = [
    "{{ range(10)|batch(1000000000, 'x') }}",
    "{% set ns = namespace(x='aaaaaaaaaaaaaaaa') %}{% for i in range(40) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}done",
    "{% macro m(n) %}{% if n > 0 %}{{ m(n-1) }}{{ m(n-1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "{% set x = 'a' * 1000000 %}{% set y = x * 10 %}{% set z = y~y~y~y~y~y~y~y~y~y %}{% set w = z~z~z~z~z~z~z~z~z~z %}{{ w|length }}",
    "{% set ns = namespace(a=[1], b=[1]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% set ns.b = [ns.b] %}{% endfor %}{{ ns.a == ns.b }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(100000) %}{% set ns.a = [ns.a] %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(100000) %}{% set ns.a = {'a': ns.a} %}{% endfor %}{{ ns.a|tojson }}",
    "{% set ns = namespace(a=(1,)) %}{% for i in range(100000) %}{% set ns.a = (ns.a, 1) %}{% endfor %}{{ ns.a|string }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(100000) %}{% set ns.a = dict(a=ns.a) %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(100000) %}{% set ns.a = ns.a|batch(1)|list %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(100000) %}{% set ns.a = [ns.a]|list %}{% endfor %}{{ {ns.a: 1} }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = [ns.a, ns.a] %}{% endfor %}{{ ns.a|tojson|length }}",
    "{% set ns = namespace(a=[1]) %}{% for i in range(60) %}{% set ns.a = ns.a + ns.a %}{% endfor %}{{ ns.a|length }}",
    "{% set ns = namespace(a=range(9)) %}{% for i in range(1000000) %}{% set ns.a = ns.a[1:] + ns.a[:1] %}{% endfor %}{{ ns.a }}",
    "{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}",
    "{% set ns = namespace() %}{% set ns.x = [ns] %}{{ ns.x }}",
    "{% set ns = namespace() %}{% set ns.x = {'a': ns} %}{{ ns.x|tojson }}",
    "{% set a = namespace() %}{% set b = namespace(a=a) %}{% set a.b = b %}{{ a }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{% macro m(f) %}{{ f(f) }}{% endmacro %}{{ m(m) }}",
    "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
    "{% set x = 'é' * 20000000 %}{{ x|upper }}{{ x|lower }}{{ x|urlencode }}{{ x|tojson(ensure_ascii=true) }}",
    "{% for i in range(1000) %}{{ 'a' * 10000000 }}{% endfor %}",
    "{{ raise_exception('a' * 50000000) }}",
    "{% for i in range(100000) %}{% if messages == messages ~ i %}{% endif %}{{ (range(1000)|list) == (range(1000)|list) }}{% endfor %}",
    "{{ [['a' * 1000000] * 1000] * 1000 }}",
];

#[test]
fn bombs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let one = "{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}\n";
    std::fs::write(dir.path().join("one.jsonl"), one).unwrap();
    // A template, and whether it must be refused.
    let mut cases: Vec<(String, bool)> = Vec::new();
    for expression in GROWING {
        for n in ["1000", "1000000", "1000000000", "1000000000000", "9223372036854775807"] {
            cases.push((format!("{{{{ {} }}}}", expression.replace('N', n)), false));
        }
    }
    for [start, before, middle, behind, end] in NESTED {
        for k in [40, 300, 3_000, 30_000] {
            let (before, behind) = (before.repeat(k), behind.repeat(k));
            cases.push((format!("{start}{before}{middle}{behind}{end}"), false));
        }
    }
    cases.extend(PROGRAMS.map(|p| (p.to_string(), true)));
    cases.push((" ".repeat(2 << 20), true));
    let count = cases.len();
    assert!(count > 250, "{count}");
    let (queue, failures) = (Mutex::new(cases.into_iter().enumerate()), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some((k, (template, refused))) = queue.lock().unwrap().next() else {
                        break;
                    };
                    let done = render(&template, dir.path(), k);
                    let said = String::from_utf8_lossy(&done.stdout)
                        + String::from_utf8_lossy(&done.stderr);
                    let named = said.contains("refused: ") || said.contains("error: ");
                    if done.status.code().is_none_or(|code| code > 2)
                        || said.contains("panicked")
                        || refused && !named
                    {
                        let template: String = template.chars().take(150).collect();
                        let said: String = said.chars().take(200).collect();
                        failures.lock().unwrap().push((template, done.status, said));
                    }
                }
            });
        }
    });
    let failures = failures.into_inner().unwrap();
    assert!(failures.is_empty(), "{} of {count}: {failures:#?}", failures.len());
}

/// A run says at once that a template has no end, instead of dropping every row after long work.
#[test]
fn a_template_without_end_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let template = dir.path().join("t.jinja");
    let endless =
        "{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}";
    std::fs::write(&template, endless).unwrap();
    let done = Command::new(env!("CARGO_BIN_EXE_dlm-prep"))
        .arg("--input")
        .arg(dlm_test_support::sample("train.parquet"))
        .arg("--tokenizer")
        .arg(dlm_test_support::sample("tokenizer"))
        .arg("--template")
        .arg(&template)
        .arg("--out")
        .arg(dir.path().join("out"))
        .args(["--engine", "fast"])
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert_eq!(done.status.code(), Some(1), "{said}");
    assert!(said.contains("t.jinja") && said.contains("more steps than are allowed"), "{said}");
}
