//! The ledger as the pipelines need it: every call with its deadline, every error with its class.

use super::Ledger;
use crate::{
    database::{DatabaseError, Guarded},
    domain::{
        check::{Check, Checked, OnUnpaid},
        credit::{Credit, Verdict},
    },
    pipeline::ports::{BatchError, CheckLedger, Class, CreditLedger, Dependency, Outage},
};
use async_trait::async_trait;
use std::sync::Arc;

fn commit_error(error: DatabaseError) -> BatchError {
    match error.class() {
        Class::Outage => BatchError::Outage(error.into_outage(Dependency::Ledger)),
        Class::Permanent => BatchError::Refused(error.to_string()),
        Class::Transient => BatchError::Transient(error.to_string()),
    }
}

#[async_trait]
impl CreditLedger for Guarded<dyn Ledger> {
    async fn credit(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, BatchError> {
        self.call(move |ledger| ledger.credit(&batch)).await.map_err(commit_error)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.call(Ledger::probe).await.map_err(|error| error.into_outage(Dependency::Ledger))
    }
}

#[async_trait]
impl CheckLedger for Guarded<dyn Ledger> {
    async fn check(&self, batch: Arc<[Check]>, on_unpaid: OnUnpaid) -> Result<Vec<Checked>, BatchError> {
        self.call_until(move |ledger, deadline| ledger.check(&batch, on_unpaid, deadline)).await.map_err(commit_error)
    }

    async fn probe(&self) -> Result<(), Outage> {
        CreditLedger::probe(self).await
    }
}
