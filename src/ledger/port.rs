//! The ledger as the pipelines need it: every call with its deadline, every error with its class.

use super::Ledger;
use crate::{
    database::{DatabaseError, Guarded},
    domain::credit::{Credit, Verdict},
    pipeline::ports::{Class, CommitError, CreditLedger, Dependency, Outage},
};
use async_trait::async_trait;
use std::sync::Arc;

fn commit_error(error: DatabaseError) -> CommitError {
    match error.class() {
        Class::Outage => CommitError::Outage(error.into_outage(Dependency::Ledger)),
        Class::Permanent => CommitError::Refused(error.to_string()),
        Class::Transient => CommitError::Transient(error.to_string()),
    }
}

#[async_trait]
impl CreditLedger for Guarded<dyn Ledger> {
    async fn credit(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, CommitError> {
        self.call(move |ledger| ledger.credit(&batch)).await.map_err(commit_error)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.call(|ledger| ledger.probe()).await.map_err(|error| error.into_outage(Dependency::Ledger))
    }
}
