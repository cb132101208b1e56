//! Setting the rows of payments: to paid, because a notification says so; to closed, because their time is up. Both are
//! guarded: a row that is not pending any more stays as it is, and what it says then counts.

use super::{
    asked::{Asked, Looked, each_once},
    check::CheckPipeline,
    ports::{BatchError, Message, Outage, PaymentSource, RowStatus},
    stages::{Fate, Progress, Turn, Work, through},
};
use crate::{
    domain::{
        check::CheckOutcome,
        ids::PaymentId,
        settlement::Reason,
        source::{Meaning, Source},
        status::PaymentStatus,
    },
    observe::status::Part,
};
use async_trait::async_trait;
use std::sync::Arc;

impl CheckPipeline {
    /// Sets the rows to paid of those payments whose notification says so. Whether a row was there, and what it says, is
    /// found by looking it up.
    pub(super) async fn mark_paid<M: Message>(
        &self,
        asked: Vec<Asked<M>>,
        progress: &mut Progress<M, CheckOutcome>,
        turn: &Turn<'_>,
    ) -> Vec<Asked<M>> {
        let says_paid = |asked: &Asked<M>| asked.meaning == Some(Meaning::Paid);
        let payments = each_once(asked.iter().filter(|asked| says_paid(asked)));
        if payments.is_empty() {
            return asked;
        }
        let fates = self.set(&payments, RowStatus::Paid, progress, turn).await;
        let mut marked = Vec::with_capacity(asked.len());
        for asked in asked {
            match says_paid(&asked).then(|| fate_of(&asked.payment_id, &payments, &fates)) {
                None | Some(Fate::Done(())) => marked.push(asked),
                Some(fate) => self.not_set(asked, fate, progress),
            }
        }
        marked
    }

    /// Closes those payments that are pending when their time is up, and looks at them again: what became paid at that very
    /// moment wins.
    pub(super) async fn close_unpaid<M: Message>(
        &self,
        looked: Vec<Looked<M>>,
        progress: &mut Progress<M, CheckOutcome>,
        turn: &Turn<'_>,
    ) -> Vec<Looked<M>> {
        let (late, mut looked): (Vec<_>, Vec<_>) = looked.into_iter().partition(Looked::is_to_be_closed);
        if late.is_empty() {
            return looked;
        }
        let payments = each_once(late.iter().map(|late| &late.asked));
        let fates = self.set(&payments, RowStatus::Closed, progress, turn).await;
        let (set, not_set): (Vec<_>, Vec<_>) = late
            .into_iter()
            .map(|late| late.asked)
            .partition(|asked| fate_of(&asked.payment_id, &payments, &fates) == Fate::Done(()));
        for asked in not_set {
            let fate = fate_of(&asked.payment_id, &payments, &fates);
            self.not_set(asked, fate, progress);
        }
        for again in self.look_up(set, progress, turn).await {
            if again.is_to_be_closed() {
                let error = "it was not paid in time, but its record cannot be set to closed".to_owned();
                let outcome = CheckOutcome::Parked { status: PaymentStatus::Pending, reason: Reason::Expired, error };
                progress.decided.push(again.asked.decided(outcome));
            } else {
                looked.push(again);
            }
        }
        looked
    }

    /// Whether the payment source works for what is asked of it here: where rows are to be set, setting them, too.
    pub async fn probe_source(&self) -> Result<(), Outage> {
        let sets = |source: &Source| match (self.part, source.meaning) {
            (Part::Checks, Meaning::Paid | Meaning::Begun) => true,
            (Part::Source(name), Meaning::Paid) => source.name == name,
            _ => false,
        };
        if self.sources.iter().any(sets) { self.source.probe_set().await } else { self.source.probe().await }
    }

    async fn set<M: Message>(
        &self,
        payments: &Arc<[PaymentId]>,
        to: RowStatus,
        progress: &mut Progress<M, CheckOutcome>,
        turn: &Turn<'_>,
    ) -> Vec<Fate<()>> {
        let work = Set { source: &*self.source, to };
        let (fates, outage) = through(&work, payments, self.immediate_attempts, turn).await;
        progress.meet(outage);
        fates
    }

    fn not_set<M: Message>(&self, asked: Asked<M>, fate: Fate<()>, progress: &mut Progress<M, CheckOutcome>) {
        match fate {
            Fate::Failed(error) | Fate::Refused(error) => {
                let error = format!("the payment's row could not be set: {error}");
                let outcome = CheckOutcome::after_failure(error, asked.message.retries_taken(), &self.retry);
                progress.decided.push(asked.decided(outcome));
            }
            Fate::Open | Fate::Done(()) => progress.undecided.push(asked.message),
        }
    }
}

fn fate_of(payment: &PaymentId, payments: &[PaymentId], fates: &[Fate<()>]) -> Fate<()> {
    let index = payments.binary_search(payment).ok();
    index.and_then(|index| fates.get(index)).cloned().unwrap_or(Fate::Open)
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
