//! `pointsd check-config`

use super::{Exit, Output};
use crate::config::Settings;

pub(super) fn run(settings: &Settings, json: bool, output: &mut Output) -> anyhow::Result<Exit> {
    if json {
        output.json(&settings.effective_table())?;
    } else {
        output.line(settings.effective_toml().trim_end())?;
    }
    Ok(Exit::Done)
}
