//! One batch of checks from arrival to settlement: parse, look up, act, forward, settle.
//!
//! [`CheckPipeline::process`] is the whole way. At every `await` the process may die, and the message comes again: every
//! step leaves the ledger the same when it is done twice, and a copy for a later check may be there twice.

use super::{
    brake::SharedBrake,
    ports::{BatchError, CheckLedger, Decided, Deliveries, Forward, Lookup, Message, Outage, Payment, PaymentSource},
    stages::{Fate, Interrupted, Progress, Turn, Work, forward, parse, tell_copies, through},
};
use crate::{
    backoff,
    domain::{
        check::{self, Check, CheckOutcome, CheckPolicy, CheckStep, Checked, Finding, LedgerState, OnUnpaid},
        credit::Credit,
        ids::PaymentId,
        message::Format,
        retry::RetryPolicy,
        settlement::{Reason, Settlement},
    },
    observe::events,
};
use async_trait::async_trait;
use std::{
    borrow::Cow,
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

/// What stands between a delivered check and the ledger.
pub struct CheckPipeline {
    /// How bodies look.
    pub format: Format,
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

/// A check whose payment was looked up.
struct Looked<M> {
    message: M,
    credit: Credit,
    payment: Payment,
    turn: check::Turn,
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
        let (checks, mut malformed) = parse(&self.format, batch, CheckOutcome::Malformed);
        let checks = self.postpone(checks, &mut malformed);
        let (looked, found) = self.look_up(checks, turn).await;
        turn.pulse.beat();
        let acted = self.act(looked, turn).await;
        turn.pulse.beat();
        let decided = malformed.into_iter().chain(found.decided).chain(acted.decided).collect();
        let forwarded = forward(deliveries, decided, copy, turn).await;
        turn.pulse.beat();
        self.report(&forwarded.decided);
        deliveries.settle(forwarded.decided).await;

        let mut unsettled = found.undecided;
        unsettled.extend(acted.undecided);
        unsettled.extend(forwarded.undecided);
        let outage = found.outage.or(acted.outage).or(forwarded.outage).or_else(|| self.brake.engaged());
        Interrupted::unless_done(outage, unsettled)
    }

    /// A first check whose delay is no longer configured would shorten the time that its payment has: the queue of that delay
    /// is still bound, beside the one that is configured. It is not known to have another one, so it waits once more.
    fn postpone<M: Message>(
        &self,
        checks: Vec<(M, Credit)>,
        decided: &mut Vec<Decided<M, CheckOutcome>>,
    ) -> Vec<(M, Credit)> {
        let early = |(message, _): &(M, Credit)| message.former_delay_queue().is_some();
        let (early, checks): (Vec<_>, Vec<_>) = checks.into_iter().partition(early);
        for queue in early.iter().filter_map(|(message, _)| message.former_delay_queue()) {
            if self.former.lock().unwrap_or_else(PoisonError::into_inner).insert(queue.to_owned()) {
                events::ChecksPostponed { queue }.emit();
            }
        }
        decided.extend(early.into_iter().map(|(message, credit)| Decided {
            message,
            payment_id: Some(credit.payment_id),
            outcome: CheckOutcome::Early(self.policy.beginning()),
        }));
        checks
    }

    /// Asks the source, for each payment once. What it cannot say of one payment is decided here.
    async fn look_up<M: Message>(
        &self,
        checks: Vec<(M, Credit)>,
        turn: &Turn<'_>,
    ) -> (Vec<Looked<M>>, Progress<M, CheckOutcome>) {
        let mut payments: Vec<PaymentId> = checks.iter().map(|(_, credit)| credit.payment_id.clone()).collect();
        payments.sort_unstable();
        payments.dedup();
        let payments: Arc<[PaymentId]> = payments.into();
        let (fates, outage) = self.ask(&payments, turn).await;
        if fates.iter().any(|fate| matches!(fate, Fate::Done(_))) {
            self.answered.store(true, Ordering::Relaxed);
        }
        let mut looked = Vec::with_capacity(checks.len());
        let mut progress = Progress { decided: Vec::new(), undecided: Vec::new(), outage };
        for (message, credit) in checks {
            let fate = payments.binary_search(&credit.payment_id).ok().and_then(|index| fates.get(index));
            let outcome = match fate {
                Some(Fate::Done(Lookup::Known(payment))) => match of_another_user(&credit, payment) {
                    None => {
                        let turn = self.policy.turn(message.checks_done());
                        looked.push(Looked { message, credit, payment: payment.clone(), turn });
                        continue;
                    }
                    Some(error) => CheckOutcome::Conflict(error),
                },
                Some(Fate::Done(Lookup::Failed(error)) | Fate::Failed(error) | Fate::Refused(error)) => {
                    CheckOutcome::after_failure(error.clone(), message.retries_taken(), &self.retry)
                }
                Some(Fate::Open | Fate::Done(Lookup::NotAsked)) | None => {
                    progress.undecided.push(message);
                    continue;
                }
            };
            progress.decided.push(Decided { message, payment_id: Some(credit.payment_id), outcome });
        }
        (looked, progress)
    }

    /// The immediate stage of looking up: the batch as a whole, then those of which the source could say nothing.
    async fn ask(&self, payments: &Arc<[PaymentId]>, turn: &Turn<'_>) -> (Vec<Fate<Lookup>>, Option<Outage>) {
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
    async fn act<M: Message>(&self, looked: Vec<Looked<M>>, turn: &Turn<'_>) -> Progress<M, CheckOutcome> {
        let mut progress = Progress { decided: Vec::with_capacity(looked.len()), undecided: Vec::new(), outage: None };
        let mut candidates = Vec::new();
        for looked in looked {
            match Finding::of(looked.payment.status, looked.turn.used_up) {
                Some(finding) => candidates.push(Candidate { looked, finding }),
                None => progress.decided.push(self.without_the_ledger(looked)),
            }
        }
        let mut rest = candidates.into_iter();
        while !rest.as_slice().is_empty() && progress.outage.is_none() {
            if self.brake.engaged().is_some() {
                break;
            }
            let room = self.brake.room(rest.as_slice().iter().map(|candidate| candidate.finding));
            let part: Vec<_> = rest.by_ref().take(room).collect();
            self.commit(part, &mut progress, turn).await;
        }
        progress.undecided.extend(rest.map(|candidate| candidate.looked.message));
        progress
    }

    fn without_the_ledger<M>(&self, looked: Looked<M>) -> Decided<M, CheckOutcome> {
        let Looked { message, credit, payment, turn } = looked;
        // Whatever the ledger says, it is the same.
        let state = LedgerState::Credited;
        let step = check::decide(payment.status, state, turn.used_up, self.policy.on_unpaid);
        Decided { message, payment_id: Some(credit.payment_id), outcome: outcome(&payment, turn, step) }
    }

    async fn commit<M: Message>(
        &self,
        part: Vec<Candidate<M>>,
        progress: &mut Progress<M, CheckOutcome>,
        turn: &Turn<'_>,
    ) {
        let of =
            |candidate: &Candidate<M>| Check { credit: candidate.looked.credit.clone(), finding: candidate.finding };
        let mut checks: Vec<Check> = part.iter().map(of).collect();
        // The first of one payment stays: its user and points count where the ledger has nothing.
        checks.sort_by(|a, b| a.credit.payment_id.cmp(&b.credit.payment_id));
        checks.dedup_by(|b, a| a.credit.payment_id == b.credit.payment_id);
        let checks: Arc<[Check]> = checks.into();
        let work = Act { ledger: &*self.ledger, on_unpaid: self.policy.on_unpaid };
        let (mut fates, outage) = through(&work, &checks, self.immediate_attempts, turn).await;
        progress.outage = outage;
        for Candidate { looked: Looked { message, credit, payment, turn }, finding } in part {
            let index = checks.binary_search_by(|check| check.credit.payment_id.cmp(&credit.payment_id)).ok();
            let fate = index.and_then(|index| fates.get_mut(index));
            // That the source knows of a paid payment counts, whatever the ledger makes of it.
            if finding == Finding::Paid && !matches!(fate, Some(Fate::Open) | None) {
                self.brake.count(finding, CheckStep::None);
            }
            let outcome = match fate {
                Some(Fate::Done(checked)) => {
                    let step = checked.step;
                    self.brake.count(finding, step);
                    // Another message of the same payment finds what this one has left.
                    checked.step = finding.decide(checked.state, self.policy.on_unpaid);
                    outcome(&payment, turn, step)
                }
                Some(Fate::Refused(reason)) => CheckOutcome::Rejected(reason.clone()),
                Some(Fate::Failed(error)) => {
                    CheckOutcome::after_failure(error.clone(), message.retries_taken(), &self.retry)
                }
                Some(Fate::Open) | None => {
                    progress.undecided.push(message);
                    continue;
                }
            };
            progress.decided.push(Decided { message, payment_id: Some(credit.payment_id), outcome });
        }
    }

    /// Tells of every message that is about to be settled.
    fn report<M: Message>(&self, done: &[Decided<M, CheckOutcome>]) {
        events::ChecksSettled { outcomes: done.iter().map(|decided| &decided.outcome) }.emit();
        tell_copies(done.iter().filter_map(copy), &self.retry);
    }
}

/// What is wrong where the source knows the payment as somebody else's.
fn of_another_user(credit: &Credit, payment: &Payment) -> Option<String> {
    let user = payment.user.as_deref()?;
    (user != credit.user_id.as_str()).then(|| {
        let user: String = user.chars().filter(|character| !character.is_control()).take(128).collect();
        format!("the payment's own record has another user: {user}")
    })
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
        CheckOutcome::Checked { .. } | CheckOutcome::Early(_) | CheckOutcome::Malformed(_) => None,
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
