//! `pointsd check-config`

use super::{Exit, Output};
use crate::config::{PLACES, ReadFrom, Settings};
use serde::Serialize;

/// The configuration in force, and where it comes from.
#[derive(Serialize)]
struct Report<'a> {
    read_from: &'a ReadFrom,
    #[serde(flatten)]
    settings: toml::Table,
}

pub(super) fn run(settings: &Settings, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    let read_from = &settings.read_from;
    if json {
        output.json(&Report { read_from, settings: settings.effective_table() })?;
    } else {
        // Beside the data: what is printed there can be read again.
        for line in remarks(read_from) {
            output.complain(&line);
        }
        output.line(settings.effective_toml().trim_end())?;
    }
    Ok(Exit::Done)
}

fn remarks(read_from: &ReadFrom) -> Vec<String> {
    let ReadFrom { file, environment, ignored_environment } = read_from;
    let or_none = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let file = file.clone().unwrap_or_else(|| format!("none (there is neither ./{} nor {})", PLACES[0], PLACES[1]));
    let mut lines =
        vec![format!("configuration file: {file}"), format!("environment variables: {}", or_none(environment))];
    if !ignored_environment.is_empty() {
        lines.push(format!("environment variables ignored (not settings): {}", ignored_environment.join(", ")));
    }
    lines
}
