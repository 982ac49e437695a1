//! A line plot as SVG.

use std::fmt::Write;

/// One line of the plot.
pub struct PlotLine {
    /// The name in the legend.
    pub name: String,
    /// Percent at each size.
    pub values: Vec<f64>,
    /// The same of prefixes, drawn dashed; empty if that is all there is.
    pub prefixes: Vec<f64>,
}

/// The lines and texts of a plot.
pub struct Plot {
    /// First line of text.
    pub title: String,
    /// Second line of text.
    pub subtitle: String,
    /// Sizes, ascending.
    pub x: Vec<f64>,
    /// How each size is written.
    pub names: Vec<String>,
    /// Below the sizes.
    pub x_title: String,
    /// The lines, in the order of the legend.
    pub lines: Vec<PlotLine>,
    /// The percentage that no line can pass.
    pub limit: f64,
}

const WIDTH: f64 = 900.0;
const HEIGHT: f64 = 520.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 720.0;
const TOP: f64 = 80.0;
const BOTTOM: f64 = 455.0;
/// Told apart by people who see fewer colours too (Okabe and Ito).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00"];
/// Least distance of two names in the legend.
const NAME_HEIGHT: f64 = 18.0;
/// About the width of a character, and of the gap between two names of sizes.
const CHARACTER_WIDTH: f64 = 8.0;

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// Draws the plot: sizes on a logarithmic axis, since they span decades.
pub fn draw(plot: &Plot) -> String {
    let (first, last) = (plot.x.first().copied().unwrap_or(1.0), plot.x.last().copied().unwrap_or(1.0));
    let span = (last / first).ln();
    let x =
        |size: f64| if span > 0.0 { LEFT + (size / first).ln() / span * (RIGHT - LEFT) } else { (LEFT + RIGHT) / 2.0 };
    let most = plot.lines.iter().flat_map(|line| &line.values).copied().fold(plot.limit, f64::max);
    let step = [1.0, 2.0, 5.0, 10.0, 20.0].into_iter().find(|step| most / step <= 9.0).unwrap_or(20.0);
    let top = (most / step).ceil().max(1.0) * step;
    let y = |value: f64| BOTTOM - value / top * (BOTTOM - TOP);

    let mut svg = String::new();
    let mut put = |element: String| {
        // Writing to a string cannot fail.
        let _ = writeln!(svg, "{element}");
    };
    put(format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" \
         font-family=\"Helvetica, Arial, sans-serif\" font-size=\"14\" fill=\"#222\">"
    ));
    put(format!("<rect width=\"{WIDTH}\" height=\"{HEIGHT}\" fill=\"#fff\"/>"));
    put(format!("<text x=\"{LEFT}\" y=\"32\" font-size=\"19\" font-weight=\"bold\">{}</text>", escape(&plot.title)));
    put(format!("<text x=\"{LEFT}\" y=\"56\" font-size=\"13\" fill=\"#555\">{}</text>", escape(&plot.subtitle)));

    let mut tick = 0.0;
    while tick <= top + step / 2.0 {
        let at = y(tick);
        put(format!("<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"));
        put(format!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{tick}</text>", LEFT - 8.0, at + 5.0));
        tick += step;
    }
    // Names of ticks that would overlap the last one written are left out. `written` is where that ends.
    let mut written = f64::NEG_INFINITY;
    for (&size, name) in plot.x.iter().zip(&plot.names) {
        let at = x(size);
        put(format!(
            "<line x1=\"{at:.1}\" y1=\"{BOTTOM}\" x2=\"{at:.1}\" y2=\"{:.1}\" stroke=\"#222\"/>",
            BOTTOM + 6.0
        ));
        let half = name.len() as f64 * CHARACTER_WIDTH / 2.0;
        if at - half >= written {
            put(format!("<text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{name}</text>", BOTTOM + 22.0));
            written = at + half + CHARACTER_WIDTH;
        }
    }
    put(format!("<path d=\"M{LEFT} {TOP}V{BOTTOM}H{RIGHT}\" fill=\"none\" stroke=\"#222\"/>"));
    let middle = (LEFT + RIGHT) / 2.0;
    put(format!(
        "<text x=\"{middle}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
        BOTTOM + 48.0,
        escape(&plot.x_title)
    ));
    let middle = (TOP + BOTTOM) / 2.0;
    put(format!(
        "<text x=\"22\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 22 {middle})\">hit rate in %</text>"
    ));

    let at = y(plot.limit);
    put(format!(
        "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{RIGHT}\" y2=\"{at:.1}\" stroke=\"#777\" stroke-dasharray=\"6 4\"/>"
    ));
    put(format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" font-size=\"12\" fill=\"#555\">endless cache, {:.2} %</text>",
        LEFT + 8.0,
        at - 6.0,
        plot.limit
    ));
    for (i, line) in plot.lines.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let points: Vec<String> =
            plot.x.iter().zip(&line.values).map(|(&size, &value)| format!("{:.1},{:.1}", x(size), y(value))).collect();
        put(format!(
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2.5\"/>",
            points.join(" ")
        ));
        let points: Vec<String> = plot
            .x
            .iter()
            .zip(&line.prefixes)
            .map(|(&size, &value)| format!("{:.1} {:.1}", x(size), y(value)))
            .collect();
        if !points.is_empty() {
            put(format!(
                "<path d=\"M{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\" stroke-dasharray=\"5 4\"/>",
                points.join("L")
            ));
        }
        for ((&size, name), &value) in plot.x.iter().zip(&plot.names).zip(&line.values) {
            put(format!(
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"{colour}\"><title>{} at {name}: {value:.2} %</title></circle>",
                x(size),
                y(value),
                escape(&line.name)
            ));
        }
    }
    for (i, at) in legend(&plot.lines, y) {
        let colour = COLOURS[i % COLOURS.len()];
        let from = RIGHT + 14.0;
        put(format!(
            "<line x1=\"{from}\" y1=\"{at:.1}\" x2=\"{}\" y2=\"{at:.1}\" stroke=\"{colour}\" stroke-width=\"4\"/>",
            from + 18.0
        ));
        put(format!("<text x=\"{}\" y=\"{:.1}\">{}</text>", from + 26.0, at + 5.0, escape(&plot.lines[i].name)));
    }
    put("</svg>".to_owned());
    svg
}

/// Where the names stand: each at its line's end as far as they do not overlap, in the lines' order there.
fn legend(lines: &[PlotLine], y: impl Fn(f64) -> f64) -> Vec<(usize, f64)> {
    let mut places: Vec<(usize, f64)> =
        lines.iter().enumerate().map(|(i, line)| (i, y(line.values.last().copied().unwrap_or(0.0)))).collect();
    places.sort_by(|one, other| one.1.total_cmp(&other.1));
    let mut above = f64::NEG_INFINITY;
    for (_, at) in &mut places {
        *at = at.max(above + NAME_HEIGHT);
        above = *at;
    }
    places
}
