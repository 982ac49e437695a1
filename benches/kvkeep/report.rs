//! What was measured: a table for people, `results.json` for programs.

use std::path::Path;

use serde_json::json;

/// The mark a measurement is to reach.
#[derive(Clone, Copy)]
pub enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// None: a comparator, or a value behind a ratio.
    Nothing,
}

struct Row {
    name: String,
    unit: &'static str,
    runs: Vec<f64>,
    wanted: Wanted,
}

/// All measurements of a run.
#[derive(Default)]
pub struct Report {
    filters: Vec<String>,
    rows: Vec<Row>,
}

pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    match (sorted.len(), sorted.len() / 2) {
        (0, _) => f64::NAN,
        (count, half) if count % 2 == 0 => (sorted[half - 1] + sorted[half]) / 2.0,
        (_, half) => sorted[half],
    }
}

fn number(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.2} M", value / 1e6),
        size if size >= 1e3 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}

impl Report {
    pub fn new(filters: Vec<String>) -> Report {
        Report { filters, rows: Vec::new() }
    }

    /// Whether any of these names is asked for.
    pub fn wants(&self, names: &[&str]) -> bool {
        self.filters.is_empty()
            || names.iter().any(|name| self.filters.iter().any(|filter| name.contains(filter.as_str())))
    }

    /// Takes a measurement in and prints its row.
    pub fn add(&mut self, name: impl Into<String>, unit: &'static str, runs: Vec<f64>, wanted: Wanted) {
        let row = Row { name: name.into(), unit, runs, wanted };
        row.print();
        self.rows.push(row);
    }

    pub fn head(&self) {
        println!("{:<44} {:>10} {:>10} {:>10} {:>5}  {:<8} wanted", "name", "median", "min", "max", "runs", "unit");
    }

    /// Repeats the rows that have a mark, in one piece.
    pub fn summary(&self) {
        println!();
        self.head();
        self.rows.iter().filter(|row| !matches!(row.wanted, Wanted::Nothing)).for_each(Row::print);
    }

    /// Writes `name` into `dir`.
    pub fn write(&self, dir: &Path, name: &str) -> std::io::Result<()> {
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let (least, most) = row.ends();
                json!({ "name": row.name, "unit": row.unit, "median": median(&row.runs), "min": least, "max": most,
                    "runs": row.runs.len() })
            })
            .collect();
        std::fs::create_dir_all(dir)?;
        let path = dir.join(name);
        std::fs::write(&path, format!("{:#}\n", json!(rows)))?;
        println!("\nwritten to {}", path.display());
        Ok(())
    }
}

impl Row {
    fn ends(&self) -> (f64, f64) {
        let least = self.runs.iter().copied().fold(f64::INFINITY, f64::min);
        (least, self.runs.iter().copied().fold(f64::NEG_INFINITY, f64::max))
    }

    fn print(&self) {
        let (middle, (least, most)) = (median(&self.runs), self.ends());
        let verdict = |met: bool| if met { "met" } else { "MISSED" };
        let wanted = match self.wanted {
            Wanted::AtLeast(mark) => format!(">= {}  {}", number(mark), verdict(middle >= mark)),
            Wanted::AtMost(mark) => format!("<= {}  {}", number(mark), verdict(middle <= mark)),
            Wanted::Nothing => String::new(),
        };
        let (middle, least, most) = (number(middle), number(least), number(most));
        println!(
            "{:<44} {middle:>10} {least:>10} {most:>10} {:>5}  {:<8} {wanted}",
            self.name,
            self.runs.len(),
            self.unit
        );
    }
}
