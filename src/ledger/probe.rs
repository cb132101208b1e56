//! The rows that a probe writes and rolls back: a credit, and a check that reverses it, with an ID that no payment can
//! have.

use crate::domain::{
    check::{Check, Claim, Resolution},
    credit::Credit,
    credit::Points,
    ids::{PaymentId, UserId},
};
use uuid::Uuid;

/// Returns a credit with a reserved ID. Each probe uses another ID, so that two probes never wait for each other.
pub(super) fn credit() -> Credit {
    let id = format!("\u{1}pointsd probe {}", Uuid::new_v4());
    Credit { payment_id: PaymentId::reserved(&id), user_id: UserId::reserved(&id), points: Points::ONE }
}

/// Returns a check that writes everything that a check can write: the credit, its reversal and the balance.
pub(super) fn check(credit: &Credit) -> Check {
    let Credit { payment_id, user_id, points } = credit.clone();
    let claim = Some(Claim { user_id, points });
    Check { payment_id, claim, resolution: Resolution::Closed, spelling: None, closing: None }
}
