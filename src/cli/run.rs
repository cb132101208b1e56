//! `pointsd run`

use super::Exit;
use crate::{app, config::Settings, observe::logging};
use anyhow::Context as _;

pub(super) async fn run(settings: Settings) -> anyhow::Result<Exit> {
    logging::install(&settings.log).context("log.format = \"journald\": the journal does not answer")?;
    app::run(settings).await?;
    Ok(Exit::Done)
}
