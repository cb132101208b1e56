//! The ledger transaction that applies a batch of resolutions. Resolutions that are not fresh are looked up again.

use super::{
    look_up::{
        Interpretation, REPEATED_LOOK_UP_TIME, distinct_payment_ids, interpret_answer, ledger_payment_id, look_up_once,
    },
    parse::Entry,
};
use crate::{
    domain::{
        check::{Check, Checked, Claim, Closing, Resolution},
        check_message::About,
        failure::{BatchError, Outage},
        notification_source::NotificationKind,
        valuation::PaymentValue,
    },
    observe::{
        events::{self, Event as _},
        heartbeat::Heartbeat,
    },
    pipeline::{
        check::{group::Candidate, pipeline::CheckPipeline},
        locked_rows::LockedRows,
        ports::{LedgerRow, MOST_HELD_BACK, Patience, RowLocks},
        work::Work,
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

/// Maximum age of the answers with which a transaction begins; older ones are looked up again. Each answer is at most
/// one second old: a source may hand over an answer that is [`MOST_HELD_BACK`] old.
const FRESH: Duration = Duration::from_secs(1).saturating_sub(MOST_HELD_BACK);

/// Builds the check that the ledger applies; `None` if the entry has no check.
fn build_check(entry: &Entry, candidate: &Candidate) -> Option<Check> {
    let Candidate { resolution, payment, .. } = candidate;
    let check = entry.check()?;
    let claim = match &check.about {
        About::Claim(claim) => Some(claim.clone()),
        About::Notification { .. } | About::Record => match &payment.value {
            Some(PaymentValue::Points(user_id, points)) if *resolution == Resolution::Paid => {
                Some(Claim { user_id: user_id.clone(), points: *points })
            }
            _ => None,
        },
    };
    // A check that a person must decide writes no credit.
    let claim = claim.filter(|_| !matches!(resolution, Resolution::ForPerson(_)));
    let closes = entry.kind() == Some(NotificationKind::OrderCreated)
        && entry.attempt.used_up
        && *resolution == Resolution::Closed;
    let user_id = || payment.user.clone().filter(|user| !user.is_empty());
    Some(Check {
        payment_id: ledger_payment_id(check, payment),
        claim,
        resolution: *resolution,
        spelling: payment.id.clone().filter(|_| *resolution == Resolution::Misspelt),
        closing: closes.then(|| Closing { user_id: user_id() }),
    })
}

/// The result of applying a candidate.
pub(super) enum Applied {
    /// The ledger has applied the check.
    Done(Checked),
    /// The answer of the source has changed in the meantime.
    Changed,
}

/// Work that applies candidates in one transaction of the ledger. Only the first attempt may use the given answers:
/// they may have changed before a further attempt.
pub(super) struct CheckTransaction<'a> {
    pub(super) pipeline: &'a CheckPipeline,
    pub(super) entries: &'a [Entry],
    pub(super) candidates: &'a [Candidate],
    pub(super) heartbeat: &'a Heartbeat,
    /// Whether an attempt has been made.
    pub(super) tried: AtomicBool,
}

#[async_trait]
impl Work for CheckTransaction<'_> {
    type Item = Candidate;
    type Done = Applied;

    async fn attempt(&self, batch: Arc<[Candidate]>) -> Result<Vec<Applied>, BatchError> {
        self.attempt(&batch, Patience::Usual).await
    }

    async fn attempt_briefly(&self, batch: Arc<[Candidate]>) -> Result<Vec<Applied>, BatchError> {
        self.attempt(&batch, Patience::Brief).await
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.pipeline.ledger.probe().await
    }

    fn locked_rows(&self) -> Option<&LockedRows> {
        Some(&self.pipeline.locked)
    }

    fn rows(&self, candidate: &Candidate) -> Vec<LedgerRow> {
        let Some(check) = build_check(&self.entries[candidate.entry], candidate) else { return Vec::new() };
        let user = check.claim.map(|claim| LedgerRow::User(claim.user_id));
        std::iter::once(LedgerRow::Payment(check.payment_id)).chain(user).collect()
    }

    fn is_last(&self, index: usize) -> bool {
        let entry = self.candidates.get(index).map(|candidate| &self.entries[candidate.entry]);
        entry.is_some_and(|entry| self.pipeline.retry.next(entry.retries_taken).is_none())
    }

    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        self.pipeline.ledger.row_locks(rows).await
    }
}

impl CheckTransaction<'_> {
    async fn attempt(&self, batch: &[Candidate], patience: Patience) -> Result<Vec<Applied>, BatchError> {
        let fresh = batch.iter().all(|candidate| candidate.at.elapsed() < FRESH);
        let first = !self.tried.swap(true, Ordering::Relaxed);
        if fresh && first {
            return self.commit(batch.iter().map(|candidate| Some(candidate.clone())).collect(), patience).await;
        }
        let again = self.look_up_again(batch).await?;
        self.heartbeat.beat();
        self.commit(again, patience).await
    }

    /// Returns the candidates with new answers; `None` for a candidate whose resolution has changed, or whose new
    /// answer is missing or not fresh.
    async fn look_up_again(&self, batch: &[Candidate]) -> Result<Vec<Option<Candidate>>, BatchError> {
        let entry = |candidate: &Candidate| &self.entries[candidate.entry];
        let payments = distinct_payment_ids(batch.iter().map(entry));
        let until = Instant::now() + REPEATED_LOOK_UP_TIME;
        // A failure of the source is no failure of the ledger: entries without an answer are looked up again.
        let answers = look_up_once(&*self.pipeline.source, &payments, until).await?;
        Ok(batch
            .iter()
            .map(|candidate| {
                let check = entry(candidate).check()?;
                let index = payments.binary_search(&check.payment_id).ok()?;
                let (payment, at) = answers.get(index)?.clone().filter(|(_, at)| at.elapsed() < FRESH)?;
                match interpret_answer(entry(candidate), payment) {
                    Interpretation::Resolved(resolution, payment) if resolution == candidate.resolution => {
                        Some(Candidate { entry: candidate.entry, resolution, payment, at })
                    }
                    _ => None,
                }
            })
            .collect())
    }

    async fn commit(&self, batch: Vec<Option<Candidate>>, patience: Patience) -> Result<Vec<Applied>, BatchError> {
        let checks: Vec<Option<Check>> = batch
            .iter()
            .map(|candidate| candidate.as_ref().and_then(|it| build_check(&self.entries[it.entry], it)))
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
        let committed = ledger.check(Arc::clone(&merged), on_unpaid, patience).await;
        let took = begun.elapsed();
        let mut checked = committed.inspect_err(|reason| {
            if patience == Patience::Usual {
                let (component, size) = (self.pipeline.component, merged.len());
                events::CommitFailed { component, size, took, reason }.emit();
            }
        })?;
        events::ChecksCommitted { checks: &merged, checked: &checked, took }.emit();
        let applied = checks.iter().map(|check| {
            let index = check
                .as_ref()
                .and_then(|check| merged.binary_search_by(|it| it.payment_id.cmp(&check.payment_id)).ok());
            let Some((check, checked)) = index.and_then(|index| Some((merged.get(index)?, checked.get_mut(index)?)))
            else {
                return Applied::Changed;
            };
            let this = checked.clone();
            // The next message of the same payment finds the state that this one has left.
            checked.step = check.decide(checked.state, on_unpaid);
            checked.state = checked.step.leaves(checked.state);
            Applied::Done(this)
        });
        Ok(applied.collect())
    }
}
