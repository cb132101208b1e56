//! The table first; where it says pending or has no row, the gateway is asked.

use super::{http::HttpSource, sql::SqlSource};
use crate::{
    domain::{ids::PaymentId, status::PaymentStatus},
    pipeline::ports::{BatchError, Lookup, Outage, Payment, PaymentSource, RowStatus},
};
use async_trait::async_trait;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};

/// How long rows are repaired in one batch; what is left goes back to its queue.
const REPAIRING: Duration = Duration::from_secs(60);

/// A table that may lag behind a gateway, and is repaired where the gateway knows better.
pub(super) struct TableThenGateway {
    table: SqlSource,
    gateway: HttpSource,
    repairs: bool,
}

impl TableThenGateway {
    pub(super) fn new(table: SqlSource, gateway: HttpSource, repairs: bool) -> Self {
        Self { table, gateway, repairs }
    }

    /// What comes of both answers. Paid at the gateway sets the row to paid, unless it has changed meanwhile: then that
    /// change wins, and the payment is looked at again.
    async fn settle(&self, id: &PaymentId, table: Payment, gateway: Lookup) -> Result<Lookup, BatchError> {
        let gateway = match gateway {
            Lookup::Known(payment) => payment,
            other @ (Lookup::Failed(_) | Lookup::NotAsked) => return Ok(other),
        };
        let with_status = |status| Lookup::Known(Payment { status, ..table.clone() });
        Ok(match gateway.status {
            PaymentStatus::Paid if !self.repairs => with_status(PaymentStatus::Paid),
            PaymentStatus::Paid => match self.table.set_and_read(id, RowStatus::Paid).await {
                Ok(found) => with_status(of_repair(found.status)),
                Err(error) => {
                    // Where no row can be set at all nobody's check can be done; otherwise it is this row's trouble.
                    self.table.probe_set().await?;
                    Lookup::Failed(format!("the payment's row could not be set to paid: {error}"))
                }
            },
            PaymentStatus::Closed | PaymentStatus::Pending => with_status(gateway.status),
            PaymentStatus::Unknown => Lookup::Known(table),
            PaymentStatus::Unrecognised => {
                Lookup::Known(Payment { said: gateway.said, status: gateway.status, ..table })
            }
        })
    }
}

/// What the row says after the gateway's "paid" was to be written into it.
fn of_repair(row: PaymentStatus) -> PaymentStatus {
    match row {
        // Without a row the gateway's word is all there is.
        // One that is still pending has lost to nobody: it cannot be written (a policy, a trigger).
        PaymentStatus::Paid | PaymentStatus::Unknown | PaymentStatus::Pending => PaymentStatus::Paid,
        // Somebody has just closed it: their change wins, and the next check sees it.
        PaymentStatus::Closed => PaymentStatus::Pending,
        PaymentStatus::Unrecognised => PaymentStatus::Unrecognised,
    }
}

#[async_trait]
impl PaymentSource for TableThenGateway {
    async fn look_up(&self, payments: Arc<[PaymentId]>) -> Result<Vec<Lookup>, BatchError> {
        let mut answers = self.table.look_up(Arc::clone(&payments)).await?;
        let open = |answer: &Lookup| match answer {
            Lookup::Known(payment) => matches!(payment.status, PaymentStatus::Pending | PaymentStatus::Unknown),
            Lookup::Failed(_) | Lookup::NotAsked => false,
        };
        let indices: Vec<usize> = (0..answers.len()).filter(|index| open(&answers[*index])).collect();
        if indices.is_empty() {
            return Ok(answers);
        }
        let asked: Arc<[PaymentId]> = indices.iter().map(|index| payments[*index].clone()).collect();
        let told = self.gateway.look_up(Arc::clone(&asked)).await?;
        let begun = Instant::now();
        for ((index, id), gateway) in indices.into_iter().zip(&*asked).zip(told) {
            let Lookup::Known(table) = answers[index].clone() else { continue };
            answers[index] =
                if begun.elapsed() < REPAIRING { self.settle(id, table, gateway).await? } else { Lookup::NotAsked };
        }
        Ok(answers)
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

    fn most(&self) -> usize {
        self.table.most().min(self.gateway.most())
    }

    fn longest(&self) -> Duration {
        // A look-up of each, and the repairs, the last of which may take its time.
        self.gateway.longest() + REPAIRING + self.table.longest() * 3
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
            assert_eq!(of_repair(row), status, "{row:?}");
        }
    }
}
