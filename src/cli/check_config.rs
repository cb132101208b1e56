//! `pointsd check-config`: validate the configuration and print the settings in force.

use super::{Exit, Output};
use crate::config::{PLACES, ReadFrom, Settings};
use serde::Serialize;

/// The settings in force, and their sources.
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
        // Printed to standard error, so that the data on standard output is a valid configuration file.
        for line in describe_sources(read_from) {
            output.complain(&line);
        }
        output.line(settings.effective_toml().trim_end())?;
    }
    Ok(Exit::Done)
}

/// Returns the lines that describe the sources of the settings.
fn describe_sources(read_from: &ReadFrom) -> Vec<String> {
    let ReadFrom { file, environment, ignored_environment } = read_from;
    let or_none = |names: &[String]| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    let file = file.clone().unwrap_or_else(|| format!("none (neither ./{} nor {} exists)", PLACES[0], PLACES[1]));
    let mut lines =
        vec![format!("configuration file: {file}"), format!("environment variables: {}", or_none(environment))];
    if !ignored_environment.is_empty() {
        lines.push(format!("environment variables ignored (not settings): {}", ignored_environment.join(", ")));
    }
    lines
}
