//! The ledger transaction that commits the credits of a batch.

use crate::{
    domain::{
        component::Component,
        credit::{Credit, Verdict},
        failure::{BatchError, Outage},
    },
    observe::events::{self, Event as _},
    pipeline::{
        locked_rows::LockedRows,
        ports::{CreditLedger, LedgerRow, Patience, RowLocks},
        work::Work,
    },
};
use async_trait::async_trait;
use std::{sync::Arc, time::Instant};

/// Work that commits credits in one transaction of the ledger.
pub(super) struct CreditTransaction<'a> {
    pub(super) component: Component,
    pub(super) ledger: &'a dyn CreditLedger,
    pub(super) locked: &'a LockedRows,
    /// For each message, whether it has no retry step left.
    pub(super) is_last: Vec<bool>,
}

impl CreditTransaction<'_> {
    async fn commit(&self, batch: Arc<[Credit]>, patience: Patience) -> Result<Vec<Verdict>, BatchError> {
        let begun = Instant::now();
        let committed = self.ledger.credit(Arc::clone(&batch), patience).await;
        let took = begun.elapsed();
        match &committed {
            Ok(verdicts) => events::BatchCommitted { credits: &batch, verdicts, took }.emit(),
            Err(reason) if patience == Patience::Usual => {
                events::CommitFailed { component: self.component, size: batch.len(), took, reason }.emit();
            }
            Err(_) => {}
        }
        committed
    }
}

#[async_trait]
impl Work for CreditTransaction<'_> {
    type Item = Credit;
    type Done = Verdict;

    async fn attempt(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, BatchError> {
        self.commit(batch, Patience::Usual).await
    }

    async fn attempt_briefly(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, BatchError> {
        self.commit(batch, Patience::Brief).await
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.ledger.probe().await
    }

    fn locked_rows(&self) -> Option<&LockedRows> {
        Some(self.locked)
    }

    fn rows(&self, credit: &Credit) -> Vec<LedgerRow> {
        vec![LedgerRow::Payment(credit.payment_id.clone()), LedgerRow::User(credit.user_id.clone())]
    }

    fn is_last(&self, index: usize) -> bool {
        self.is_last.get(index).copied().unwrap_or_default()
    }

    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        self.ledger.row_locks(rows).await
    }
}
