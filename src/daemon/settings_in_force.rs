//! The settings that are in force, as a TOML file that says of each where it comes from.

use std::fmt::Write as _;

use clap::Args as _;
use serde_json::Value;

use super::settings::Settings;
use crate::error::{Error, Result};
use crate::l2::url::without_secrets;

/// Fields that are set by `set`: none is unset, and no list empty.
fn is_set(value: &Value) -> bool {
    !value.is_null() && value.as_array().is_none_or(|list| !list.is_empty())
}

/// The settings of the flags over those of a file, with the file's name, over the defaults. It can be given to `--config`, except that
/// passwords in URLs are left out. Of each setting it has what `--help` says of it, and `# flag`, the file's name or `# default`.
pub fn settings_in_force(flags: &Settings, file: Option<(&str, &Settings)>) -> Result<String> {
    let fields = |settings: &Settings| {
        serde_json::to_value(settings)
            .map_err(|error| Error::invalid(format!("the settings cannot be printed: {error}")))
    };
    let (flag, default) = (fields(flags)?, fields(&Settings::defaults())?);
    let file_settings = file.map(|(_, settings)| settings);
    let file = file.map(|(name, settings)| Ok::<_, Error>((name, fields(settings)?))).transpose()?;
    let mut text = String::from("# What is in force, and where it comes from. kvkeep serve --config takes it.\n");
    let mut heading = None;
    let arguments = Settings::augment_args(clap::Command::new("serve"));
    // The flag for a tenant is a table in the file, which comes last.
    for argument in arguments.get_arguments().filter(|argument| argument.get_id() != "tenant") {
        let name = argument.get_id().as_str();
        let found = [
            ("flag", Some(&flag)),
            file.as_ref().map_or(("", None), |(name, file)| (*name, Some(file))),
            ("default", Some(&default)),
        ]
        .into_iter()
        .find_map(|(source, fields)| fields.map(|fields| (source, &fields[name])).filter(|(_, value)| is_set(value)));
        if argument.get_help_heading() != heading {
            heading = argument.get_help_heading();
            // Writing to a string cannot fail, here and below.
            let _ = writeln!(text, "\n# ---- {} ----", heading.unwrap_or_default());
        }
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        let _ = writeln!(text, "\n# {}", help.replace('\n', "\n# "));
        match found {
            Some((source, value)) => drop(writeln!(text, "{name} = {} # {source}", shown(value))),
            None => drop(writeln!(text, "# {name} is not set")),
        }
    }
    let merged = flags.clone().over(file_settings.cloned().unwrap_or_default());
    let tenants = merged.access().tenants;
    if !tenants.is_empty() {
        text += "\n[tenants]\n";
        for (name, uids) in tenants {
            let _ = writeln!(text, "{} = {uids:?}", Value::from(name));
        }
    }
    Ok(text)
}

/// A value in TOML, which writes numbers, texts and lists as JSON does.
fn shown(value: &Value) -> String {
    match value {
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(shown).collect();
            format!("[{}]", all.join(", "))
        }
        Value::String(text) => Value::from(without_secrets(text)).to_string(),
        other => other.to_string(),
    }
}
