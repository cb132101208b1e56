//! The ledger ports of the pipelines: every call with its deadline, every error with its class.

use super::{Ledger, Probe};
use crate::{
    database::{DatabaseError, WithDeadline},
    domain::{
        check::{Check, Checked, OnUnpaid},
        credit::{Credit, Verdict},
        failure::{BatchError, Class, Dependency, Outage},
    },
    pipeline::ports::{CheckLedger, CreditLedger, LedgerRow, Patience, RowLocks},
};
use async_trait::async_trait;
use std::sync::Arc;

fn commit_error(error: DatabaseError) -> BatchError {
    match error.class() {
        Class::Outage => BatchError::Outage(error.into_outage(Dependency::Ledger)),
        Class::Permanent => BatchError::Refused(error.to_string()),
        Class::Locked => BatchError::Locked(error.to_string()),
        Class::Transient => BatchError::Transient(error.to_string()),
    }
}

fn outage(error: DatabaseError) -> Outage {
    error.into_outage(Dependency::Ledger)
}

#[async_trait]
impl CreditLedger for WithDeadline<dyn Ledger> {
    async fn credit(&self, batch: Arc<[Credit]>, patience: Patience) -> Result<Vec<Verdict>, BatchError> {
        self.call(move |ledger| ledger.credit(&batch, patience)).await.map_err(commit_error)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.call(|ledger| ledger.probe(Probe::Credits)).await.map_err(outage)
    }

    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        self.call(move |ledger| ledger.row_locks(&rows)).await.map_err(outage)
    }
}

#[async_trait]
impl CheckLedger for WithDeadline<dyn Ledger> {
    async fn check(
        &self,
        batch: Arc<[Check]>,
        on_unpaid: OnUnpaid,
        patience: Patience,
    ) -> Result<Vec<Checked>, BatchError> {
        self.call_until(move |ledger, deadline| ledger.check(&batch, on_unpaid, patience, deadline))
            .await
            .map_err(commit_error)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.call(|ledger| ledger.probe(Probe::Checks)).await.map_err(outage)
    }

    async fn row_locks(&self, rows: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        CreditLedger::row_locks(self, rows).await
    }
}
