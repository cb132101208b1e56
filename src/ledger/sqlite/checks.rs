//! The SQL of a batch of checks on SQLite: row by row, with prepared statements.

use super::{
    schema::{points_adjustments, points_credits},
    statements,
};
use crate::{
    domain::{
        check::{Check, Checked, Claim, LedgerState, OnUnpaid},
        credit::Credit,
    },
    ledger::changes::{self, Change, StoredCredit},
};
use diesel::{ExpressionMethods, OptionalExtension, QueryDsl, QueryResult, RunQueryDsl, SqliteConnection, dsl::max};
use jiff::Timestamp;
use std::collections::BTreeMap;

/// Within a transaction, during which no other connection writes: reads the rows, decides the steps, and writes the
/// changes.
pub(super) fn check(
    connection: &mut SqliteConnection,
    checks: &[Check],
    on_unpaid: OnUnpaid,
) -> QueryResult<Vec<Checked>> {
    let now = statements::time(Timestamp::now());
    let mut checked = Vec::with_capacity(checks.len());
    for check in checks {
        let found = find_credit(connection, check.payment_id.as_str())?;
        if let (None, Some(Claim { user_id, points })) = (&found, &check.claim) {
            let (payment_id, user_id, points) = (check.payment_id.clone(), user_id.clone(), *points);
            statements::insert_credit(connection, &Credit { payment_id, user_id, points })?;
        }
        checked.push(changes::decide(check, found, on_unpaid));
    }
    let write: Vec<Change<'_>> =
        checks.iter().zip(&checked).filter_map(|(check, checked)| changes::change(check, checked)).collect();
    let mut balances: BTreeMap<&str, i64> = BTreeMap::new();
    for change in &write {
        update_credit(connection, change, &now)?;
        append_adjustment(connection, change, &now)?;
        // The sum cannot overflow: see `domain::credit::MAX_POINTS_LIMIT`.
        *balances.entry(change.user_id).or_default() += change.balance;
    }
    for (user, points) in balances.into_iter().filter(|(_, points)| *points != 0) {
        statements::add_to_balance(connection, user, points)?;
    }
    Ok(checked)
}

fn find_credit(connection: &mut SqliteConnection, payment_id: &str) -> QueryResult<Option<StoredCredit>> {
    let row: Option<(String, i64, String, bool)> = points_credits::table
        .find(payment_id)
        .select((
            points_credits::user_id,
            points_credits::points,
            points_credits::state,
            points_credits::verified_at.is_not_null(),
        ))
        .first(connection)
        .optional()?;
    Ok(row.map(|(user_id, points, state, verified)| StoredCredit {
        user_id,
        points,
        state: LedgerState::of_row(&state, verified),
    }))
}

fn update_credit(connection: &mut SqliteConnection, change: &Change<'_>, now: &str) -> QueryResult<()> {
    let row = diesel::update(points_credits::table.find(change.payment_id));
    let (state, asked_at) = (points_credits::state.eq(change.state), points_credits::asked_at);
    if change.verified {
        row.set((state, points_credits::verified_at.eq(now), asked_at.eq(None::<String>))).execute(connection)?;
    } else if change.asked {
        // The first time is kept.
        row.filter(asked_at.is_null()).set((state, asked_at.eq(now))).execute(connection)?;
    } else {
        row.set((state, asked_at.eq(None::<String>))).execute(connection)?;
    }
    Ok(())
}

fn append_adjustment(connection: &mut SqliteConnection, change: &Change<'_>, now: &str) -> QueryResult<()> {
    let Some(adjustment) = &change.adjustment else { return Ok(()) };
    let last: Option<i32> = points_adjustments::table
        .filter(points_adjustments::payment_id.eq(change.payment_id))
        .select(max(points_adjustments::seq))
        .first(connection)?;
    diesel::insert_into(points_adjustments::table)
        .values((
            points_adjustments::payment_id.eq(change.payment_id),
            points_adjustments::seq.eq(last.unwrap_or(0) + 1),
            points_adjustments::user_id.eq(change.user_id),
            points_adjustments::kind.eq(adjustment.kind),
            points_adjustments::points.eq(adjustment.points),
            points_adjustments::reason.eq(adjustment.reason.as_ref()),
            points_adjustments::created_at.eq(now),
        ))
        .execute(connection)?;
    Ok(())
}
