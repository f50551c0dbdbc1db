//! Charts as inline SVG: lines, dots and bars.
//!
//! In: points in data units. Out: an `<svg>` of 640 × 260 user units. Colours come from the page's
//! style sheet, by class. Long lines are reduced to a few points per pixel that keep every peak.

use crate::html::escape;
use std::fmt::Write;

/// A point (x, y) in data units. A line is interrupted where y is not finite.
pub type Point = (f64, f64);

const WIDTH: f64 = 640.0;
const HEIGHT: f64 = 260.0;
const LEFT: f64 = 58.0;
const RIGHT: f64 = 14.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 30.0;
/// Number of horizontal steps to which a long line is reduced.
const BUCKETS: usize = 560;

/// One axis: the range shown and whether it is logarithmic.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Axis {
    /// Lower end in data units.
    pub lo: f64,
    /// Upper end in data units.
    pub hi: f64,
    /// Whether the scale is logarithmic (base 10).
    pub log: bool,
}

impl Axis {
    /// The range from the smallest to the largest finite value, without margins.
    pub fn exact(values: impl Iterator<Item = f64>) -> Axis {
        let (lo, hi) = range(values);
        Axis { lo, hi: if hi > lo { hi } else { lo + 1.0 }, log: false }
    }

    /// A range that holds the values with some margin. With `zero` it starts at 0; with `log` it is
    /// logarithmic if the values are positive and span more than a factor of 30; with `cut`, a few
    /// values far above the others may fall outside.
    pub fn fit(values: &[f64], zero: bool, log: bool, cut: bool) -> Axis {
        let mut v: Vec<f64> = values.iter().copied().filter(|v| v.is_finite()).collect();
        v.sort_by(f64::total_cmp);
        let (Some(&lo), Some(&hi)) = (v.first(), v.last()) else {
            return Axis { lo: 0.0, hi: 1.0, log: false };
        };
        if log && lo > 0.0 && hi / lo > 30.0 {
            return Axis { lo: lo / 1.2, hi: hi * 1.2, log: true };
        }
        let lo = if zero { lo.min(0.0) } else { lo };
        let most = v[(v.len() - 1) * 98 / 100];
        let hi = if cut && v.len() > 50 && hi - lo > 4.0 * (most - lo) && most > lo {
            most + 0.25 * (most - lo)
        } else {
            hi
        };
        let room = if hi > lo { 0.06 * (hi - lo) } else { hi.abs().max(1e-12) * 0.1 };
        Axis { lo: if zero && lo >= 0.0 { 0.0 } else { lo - room }, hi: hi + room, log: false }
    }

    /// Position of a value on the axis: 0 at the lower end, 1 at the upper end.
    fn at(&self, v: f64) -> f64 {
        if self.log {
            (v.max(1e-300) / self.lo).log10() / (self.hi / self.lo).log10()
        } else {
            (v - self.lo) / (self.hi - self.lo)
        }
    }

    /// About `n` round values at which to draw tick marks.
    pub fn ticks(&self, n: usize) -> Vec<f64> {
        if self.log {
            let (first, last) = (self.lo.log10().floor() as i32, self.hi.log10().ceil() as i32);
            let steps: &[f64] = if last - first <= 3 { &[1.0, 2.0, 5.0] } else { &[1.0] };
            let every = ((last - first) as usize / n.max(1)).max(1);
            let decades = (first..=last)
                .step_by(every)
                .flat_map(|d| steps.iter().map(move |s| s * 10f64.powi(d)));
            return decades.filter(|v| (self.lo..=self.hi).contains(v)).collect();
        }
        let raw = (self.hi - self.lo) / n.max(1) as f64;
        let unit = 10f64.powf(raw.log10().floor());
        let step = [1.0, 2.0, 2.5, 5.0, 10.0]
            .into_iter()
            .map(|m| m * unit)
            .find(|s| *s >= raw * 0.999)
            .unwrap_or(raw);
        let first = (self.lo / step).ceil() as i64;
        (first..first + 4 * n as i64)
            .map(|i| i as f64 * step)
            .take_while(|v| *v <= self.hi + step * 1e-9)
            .collect()
    }
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let (lo, hi) = values
        .filter(|v| v.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(l, h), v| (l.min(v), h.max(v)));
    if lo.is_finite() { (lo, hi) } else { (0.0, 1.0) }
}

/// Keeps at most four points per bucket: the first, the lowest, the highest and the last.
fn reduce(points: &[Point], x: &Axis) -> Vec<Point> {
    if points.len() <= 2 * BUCKETS {
        return points.to_vec();
    }
    let bucket = |p: &Point| (x.at(p.0) * BUCKETS as f64) as i64;
    let mut out = Vec::with_capacity(4 * BUCKETS);
    for run in points.chunk_by(|a, b| bucket(a) == bucket(b)) {
        let finite = || run.iter().enumerate().filter(|(_, p)| p.1.is_finite());
        let by = |a: &(usize, &Point), b: &(usize, &Point)| a.1.1.total_cmp(&b.1.1);
        let mut keep = vec![0, run.len() - 1];
        keep.extend(finite().min_by(by).map(|(i, _)| i));
        keep.extend(finite().max_by(by).map(|(i, _)| i));
        keep.sort_unstable();
        keep.dedup();
        out.extend(keep.into_iter().map(|i| run[i]));
    }
    out
}

/// A chart under construction.
pub struct Chart {
    x: Axis,
    y: Axis,
    id: String,
    label: String,
    body: String,
}

impl Chart {
    /// Starts an empty chart. `id` must be unique on the page; `label` describes the chart for
    /// screen readers.
    pub fn new(id: &str, label: &str, x: Axis, y: Axis) -> Chart {
        Chart { x, y, id: id.into(), label: label.into(), body: String::new() }
    }

    fn px(&self, v: f64) -> f64 {
        LEFT + self.x.at(v) * (WIDTH - LEFT - RIGHT)
    }

    fn py(&self, v: f64) -> f64 {
        // Values far outside are clamped to just outside, where the clip path hides them.
        (HEIGHT - BOTTOM - self.y.at(v) * (HEIGHT - TOP - BOTTOM))
            .clamp(-2.0 * HEIGHT, 3.0 * HEIGHT)
    }

    /// Draws a line through `points`.
    pub fn line(&mut self, points: &[Point], class: &str) {
        let mut path = String::new();
        let mut pen = 'M';
        for (x, y) in reduce(points, &self.x) {
            if !y.is_finite() {
                pen = 'M';
                continue;
            }
            let _ = write!(path, "{pen}{:.1} {:.1}", self.px(x), self.py(y));
            pen = 'L';
        }
        if !path.is_empty() {
            let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    /// Draws a filled circle at each point, with a tooltip.
    pub fn dots(&mut self, points: &[Point], class: &str, say: impl Fn(&Point) -> String) {
        for p in points.iter().filter(|p| p.1.is_finite()) {
            let _ = writeln!(
                self.body,
                "<circle class=\"{class}\" cx=\"{:.1}\" cy=\"{:.1}\" r=\"3.2\"><title>{}</title></circle>",
                self.px(p.0),
                self.py(p.1),
                escape(&say(p))
            );
        }
    }

    /// Draws bars (from, to, value) that stand on the lower edge, with a tooltip for each. Values
    /// of 0 are left out.
    pub fn bars(
        &mut self,
        bars: &[(f64, f64, f64)],
        class: &str,
        say: impl Fn(&(f64, f64, f64)) -> String,
    ) {
        for bar in bars.iter().filter(|b| b.2 > 0.0) {
            // A small value is a line of its own thickness rather than nothing.
            let (left, right) = (self.px(bar.0), self.px(bar.1));
            let top = self.py(bar.2).min(HEIGHT - BOTTOM - 1.0);
            let gap = ((right - left) * 0.1).min(1.5);
            let _ = writeln!(
                self.body,
                "<rect class=\"{class}\" x=\"{:.1}\" y=\"{top:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}</title></rect>",
                left + gap / 2.0,
                right - left - gap,
                HEIGHT - BOTTOM - top,
                escape(&say(bar))
            );
        }
    }

    /// Draws tick marks on the lower edge, at most one per pixel.
    pub fn rug(&mut self, xs: impl Iterator<Item = f64>, class: &str) {
        let mut path = String::new();
        let mut last = f64::NEG_INFINITY;
        for x in xs.map(|x| self.px(x)) {
            if x - last >= 1.0 {
                let _ = write!(path, "M{x:.1} {:.1}v-8", HEIGHT - BOTTOM);
                last = x;
            }
        }
        if !path.is_empty() {
            let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    /// Draws triangles on the upper edge.
    pub fn flags(&mut self, xs: impl Iterator<Item = f64>, class: &str) {
        let mut path = String::new();
        for x in xs.map(|x| self.px(x)) {
            let _ = write!(path, "M{:.1} {TOP:.1}h9l-4.5 8z", x - 4.5);
        }
        if !path.is_empty() {
            let _ = writeln!(self.body, "<path class=\"{class}\" d=\"{path}\"/>");
        }
    }

    /// Returns the whole `<svg>` element. `x_text` and `y_text` format the tick labels.
    pub fn finish(self, x_text: impl Fn(f64) -> String, y_text: impl Fn(f64) -> String) -> String {
        let mut svg = format!(
            "<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\" aria-label=\"{}\"><defs><clipPath id=\"{}\"><rect x=\"{LEFT}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\"/></clipPath></defs>\n",
            escape(&self.label),
            self.id,
            TOP - 4.0,
            WIDTH - LEFT - RIGHT + 4.0,
            HEIGHT - TOP - BOTTOM + 4.0
        );
        for v in self.y.ticks(5) {
            let y = self.py(v);
            let _ = writeln!(
                svg,
                "<path class=\"grid\" d=\"M{LEFT} {y:.1}H{:.1}\"/><text class=\"tick\" text-anchor=\"end\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                WIDTH - RIGHT,
                LEFT - 7.0,
                y + 4.0,
                escape(&y_text(v))
            );
        }
        for v in self.x.ticks(6) {
            let x = self.px(v);
            let anchor = if x > WIDTH - RIGHT - 16.0 { "end" } else { "middle" };
            let _ = writeln!(
                svg,
                "<path class=\"axis\" d=\"M{x:.1} {:.1}v4\"/><text class=\"tick\" text-anchor=\"{anchor}\" x=\"{x:.1}\" y=\"{:.1}\">{}</text>",
                HEIGHT - BOTTOM,
                HEIGHT - BOTTOM + 18.0,
                escape(&x_text(v))
            );
        }
        let _ = writeln!(
            svg,
            "<path class=\"axis\" d=\"M{LEFT} {:.1}H{:.1}\"/>",
            HEIGHT - BOTTOM,
            WIDTH - RIGHT
        );
        let _ = write!(svg, "<g clip-path=\"url(#{})\">\n{}</g>\n</svg>", self.id, self.body);
        svg
    }
}

/// Formats a number with three digits and a unit: `12`, `3.4k`, `1.25M`, `2B`.
pub fn short(v: f64) -> String {
    if !v.is_finite() {
        return "–".into();
    }
    let (scale, unit) = match v.abs() {
        a if a >= 999.5e6 => (1e9, "B"),
        a if a >= 999.5e3 => (1e6, "M"),
        a if a >= 9_999.5 => (1e3, "k"),
        _ => (1.0, ""),
    };
    let s = v / scale;
    let digits = match s.abs() {
        a if a >= 100.0 || a == 0.0 => 0,
        a if a >= 10.0 => 1,
        a if a >= 1.0 => 2,
        a => (2 - a.log10().floor() as i32).clamp(0, 9) as usize,
    };
    let text = format!("{s:.digits$}");
    let text =
        if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.') } else { &text };
    format!("{text}{unit}")
}

/// Like [`short`], but values far below 1 in scientific notation: `2e-5`.
pub fn scientific(v: f64) -> String {
    if v == 0.0 || (0.01..10_000.0).contains(&v.abs()) {
        return short(v);
    }
    let text = format!("{v:.2e}");
    match text.split_once('e') {
        Some((m, e)) if m.contains('.') => {
            format!("{}e{e}", m.trim_end_matches('0').trim_end_matches('.'))
        }
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_as_people_write_them() {
        for (v, text) in [
            (0.0, "0"),
            (7.0, "7"),
            (2.5, "2.5"),
            (0.04, "0.04"),
            (9_500.0, "9500"),
            (12_340.0, "12.3k"),
            (999_900.0, "1M"),
            (1.25e6, "1.25M"),
            (3e9, "3B"),
        ] {
            assert_eq!(short(v), text);
        }
        assert_eq!(scientific(2e-5), "2e-5");
        assert_eq!(scientific(2.5e-4), "2.5e-4");
        assert_eq!(scientific(0.5), "0.5");
    }

    #[test]
    fn ticks_are_round_and_inside() {
        assert_eq!(
            Axis { lo: 0.0, hi: 10.0, log: false }.ticks(5),
            [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]
        );
        assert_eq!(
            Axis { lo: 0.3, hi: 40.0, log: true }.ticks(5),
            [0.5, 1.0, 2.0, 5.0, 10.0, 20.0]
        );
        for axis in [
            Axis::fit(&[3.0; 4], false, false, false),
            Axis::fit(&[], false, true, true),
            Axis::fit(&[f64::NAN, 1e-9], true, true, true),
        ] {
            let t = axis.ticks(5);
            assert!(
                !t.is_empty()
                    && t.len() <= 20
                    && t.iter().all(|v| *v >= axis.lo - 1e-9 && *v <= axis.hi + 1e-9),
                "{axis:?} {t:?}"
            );
        }
    }

    #[test]
    fn a_long_line_keeps_its_peaks() {
        let points: Vec<Point> = (0..100_000)
            .map(|i| {
                (
                    f64::from(i),
                    if i == 54_321 {
                        9.0
                    } else if i == 7 {
                        f64::NAN
                    } else {
                        1.0
                    },
                )
            })
            .collect();
        let x = Axis::exact(points.iter().map(|p| p.0));
        let less = reduce(&points, &x);
        assert!(less.len() <= 4 * BUCKETS + 4, "{}", less.len());
        assert!(less.contains(&(54_321.0, 9.0)));
        assert!(less.windows(2).all(|w| w[0].0 < w[1].0));
    }

    #[test]
    fn one_far_value_does_not_flatten_the_rest() {
        let mut v: Vec<f64> = (0..500).map(|i| 2.0 + f64::from(i % 10) / 10.0).collect();
        v[100] = 900.0;
        assert!(Axis::fit(&v, false, false, true).hi < 4.0);
        assert!(Axis::fit(&v, false, false, false).hi > 900.0);
        assert!(Axis::fit(&v[..20], false, false, true).hi < 4.0);
        assert!(Axis::fit(&v[95..105], false, false, true).hi > 900.0);
    }
}
