//! Bars of block characters, or of ASCII where the terminal's locale is not UTF-8.

/// How bars are drawn.
#[derive(Clone, Copy, PartialEq)]
pub enum BarStyle {
    /// Eighths of a character.
    Blocks,
    /// Whole characters.
    Ascii,
}

const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];

impl BarStyle {
    /// The style for the locale of this process.
    pub fn of_locale() -> BarStyle {
        let variables = ["LC_ALL", "LC_CTYPE", "LANG"];
        let locale = variables.into_iter().filter_map(|name| std::env::var(name).ok()).find(|value| !value.is_empty());
        let utf8 = |locale: &str| {
            let locale = locale.to_ascii_lowercase();
            locale.ends_with("utf-8") || locale.ends_with("utf8")
        };
        if locale.is_some_and(|locale| utf8(&locale)) { BarStyle::Blocks } else { BarStyle::Ascii }
    }

    /// A bar for `value` of `most`, and blanks up to `width` characters.
    pub fn bar(self, value: f64, most: f64, width: usize) -> String {
        let length = if most > 0.0 { (value / most).clamp(0.0, 1.0) * width as f64 } else { 0.0 };
        let bar: String = match self {
            BarStyle::Ascii => "#".repeat(length.round() as usize),
            BarStyle::Blocks => {
                let eighths = (length * 8.0).round() as usize;
                let rest = Some(EIGHTHS[eighths % 8]).filter(|_| !eighths.is_multiple_of(8));
                std::iter::repeat_n('█', eighths / 8).chain(rest).collect()
            }
        };
        format!("{bar:<width$}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_as_long_as_its_value_and_as_wide_as_all() {
        let bars = [0.0, 1.25, 5.0, 10.0, 20.0].map(|value| BarStyle::Blocks.bar(value, 10.0, 4));
        assert_eq!(bars, ["    ", "▌   ", "██  ", "████", "████"]);
        assert_eq!([0.0, 5.0, 10.0].map(|value| BarStyle::Ascii.bar(value, 10.0, 4)), ["    ", "##  ", "####"]);
        assert_eq!(BarStyle::Ascii.bar(1.0, 0.0, 2), "  ");
    }
}
