//! Texts on which the tokenizer engines are compared.
//!
//! In: the inputs and the template. Out: rendered texts of the first rows of up to eight files, and
//! texts on which engines have differed before.

use crate::config::settings::Settings;
use crate::input::source::Input;
use crate::parse::rows::RowParser;
use crate::template::budget::Account;
use crate::template::chat::ChatTemplate;
use crate::template::control::ControlTokens;
use crate::template::limits::RENDERS_PER_ROW;
use crate::template::spans::SpanFinder;

/// Number of texts from the inputs.
const SAMPLE_TEXTS: usize = 128;
/// Bytes of these texts in all.
const SAMPLE_BYTES: usize = 96 << 10;
/// Texts on which engines have differed before.
const KNOWN_DIFFERENCES: [&str; 8] = [
    "  leading,\ttabs\r\nand\u{a0}spaces   \n\n\n  x",
    "naïve café e\u{301} Å ﬁ 你好 नमस्ते مرحبا 👩🏽\u{200d}🚀 \u{202e}rtl",
    "it's we'll I'M 'Tis don''t",
    "1234567890 3.14 1,000,000 ⅷ ²",
    "\u{0}\u{4}\u{6}\u{13}\u{14}\u{16}\u{1d}\u{7f}\u{85}\u{feff}",
    "def f(x):\n    return {'a': [x**2 for _ in range(10)]}\n\n\n# ====",
    "<|im_start|>user\n<|im_end|><|endoftext|><|eot_id|></s>|<MASK>|<think>\n</think>",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa                                        =========",
];

/// The texts. Of files that have to be downloaded only the first is waited for; what cannot be read
/// is skipped here, because the run itself reports it.
pub(crate) fn engine_sample(
    inputs: &[Input],
    template: &ChatTemplate,
    control: &ControlTokens,
    settings: &Settings,
) -> Vec<String> {
    let mut out: Vec<String> = KNOWN_DIFFERENCES.iter().map(|t| t.to_string()).collect();
    let mut spans = SpanFinder::new(template, control, settings.special_text, settings.lost_text);
    let step = inputs.len().div_ceil(8).max(1);
    let each = SAMPLE_TEXTS / inputs.len().clamp(1, 8);
    let mut bytes = 0;
    let available =
        inputs.iter().enumerate().filter(|(k, i)| *k == 0 || i.remote.is_none()).map(|(_, i)| i);
    for input in available.step_by(step) {
        let Some(Ok(batch)) = input.open(0).ok().and_then(|mut b| b.next()) else {
            continue;
        };
        let rows = RowParser::new(&batch, &input.columns);
        for i in 0..batch.len().min(each) {
            let Ok(c) = rows.parse(i, Vec::new()).conversation else {
                continue;
            };
            let _account = Account::open(RENDERS_PER_ROW);
            let Ok(r) = spans.render(&c) else { continue };
            if bytes + r.text.len() <= SAMPLE_BYTES {
                bytes += r.text.len();
                out.push(r.text);
            }
        }
    }
    out
}
