//! Work that is done for a whole batch or for none of it, and what becomes of each item.

use super::ports::{LedgerRow, RowLocks};
use crate::{
    domain::failure::{BatchError, Outage},
    observe::heartbeat::Heartbeat,
    pipeline::locked_rows::LockedRows,
};
use async_trait::async_trait;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// Who works on a batch.
pub struct BatchContext<'a> {
    /// Beats before each step that waits.
    pub heartbeat: &'a Heartbeat,
    /// When cancelled, no further attempt is begun.
    pub stop: &'a CancellationToken,
}

/// Processing stopped before every message was settled.
#[derive(Debug)]
pub struct Interrupted<M> {
    /// What is down; `None` when the worker was told to stop, or a batch took too long.
    pub outage: Option<Outage>,
    /// Neither committed for certain nor forwarded: to be given back.
    pub unsettled: Vec<M>,
}

impl<M> Interrupted<M> {
    /// `Ok` when nothing is left and nothing is down.
    pub fn unless_done(outage: Option<Outage>, unsettled: Vec<M>) -> Result<(), Self> {
        if outage.is_none() && unsettled.is_empty() { Ok(()) } else { Err(Self { outage, unsettled }) }
    }
}

/// Something that is done for a whole batch, or for none of it.
#[async_trait]
pub(super) trait Work: Sync {
    /// One of the batch.
    type Item: Clone + Send + Sync;
    /// What became of one.
    type Done: Send;

    /// Does it, and answers for each item, in order.
    async fn attempt(&self, batch: Arc<[Self::Item]>) -> Result<Vec<Self::Done>, BatchError>;

    /// Whether what it needs works for somebody else.
    async fn probe(&self) -> Result<(), Outage>;

    /// The same as [`Work::attempt`], without much waiting for locked rows.
    async fn attempt_briefly(&self, batch: Arc<[Self::Item]>) -> Result<Vec<Self::Done>, BatchError> {
        self.attempt(batch).await
    }

    /// The memory of locked rows; `None` where no rows are locked.
    fn locked_rows(&self) -> Option<&LockedRows> {
        None
    }

    /// The rows that an item needs.
    fn rows(&self, _: &Self::Item) -> Vec<LedgerRow> {
        Vec::new()
    }

    /// Whether the item with this index has no retry step left.
    fn is_last(&self, _: usize) -> bool {
        false
    }

    /// Which of these rows are locked now.
    async fn row_locks(&self, _: Vec<LedgerRow>) -> Result<RowLocks, Outage> {
        Ok(RowLocks::default())
    }
}

/// What became of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ItemResult<T> {
    /// Nothing that is certain.
    Undecided,
    /// It is done.
    Done(T),
    /// It is refused, alone, now and later.
    Rejected(String),
    /// It failed alone for a reason that may pass, while something else was done.
    Failed(String),
}
