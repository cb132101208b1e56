//! What a probe writes and rolls back: a credit, and a check that reverses it, under an id that no payment can have.

use crate::domain::{
    check::{Check, Claim, Resolution},
    credit::Credit,
    credit::Points,
    ids::{PaymentId, UserId},
};
use uuid::Uuid;

/// A credit under a reserved id. Another one each time, so that two probes never wait for each other.
pub(super) fn credit() -> Credit {
    let id = format!("\u{1}pointsd probe {}", Uuid::new_v4());
    Credit { payment_id: PaymentId::reserved(&id), user_id: UserId::reserved(&id), points: Points::ONE }
}

/// A check that writes all that a check can write: the credit, its reversal, the balance.
pub(super) fn check(credit: &Credit) -> Check {
    let Credit { payment_id, user_id, points } = credit.clone();
    let claim = Some(Claim { user_id, points });
    Check { payment_id, claim, resolution: Resolution::Closed, spelling: None, closing: None }
}
