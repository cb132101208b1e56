//! Work that is done for a whole batch or for none of it, and the result of each item.

use super::ports::{LedgerRow, RowLocks};
use crate::{
    domain::failure::{BatchError, Outage},
    observe::heartbeat::Heartbeat,
    pipeline::locked_rows::LockedRows,
};
use async_trait::async_trait;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// The worker's context of a batch.
pub struct BatchContext<'a> {
    /// Heartbeat of the worker, which beats before each step that waits.
    pub heartbeat: &'a Heartbeat,
    /// Token whose cancellation prevents further attempts.
    pub stop: &'a CancellationToken,
}

/// The interruption of a batch before every message was settled.
#[derive(Debug)]
pub struct Interrupted<M> {
    /// The outage that interrupted the batch; `None` if the worker was stopped or the batch took too long.
    pub outage: Option<Outage>,
    /// Messages to be requeued: they are neither certainly committed nor forwarded.
    pub unsettled: Vec<M>,
}

impl<M> Interrupted<M> {
    /// Returns `Ok` if there is neither an unsettled message nor an outage.
    pub fn unless_done(outage: Option<Outage>, unsettled: Vec<M>) -> Result<(), Self> {
        if outage.is_none() && unsettled.is_empty() { Ok(()) } else { Err(Self { outage, unsettled }) }
    }
}

/// Work that is done for a whole batch, or for none of it.
#[async_trait]
pub(super) trait Work: Sync {
    /// An item of a batch.
    type Item: Clone + Send + Sync;
    /// The result of an item.
    type Done: Send;

    /// Does the work, and returns the result of each item, in order.
    async fn attempt(&self, batch: Arc<[Self::Item]>) -> Result<Vec<Self::Done>, BatchError>;

    /// Tests whether the required dependency works independently of the items.
    async fn probe(&self) -> Result<(), Outage>;

    /// Does the work like [`Work::attempt`], but waits only briefly for locked rows.
    async fn attempt_briefly(&self, batch: Arc<[Self::Item]>) -> Result<Vec<Self::Done>, BatchError> {
        self.attempt(batch).await
    }

    /// Returns the memory of locked rows; `None` for work that locks no rows.
    fn locked_rows(&self) -> Option<&LockedRows> {
        None
    }

    /// Returns the rows that an item needs.
    fn rows(&self, _: &Self::Item) -> Vec<LedgerRow> {
        Vec::new()
    }

    /// Returns whether the item with this index has no retry step left.
    fn is_last(&self, _: usize) -> bool {
        false
    }

    /// Returns which of these rows are locked now.
    async fn row_locks(&self, _: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        Ok(RowLocks::default())
    }
}

/// The result of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ItemResult<T> {
    /// No certain result.
    Undecided,
    /// The work is done.
    Done(T),
    /// The single item failed permanently.
    Rejected(String),
    /// The single item failed with a transient error while other work succeeded.
    Failed(String),
}
