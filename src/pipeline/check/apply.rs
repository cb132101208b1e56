//! Applying the answers of the payment source to the ledger while they are fresh.

use super::{
    commit::{Applied, CheckTransaction},
    look_up::{
        Interpretation, PaymentAnswer, REPEATED_LOOK_UP_TIME, distinct_payment_ids, interpret_answer, look_up_once,
    },
    parse::{Batch, Entry},
};
use crate::{
    domain::{
        check::{Check, CheckStep, Checked, LedgerState, Resolution},
        check_outcome::CheckOutcome,
        dead_letter::Reason,
        failure::Outage,
        notification_source::NotificationKind,
        settlement::{Destination, Settlement},
        status::PaymentStatus,
        valuation::PaymentValue,
    },
    observe::events::{self, Event as _},
    pipeline::{
        batch::run_bisecting,
        check::{
            group::{Candidate, Group},
            payment_rows,
            pipeline::CheckPipeline,
        },
        ports::Patience,
        work::{BatchContext, ItemResult},
    },
};
use std::{
    sync::{Arc, atomic::AtomicBool},
    time::Instant,
};

/// Interprets answers, and commits the resolutions that must be applied to the ledger. Returns the outage that
/// interrupted it.
pub(super) async fn apply_answers(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    found: Vec<(usize, PaymentAnswer)>,
    context: &BatchContext<'_>,
) -> Option<Outage> {
    let (mut candidates, mut to_be_closed) = (Vec::new(), Vec::new());
    for (entry, PaymentAnswer { payment, at, .. }) in found {
        group.classify_answer(entry, payment, at, &mut candidates, &mut to_be_closed);
    }
    if !to_be_closed.is_empty()
        && let Some(outage) = payment_rows::close_unpaid(pipeline, group, to_be_closed, &mut candidates, context).await
    {
        return Some(outage);
    }
    match commit_candidates(pipeline, group, candidates, context).await {
        Err(outage) => Some(outage),
        Ok(late_credits) if pipeline.is_arrival() && !late_credits.is_empty() => {
            confirm_arrivals(pipeline, group, late_credits, context).await
        }
        Ok(_) => None,
    }
}

/// Commits candidates as far as the brake allows. Returns the entries that were credited.
async fn commit_candidates(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    mut candidates: Vec<Candidate>,
    context: &BatchContext<'_>,
) -> Result<Vec<usize>, Outage> {
    // In the order of the entries: the first of two messages with the same payment counts.
    candidates.sort_by_key(|candidate| candidate.entry);
    let mut rest = candidates.into_iter();
    let mut late_credits = Vec::new();
    while !rest.as_slice().is_empty() {
        if let Some(brake) = pipeline.brake.engaged() {
            return Err(brake);
        }
        let room = pipeline.brake.room(rest.as_slice().iter().map(|candidate| candidate.resolution));
        let part: Arc<[Candidate]> = rest.by_ref().take(room).collect();
        let work = CheckTransaction {
            pipeline,
            entries: group.entries,
            candidates: &part,
            heartbeat: context.heartbeat,
            tried: AtomicBool::default(),
        };
        let (results, outage) = run_bisecting(&work, &part, pipeline.immediate_attempts, context).await;
        for (candidate, result) in part.iter().zip(results) {
            let entry = &group.entries[candidate.entry];
            let outcome = match result {
                ItemResult::Done(Applied::Done(checked)) => {
                    pipeline.brake.count(candidate.resolution, checked.step);
                    if checked.step == CheckStep::LateCredit {
                        late_credits.push(candidate.entry);
                    }
                    outcome_of_step(entry, candidate, &checked)
                }
                ItemResult::Rejected(reason) => CheckOutcome::Rejected(reason),
                ItemResult::Failed(error) => CheckOutcome::after_failure(error, entry.retries_taken, &pipeline.retry),
                // The answer of the source has changed: the payment is looked up again.
                ItemResult::Done(Applied::Changed) | ItemResult::Undecided => continue,
            };
            // A paid payment counts for the brake, independently of its step in the ledger.
            if candidate.resolution == Resolution::Paid {
                pipeline.brake.count(Resolution::Paid, CheckStep::None);
            }
            group.decide(candidate.entry, outcome);
        }
        if let Some(outage) = outage {
            return Err(outage);
        }
    }
    Ok(late_credits)
}

/// Looks up again the payments that were credited on arrival, because they may have been closed between the look-up and
/// the commit. A payment that is not found paid again keeps its confirming check.
async fn confirm_arrivals(
    pipeline: &CheckPipeline,
    group: &mut Group<'_>,
    entries: Vec<usize>,
    context: &BatchContext<'_>,
) -> Option<Outage> {
    let payments = distinct_payment_ids(entries.iter().map(|entry| &group.entries[*entry]));
    context.heartbeat.beat();
    let until = Instant::now() + REPEATED_LOOK_UP_TIME;
    let answers = look_up_once(&*pipeline.source, &payments, until).await.unwrap_or_default();
    let mut changed = Vec::new();
    for entry in entries {
        let index = group.entries[entry].check().and_then(|check| payments.binary_search(&check.payment_id).ok());
        let Some((payment, at)) = index.and_then(|index| answers.get(index)?.clone()) else { continue };
        if payment.status == PaymentStatus::Paid {
            let (status, step) = (PaymentStatus::Paid, CheckStep::LateCredit);
            group.decide(entry, CheckOutcome::Checked { status, step, next: None });
        } else if let Interpretation::Resolved(resolution, payment) = interpret_answer(&group.entries[entry], payment) {
            changed.push(Candidate { entry, resolution, payment, at });
        }
    }
    commit_candidates(pipeline, group, changed, context).await.err()
}

/// Records in the ledger the credits that a person must decide, unless the transaction of the check has done so. This
/// is best effort: without the record, a credit counts as overdue.
pub(super) async fn note_parked<M>(
    pipeline: &CheckPipeline,
    batch: &Batch<M>,
    done: &[bool],
    context: &BatchContext<'_>,
) {
    let mut checks: Vec<Check> = Vec::new();
    let parked = batch.deliveries.iter().zip(done).filter(|(_, done)| **done);
    for entry in parked.flat_map(|(delivery, _)| delivery.entries.clone()) {
        let (entry, outcome) = (&batch.entries[entry], &batch.outcomes[entry]);
        let settlement = outcome.as_ref().map(CheckOutcome::settlement);
        let Some(Settlement::Forward(Destination::Dead(reason))) = settlement else { continue };
        // A malformed message is excluded: any producer may have written its payment ID.
        if let Some(payment_id) = entry.check().map(|check| check.payment_id.clone()) {
            let resolution = Resolution::ForPerson(reason);
            checks.push(Check { payment_id, claim: None, resolution, spelling: None, closing: None });
        }
    }
    checks.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
    checks.dedup_by(|later, first| later.payment_id == first.payment_id);
    for part in checks.chunks(crate::domain::credit::MAX_BATCH) {
        context.heartbeat.beat();
        if let Err(error) = pipeline.ledger.check(part.into(), pipeline.policy.on_unpaid, Patience::Usual).await {
            events::ParkedNotNoted { payments: part.len(), error: &error.to_string() }.emit();
        }
    }
}

/// Returns the outcome of an entry after its step.
fn outcome_of_step(entry: &Entry, candidate: &Candidate, checked: &Checked) -> CheckOutcome {
    let Candidate { resolution, payment, .. } = candidate;
    let (status, step) = (payment.status, checked.step);
    if *resolution == Resolution::Paid && checked.state == LedgerState::Absent {
        return outcome_without_credit(payment.value.clone());
    }
    if *resolution == Resolution::Closed && entry.kind() == Some(NotificationKind::Paid) {
        let error = "the notification reports the payment as paid, but its own record is closed".to_owned();
        return CheckOutcome::Conflict { error, decision: Some((status, step)) };
    }
    if let CheckStep::Dead(reason) = step {
        let error = match (reason, &payment.said, &payment.id) {
            (Reason::Conflict, _, Some(id)) => {
                format!("the payment's own record has the ID {id}; the credit is unchanged")
            }
            (Reason::Unpaid, ..) => "the payment is closed; its credit is unchanged".to_owned(),
            (Reason::Expired, ..) if checked.state == LedgerState::Verified => {
                "the payment was found paid before, and is pending now; its credit is unchanged".to_owned()
            }
            (Reason::Expired, ..) => "the payment was not paid in time; its credit is unchanged".to_owned(),
            (_, Some(said), _) => format!("the payment's status is in none of the configured lists: {said}"),
            (_, None, _) => "the payment's status is in none of the configured lists".to_owned(),
        };
        return CheckOutcome::Parked { status, reason, error };
    }
    if *resolution == Resolution::Misspelt {
        return CheckOutcome::Misspelt { status, step };
    }
    CheckOutcome::Checked { status, step, next: entry.attempt.wait_after(status, step, checked.state) }
}

/// Returns the outcome of a paid payment that is not in the ledger and whose record gives no credit.
fn outcome_without_credit(value: Option<PaymentValue>) -> CheckOutcome {
    match value {
        Some(PaymentValue::Invalid(error)) => CheckOutcome::Rejected(error),
        Some(PaymentValue::Nothing) => CheckOutcome::Ignored,
        Some(PaymentValue::Points(..)) | None => {
            CheckOutcome::Rejected("the payment has no record from which it can be credited".into())
        }
    }
}
