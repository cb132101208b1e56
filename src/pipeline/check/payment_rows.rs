//! Setting the rows of payments: to paid, because a notification says so; to closed, because their time is up. Both are
//! guarded: a row that is not pending any more stays as it is, and what it says then counts.

use super::{
    CheckPipeline,
    apply::{Candidate, Group},
    look_up::{distinct_payment_ids, look_up_once},
};
use crate::{
    domain::{
        check::CheckOutcome,
        component::Component,
        failure::{BatchError, Outage},
        ids::PaymentId,
        notification_source::{Meaning, Source},
        settlement::Reason,
        status::PaymentStatus,
    },
    pipeline::{
        batch::{Fate, Turn, Work, through},
        ports::{PaymentSource, RowStatus},
    },
};
use async_trait::async_trait;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long looking up what was closed may take.
const LOOKING_AGAIN: Duration = Duration::from_secs(5);

impl CheckPipeline {
    /// Sets the rows to paid of those payments whose notification says so. Whether a row was there, and what it says, is
    /// found by looking it up. `false`: there was no time for all of them.
    pub(super) async fn mark_paid(&self, group: &mut Group<'_>, turn: &Turn<'_>) -> Result<bool, Outage> {
        let says_paid = group.open().filter(|entry| entry.meaning() == Some(Meaning::Paid));
        let payments = distinct_payment_ids(says_paid);
        if payments.is_empty() {
            return Ok(true);
        }
        let (fates, outage) = self.set(&payments, RowStatus::Paid, turn).await;
        self.note_failures(group, &payments, &fates);
        outage.map_or(Ok(!fates.contains(&Fate::Open)), Err)
    }

    /// Closes those payments that are pending when their time is up, and looks at them again: what became paid at that very
    /// moment wins.
    pub(super) async fn close_unpaid(
        &self,
        group: &mut Group<'_>,
        late: Vec<usize>,
        candidates: &mut Vec<Candidate>,
        turn: &Turn<'_>,
    ) -> Option<Outage> {
        let payments = distinct_payment_ids(late.iter().map(|entry| &group.entries[*entry]));
        let (fates, outage) = self.set(&payments, RowStatus::Closed, turn).await;
        self.note_failures(group, &payments, &fates);
        if outage.is_some() {
            return outage;
        }
        turn.pulse.beat();
        let until = Instant::now() + LOOKING_AGAIN;
        // What is not answered stays open: the next turn finds it closed.
        let answers = match look_up_once(&*self.source, &payments, until).await {
            Ok(answers) => answers,
            Err(outage) => return Some(outage),
        };
        for entry in late {
            let check = group.entries[entry].check();
            let index = check.and_then(|check| payments.binary_search(&check.payment_id).ok());
            let answer = index.and_then(|index| answers.get(index)?.clone());
            let (Some((payment, at)), None) = (answer, &group.outcomes[entry]) else { continue };
            let mut still_pending = Vec::new();
            group.sort_in(entry, payment, at, candidates, &mut still_pending);
            for entry in still_pending {
                let error = "it was not paid in time, but its record cannot be set to closed".to_owned();
                let outcome = CheckOutcome::Parked { status: PaymentStatus::Pending, reason: Reason::Expired, error };
                group.outcomes[entry] = Some(outcome);
            }
        }
        None
    }

    /// Whether the payment source works for what is asked of it here: where rows are to be set, setting them, too.
    pub async fn probe_source(&self) -> Result<(), Outage> {
        let sets = |source: &Source| match (self.component, source.meaning) {
            (Component::Checks, Meaning::Paid | Meaning::Created) => true,
            (Component::Source(name), Meaning::Paid) => source.name == name,
            _ => false,
        };
        if self.sources.iter().any(sets) { self.source.probe_set().await } else { self.source.probe().await }
    }

    async fn set(
        &self,
        payments: &Arc<[PaymentId]>,
        to: RowStatus,
        turn: &Turn<'_>,
    ) -> (Vec<Fate<()>>, Option<Outage>) {
        let work = Set { source: &*self.source, to };
        through(&work, payments, self.immediate_attempts, turn).await
    }

    /// Decides the entries of payments whose rows could not be set.
    fn note_failures(&self, group: &mut Group<'_>, payments: &[PaymentId], fates: &[Fate<()>]) {
        for (payment, fate) in payments.iter().zip(fates) {
            let (Fate::Failed(error) | Fate::Refused(error)) = fate else { continue };
            for entry in group.open_of(payment) {
                let retries_taken = group.entries[entry].retries_taken;
                let error = format!("the payment's row could not be set: {error}");
                group.outcomes[entry] = Some(CheckOutcome::after_failure(error, retries_taken, &self.retry));
            }
        }
    }
}

/// The guarded update.
struct Set<'a> {
    source: &'a dyn PaymentSource,
    to: RowStatus,
}

#[async_trait]
impl Work for Set<'_> {
    type Item = PaymentId;
    type Done = ();

    async fn attempt(&self, batch: Arc<[PaymentId]>) -> Result<Vec<()>, BatchError> {
        let each = vec![(); batch.len()];
        self.source.set(batch, self.to).await.map(|()| each)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.source.probe_set().await
    }
}
