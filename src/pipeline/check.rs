//! One batch of checks, or of notifications, from arrival to settlement: parse, mark paid, look up, close, act, forward,
//! settle. (Only notifications mark a payment's row as paid, or close it.)
//!
//! [`CheckPipeline::process`] is the whole way. At every `await` the process may die, and the message comes again: every
//! step leaves the ledger the same when it is done twice, and a copy for a later check may be there twice.

use super::{
    asked::{Asked, Looked, each_once},
    brake::SharedBrake,
    ports::{BatchError, CheckLedger, Decided, Deliveries, Forward, Lookup, Message, Outage, Payment, PaymentSource},
    stages::{Fate, Interrupted, Progress, Turn, Work, forward, tell_copies, through},
};
use crate::{
    backoff,
    domain::{
        check::{self, Check, CheckOutcome, CheckPolicy, CheckStep, Checked, Finding, LedgerState, OnUnpaid},
        ids::PaymentId,
        message::Format,
        retry::RetryPolicy,
        settlement::{Reason, Settlement},
        source::Source,
        worth::Worth,
    },
    observe::{events, status::Part},
};
use async_trait::async_trait;
use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

/// What stands between a delivered check, or a notification, and the ledger.
pub struct CheckPipeline {
    /// Which queue it works on: the check queue, or that of a source.
    pub part: Part,
    /// How bodies look in the credit format.
    pub format: Format,
    /// How those of notifications look, and what they mean.
    pub sources: Arc<[Source]>,
    /// What knows whether payments are paid.
    pub source: Arc<dyn PaymentSource>,
    /// What is brought to agree with it.
    pub ledger: Arc<dyn CheckLedger>,
    /// How often and when a credit is checked, and what is done in the end.
    pub policy: CheckPolicy,
    /// As in [`super::credit::CreditPipeline`].
    pub immediate_attempts: u32,
    /// As in [`super::credit::CreditPipeline`].
    pub retry: RetryPolicy,
    /// Stops it when too much is reversed.
    pub brake: SharedBrake,
    /// Set whenever the source has answered.
    pub answered: AtomicBool,
    /// Former delay queues that were told of.
    pub former: Mutex<BTreeSet<String>>,
}

/// One of which the ledger is to be told.
struct Candidate<M> {
    looked: Looked<M>,
    finding: Finding,
}

impl CheckPipeline {
    /// Takes `batch` the whole way. Each message ends as if it had come alone. What is left undone is handed back, the
    /// rest is settled.
    pub async fn process<D: Deliveries<CheckOutcome>>(
        &self,
        deliveries: &D,
        batch: Vec<D::Message>,
        turn: &Turn<'_>,
    ) -> Result<(), Interrupted<D::Message>> {
        let mut progress = Progress::default();
        let asked = self.parse(batch, &mut progress);
        let asked = self.postpone(asked, &mut progress);
        let asked = self.mark_paid(asked, &mut progress, turn).await;
        let looked = self.look_up(asked, &mut progress, turn).await;
        let looked = self.close_unpaid(looked, &mut progress, turn).await;
        turn.pulse.beat();
        self.act(looked, &mut progress, turn).await;
        turn.pulse.beat();
        let Progress { decided, mut undecided, outage } = progress;
        let forwarded = forward(deliveries, decided, copy, turn).await;
        turn.pulse.beat();
        self.report(&forwarded.decided);
        deliveries.settle(forwarded.decided).await;

        undecided.extend(forwarded.undecided);
        let outage = outage.or(forwarded.outage).or_else(|| self.brake.engaged());
        Interrupted::unless_done(outage, undecided)
    }

    /// A first check whose delay is no longer configured would shorten the time that its payment has: the queue of that delay
    /// is still bound, beside the one that is configured. It is not known to have another one, so it waits once more.
    fn postpone<M: Message>(&self, asked: Vec<Asked<M>>, progress: &mut Progress<M, CheckOutcome>) -> Vec<Asked<M>> {
        let early = |asked: &Asked<M>| asked.message.former_delay_queue().is_some();
        let (early, asked): (Vec<_>, Vec<_>) = asked.into_iter().partition(early);
        for queue in early.iter().filter_map(|asked| asked.message.former_delay_queue()) {
            if self.former.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned()) {
                events::ChecksPostponed { queue }.emit();
            }
        }
        let wait = self.policy.beginning();
        progress.decided.extend(early.into_iter().map(|asked| asked.decided(CheckOutcome::Early(wait))));
        asked
    }

    /// Asks the source, for each payment once. What it cannot say of one payment is decided here.
    pub(super) async fn look_up<M: Message>(
        &self,
        asked: Vec<Asked<M>>,
        progress: &mut Progress<M, CheckOutcome>,
        turn: &Turn<'_>,
    ) -> Vec<Looked<M>> {
        let payments = each_once(asked.iter());
        let (fates, outage) = self.ask(&payments, turn).await;
        progress.meet(outage);
        if fates.iter().any(|fate| matches!(fate, Fate::Done(_))) {
            self.answered.store(true, Ordering::Relaxed);
        }
        let mut looked = Vec::with_capacity(asked.len());
        for asked in asked {
            let fate = payments.binary_search(&asked.payment_id).ok().and_then(|index| fates.get(index));
            let outcome = match fate {
                Some(Fate::Done(Lookup::Known(payment))) => match asked.judge(payment.clone()) {
                    Ok(payment) => {
                        looked.push(Looked { asked, payment });
                        continue;
                    }
                    Err(outcome) => outcome,
                },
                Some(Fate::Done(Lookup::Failed(error)) | Fate::Failed(error) | Fate::Refused(error)) => {
                    CheckOutcome::after_failure(error.clone(), asked.message.retries_taken(), &self.retry)
                }
                Some(Fate::Open | Fate::Done(Lookup::NotAsked)) | None => {
                    progress.undecided.push(asked.message);
                    continue;
                }
            };
            progress.decided.push(asked.decided(outcome));
        }
        looked
    }

    /// The immediate stage of looking up: the batch as a whole, then those of which the source could say nothing.
    pub(super) async fn ask(
        &self,
        payments: &Arc<[PaymentId]>,
        turn: &Turn<'_>,
    ) -> (Vec<Fate<Lookup>>, Option<Outage>) {
        let work = Ask(&*self.source);
        let (mut fates, outage) = through(&work, payments, self.immediate_attempts, turn).await;
        if outage.is_some() {
            return (fates, outage);
        }
        for pause in backoff::immediate(self.immediate_attempts) {
            let failed: Vec<usize> =
                (0..fates.len()).filter(|index| matches!(fates[*index], Fate::Done(Lookup::Failed(_)))).collect();
            if failed.is_empty() || turn.stop.is_cancelled() {
                break;
            }
            tokio::time::sleep(pause).await;
            let again: Arc<[PaymentId]> = failed.iter().map(|index| payments[*index].clone()).collect();
            let (retried, outage) = through(&work, &again, 1, turn).await;
            for (index, fate) in failed.into_iter().zip(retried) {
                fates[index] = fate;
            }
            if outage.is_some() {
                return (fates, outage);
            }
        }
        // Told to stop: no attempt is spent on a message that has not had all of its own.
        if turn.stop.is_cancelled() {
            for fate in fates.iter_mut().filter(|fate| matches!(fate, Fate::Done(Lookup::Failed(_)) | Fate::Failed(_)))
            {
                *fate = Fate::Open;
            }
        }
        (fates, None)
    }

    /// Brings the ledger to agree with what is certain, as far as the brake allows.
    async fn act<M: Message>(&self, looked: Vec<Looked<M>>, progress: &mut Progress<M, CheckOutcome>, turn: &Turn<'_>) {
        let mut candidates = Vec::new();
        for looked in looked {
            match Finding::of(looked.payment.status, looked.asked.turn.used_up) {
                Some(finding) => candidates.push(Candidate { looked, finding }),
                None => progress.decided.push(self.without_the_ledger(looked)),
            }
        }
        let mut rest = candidates.into_iter();
        let mut down = false;
        while !rest.as_slice().is_empty() && !down {
            if self.brake.engaged().is_some() {
                break;
            }
            let room = self.brake.room(rest.as_slice().iter().map(|candidate| candidate.finding));
            let part: Vec<_> = rest.by_ref().take(room).collect();
            let outage = self.commit(part, progress, turn).await;
            down = outage.is_some();
            progress.meet(outage);
        }
        progress.undecided.extend(rest.map(|candidate| candidate.looked.asked.message));
    }

    fn without_the_ledger<M>(&self, Looked { asked, payment }: Looked<M>) -> Decided<M, CheckOutcome> {
        // Whatever the ledger says, it is the same.
        let state = LedgerState::Credited;
        let step = check::decide(payment.status, state, asked.turn.used_up, self.policy.on_unpaid);
        let outcome = outcome(&payment, asked.turn, step);
        asked.decided(outcome)
    }

    async fn commit<M: Message>(
        &self,
        part: Vec<Candidate<M>>,
        progress: &mut Progress<M, CheckOutcome>,
        turn: &Turn<'_>,
    ) -> Option<Outage> {
        let mut checks: Vec<Check> = part.iter().map(|it| it.looked.check(it.finding)).collect();
        checks.sort_by(|a, b| a.payment_id.cmp(&b.payment_id));
        checks.dedup_by(|later, first| {
            let same = later.payment_id == first.payment_id;
            if same {
                first.take_over(later);
            }
            same
        });
        let checks: Arc<[Check]> = checks.into();
        let work = Act { ledger: &*self.ledger, on_unpaid: self.policy.on_unpaid };
        let (mut fates, outage) = through(&work, &checks, self.immediate_attempts, turn).await;
        for Candidate { looked: Looked { asked, payment }, finding } in part {
            let index = checks.binary_search_by(|check| check.payment_id.cmp(&asked.payment_id)).ok();
            let found = index.and_then(|index| Some((fates.get_mut(index)?, checks.get(index)?)));
            // That the source knows of a paid payment counts, whatever the ledger makes of it.
            if finding == Finding::Paid && !matches!(found, Some((Fate::Open, _)) | None) {
                self.brake.count(finding, CheckStep::None);
            }
            let outcome = match found {
                Some((Fate::Done(checked), check)) => {
                    let (step, state) = (checked.step, checked.state);
                    self.brake.count(finding, step);
                    // Another message of the same payment finds what this one has left.
                    checked.step = check.decide(state, self.policy.on_unpaid);
                    if finding == Finding::Paid && state == LedgerState::Absent {
                        not_creditable(payment.worth)
                    } else {
                        outcome(&payment, asked.turn, step)
                    }
                }
                Some((Fate::Refused(reason), _)) => CheckOutcome::Rejected(reason.clone()),
                Some((Fate::Failed(error), _)) => {
                    CheckOutcome::after_failure(error.clone(), asked.message.retries_taken(), &self.retry)
                }
                Some((Fate::Open, _)) | None => {
                    progress.undecided.push(asked.message);
                    continue;
                }
            };
            progress.decided.push(asked.decided(outcome));
        }
        outage
    }

    /// Tells of every message that is about to be settled.
    fn report<M: Message>(&self, done: &[Decided<M, CheckOutcome>]) {
        let now = SystemTime::now();
        let ages = done.iter().filter_map(|decided| now.duration_since(decided.message.sent_at()?).ok());
        events::ChecksSettled { part: self.part, outcomes: done.iter().map(|decided| &decided.outcome), ages }.emit();
        tell_copies(done.iter().filter_map(copy), &self.retry);
    }
}

/// What becomes of a paid payment that is not in the ledger and from whose record nothing can be credited.
fn not_creditable(worth: Option<Worth>) -> CheckOutcome {
    match worth {
        Some(Worth::Invalid(error)) => CheckOutcome::Rejected(error),
        Some(Worth::Nothing) => CheckOutcome::Ignored,
        Some(Worth::Points(..)) | None => CheckOutcome::Rejected("the payment has no record to credit it from".into()),
    }
}

fn outcome(payment: &Payment, turn: check::Turn, step: CheckStep) -> CheckOutcome {
    let status = payment.status;
    let CheckStep::Dead(reason) = step else {
        let next = turn.goes_on_after(status, step).then_some(turn.next);
        return CheckOutcome::Checked { status, step, next };
    };
    let error = match (reason, &payment.said) {
        (Reason::Unpaid, _) => "the payment is closed; its credit stands".to_owned(),
        (Reason::Expired, _) => "the payment was not paid in time; its credit stands".to_owned(),
        (_, Some(said)) => format!("the payment's status is in none of the configured lists: {said}"),
        (_, None) => "the payment's status is in none of the configured lists".to_owned(),
    };
    CheckOutcome::Parked { status, reason, error }
}

/// A look-up.
struct Ask<'a>(&'a dyn PaymentSource);

#[async_trait]
impl Work for Ask<'_> {
    type Item = PaymentId;
    type Done = Lookup;

    async fn attempt(&self, batch: Arc<[PaymentId]>) -> Result<Vec<Lookup>, BatchError> {
        self.0.look_up(batch).await
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.0.probe().await
    }
}

/// A transaction of the ledger.
struct Act<'a> {
    ledger: &'a dyn CheckLedger,
    on_unpaid: OnUnpaid,
}

#[async_trait]
impl Work for Act<'_> {
    type Item = Check;
    type Done = Checked;

    async fn attempt(&self, batch: Arc<[Check]>) -> Result<Vec<Checked>, BatchError> {
        let begun = Instant::now();
        let checked = self.ledger.check(Arc::clone(&batch), self.on_unpaid).await?;
        events::ChecksCommitted { checks: &batch, checked: &checked, took: begun.elapsed() }.emit();
        Ok(checked)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.ledger.probe().await
    }
}

/// The copy for another queue, for outcomes that ask for one.
fn copy<M>(decided: &Decided<M, CheckOutcome>) -> Option<Forward<'_, M>> {
    let Settlement::Forward(to) = decided.outcome.settlement() else { return None };
    let error = match &decided.outcome {
        CheckOutcome::Checked { .. } | CheckOutcome::Early(_) | CheckOutcome::Malformed(_) | CheckOutcome::Ignored => {
            None
        }
        CheckOutcome::Unreadable(malformed) => Some(Cow::Owned(malformed.to_string())),
        CheckOutcome::Parked { error, .. }
        | CheckOutcome::Conflict(error)
        | CheckOutcome::Rejected(error)
        | CheckOutcome::Retry { error, .. }
        | CheckOutcome::Exhausted { error } => Some(Cow::Borrowed(error.as_str())),
    };
    let payment_id = decided.payment_id.as_ref();
    Some(Forward { message: &decided.message, payment_id, to, error, standing: None })
}

#[cfg(test)]
#[path = "check_tests.rs"]
mod tests;
