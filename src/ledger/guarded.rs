//! A deadline for every call to the ledger, kept by the caller.
//!
//! No setting of libpq ends a query whose server has stopped, and r2d2 waits for it when it checks a connection out.
//! So each call runs on a thread of its own that is left behind when it does not answer, together with its
//! connection and pool. A commit that lands after that is harmless: the message comes again and is a duplicate.

use super::{Ledger, LedgerError};
use crate::{
    domain::credit::{Credit, Verdict},
    observe::events,
    pipeline::ports::{Class, CommitError, CreditLedger, Outage},
};
use async_trait::async_trait;
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

type Open = dyn Fn() -> Arc<dyn Ledger> + Send + Sync;

/// A ledger whose calls answer in time or fail.
pub struct Guarded {
    open: Box<Open>,
    current: Mutex<Arc<dyn Ledger>>,
    timeout: Duration,
}

impl Guarded {
    /// `open` makes a ledger with a pool of its own and without waiting: now, and whenever one is abandoned.
    pub fn new(open: impl Fn() -> Arc<dyn Ledger> + Send + Sync + 'static, timeout: Duration) -> Self {
        let current = Mutex::new(open());
        Self { open: Box::new(open), current, timeout }
    }

    /// Runs `work` on a thread that may block, for at most the timeout.
    pub async fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let ledger = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let thread = tokio::task::spawn_blocking({
            let ledger = Arc::clone(&ledger);
            move || work(&*ledger)
        });
        match tokio::time::timeout(self.timeout, thread).await {
            Ok(Ok(answer)) => answer.inspect_err(|error| {
                // What is pooled may be connected to a server that is down, or no primary any more.
                if error.class() == Class::Outage {
                    self.renew(&ledger);
                }
            }),
            Ok(Err(join)) => Err(LedgerError::Panicked(join.to_string())),
            Err(_) => {
                if self.renew(&ledger) {
                    events::LedgerAbandoned { timeout: self.timeout }.emit();
                }
                Err(LedgerError::Deadline(self.timeout))
            }
        }
    }

    /// The same without a deadline, for work that may take its time: nobody's message waits for it.
    pub async fn call_at_leisure<T: Send + 'static>(
        &self,
        work: impl FnOnce(&dyn Ledger) -> Result<T, LedgerError> + Send + 'static,
    ) -> Result<T, LedgerError> {
        let ledger = Arc::clone(&self.current.lock().unwrap_or_else(PoisonError::into_inner));
        let thread = tokio::task::spawn_blocking(move || work(&*ledger));
        thread.await.unwrap_or_else(|join| Err(LedgerError::Panicked(join.to_string())))
    }

    /// Puts a fresh ledger in the place of this one, unless another call has done so already.
    fn renew(&self, this: &Arc<dyn Ledger>) -> bool {
        let mut current = self.current.lock().unwrap_or_else(PoisonError::into_inner);
        let still_current = Arc::ptr_eq(&current, this);
        if still_current {
            *current = (self.open)();
        }
        still_current
    }
}

#[async_trait]
impl CreditLedger for Guarded {
    async fn credit(&self, batch: Arc<[Credit]>) -> Result<Vec<Verdict>, CommitError> {
        Ok(self.call(move |ledger| ledger.credit(&batch)).await?)
    }

    async fn probe(&self) -> Result<(), Outage> {
        self.call(|ledger| ledger.probe()).await.map_err(LedgerError::into_outage)
    }
}
