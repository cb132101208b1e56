//! Bringing the ledger to agree with what was found, while that is fresh.

use super::{
    CheckPipeline,
    look_up::{Found, Judged, judge, ledger_id, look_up_once},
    parse::{Batch, Entry},
};
use crate::{
    domain::{
        check::{Check, CheckOutcome, CheckStep, Checked, Claim, Closing, Finding, LedgerState, PaymentStatus},
        check_message::About,
        ids::PaymentId,
        settlement::{Destination, Reason, Settlement},
        source::Meaning,
        worth::Worth,
    },
    observe::{events, pulse::Pulse},
    pipeline::{
        ports::{BatchError, MOST_HELD_BACK, Outage, Payment},
        stages::{Fate, Turn, Work, through},
    },
};
use async_trait::async_trait;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The oldest answer that a transaction begins with. Older ones are looked up again. A finding is a second old at most: a
/// source may hand over an answer when it is [`MOST_HELD_BACK`] old.
const FRESH: Duration = Duration::from_secs(1).saturating_sub(MOST_HELD_BACK);

/// How long looking up again may take within a commit.
const LOOKING_AGAIN: Duration = Duration::from_secs(5);

/// A finding of which the ledger must know.
#[derive(Clone)]
pub(super) struct Candidate {
    /// Whose it is: the entry's index.
    pub(super) entry: usize,
    pub(super) finding: Finding,
    pub(super) payment: Payment,
    /// When the source said so.
    pub(super) at: Instant,
}

/// Entries, and what became of each.
pub(super) struct Group<'a> {
    pub(super) entries: &'a [Entry],
    pub(super) outcomes: &'a mut [Option<CheckOutcome>],
}

impl Group<'_> {
    fn decide(&mut self, entry: usize, outcome: CheckOutcome) {
        self.outcomes[entry] = Some(outcome);
    }

    /// Decides an entry, or keeps what the ledger must know of it.
    pub(super) fn sort_in(
        &mut self,
        entry: usize,
        payment: Payment,
        at: Instant,
        candidates: &mut Vec<Candidate>,
        to_be_closed: &mut Vec<usize>,
    ) {
        match judge(&self.entries[entry], payment) {
            Judged::Finding(finding, payment) => candidates.push(Candidate { entry, finding, payment, at }),
            Judged::Again(status) => {
                let next = Some(self.entries[entry].turn.next());
                self.decide(entry, CheckOutcome::Checked { status, step: CheckStep::Recheck, next });
            }
            Judged::ToBeClosed => to_be_closed.push(entry),
            Judged::Outcome(outcome) => self.decide(entry, outcome),
        }
    }

    /// The entries that have no outcome yet.
    pub(super) fn open(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().zip(&*self.outcomes).filter(|(_, outcome)| outcome.is_none()).map(|(entry, _)| entry)
    }

    /// The open entries of one payment.
    pub(super) fn open_of(&self, payment_id: &PaymentId) -> Vec<usize> {
        let of = |index: &usize| {
            self.outcomes[*index].is_none()
                && self.entries[*index].check().is_some_and(|check| check.payment_id == *payment_id)
        };
        (0..self.entries.len()).filter(of).collect()
    }
}

impl CheckPipeline {
    /// Judges answers, and commits what the ledger must know.
    pub(super) async fn apply(
        &self,
        group: &mut Group<'_>,
        found: Vec<(usize, Found)>,
        turn: &Turn<'_>,
    ) -> Option<Outage> {
        let (mut candidates, mut to_be_closed) = (Vec::new(), Vec::new());
        for (entry, Found { payment, at, .. }) in found {
            group.sort_in(entry, payment, at, &mut candidates, &mut to_be_closed);
        }
        if !to_be_closed.is_empty()
            && let Some(outage) = self.close_unpaid(group, to_be_closed, &mut candidates, turn).await
        {
            return Some(outage);
        }
        let arrived = self.commit(group, candidates, turn).await;
        match arrived {
            Err(outage) => Some(outage),
            Ok(late_credits) if self.is_arrival() && !late_credits.is_empty() => {
                self.confirm_arrivals(group, late_credits, turn).await
            }
            Ok(_) => None,
        }
    }

    /// Commits, as far as the brake allows. Returns the entries that were credited.
    async fn commit(
        &self,
        group: &mut Group<'_>,
        mut candidates: Vec<Candidate>,
        turn: &Turn<'_>,
    ) -> Result<Vec<usize>, Outage> {
        // In the order of the entries: of two messages of one payment still the first one counts.
        candidates.sort_by_key(|candidate| candidate.entry);
        let mut rest = candidates.into_iter();
        let mut late_credits = Vec::new();
        while !rest.as_slice().is_empty() {
            if let Some(brake) = self.brake.engaged() {
                return Err(brake);
            }
            let room = self.brake.room(rest.as_slice().iter().map(|candidate| candidate.finding));
            let part: Arc<[Candidate]> = rest.by_ref().take(room).collect();
            let work =
                Apply { pipeline: self, entries: group.entries, pulse: turn.pulse, tried: AtomicBool::default() };
            let (fates, outage) = through(&work, &part, self.immediate_attempts, turn).await;
            for (candidate, fate) in part.iter().zip(fates) {
                let entry = &group.entries[candidate.entry];
                let outcome = match fate {
                    Fate::Done(Applied::Done(checked)) => {
                        self.brake.count(candidate.finding, checked.step);
                        if checked.step == CheckStep::LateCredit {
                            late_credits.push(candidate.entry);
                        }
                        outcome(entry, candidate, &checked)
                    }
                    Fate::Refused(reason) => CheckOutcome::Rejected(reason),
                    Fate::Failed(error) => CheckOutcome::after_failure(error, entry.retries_taken, &self.retry),
                    // The source says something else by now: it is looked up again.
                    Fate::Done(Applied::Changed) | Fate::Open => continue,
                };
                // That the source knows a paid payment counts, whatever the ledger makes of it.
                if candidate.finding == Finding::Paid {
                    self.brake.count(Finding::Paid, CheckStep::None);
                }
                group.decide(candidate.entry, outcome);
            }
            if let Some(outage) = outage {
                return Err(outage);
            }
        }
        Ok(late_credits)
    }

    /// Looks up at once, once more, what was credited on arrival: it may have been closed between the look-up and the
    /// commit. What is not found paid again keeps the check that confirms it.
    async fn confirm_arrivals(&self, group: &mut Group<'_>, entries: Vec<usize>, turn: &Turn<'_>) -> Option<Outage> {
        let payments = super::look_up::distinct_payment_ids(entries.iter().map(|entry| &group.entries[*entry]));
        turn.pulse.beat();
        let until = Instant::now() + LOOKING_AGAIN;
        let answers = look_up_once(&*self.source, &payments, until).await.unwrap_or_default();
        let mut changed = Vec::new();
        for entry in entries {
            let index = group.entries[entry].check().and_then(|check| payments.binary_search(&check.payment_id).ok());
            let Some((payment, at)) = index.and_then(|index| answers.get(index)?.clone()) else { continue };
            if payment.status == PaymentStatus::Paid {
                let (status, step) = (PaymentStatus::Paid, CheckStep::LateCredit);
                group.decide(entry, CheckOutcome::Checked { status, step, next: None });
            } else if let Judged::Finding(finding, payment) = judge(&group.entries[entry], payment) {
                changed.push(Candidate { entry, finding, payment, at });
            }
        }
        self.commit(group, changed, turn).await.err()
    }

    /// Notes in the ledger which credits a person must decide about, as far as that was not done in the check's own
    /// transaction. Best effort: without it a credit counts as overdue.
    pub(super) async fn note_parked<M>(&self, batch: &Batch<M>, done: &[bool], turn: &Turn<'_>) {
        let mut checks: Vec<Check> = Vec::new();
        let parked = batch.deliveries.iter().zip(done).filter(|(_, done)| **done);
        for entry in parked.flat_map(|(held, _)| held.entries.clone()) {
            let (entry, outcome) = (&batch.entries[entry], &batch.outcomes[entry]);
            let settlement = outcome.as_ref().map(CheckOutcome::settlement);
            let Some(Settlement::Forward(Destination::Dead(reason))) = settlement else { continue };
            if let Some(payment_id) = entry.payment_id().cloned() {
                let finding = Finding::ForPerson(reason);
                checks.push(Check { payment_id, claim: None, finding, spelling: None, closing: None });
            }
        }
        checks.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
        checks.dedup_by(|later, first| later.payment_id == first.payment_id);
        for part in checks.chunks(crate::domain::credit::MAX_BATCH) {
            turn.pulse.beat();
            if let Err(error) = self.ledger.check(part.into(), self.policy.on_unpaid).await {
                events::ParkedNotNoted { payments: part.len(), error: &error.to_string() }.emit();
            }
        }
    }
}

/// What becomes of an entry after its step.
fn outcome(entry: &Entry, candidate: &Candidate, checked: &Checked) -> CheckOutcome {
    let Candidate { finding, payment, .. } = candidate;
    let (status, step) = (payment.status, checked.step);
    if *finding == Finding::Paid && checked.state == LedgerState::Absent {
        return not_creditable(payment.worth.clone());
    }
    if *finding == Finding::Closed && entry.meaning() == Some(Meaning::Paid) {
        let error = "the notification says that it is paid, its own record that it is closed".to_owned();
        return CheckOutcome::Conflict { error, decision: Some((status, step)) };
    }
    if let CheckStep::Dead(reason) = step {
        let error = match (reason, &payment.said, &payment.id) {
            (Reason::Conflict, _, Some(id)) => format!("its own record writes the id as {id}; the credit stands"),
            (Reason::Unpaid, ..) => "the payment is closed; its credit stands".to_owned(),
            (Reason::Expired, ..) if checked.state == LedgerState::Verified => {
                "the payment was found paid before, and is pending now; its credit stands".to_owned()
            }
            (Reason::Expired, ..) => "the payment was not paid in time; its credit stands".to_owned(),
            (_, Some(said), _) => format!("the payment's status is in none of the configured lists: {said}"),
            (_, None, _) => "the payment's status is in none of the configured lists".to_owned(),
        };
        return CheckOutcome::Parked { status, reason, error };
    }
    if *finding == Finding::Misspelt {
        return CheckOutcome::Misspelt { status, step };
    }
    CheckOutcome::Checked { status, step, next: entry.turn.wait_after(status, step, checked.state) }
}

/// What becomes of a paid payment that is not in the ledger and from whose record nothing can be credited.
fn not_creditable(worth: Option<Worth>) -> CheckOutcome {
    match worth {
        Some(Worth::Invalid(error)) => CheckOutcome::Rejected(error),
        Some(Worth::Nothing) => CheckOutcome::Ignored,
        Some(Worth::Points(..)) | None => CheckOutcome::Rejected("the payment has no record to credit it from".into()),
    }
}

/// What the ledger is told.
fn check_of(entry: &Entry, candidate: &Candidate) -> Option<Check> {
    let Candidate { finding, payment, .. } = candidate;
    let check = entry.check()?;
    let claim = match &check.about {
        About::Claim(claim) => Some(claim.clone()),
        About::Notification { .. } | About::Record => match &payment.worth {
            Some(Worth::Points(user_id, points)) if *finding == Finding::Paid => {
                Some(Claim { user_id: user_id.clone(), points: *points })
            }
            _ => None,
        },
    };
    // What a person must decide writes no credit.
    let claim = claim.filter(|_| !matches!(finding, Finding::ForPerson(_)));
    let closes = entry.meaning() == Some(Meaning::Created) && entry.turn.used_up && *finding == Finding::Closed;
    let user_id = || payment.user.clone().filter(|user| !user.is_empty());
    Some(Check {
        payment_id: ledger_id(check, payment),
        claim,
        finding: *finding,
        spelling: payment.id.clone().filter(|_| *finding == Finding::Misspelt),
        closing: closes.then(|| Closing { user_id: user_id() }),
    })
}

/// What became of a candidate.
enum Applied {
    Done(Checked),
    /// The source says something else by now.
    Changed,
}

/// A transaction of the ledger. Only its first attempt may use what was found before: until a further one anything may
/// have happened.
struct Apply<'a> {
    pipeline: &'a CheckPipeline,
    entries: &'a [Entry],
    pulse: &'a Pulse,
    tried: AtomicBool,
}

#[async_trait]
impl Work for Apply<'_> {
    type Item = Candidate;
    type Done = Applied;

    async fn attempt(&self, batch: Arc<[Candidate]>) -> Result<Vec<Applied>, BatchError> {
        let fresh = batch.iter().all(|candidate| candidate.at.elapsed() < FRESH);
        let first = !self.tried.swap(true, Ordering::Relaxed);
        if fresh && first {
            return self.commit(batch.iter().map(|candidate| Some(candidate.clone())).collect()).await;
        }
        let again = self.look_up_again(&batch).await?;
        self.pulse.beat();
        self.commit(again).await
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.pipeline.ledger.probe().await
    }
}

impl Apply<'_> {
    /// The candidates as the source has them now; `None` where that leads to another finding, or where the source has not
    /// said it a moment ago.
    async fn look_up_again(&self, batch: &[Candidate]) -> Result<Vec<Option<Candidate>>, BatchError> {
        let entry = |candidate: &Candidate| &self.entries[candidate.entry];
        let payments = super::look_up::distinct_payment_ids(batch.iter().map(entry));
        let until = Instant::now() + LOOKING_AGAIN;
        // A failure of the source's is no failure of the ledger's: what is not answered is looked up again.
        let answers = look_up_once(&*self.pipeline.source, &payments, until).await?;
        Ok(batch
            .iter()
            .map(|candidate| {
                let check = entry(candidate).check()?;
                let index = payments.binary_search(&check.payment_id).ok()?;
                let (payment, at) = answers.get(index)?.clone().filter(|(_, at)| at.elapsed() < FRESH)?;
                match judge(entry(candidate), payment) {
                    Judged::Finding(finding, payment) if finding == candidate.finding => {
                        Some(Candidate { entry: candidate.entry, finding, payment, at })
                    }
                    _ => None,
                }
            })
            .collect())
    }

    async fn commit(&self, batch: Vec<Option<Candidate>>) -> Result<Vec<Applied>, BatchError> {
        let checks: Vec<Option<Check>> = batch
            .iter()
            .map(|candidate| candidate.as_ref().and_then(|it| check_of(&self.entries[it.entry], it)))
            .collect();
        let mut merged: Vec<Check> = checks.iter().flatten().cloned().collect();
        merged.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
        merged.dedup_by(|later, first| {
            let same = later.payment_id == first.payment_id;
            if same {
                first.take_over(later);
            }
            same
        });
        if merged.is_empty() {
            return Ok(checks.iter().map(|_| Applied::Changed).collect());
        }
        let (ledger, on_unpaid) = (&self.pipeline.ledger, self.pipeline.policy.on_unpaid);
        let merged: Arc<[Check]> = merged.into();
        let begun = Instant::now();
        let mut checked = ledger.check(Arc::clone(&merged), on_unpaid).await?;
        events::ChecksCommitted { checks: &merged, checked: &checked, took: begun.elapsed() }.emit();
        let applied = checks.iter().map(|check| {
            let index = check
                .as_ref()
                .and_then(|check| merged.binary_search_by(|it| it.payment_id.cmp(&check.payment_id)).ok());
            let Some((check, checked)) = index.and_then(|index| Some((merged.get(index)?, checked.get_mut(index)?)))
            else {
                return Applied::Changed;
            };
            let this = checked.clone();
            // Another message of the same payment finds what this one has left.
            checked.step = check.decide(checked.state, on_unpaid);
            checked.state = checked.step.leaves(checked.state);
            Applied::Done(this)
        });
        Ok(applied.collect())
    }
}
