//! `report.html`: the demo's report as one self-contained page with plots drawn as SVG.

use std::fmt::Write as _;

use chrono::DateTime;

use crate::report::{ByPolicy, POLICIES, Report, Row, by_policy};
use crate::score::Quality;

const WEEK_MS: i64 = 7 * 86_400_000;
const COLOURS: [&str; 3] = ["#0b6e4f", "#c1440e", "#7a7a7a"];
const WIDTH: f64 = 920.0;
const HEIGHT: f64 = 260.0;
const MARGIN: f64 = 46.0;

/// Something that happened at a moment, marked in the plots.
#[derive(Debug, Clone)]
pub(crate) struct Mark {
    pub at_ms: i64,
    pub kind: MarkKind,
    pub text: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MarkKind {
    Trigger,
    Swap,
}

/// The population stability index of one feature over time: `(at_ms, psi)`.
#[derive(Debug, Clone)]
pub(crate) struct Drift {
    pub feature: String,
    pub psi: Vec<(i64, f64)>,
}

/// One number of a policy's quality.
type Figure = fn(&Quality) -> f64;

/// The whole page.
pub(crate) fn page(report: &Report, rows: &[Row], marks: &[Mark], drift: &[Drift]) -> String {
    let weeks = weekly(rows);
    let mut html = String::with_capacity(200_000);
    html.push_str(HEAD);
    write!(
        html,
        "<p>{} predictions asked at scheduled departure, scored when the outcome was known. \
         Commit <code>{}</code>, seed {}, on {}.</p>",
        rows.len(),
        escape(&report.commit),
        report.seed,
        escape(&report.machine)
    )
    .expect("a String takes all");
    write!(html, "<pre>{}</pre>", escape(&report.table())).expect("a String takes all");
    let legend = POLICIES
        .iter()
        .zip(COLOURS)
        .map(|(name, colour)| format!("<b style=\"color:{colour}\">{name}</b>"))
        .collect::<Vec<_>>()
        .join(", ");
    write!(
        html,
        "<p>Policies: {legend}. <i>loop</i> is what the gateway answered; <i>frozen</i> is its first \
         champion, never retrained; <i>static</i> is a model without online features. Solid lines mark \
         swaps, dotted lines triggers.</p>"
    )
    .expect("a String takes all");
    let figures: [(&str, Figure); 3] = [
        ("AUC by week", |q| q.auc),
        ("Log loss by week", |q| q.log_loss),
        ("Calibration error by week", |q| q.ece),
    ];
    for (title, figure) in figures {
        write!(html, "<h2>{title}</h2>").expect("a String takes all");
        html.push_str(&lines(&weeks, marks, figure));
    }
    html.push_str("<h2>Drift by feature</h2><p>Population stability index of a day's window against the champion's training rows, the median of each week, from white (0.1 and less) to full (10 and more); the features whose drift changed most.</p>");
    html.push_str(&heat(drift));
    html.push_str("<h2>What the loop did</h2><ul>");
    for mark in marks {
        write!(html, "<li>{}: {}</li>", day(mark.at_ms), escape(&mark.text))
            .expect("a String takes all");
    }
    html.push_str("</ul></body></html>\n");
    html
}

/// Quality by policy for each week, with the week's first moment.
fn weekly(rows: &[Row]) -> Vec<(i64, ByPolicy)> {
    rows.chunk_by(|a, b| a.at_ms.div_euclid(WEEK_MS) == b.at_ms.div_euclid(WEEK_MS))
        .map(|rows| (rows[0].at_ms, by_policy(rows)))
        .collect()
}

/// Maps moments and values to the plot's pixels.
struct Frame {
    from_ms: i64,
    to_ms: i64,
    low: f64,
    high: f64,
}

impl Frame {
    fn x(&self, at_ms: i64) -> f64 {
        let share = (at_ms - self.from_ms) as f64 / (self.to_ms - self.from_ms).max(1) as f64;
        MARGIN + share * (WIDTH - 2.0 * MARGIN)
    }

    fn y(&self, value: f64) -> f64 {
        let share = (value - self.low) / (self.high - self.low).max(1e-9);
        HEIGHT - MARGIN / 2.0 - share * (HEIGHT - MARGIN)
    }
}

fn lines(weeks: &[(i64, ByPolicy)], marks: &[Mark], figure: Figure) -> String {
    let values: Vec<f64> = weeks
        .iter()
        .flat_map(|(_, policies)| policies.values().map(figure))
        .collect();
    let (Some(first), Some(last)) = (weeks.first(), weeks.last()) else {
        return "<p>No rows.</p>".into();
    };
    let frame = Frame {
        from_ms: first.0,
        to_ms: last.0,
        low: values.iter().copied().fold(f64::INFINITY, f64::min),
        high: values.iter().copied().fold(f64::NEG_INFINITY, f64::max),
    };
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" role=\"img\">");
    draw_axes(&mut svg, &frame, weeks);
    for mark in marks {
        let x = frame.x(mark.at_ms);
        let dash = if mark.kind == MarkKind::Trigger {
            "2 4"
        } else {
            "none"
        };
        write!(
            svg,
            "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"#999\" stroke-dasharray=\"{dash}\"><title>{}: {}</title></line>",
            MARGIN / 2.0,
            HEIGHT - MARGIN / 2.0,
            day(mark.at_ms),
            escape(&mark.text)
        )
        .expect("a String takes all");
    }
    for (name, colour) in POLICIES.iter().zip(COLOURS) {
        let points: Vec<String> = weeks
            .iter()
            .filter_map(|(at_ms, policies)| {
                let value = figure(policies.get(name)?);
                Some(format!("{:.1},{:.1}", frame.x(*at_ms), frame.y(value)))
            })
            .collect();
        write!(
            svg,
            "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
            points.join(" ")
        )
        .expect("a String takes all");
    }
    svg.push_str("</svg>");
    svg
}

fn draw_axes(svg: &mut String, frame: &Frame, weeks: &[(i64, ByPolicy)]) {
    for step in 0..=4 {
        let value = frame.low + (frame.high - frame.low) * f64::from(step) / 4.0;
        let y = frame.y(value);
        write!(
            svg,
            "<line x1=\"{MARGIN}\" x2=\"{:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"#eee\"/><text x=\"4\" y=\"{:.1}\">{value:.3}</text>",
            WIDTH - MARGIN,
            y + 4.0
        )
        .expect("a String takes all");
    }
    for (at_ms, _) in weeks.iter().step_by((weeks.len() / 8).max(1)) {
        write!(
            svg,
            "<text x=\"{:.1}\" y=\"{HEIGHT}\">{}</text>",
            frame.x(*at_ms) - 14.0,
            day(*at_ms)
        )
        .expect("a String takes all");
    }
}

/// An index of one week, with the week's first moment.
type Week = (i64, f64);

/// A row per feature, a cell per week, darker where the feature moved further.
fn heat(drift: &[Drift]) -> String {
    const ROW: f64 = 16.0;
    const LABEL: f64 = 330.0;
    const FEATURES_MAX: usize = 24;
    let mut ranked: Vec<(f64, &str, Vec<Week>)> = drift
        .iter()
        .map(|drift| {
            let weeks = weekly_medians(&drift.psi);
            (unrest(&weeks), drift.feature.as_str(), weeks)
        })
        .collect();
    ranked.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(b.1)));
    ranked.truncate(FEATURES_MAX);
    let weeks = ranked.iter().map(|row| row.2.len()).max().unwrap_or(0);
    if weeks == 0 {
        return "<p>No windows.</p>".into();
    }
    let cell = (WIDTH - LABEL) / weeks as f64;
    let height = ROW * ranked.len() as f64;
    let mut svg = format!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">");
    for (k, (_, feature, weeks)) in ranked.iter().enumerate() {
        let y = ROW * k as f64;
        write!(
            svg,
            "<text x=\"0\" y=\"{:.1}\">{}</text>",
            y + ROW - 5.0,
            escape(feature)
        )
        .expect("a String takes all");
        for (w, (at_ms, psi)) in weeks.iter().enumerate() {
            write!(
                svg,
                "<rect x=\"{:.2}\" y=\"{y:.1}\" width=\"{:.2}\" height=\"{}\" fill=\"#c1440e\" fill-opacity=\"{:.2}\"><title>week of {}: {psi:.3}</title></rect>",
                LABEL + cell * w as f64,
                cell - 0.5,
                ROW - 2.0,
                shade(*psi),
                day(*at_ms)
            )
            .expect("a String takes all");
        }
    }
    svg.push_str("</svg>");
    svg
}

/// The median of each week's daily indices.
fn weekly_medians(days: &[(i64, f64)]) -> Vec<Week> {
    days.chunk_by(|a, b| a.0.div_euclid(WEEK_MS) == b.0.div_euclid(WEEK_MS))
        .map(|week| {
            let mut psi: Vec<f64> = week.iter().map(|day| day.1).collect();
            psi.sort_by(f64::total_cmp);
            (week[0].0, psi[psi.len() / 2])
        })
        .collect()
}

/// How much an index changed over the weeks: the spread of its shade. A feature that never looks
/// like its reference within a day, such as the day of the week, is at rest.
fn unrest(weeks: &[Week]) -> f64 {
    let count = weeks.len().max(1) as f64;
    let mean = weeks.iter().map(|week| shade(week.1)).sum::<f64>() / count;
    let squares = weeks.iter().map(|week| (shade(week.1) - mean).powi(2));
    squares.sum::<f64>() / count
}

/// From 0 at an index of 0.1 to 1 at one of 10, evenly by its logarithm.
fn shade(psi: f64) -> f64 {
    ((psi.max(1e-9) / 0.1).ln() / 100f64.ln()).clamp(0.0, 1.0)
}

fn day(at_ms: i64) -> String {
    DateTime::from_timestamp_millis(at_ms)
        .map_or_else(|| at_ms.to_string(), |at| at.format("%b %d").to_string())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

const HEAD: &str = r#"<!doctype html><html lang="en"><head><meta charset="utf-8">
<title>Loopgate: a year of flights</title>
<style>
body{font:15px/1.5 system-ui,sans-serif;max-width:960px;margin:2em auto;padding:0 1em;color:#222}
pre{background:#f6f6f6;padding:1em;overflow-x:auto;font-size:12px}
svg{width:100%;background:#fff} svg text{font:11px system-ui,sans-serif;fill:#555}
</style></head><body><h1>Loopgate: a year of flights</h1>
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_from_outside_is_escaped() {
        assert_eq!(escape("<a & \"b\">"), "&lt;a &amp; &quot;b&quot;&gt;");
    }

    #[test]
    fn a_feature_whose_drift_changed_is_listed_before_one_at_rest() {
        let drift = |feature: &str, later: f64| Drift {
            feature: feature.into(),
            psi: vec![(0, 0.2), (1, 0.2), (WEEK_MS, later)],
        };
        let svg = heat(&[drift("calm", 0.2), drift("wild", 4.0)]);
        assert!(svg.find("wild").expect("listed") < svg.find("calm").expect("listed"));
        assert_eq!(
            weekly_medians(&[(0, 3.0), (1, 1.0), (2, 2.0), (WEEK_MS, 9.0)]),
            [(0, 2.0), (WEEK_MS, 9.0)]
        );
    }
}
