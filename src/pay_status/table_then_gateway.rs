//! The payment source that looks up the payment table first, and asks the gateway about payments that are pending or
//! have no row.

use super::{http::HttpSource, sql::SqlSource};
use crate::{
    domain::{
        failure::{BatchError, Outage},
        ids::PaymentId,
        status::PaymentStatus,
    },
    pipeline::ports::{Answers, Lookup, MOST_HELD_BACK, Payment, PaymentSource, RowStatus, look_up_all},
};
use async_trait::async_trait;
use futures_util::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use std::{
    collections::VecDeque,
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// A payment table that may lag behind a gateway, and is repaired when the gateway has a later status.
pub(super) struct TableThenGateway {
    table: SqlSource,
    gateway: HttpSource,
    repairs: bool,
}

/// A payment that the table does not decide.
struct Open {
    /// The index of the payment in the look-up.
    index: usize,
    id: PaymentId,
    /// The result of the table: pending, or no row.
    table: Payment,
    /// When the table was read.
    at: Instant,
}

/// The step that follows an answer of the gateway.
enum Step {
    Answer(Lookup),
    /// The row must be set to paid first.
    Repair,
    /// The table decides, and is read again because its result is too old.
    Reread,
}

/// An answer of the gateway, with the index of the payment among those that the gateway was asked about.
type FromGateway = (usize, Lookup);

/// The results of rows that were read.
type Rows<'a> = Vec<(&'a Open, Lookup)>;

/// A task that repairs or reads rows.
type Reading<'a> = BoxFuture<'a, Result<Rows<'a>, BatchError>>;

impl TableThenGateway {
    pub(super) fn new(table: SqlSource, gateway: HttpSource, repairs: bool) -> Self {
        Self { table, gateway, repairs }
    }

    /// Decides the step for a payment, given the answer of the gateway.
    fn combine(&self, Open { table, at, .. }: &Open, gateway: Lookup) -> Step {
        let gateway = match gateway {
            Lookup::Known(payment) => payment,
            failed @ Lookup::Failed(_) => return Step::Answer(failed),
        };
        let with_status = |status| Lookup::Known(Payment { status, ..table.clone() });
        Step::Answer(match gateway.status {
            PaymentStatus::Paid if self.repairs => return Step::Repair,
            PaymentStatus::Unknown if at.elapsed() > MOST_HELD_BACK => return Step::Reread,
            PaymentStatus::Paid | PaymentStatus::Closed | PaymentStatus::Pending => with_status(gateway.status),
            PaymentStatus::Unknown => Lookup::Known(table.clone()),
            PaymentStatus::Unrecognised => {
                Lookup::Known(Payment { said: gateway.said, status: gateway.status, ..table.clone() })
            }
        })
    }

    /// Sets a row to paid, unless it was changed concurrently: then that change takes precedence, and the payment is
    /// checked again.
    async fn repair(&self, id: &PaymentId) -> Result<Lookup, BatchError> {
        match self.table.set_and_read(id, RowStatus::Paid).await {
            Ok(found) => Ok(Lookup::Known(Payment { status: status_after_repair(found.status), ..found })),
            Err(error) => {
                // If no row can be set at all, this is an outage; otherwise the error concerns this row alone.
                self.table.probe_set().await?;
                Ok(Lookup::Failed(format!("the payment's row could not be set to paid: {error}")))
            }
        }
    }

    /// Reads the rows again; payments that are not answered are left out.
    async fn reread<'a>(&self, payments: Vec<&'a Open>, until: Instant) -> Result<Rows<'a>, BatchError> {
        let ids: Arc<[PaymentId]> = payments.iter().map(|payment| payment.id.clone()).collect();
        match look_up_all(&self.table, ids, until).await {
            Ok(answers) => {
                let answered = payments.into_iter().zip(answers);
                Ok(answered.filter_map(|(payment, answer)| Some((payment, answer?))).collect())
            }
            Err(BatchError::Outage(outage)) => Err(outage.into()),
            Err(BatchError::Refused(_) | BatchError::Locked(_) | BatchError::Transient(_)) => Ok(Vec::new()),
        }
    }

    /// Returns each answer of the gateway as it arrives. Rows are repaired one at a time, and read again all together,
    /// while further answers arrive; no repair starts after `until`.
    async fn settle(
        &self,
        open: &[Open],
        mut from_gateway: UnboundedReceiver<FromGateway>,
        until: Instant,
        answers: Answers<'_>,
    ) -> Result<(), BatchError> {
        let (mut to_repair, mut to_reread): (VecDeque<&Open>, Vec<&Open>) = (VecDeque::new(), Vec::new());
        let mut rows: FuturesUnordered<Reading<'_>> = FuturesUnordered::new();
        let mut is_open = true;
        loop {
            if rows.is_empty() && Instant::now() <= until {
                if !to_reread.is_empty() {
                    rows.push(Box::pin(self.reread(std::mem::take(&mut to_reread), until)));
                } else if let Some(payment) = to_repair.pop_front() {
                    rows.push(Box::pin(async move { Ok(vec![(payment, self.repair(&payment.id).await?)]) }));
                }
            }
            tokio::select! {
                answer = from_gateway.recv(), if is_open => {
                    let Some((index, gateway)) = answer else {
                        is_open = false;
                        continue;
                    };
                    let Some(payment) = open.get(index) else { continue };
                    match self.combine(payment, gateway) {
                        Step::Answer(lookup) => answers(payment.index, lookup),
                        Step::Repair => to_repair.push_back(payment),
                        Step::Reread => to_reread.push(payment),
                    }
                }
                Some(read) = rows.next() => {
                    for (payment, row) in read? {
                        answers(payment.index, row);
                    }
                }
                else => return Ok(()),
            }
        }
    }
}

/// Returns the status of a payment, given its row after an attempt to set it to paid.
fn status_after_repair(row: PaymentStatus) -> PaymentStatus {
    match row {
        // Without a row the gateway alone decides. A row that is still pending has no concurrent change: it cannot be
        // written (because of a policy or a trigger).
        PaymentStatus::Paid | PaymentStatus::Unknown | PaymentStatus::Pending => PaymentStatus::Paid,
        // The row was closed concurrently: that change takes precedence, and the next check reads it.
        PaymentStatus::Closed => PaymentStatus::Pending,
        PaymentStatus::Unrecognised => PaymentStatus::Unrecognised,
    }
}

/// Returns whether the gateway must be asked.
fn is_undecided(payment: &Payment) -> bool {
    match payment.status {
        PaymentStatus::Pending | PaymentStatus::Unknown => true,
        PaymentStatus::Paid | PaymentStatus::Closed | PaymentStatus::Unrecognised => false,
    }
}

#[async_trait]
impl PaymentSource for TableThenGateway {
    async fn look_up(
        &self,
        payments: Arc<[PaymentId]>,
        until: Instant,
        answers: Answers<'_>,
    ) -> Result<(), BatchError> {
        let mut open = Vec::new();
        let mut sort = |index: usize, lookup: Lookup| match (lookup, payments.get(index)) {
            (Lookup::Known(table), Some(id)) if is_undecided(&table) => {
                open.push(Open { index, id: id.clone(), table, at: Instant::now() });
            }
            (decided, _) => answers(index, decided),
        };
        self.table.look_up(Arc::clone(&payments), until, &mut sort).await?;
        if open.is_empty() {
            return Ok(());
        }
        let asked: Arc<[PaymentId]> = open.iter().map(|open| open.id.clone()).collect();
        let (sender, from_gateway) = mpsc::unbounded_channel();
        let gateway = async move {
            // The receiver is dropped only together with this future.
            let mut send = |index: usize, lookup: Lookup| drop(sender.send((index, lookup)));
            // An error is returned after the answers before it were processed.
            Ok::<_, BatchError>(self.gateway.look_up(asked, until, &mut send).await)
        };
        let (asked, ()) = tokio::try_join!(gateway, self.settle(&open, from_gateway, until, answers))?;
        asked
    }

    async fn set(&self, payments: Arc<[PaymentId]>, to: RowStatus) -> Result<(), BatchError> {
        self.table.set(payments, to).await
    }

    async fn probe_set(&self) -> Result<(), Outage> {
        self.table.probe_set().await
    }

    async fn probe(&self) -> Result<(), Outage> {
        if self.repairs {
            self.table.probe_set().await?;
        } else {
            self.table.probe().await?;
        }
        self.gateway.probe().await
    }

    fn max_duration(&self) -> Duration {
        // A repair may need an update and a query, and a probe if it fails.
        self.gateway.max_duration() + self.table.max_duration() * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_that_changed_meanwhile_wins_over_the_gateway() {
        for (row, status) in [
            (PaymentStatus::Paid, PaymentStatus::Paid),
            (PaymentStatus::Unknown, PaymentStatus::Paid),
            (PaymentStatus::Closed, PaymentStatus::Pending),
            (PaymentStatus::Pending, PaymentStatus::Paid),
            (PaymentStatus::Unrecognised, PaymentStatus::Unrecognised),
        ] {
            assert_eq!(status_after_repair(row), status, "{row:?}");
        }
    }
}
