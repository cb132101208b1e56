//! `pointsd dead show`

use super::{Audit, Exit, Filter, Output, Walk, clock, printable};
use crate::{
    broker::HeldLetter,
    cli::reading,
    config::Settings,
    database::WithDeadline,
    domain::{
        check::Claim,
        check_message::{self, About, ScheduledCheck},
        credit::Points,
        ids::UserId,
    },
    ledger::{Ledger, PaymentRecord},
    parked::Parked,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    filter: Filter,
    /// Most messages that are shown.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// A message, whole.
#[derive(Debug, Serialize)]
struct Shown {
    #[serde(flatten)]
    parked: Parked,
    headers: serde_json::Map<String, serde_json::Value>,
    /// The body's text, where it is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    body_base64: Option<String>,
    /// What the message asks for, where it can be read.
    message: Option<Version>,
    ledger_now: LedgerNow,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Version {
    user_id: String,
    points: i64,
}

/// What the ledger says of the payment now: nothing of either means that the payment is not there.
#[derive(Debug, Default, Serialize)]
struct LedgerNow {
    record: Option<PaymentRecord>,
    /// Why it could not be asked.
    not_asked: Option<String>,
}

impl LedgerNow {
    fn not_asked(why: impl Into<String>) -> Self {
        Self { not_asked: Some(why.into()), ..Self::default() }
    }
}

pub(super) async fn run(settings: &Settings, arguments: &Arguments, output: &mut Output) -> anyhow::Result<Exit> {
    let selection = arguments.filter.selection();
    let now = clock::now(settings, &selection, output).await?;
    let mut walk = Walk::begin(settings, output).await?;
    let mut taken = Vec::new();
    let mut more = 0_u64;
    while let Some((found, parked)) = walk.next().await? {
        let selected = selection.takes(&parked, now);
        if selected && taken.len() < arguments.limit as usize {
            taken.push((found.clone(), parked));
        } else {
            more += u64::from(selected);
        }
        walk.release(found).await?;
    }
    let exit = walk.end(output).await?;

    let ledger = reading(&settings.ledger).await.map_err(|error| format!("{error:#}"));
    let mut messages = Vec::with_capacity(taken.len());
    for (found, parked) in taken {
        let ledger_now = ask(ledger.as_ref(), parked.payment_id.as_deref()).await;
        let text = std::str::from_utf8(found.body()).ok().map(str::to_owned);
        let version = version(settings, &found);
        messages.push(Shown {
            parked,
            headers: found.headers(),
            body_base64: text.is_none().then(|| BASE64_STANDARD.encode(found.body())),
            body: text,
            message: version,
            ledger_now,
        });
    }
    let selected = messages.len() as u64;
    Audit {
        action: "show",
        selection: &selection,
        selected: Some(selected),
        removed: 0,
        end: "done",
        requeue_id: None,
    }
    .tell(settings);
    if arguments.json {
        output.json(&messages)?;
    } else {
        for message in &messages {
            for line in lines(message) {
                output.line(&line)?;
            }
        }
    }
    if more > 0 {
        output.complain(&format!("{more} more; --limit shows more at a time"));
    }
    if messages.is_empty() {
        output.complain(&format!("nothing in {} is meant by that", settings.broker.dead_queue));
        return Ok(Exit::Failed);
    }
    Ok(exit)
}

/// What a points message asks for, or a check message with one entry.
fn version(settings: &Settings, found: &HeldLetter) -> Option<Version> {
    let of = |user: &UserId, points: Points| Version { user_id: user.to_string(), points: points.get() };
    if !found.is_check_message() {
        return settings.message.parse(found.body()).ok().map(|credit| of(&credit.user_id, credit.points));
    }
    match check_message::parse(found.body()).ok()?.as_slice() {
        [Ok(ScheduledCheck { about: About::Claim(Claim { user_id, points }), .. })] => Some(of(user_id, *points)),
        _ => None,
    }
}

/// A ledger that is down is no reason not to show a message.
async fn ask(ledger: Result<&WithDeadline<dyn Ledger>, &String>, payment_id: Option<&str>) -> LedgerNow {
    let Some(payment_id) = payment_id.map(str::to_owned) else {
        return LedgerNow::not_asked("it names no payment, or several");
    };
    match ledger {
        Err(error) => LedgerNow::not_asked(error),
        Ok(ledger) => match ledger.call(move |ledger| ledger.payment(&payment_id)).await {
            Ok(record) => LedgerNow { record, ..LedgerNow::default() },
            Err(error) => LedgerNow::not_asked(error.to_string()),
        },
    }
}

fn lines(shown: &Shown) -> Vec<String> {
    let Shown { parked, headers, body, body_base64, message, ledger_now } = shown;
    let or_none = |text: &Option<String>| text.as_deref().map_or_else(|| "none".to_owned(), printable);
    let version = |user: &str, points: i64| format!("user {}, {points} points", printable(user));
    let mut lines = vec![
        format!("{}: payment {}", printable(&parked.reason), or_none(&parked.payments())),
        format!("  error           {}", or_none(&parked.error)),
        format!("  message id      {}", or_none(&parked.message_id)),
        format!("  consumed from   {}", or_none(&parked.source_queue)),
        format!(
            "  failed first    {}, delayed retries {}",
            parked.first_failed_at.map_or_else(|| "unknown".to_owned(), |at| at.to_string()),
            parked.attempts
        ),
    ];
    if let Some(message) = message {
        lines.push(format!("  the message     {}", version(&message.user_id, message.points)));
    }
    if let Some(ledger) = &parked.ledger {
        lines.push(format!("  the ledger then {}", version(&ledger.user_id, ledger.points)));
    }
    lines.push(match ledger_now {
        LedgerNow { record: Some(record), .. } => {
            format!("  the ledger now  {}, {}", version(&record.user_id, record.points), record.state)
        }
        LedgerNow { record: None, not_asked: None } => "  the ledger now  knows nothing of the payment".to_owned(),
        LedgerNow { not_asked: Some(why), .. } => format!("  the ledger now  not asked: {}", printable(why)),
    });
    for (name, value) in headers {
        lines.push(format!("  header          {} = {}", printable(name), printable(&value.to_string())));
    }
    lines.push(match (body, body_base64) {
        (Some(body), _) => format!("  body            {}", printable(body)),
        (None, base64) => format!("  body (base64)   {}", base64.as_deref().unwrap_or_default()),
    });
    lines
}
