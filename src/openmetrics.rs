//! The metrics as OpenMetrics text: the Prometheus text by other rules for names, units and the end.

use std::fmt::Write;

/// The media type of such a text.
pub const MEDIA_TYPE: &str = "application/openmetrics-text";

/// Units that end the name of a family.
const UNITS: [&str; 4] = ["seconds", "bytes", "bytes_per_second", "tokens"];

/// Prometheus text as OpenMetrics text (1.0.0). Families of counters lose the `_total` that their samples have, the information about the build
/// is one, a name that ends with a unit says so, and bounds of buckets are written as the standard does.
pub fn of_prometheus(prometheus: &str) -> String {
    let mut text = String::with_capacity(prometheus.len() + (1 << 12));
    for line in prometheus.lines() {
        // Writing to a string cannot fail.
        let _ = match line.strip_prefix("# ").map(|rest| rest.splitn(3, ' ').collect::<Vec<&str>>()).as_deref() {
            Some(["HELP", name, help]) => writeln!(text, "# HELP {} {help}", family(name)),
            Some(["TYPE", name, kind]) => describe(&mut text, family(name), kind),
            _ => writeln!(text, "{}", sample(line)),
        };
    }
    text + "# EOF\n"
}

/// The name of the family that a name of Prometheus stands for.
fn family(name: &str) -> &str {
    name.strip_suffix("_total").or_else(|| name.strip_suffix("_info")).unwrap_or(name)
}

fn describe(text: &mut String, family: &str, kind: &str) -> std::fmt::Result {
    let kind = if family == "kvkeep_build" { "info" } else { kind };
    writeln!(text, "# TYPE {family} {kind}")?;
    let unit = UNITS.iter().rev().find(|unit| family.strip_suffix(**unit).is_some_and(|rest| rest.ends_with('_')));
    unit.map_or(Ok(()), |unit| writeln!(text, "# UNIT {family} {unit}"))
}

/// A sample whose bound of a bucket, if it has one, is a float as in Go.
fn sample(line: &str) -> String {
    let bound = || {
        let (before, rest) = line.split_once("le=\"")?;
        let (bound, after) = rest.split_once('"')?;
        let bound: f64 = bound.parse().ok().filter(|bound: &f64| bound.is_finite())?;
        Some(format!("{before}le=\"{}\"{after}", float(bound)))
    };
    bound().unwrap_or_else(|| line.to_owned())
}

/// A float as in Go: with a point, or with an exponent of two digits.
fn float(number: f64) -> String {
    if number != 0.0 && number.abs() < 1e-4 {
        let text = format!("{number:e}");
        let (digits, exponent) = text.split_once("e-").unwrap_or((&text, "0"));
        return format!("{digits}e-{exponent:0>2}");
    }
    let text = number.to_string();
    if text.contains('.') { text } else { text + ".0" }
}

/// Whether a client that sent `accept` wants this text rather than that of Prometheus.
pub fn is_wanted(accept: &str) -> bool {
    let weight = |wanted: &str| {
        let offers = accept.split(',').filter_map(|offer| {
            let mut parts = offer.split(';').map(str::trim);
            let kind = parts.next().filter(|kind| kind.eq_ignore_ascii_case(wanted))?;
            let parameters: Vec<&str> = parts.collect();
            let of = |name: &str| parameters.iter().find_map(|parameter| parameter.strip_prefix(name));
            // Of versions, this text has 1.0.0 alone.
            let known = kind != MEDIA_TYPE || of("version=").is_none_or(|version| version.trim_matches('"') == "1.0.0");
            known.then(|| of("q=").map_or(1.0, |weight| weight.parse().unwrap_or(0.0)))
        });
        offers.fold(0.0, f64::max)
    };
    let wanted = weight(MEDIA_TYPE);
    wanted > 0.0 && wanted >= weight("text/plain")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_units_and_bounds_follow_the_standard() {
        let prometheus = "# HELP kvkeep_build_info 1.\n# TYPE kvkeep_build_info gauge\nkvkeep_build_info{version=\"1\"} 1\n\
                          # HELP kvkeep_loaded_bytes_total Bytes loaded.\n# TYPE kvkeep_loaded_bytes_total counter\n\
                          kvkeep_loaded_bytes_total 7\n\
                          # HELP kvkeep_jobs Jobs.\n# TYPE kvkeep_jobs gauge\nkvkeep_jobs{model=\"le=\\\"x\"} 2\n\
                          # HELP kvkeep_load_seconds Loads.\n# TYPE kvkeep_load_seconds histogram\n\
                          kvkeep_load_seconds_bucket{le=\"0.000001\"} 1\nkvkeep_load_seconds_bucket{le=\"1\"} 1\n\
                          kvkeep_load_seconds_bucket{le=\"+Inf\"} 1\n";
        assert_eq!(
            of_prometheus(prometheus),
            "# HELP kvkeep_build 1.\n# TYPE kvkeep_build info\nkvkeep_build_info{version=\"1\"} 1\n\
             # HELP kvkeep_loaded_bytes Bytes loaded.\n# TYPE kvkeep_loaded_bytes counter\n# UNIT kvkeep_loaded_bytes bytes\n\
             kvkeep_loaded_bytes_total 7\n\
             # HELP kvkeep_jobs Jobs.\n# TYPE kvkeep_jobs gauge\nkvkeep_jobs{model=\"le=\\\"x\"} 2\n\
             # HELP kvkeep_load_seconds Loads.\n# TYPE kvkeep_load_seconds histogram\n# UNIT kvkeep_load_seconds seconds\n\
             kvkeep_load_seconds_bucket{le=\"1e-06\"} 1\nkvkeep_load_seconds_bucket{le=\"1.0\"} 1\n\
             kvkeep_load_seconds_bucket{le=\"+Inf\"} 1\n# EOF\n"
        );
        assert_eq!([16.777216, 0.001, 0.000064, 0.0].map(float), ["16.777216", "0.001", "6.4e-05", "0.0"]);
    }

    #[test]
    fn the_text_that_a_client_prefers_is_given() {
        for wanted in [
            "application/openmetrics-text",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,application/openmetrics-text;version=0.0.1;q=0.5,\
             text/plain;version=1.0.0;q=0.4,text/plain;version=0.0.4;q=0.2,*/*;q=0.1",
            "text/plain;q=0.5, Application/OpenMetrics-Text;q=0.5",
        ] {
            assert!(is_wanted(wanted), "{wanted}");
        }
        for other in [
            "",
            "*/*",
            "text/plain;version=0.0.4",
            "application/openmetrics-text;q=0",
            "application/openmetrics-text;version=0.0.1",
            "application/openmetrics-text;q=0.3,text/plain;q=0.5",
            "application/openmetrics-textual",
        ] {
            assert!(!is_wanted(other), "{other}");
        }
    }
}
