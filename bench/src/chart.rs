//! A result as one self-contained page: its table, and its curves and bars drawn as SVG, each of which
//! also stands alone as a file.

use std::fmt::Write as _;

const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 300.0;
const MARGIN: f64 = 60.0;
const COLOURS: [&str; 6] = [
    "#0b6e4f", "#c1440e", "#3b5b92", "#7a7a7a", "#8b5fbf", "#b8860b",
];

/// Curves over one axis.
#[derive(Debug, Clone)]
pub(crate) struct Plot {
    pub title: String,
    pub x: String,
    pub y: String,
    /// A name and its points.
    pub curves: Vec<(String, Vec<(f64, f64)>)>,
}

/// Bars by name.
#[derive(Debug, Clone)]
pub(crate) struct Bars {
    pub title: String,
    pub unit: String,
    pub bars: Vec<(String, f64)>,
}

/// The whole page.
pub(crate) fn page(title: &str, text: &str, plots: &[Plot], bars: &[Bars]) -> String {
    let mut html = format!(
        "{HEAD}<title>{0}</title></head><body><h1>{0}</h1>",
        escape(title)
    );
    for bars in bars {
        write!(html, "<h2>{}</h2>{}", escape(&bars.title), bars.svg()).expect("a String takes all");
    }
    for plot in plots {
        write!(html, "<h2>{}</h2>{}", escape(&plot.title), plot.svg()).expect("a String takes all");
    }
    writeln!(html, "<pre>{}</pre></body></html>", escape(text)).expect("a String takes all");
    html
}

impl Bars {
    pub(crate) fn svg(&self) -> String {
        const ROW: f64 = 26.0;
        const LABEL: f64 = 230.0;
        let most = self.bars.iter().map(|bar| bar.1).fold(1e-9, f64::max);
        let height = ROW * self.bars.len() as f64;
        let mut svg = open(height);
        for (k, (name, value)) in self.bars.iter().enumerate() {
            let y = ROW * k as f64;
            let width = (WIDTH - LABEL - 150.0) * value / most;
            write!(
                svg,
                "<text x=\"0\" y=\"{0:.1}\">{1}</text><rect x=\"{LABEL}\" y=\"{2:.1}\" width=\"{width:.1}\" height=\"18\" fill=\"{3}\"/><text x=\"{4:.1}\" y=\"{0:.1}\">{5} {6}</text>",
                y + 17.0,
                escape(name),
                y + 3.0,
                COLOURS[0],
                LABEL + width + 8.0,
                short(*value),
                escape(&self.unit)
            )
            .expect("a String takes all");
        }
        svg.push_str("</svg>");
        svg
    }
}

impl Plot {
    pub(crate) fn svg(&self) -> String {
        let points = || self.curves.iter().flat_map(|curve| &curve.1);
        let low_x = points().map(|point| point.0).fold(f64::INFINITY, f64::min);
        let high_x = points()
            .map(|point| point.0)
            .fold(f64::NEG_INFINITY, f64::max);
        let high_y = points().map(|point| point.1).fold(1e-9, f64::max);
        if !low_x.is_finite() {
            return "<p>No points.</p>".into();
        }
        let x = |value: f64| {
            MARGIN + (value - low_x) / (high_x - low_x).max(1e-9) * (WIDTH - 2.0 * MARGIN)
        };
        let y = |value: f64| HEIGHT - MARGIN - value / high_y * (HEIGHT - 1.5 * MARGIN);
        let mut svg = open(HEIGHT);
        for step in 0..=4 {
            let share = f64::from(step) / 4.0;
            let (at_x, at_y) = (low_x + (high_x - low_x) * share, high_y * share);
            write!(
                svg,
                "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{1:.1}\" y2=\"{1:.1}\" stroke=\"#eee\"/><text x=\"4\" y=\"{1:.1}\">{2}</text><text x=\"{3:.1}\" y=\"{4:.1}\">{5}</text>",
                WIDTH - MARGIN,
                y(at_y),
                short(at_y),
                x(at_x) - 8.0,
                HEIGHT - MARGIN + 18.0,
                short(at_x)
            )
            .expect("a String takes all");
        }
        for (k, (name, points)) in self.curves.iter().enumerate() {
            let colour = COLOURS[k % COLOURS.len()];
            let line: Vec<String> = points
                .iter()
                .map(|point| format!("{:.1},{:.1}", x(point.0), y(point.1)))
                .collect();
            write!(
                svg,
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/><text x=\"{:.1}\" y=\"14\" style=\"fill:{colour}\">{}</text>",
                line.join(" "),
                MARGIN + 210.0 * k as f64,
                escape(name)
            )
            .expect("a String takes all");
            for point in points {
                write!(
                    svg,
                    "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"3\" fill=\"{colour}\"><title>{}, {}</title></circle>",
                    x(point.0),
                    y(point.1),
                    short(point.0),
                    short(point.1)
                )
                .expect("a String takes all");
            }
        }
        write!(
            svg,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}; vertical: {}</text></svg>",
            MARGIN,
            HEIGHT - 8.0,
            escape(&self.x),
            escape(&self.y)
        )
        .expect("a String takes all");
        svg
    }
}

/// The root of a drawing, on white, since it may be shown on any page.
fn open(height: f64) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" role=\"img\" \
         font-family=\"system-ui,sans-serif\" font-size=\"12\" fill=\"#555\">\
         <rect width=\"{WIDTH}\" height=\"{height}\" fill=\"#fff\"/>"
    )
}

/// A number to about three digits.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 100.0 => {
            let digits = format!("{value:.0}");
            let (sign, digits) = match digits.strip_prefix('-') {
                Some(digits) => ("-", digits),
                None => ("", digits.as_str()),
            };
            let groups: Vec<&str> = digits
                .as_bytes()
                .rchunks(3)
                .rev()
                .map(|group| std::str::from_utf8(group).expect("digits are ASCII"))
                .collect();
            format!("{sign}{}", groups.join(","))
        }
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 0.1 || size == 0.0 => format!("{value:.2}"),
        _ => format!("{value:.4}"),
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const HEAD: &str = r#"<!doctype html><html lang="en"><head><meta charset="utf-8">
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
pre{background:#f6f6f6;padding:1em;overflow-x:auto;font-size:12px}
svg{width:100%}
</style>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short_and_grouped() {
        assert_eq!(short(1_234_567.4), "1,234,567");
        assert_eq!(short(-1200.0), "-1,200");
        assert_eq!(short(123.4), "123");
        assert_eq!(short(12.34), "12.3");
        assert_eq!(short(0.0), "0.00");
        assert_eq!(short(0.0123), "0.0123");
    }

    #[test]
    fn a_page_draws_every_point_and_escapes_names() {
        let plot = Plot {
            title: "t".into(),
            x: "x".into(),
            y: "y".into(),
            curves: vec![("<a>".into(), vec![(0.0, 1.0), (1.0, 2.0)])],
        };
        let html = page("title", "| a |", &[plot], &[]);
        assert_eq!(html.matches("<circle").count(), 2);
        assert_eq!(html.matches("xmlns").count(), 1);
        assert!(html.contains("&lt;a&gt;") && !html.contains("<a>"));
    }
}
