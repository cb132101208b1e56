//! Showing dead letters whole: headers, body, and the current state of the ledger.

use super::{
    audit::log_inspection,
    clock,
    environment::Environment,
    error::DeadLetterError,
    reporter::Reporter,
    selection::Selection,
    walk::{Inspection, Walk},
};
use crate::{
    broker::HeldLetter,
    config::Settings,
    domain::{
        check::Claim,
        check_message::{self, About, ScheduledCheck},
        credit::Points,
        dead_letter::DeadLetter,
        ids::UserId,
    },
    ledger::PaymentRecord,
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use serde::Serialize;

/// What to show.
#[derive(Debug, Clone, Default)]
pub struct ShowOptions {
    /// Which dead letters.
    pub selection: Selection,
    /// The maximum number of dead letters that are shown.
    pub limit: usize,
    /// Why the ledger is not asked about the payments; `None` to ask it.
    pub ledger_problem: Option<String>,
}

/// The dead letters that are shown.
#[derive(Debug)]
pub struct ShowReport {
    /// The dead letters, at most [`ShowOptions::limit`].
    pub letters: Vec<ShownLetter>,
    /// The number of selected dead letters beyond the limit.
    pub more: u64,
    /// Whether every message was seen.
    pub inspection: Inspection,
}

/// A whole dead letter.
#[derive(Debug, Serialize)]
pub struct ShownLetter {
    /// What it says about itself.
    #[serde(flatten)]
    pub letter: DeadLetter,
    /// All its headers.
    pub headers: serde_json::Map<String, serde_json::Value>,
    /// Its body, if it is text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its body in base64, if it is not text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
    /// The credit that the message asks for, if it can be read.
    pub message: Option<CreditVersion>,
    /// The payment in the ledger now.
    pub ledger_now: CurrentRecord,
}

/// The credit that a message asks for.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct CreditVersion {
    /// The user.
    pub user_id: String,
    /// The points.
    pub points: i64,
}

/// The payment in the ledger now. Without a record and a reason the ledger does not have it.
#[derive(Debug, Default, Serialize)]
pub struct CurrentRecord {
    /// The record of the payment.
    pub record: Option<PaymentRecord>,
    /// Why the ledger was not asked.
    pub not_asked: Option<String>,
}

impl CurrentRecord {
    fn not_asked(reason: impl Into<String>) -> Self {
        Self { not_asked: Some(reason.into()), ..Self::default() }
    }
}

/// Returns the selected dead letters with the state of their payments. Changes nothing. A ledger that is down hides no message.
pub async fn show(
    environment: Environment<'_>,
    options: &ShowOptions,
    reporter: &mut dyn Reporter,
) -> Result<ShowReport, DeadLetterError> {
    let ShowOptions { selection, limit, ledger_problem } = options;
    let now = clock::now(environment, selection, reporter).await?;
    let mut walk = Walk::begin(environment.settings, reporter).await?;
    let (mut taken, mut more) = (Vec::new(), 0);
    while let Some((held, letter)) = walk.next().await? {
        if selection.matches(&letter, now) {
            if taken.len() < *limit {
                taken.push((held.clone(), letter));
            } else {
                more += 1;
            }
        }
        walk.release(held).await?;
    }
    let inspection = walk.end(reporter).await?;
    let mut letters = Vec::with_capacity(taken.len());
    for (held, letter) in taken {
        let record = match ledger_problem {
            Some(problem) => CurrentRecord::not_asked(problem),
            None => read_record(environment, letter.payment_id.as_deref()).await,
        };
        letters.push(shown(environment.settings, &held, letter, record));
    }
    log_inspection(environment.settings, "show", selection, letters.len() as u64);
    Ok(ShowReport { letters, more, inspection })
}

fn shown(settings: &Settings, held: &HeldLetter, letter: DeadLetter, ledger_now: CurrentRecord) -> ShownLetter {
    let body = std::str::from_utf8(held.body()).ok().map(str::to_owned);
    ShownLetter {
        letter,
        headers: held.headers(),
        body_base64: body.is_none().then(|| BASE64_STANDARD.encode(held.body())),
        body,
        message: version(settings, held),
        ledger_now,
    }
}

/// The credit that a points message asks for, or a check message with one check.
fn version(settings: &Settings, held: &HeldLetter) -> Option<CreditVersion> {
    let of = |user: &UserId, points: Points| CreditVersion { user_id: user.to_string(), points: points.get() };
    if !held.is_check_message() {
        return settings.message.parse(held.body()).ok().map(|credit| of(&credit.user_id, credit.points));
    }
    match check_message::parse(held.body()).ok()?.as_slice() {
        [Ok(ScheduledCheck { about: About::Claim(Claim { user_id, points }), .. })] => Some(of(user_id, *points)),
        _ => None,
    }
}

async fn read_record(environment: Environment<'_>, payment_id: Option<&str>) -> CurrentRecord {
    let Some(payment_id) = payment_id.map(str::to_owned) else {
        return CurrentRecord::not_asked("the message names no payment, or several");
    };
    match environment.ledger.call(move |ledger| ledger.payment(&payment_id)).await {
        Ok(record) => CurrentRecord { record, ..CurrentRecord::default() },
        Err(error) => CurrentRecord::not_asked(error.to_string()),
    }
}
