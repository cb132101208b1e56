//! `pointsd balance USER`: print the points of a user.

use super::{Exit, Output, UsageError, ledger_error, reading};
use crate::{config::Settings, domain::ids::UserId};
use serde_json::json;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// ID of the user.
    #[arg(allow_hyphen_values = true)]
    user: String,
    /// Print JSON instead of text.
    #[arg(long)]
    json: bool,
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let user = UserId::new(&arguments.user).map_err(|error| UsageError(format!("the user's id {error}")))?;
    let ledger = reading(&settings.ledger).await?;
    let id = user.clone();
    let balance = ledger.call(move |ledger| ledger.balance(id.as_str())).await.map_err(ledger_error)?;
    if arguments.json {
        output.json(&json!({ "user_id": user.as_str(), "balance": balance }))?;
    } else {
        output.line(&format!("{balance} points"))?;
    }
    Ok(Exit::Done)
}
