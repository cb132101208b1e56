//! The table: on the terminal, as JSON, and as a chart.

use crate::{
    jobs::Job,
    process::Run,
    scenarios::{Against, Figure, Goal, Scenario},
};
use plotters::prelude::*;
use serde::Serialize;
use std::path::Path;

/// Every run so far.
pub type Runs = [(Job, Vec<Run>)];

/// The median, the lowest and the highest of some rounds.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Spread {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Spread {
    fn new(mut figures: Vec<f64>) -> Self {
        figures.sort_by(f64::total_cmp);
        let middle = figures.len() / 2;
        let median =
            if figures.len() % 2 == 1 { figures[middle] } else { f64::midpoint(figures[middle - 1], figures[middle]) };
        Self { median, lowest: figures[0], highest: figures[figures.len() - 1] }
    }
}

/// A line of the table.
#[derive(Debug, Serialize)]
pub struct Line {
    pub scenario: &'static str,
    pub unit: &'static str,
    pub figure: Spread,
    /// What the figure is divided by, and the median of that.
    pub against: Option<(String, f64)>,
    pub ratio: Option<Spread>,
    pub goal: Option<String>,
    pub met: Option<bool>,
    pub cpu_seconds_per_million: f64,
    pub peak_mib: f64,
    #[serde(skip)]
    shown: Figure,
}

fn of(runs: &Runs, job: Job, figure: Figure) -> Vec<f64> {
    let (_, runs) = runs.iter().find(|(run, _)| *run == job).unwrap();
    runs.iter().map(|run| figure.of(run)).collect()
}

impl Line {
    pub fn new(scenario: &Scenario, runs: &Runs) -> Self {
        let figures = of(runs, scenario.job, scenario.figure);
        let median = |job, figure| Spread::new(of(runs, job, figure)).median;
        let reference: Option<(String, Vec<f64>)> = match &scenario.against {
            Against::Nothing => None,
            Against::Job(name, job) => Some(((*name).to_owned(), of(runs, *job, scenario.figure))),
            Against::Limit { drain, inserts } => {
                let rate = |job: &&Job| median(**job, Figure::Rate);
                let best = inserts.iter().max_by(|a, b| rate(a).total_cmp(&rate(b))).unwrap();
                let (drained, inserted) = (of(runs, *drain, Figure::Rate), of(runs, *best, Figure::Rate));
                let limit = drained.iter().zip(inserted).map(|(drain, insert)| 1.0 / (1.0 / drain + 1.0 / insert));
                Some(("L".to_owned(), limit.collect()))
            }
            Against::OneAfterTheOther(first, second) => {
                let (first, second) = (of(runs, *first, Figure::Rate), of(runs, *second, Figure::Rate));
                let both = first.iter().zip(second).map(|(first, second)| 1.0 / (1.0 / first + 1.0 / second));
                Some(("one after the other".to_owned(), both.collect()))
            }
        };
        let ratio = reference.as_ref().map(|(_, reference)| {
            Spread::new(figures.iter().zip(reference).map(|(figure, reference)| figure / reference).collect())
        });
        let figure = Spread::new(figures);
        let (goal, met) = match (scenario.goal, ratio) {
            (Goal::RatioAtLeast(goal), Some(ratio)) => (Some(format!("≥ {goal}")), Some(ratio.median >= goal)),
            (Goal::RatioAtMost(goal), Some(ratio)) => (Some(format!("≤ {goal}")), Some(ratio.median <= goal)),
            (Goal::AtMost(goal), _) => (Some(format!("≤ {}", scenario.figure.show(goal))), Some(figure.median <= goal)),
            (Goal::None | Goal::RatioAtLeast(_) | Goal::RatioAtMost(_), _) => (None, None),
        };
        Self {
            scenario: scenario.name,
            unit: scenario.figure.unit(),
            figure,
            against: reference.map(|(name, reference)| (name, Spread::new(reference).median)),
            ratio,
            goal,
            met,
            cpu_seconds_per_million: median(scenario.job, Figure::CpuPerMillion),
            peak_mib: median(scenario.job, Figure::Peak),
            shown: scenario.figure,
        }
    }

    /// The cells of the table.
    fn cells(&self) -> [String; 7] {
        let blank = String::new;
        [
            self.scenario.to_owned(),
            self.shown.show(self.figure.median),
            self.against
                .as_ref()
                .map_or_else(blank, |(name, reference)| format!("{name} {}", self.shown.show(*reference))),
            self.ratio.map_or_else(blank, |Spread { median, lowest, highest }| {
                let digits = if median < 10.0 { 2 } else { 1 };
                format!("{median:.digits$} ({lowest:.digits$}–{highest:.digits$})")
            }),
            match (&self.goal, self.met) {
                (Some(goal), Some(true)) => format!("{goal} met"),
                (Some(goal), _) => format!("{goal} MISSED"),
                (None, _) => blank(),
            },
            if self.cpu_seconds_per_million > 0.0 { format!("{:.1}", self.cpu_seconds_per_million) } else { blank() },
            if self.peak_mib > 0.0 { format!("{:.1}", self.peak_mib) } else { blank() },
        ]
    }
}

const HEADINGS: [&str; 7] = ["scenario", "median", "against", "ratio (spread)", "goal", "CPU s/M", "peak MiB"];

/// The table in Markdown, its columns aligned.
pub fn table(lines: &[Line]) -> String {
    let rows: Vec<[String; 7]> = lines.iter().map(Line::cells).collect();
    let heading = HEADINGS.map(str::to_owned);
    let width = |column: usize| rows.iter().chain([&heading]).map(|row| row[column].chars().count()).max().unwrap();
    let widths: Vec<usize> = (0..HEADINGS.len()).map(width).collect();
    let row = |cells: &[String; 7]| {
        let cells: Vec<String> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
    let mut table = row(&heading) + &format!("|{}|\n", rule.join("|"));
    table.extend(rows.iter().map(row));
    table
}

/// Bars: each rate, and behind it what it is measured against.
pub fn chart(file: &Path, lines: &[Line]) {
    let bars: Vec<&Line> = lines.iter().filter(|line| line.shown == Figure::Rate).collect();
    if bars.is_empty() {
        return;
    }
    let most = bars.iter().map(|line| line.figure.highest.max(line.against.as_ref().map_or(0.0, |it| it.1)));
    let most = most.fold(0.0, f64::max) * 1.05;
    let (row, left) = (26, 320);
    let height = row * u32::try_from(bars.len()).unwrap() + 70;
    let root = SVGBackend::new(file, (1000, height)).into_drawing_area();
    root.fill(&WHITE).unwrap();
    let area = root.titled("messages a second (grey: what it is measured against)", ("sans-serif", 16)).unwrap();
    let rows = i32::try_from(bars.len()).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .x_label_area_size(30)
        .y_label_area_size(left)
        .margin(8)
        .build_cartesian_2d(0.0..most, (0..rows - 1).into_segmented())
        .unwrap();
    let name = |position: &SegmentValue<i32>| match position {
        SegmentValue::CenterOf(row) => bars[usize::try_from(rows - 1 - row).unwrap()].scenario.to_owned(),
        _ => String::new(),
    };
    chart.configure_mesh().disable_y_mesh().y_labels(bars.len()).y_label_formatter(&name).draw().unwrap();
    let bar = |row: i32, length: f64, margin: u32, style: ShapeStyle| {
        let ends = [(0.0, SegmentValue::Exact(row)), (length, SegmentValue::Exact(row + 1))];
        let mut bar = Rectangle::new(ends, style);
        bar.set_margin(margin, margin, 0, 0);
        bar
    };
    for (line, row) in bars.iter().zip((0..rows).rev()) {
        if let Some((_, reference)) = &line.against {
            chart.draw_series([bar(row, *reference, 2, RGBColor(200, 200, 200).filled())]).unwrap();
        }
        chart.draw_series([bar(row, line.figure.median, 6, RGBColor(40, 110, 180).filled())]).unwrap();
    }
    root.present().unwrap();
}
