//! One suite for every ledger: whatever holds for one database holds for the other.

use crate::support::{
    eventually,
    ledger::{Kind, Place},
};
use pointsd::{
    database::DatabaseUrl,
    domain::{
        check::{Check, CheckStep, OnUnpaid, Resolution},
        credit::{Credit, MAX_BALANCE, MAX_POINTS_LIMIT, Points, RecordedCredit, Verdict},
        dead_letter::Reason,
        failure::Class,
        ids::{PaymentId, UserId},
    },
    ledger::{Ledger, Probe, SchemaState, UnverifiedPage},
    pipeline::ports::Patience,
};
use std::{
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

/// Every case below, for each kind of ledger.
macro_rules! suite {
    ($($case:ident),+ $(,)?) => {
        mod sqlite {
            $(#[test] fn $case() { super::$case(super::Kind::Sqlite); })+
        }
        mod postgres {
            $(#[test] fn $case() { super::$case(super::Kind::Postgres); })+
        }
    };
}

suite!(
    a_table_of_batches,
    ten_thousand_in_a_batch,
    identifiers_of_every_length_and_kind,
    two_writers_with_overlapping_batches,
    a_balance_out_of_range_refuses_the_batch_and_leaves_no_trace,
    the_schema_is_told_and_migrated_once,
    a_broken_ledger_is_found,
    a_payment_tells_its_story,
    reading_makes_no_ledger,
    every_step_of_a_check_is_written,
    a_duplicate_needs_no_check_once_it_is_verified_or_parked,
    unverified_and_overdue_credits_are_counted,
    the_reason_of_another_spelling_names_it,
    the_ledgers_own_row_counts_and_not_the_message,
    a_reversal_may_make_a_balance_negative,
    checks_and_credits_of_the_same_payments_at_once,
    a_check_out_of_range_leaves_no_trace,
    a_check_that_nobody_waits_for_any_more_is_not_committed,
    credits_that_no_check_has_found_paid_are_counted_and_listed,
    a_check_without_a_claim_leaves_nothing_where_nothing_stands,
    what_is_rolled_back_is_not_made_known,
);

fn credit(payment: &str, user: &str, points: i64) -> Credit {
    Credit {
        payment_id: PaymentId::new(payment).unwrap(),
        user_id: UserId::new(user).unwrap(),
        points: Points::new(points, MAX_POINTS_LIMIT).unwrap(),
    }
}

fn conflict(user: &str, points: i64) -> Verdict {
    Verdict::Conflict(RecordedCredit { user_id: user.into(), points, checked: false })
}

const DUPLICATE: Verdict = Verdict::Duplicate { checked: false };

/// Credits a batch; whether a check is needed is another test's.
fn verdicts(ledger: &dyn Ledger, batch: &[Credit]) -> Vec<Verdict> {
    let verdicts = ledger.credit(batch, Patience::Usual).unwrap().into_iter();
    let plain = |verdict| match verdict {
        Verdict::Credited => Verdict::Credited,
        Verdict::Duplicate { .. } => DUPLICATE,
        Verdict::Conflict(standing) => Verdict::Conflict(RecordedCredit { checked: false, ..standing }),
    };
    verdicts.map(plain).collect()
}

/// An empty ledger with its schema.
fn ledger(kind: Kind) -> (Place, Arc<dyn Ledger>) {
    let place = Place::new(kind);
    let ledger = place.open();
    ledger.migrate().unwrap();
    (place, ledger)
}

/// The invariants hold, and there are this many credits.
fn assert_right(ledger: &dyn Ledger, credits: i64) {
    let report = ledger.verify().unwrap();
    assert_eq!((report.violations, report.credits), (0, credits), "{report:?}");
}

/// A batch and what is expected of each of its credits.
type Row = Vec<(Credit, Verdict)>;

fn a_table_of_batches(kind: Kind) {
    use Verdict::Credited;
    let (_place, ledger) = ledger(kind);
    let batches: Vec<(&str, Row)> = vec![
        ("nothing", vec![]),
        ("new", vec![(credit("1", "a", 10), Credited), (credit("2", "b", 5), Credited)]),
        ("duplicate", vec![(credit("1", "a", 10), DUPLICATE)]),
        ("conflict by user", vec![(credit("1", "b", 10), conflict("a", 10))]),
        ("conflict by points", vec![(credit("2", "b", 6), conflict("b", 5))]),
        (
            "new, duplicate and conflict side by side, in no order",
            vec![
                (credit("9", "a", 1), Credited),
                (credit("2", "b", 5), DUPLICATE),
                (credit("1", "a", 11), conflict("a", 10)),
                (credit("3", "a", 2), Credited),
            ],
        ),
        ("the same id twice, the same", vec![(credit("4", "c", 7), Credited), (credit("4", "c", 7), DUPLICATE)]),
        (
            "the same id three times, the first one counts",
            vec![
                (credit("5", "c", 8), Credited),
                (credit("5", "d", 8), conflict("c", 8)),
                (credit("5", "c", 8), DUPLICATE),
                (credit("5", "c", 9), conflict("c", 8)),
            ],
        ),
        (
            "the same id twice, known already with other points",
            vec![(credit("5", "c", 1), conflict("c", 8)), (credit("5", "c", 8), DUPLICATE)],
        ),
        (
            "ids differ by case, blank and leading zero",
            vec![
                (credit("A1", "x", 1), Credited),
                (credit("a1", "x", 1), Credited),
                (credit("a 1", "x", 1), Credited),
                (credit("01", "x", 1), Credited),
            ],
        ),
        ("another user by case", vec![(credit("A1", "X", 1), conflict("x", 1))]),
    ];
    for (name, row) in batches {
        let (batch, expected): (Vec<_>, Vec<_>) = row.into_iter().unzip();
        assert_eq!(verdicts(&*ledger, &batch), expected, "{name}");
    }
    for (user, balance) in [("a", 13), ("b", 5), ("c", 15), ("d", 0), ("x", 4), ("nobody", 0)] {
        assert_eq!(ledger.balance(user).unwrap(), balance, "{user}");
    }
    assert_right(&*ledger, 10);
}

fn ten_thousand_in_a_batch(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    let batch: Vec<Credit> =
        (0..10_000).map(|n| credit(&format!("p{}", n * 7919 % 10_000), &format!("u{}", n % 100), 3)).collect();
    assert_eq!(ledger.credit(&batch, Patience::Usual).unwrap(), vec![Verdict::Credited; 10_000]);
    assert_eq!(verdicts(&*ledger, &batch), vec![DUPLICATE; 10_000]);
    assert_eq!(ledger.balance("u42").unwrap(), 300);
    assert_right(&*ledger, 10_000);
}

fn identifiers_of_every_length_and_kind(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    let mut ids: Vec<String> = (1..=128).map(|length| "x".repeat(length)).collect();
    ids.extend([1, 64, 127, 128].map(|length| "支".repeat(length)));
    ids.extend([1, 128].map(|length| "🧾".repeat(length)));
    ids.extend(
        [
            "'; DROP TABLE points_credits; --",
            "\" OR 1=1",
            "$1",
            "?1",
            "%s\\",
            "{a,b}",
            "NULL",
            "null",
            "a\u{a0}b",
            "Straße",
            "ﬁ",
        ]
        .map(str::to_owned),
    );
    ids.push("é".into());
    ids.push("e\u{301}".into());
    let batch: Vec<Credit> = ids.iter().map(|id| credit(id, id, 1)).collect();
    assert_eq!(ledger.credit(&batch, Patience::Usual).unwrap(), vec![Verdict::Credited; ids.len()]);
    assert_eq!(verdicts(&*ledger, &batch), vec![DUPLICATE; ids.len()]);
    for id in &ids {
        assert_eq!(ledger.balance(id).unwrap(), 1, "{id}");
        assert_eq!(ledger.payment(id).unwrap().unwrap().payment_id, *id);
    }
    assert_right(&*ledger, i64::try_from(ids.len()).unwrap());
}

fn two_writers_with_overlapping_batches(kind: Kind) {
    let (place, ledger) = ledger(kind);
    // Each payment comes from every writer, in another order, together with payments of the writer alone.
    let writers = 3;
    let credited: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer| {
                // The first two share a pool, the third is another daemon.
                let ledger = if writer < 2 || kind == Kind::Sqlite { Arc::clone(&ledger) } else { place.open() };
                scope.spawn(move || {
                    let mut credited = 0;
                    for round in 0..30 {
                        let mut batch: Vec<Credit> =
                            (0..100).map(|n| credit(&format!("{round}-{n}"), &format!("u{}", n % 7), 2)).collect();
                        if writer % 2 == 1 {
                            batch.reverse();
                        }
                        batch.push(credit(&format!("{round}-own-{writer}"), "u3", 1));
                        let verdicts = ledger.credit(&batch, Patience::Usual).unwrap();
                        assert!(verdicts.iter().all(|verdict| !matches!(verdict, Verdict::Conflict(_))));
                        credited += verdicts.iter().filter(|verdict| **verdict == Verdict::Credited).count();
                    }
                    credited
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(credited, 30 * (100 + writers), "each payment was new to one writer only");
    assert_right(&*ledger, 30 * (100 + i64::try_from(writers).unwrap()));
}

fn a_balance_out_of_range_refuses_the_batch_and_leaves_no_trace(kind: Kind) {
    let (place, ledger) = ledger(kind);
    ledger.credit(&[credit("first", "rich", 5)], Patience::Usual).unwrap();
    let nearly = MAX_BALANCE - 9;
    place.execute(&format!("UPDATE points_balances SET balance = {nearly} WHERE user_id = 'rich'"));
    let error = ledger.credit(&[credit("ok", "poor", 1), credit("too-much", "rich", 10)], Patience::Usual).unwrap_err();
    assert_eq!(error.class(), Class::Permanent, "{error}");
    assert_eq!(error.to_string(), "the user's balance would leave its range of 9000000000000000000 points");
    assert!(ledger.payment("ok").unwrap().is_none() && ledger.balance("poor").unwrap() == 0, "nothing of it");
    assert_eq!(ledger.credit(&[credit("ok", "poor", 1)], Patience::Usual).unwrap(), [Verdict::Credited]);
    assert_eq!(ledger.credit(&[credit("just", "rich", 9)], Patience::Usual).unwrap(), [Verdict::Credited]);
    assert_eq!(ledger.balance("rich").unwrap(), MAX_BALANCE);
    let error = ledger.credit(&[credit("one", "rich", 1)], Patience::Usual).unwrap_err();
    assert_eq!(error.class(), Class::Permanent, "{error}");
}

fn the_schema_is_told_and_migrated_once(kind: Kind) {
    let place = Place::new(kind);
    let ledger = place.open();
    assert_eq!(ledger.schema().unwrap(), SchemaState::Missing);
    // However many do it at a time. SQLite's own writers are kept apart by the lock file.
    let writers = if kind == Kind::Postgres { 4 } else { 1 };
    let ran: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers).map(|_| scope.spawn(|| place.open().migrate().unwrap().len())).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).sum()
    });
    assert_eq!(ran, 4);
    assert_eq!(ledger.schema().unwrap(), SchemaState::Current);
    assert!(ledger.migrate().unwrap().is_empty());
    ledger.probe(Probe::Checks).unwrap();
    let before = SystemTime::now();
    let now = ledger.now().unwrap();
    // To the microsecond, that is; a server on this machine has our clock.
    let slack = Duration::from_millis(1);
    assert!(before - slack <= now && now <= SystemTime::now() + slack, "{now:?}");
    place.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('99990101')");
    assert_eq!(ledger.schema().unwrap(), SchemaState::Newer(vec!["99990101".into()]));
    place.execute("DELETE FROM __diesel_schema_migrations WHERE version = '00000000000002'");
    place.execute("INSERT INTO __diesel_schema_migrations (version) VALUES ('00000000000000')");
    assert!(matches!(ledger.schema().unwrap(), SchemaState::Newer(_)));
}

fn a_broken_ledger_is_found(kind: Kind) {
    let breaks = [
        ("UPDATE points_balances SET balance = balance + 1 WHERE user_id = 'a'", "balance of user a", "10", "11"),
        ("DELETE FROM points_balances WHERE user_id = 'a'", "balance of user a", "10", "no balance"),
        ("INSERT INTO points_balances (user_id, balance) VALUES ('ghost', 3)", "balance of user ghost", "0", "3"),
        (
            "UPDATE points_credits SET state = 'reversed' WHERE payment_id = '1'",
            "adjustments of payment 1",
            "a sum of -10 because it is reversed",
            "0 in 0 numbered to 0",
        ),
    ];
    for (sql, subject, expected, found) in breaks {
        let (place, ledger) = ledger(kind);
        ledger.credit(&[credit("1", "a", 10), credit("2", "b", 5)], Patience::Usual).unwrap();
        assert_right(&*ledger, 2);
        place.execute(sql);
        let report = ledger.verify().unwrap();
        assert_eq!(report.violations, 1, "{sql}: {report:?}");
        let finding = &report.findings[0];
        assert_eq!(
            (finding.subject.as_str(), finding.expected.as_str(), finding.found.as_str()),
            (subject, expected, found)
        );
    }

    // A reversal as it should be, then one of another user's points.
    let (place, ledger) = ledger(kind);
    ledger.credit(&[credit("1", "a", 10), credit("2", "b", 5)], Patience::Usual).unwrap();
    let adjust = |payment: &str, user: &str, points: i64| {
        place.execute(&format!(
            "UPDATE points_credits SET state = 'reversed' WHERE payment_id = '{payment}';
             INSERT INTO points_adjustments (payment_id, seq, user_id, kind, points, reason)
                 VALUES ('{payment}', 1, '{user}', 'reversal', {points}, 'test');
             UPDATE points_balances SET balance = balance + {points} WHERE user_id = '{user}'"
        ));
    };
    adjust("1", "a", -10);
    assert_right(&*ledger, 2);
    adjust("2", "a", -5);
    let report = ledger.verify().unwrap();
    assert_eq!(report.violations, 1, "{report:?}");
    assert_eq!(report.findings[0].subject, "adjustment 1 of payment 2");
}

fn a_payment_tells_its_story(kind: Kind) {
    let (place, ledger) = ledger(kind);
    ledger.credit(&[credit("1", "a", 10)], Patience::Usual).unwrap();
    assert_eq!(ledger.payment("2").unwrap(), None);
    let new = ledger.payment("1").unwrap().unwrap();
    assert_eq!((new.user_id.as_str(), new.points, new.state.as_str()), ("a", 10, "credited"));
    assert!(new.credited_at.starts_with("20") && new.credited_at.ends_with('Z') && new.verified_at.is_none());
    assert!(new.adjustments.is_empty());
    place.execute(
        "INSERT INTO points_adjustments (payment_id, seq, user_id, kind, points, reason)
             VALUES ('1', 1, 'a', 'reversal', -10, 'closed'), ('1', 2, 'a', 'reinstatement', 10, 'paid')",
    );
    let later = ledger.payment("1").unwrap().unwrap();
    let told: Vec<_> =
        later.adjustments.iter().map(|a| (a.seq, a.kind.as_str(), a.points, a.reason.as_str())).collect();
    assert_eq!(told, [(1, "reversal", -10, "closed"), (2, "reinstatement", 10, "paid")]);
}

fn check(payment: &str, user: &str, points: i64, finding: Resolution) -> Check {
    Check::of(credit(payment, user, points), finding)
}

fn later() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// The steps of a batch, and the points that they concern.
fn steps(ledger: &dyn Ledger, checks: &[Check]) -> Vec<(CheckStep, i64)> {
    let checked = ledger.check(checks, OnUnpaid::Reverse, Patience::Usual, later()).unwrap();
    checked.into_iter().map(|checked| (checked.step, checked.points)).collect()
}

fn every_step_of_a_check_is_written(kind: Kind) {
    use CheckStep::{Dead, Expire, LateCredit, None, Reinstate, Reverse, Verify, Void};
    use Resolution::{Closed, Paid, Pending, Unknown};
    let (_place, ledger) = ledger(kind);
    ledger.credit(&[credit("a", "u", 10), credit("b", "u", 20), credit("c", "v", 5)], Patience::Usual).unwrap();
    // One batch a row: the payments, what is found of each, what is done, and the balances of u, v and w after it.
    let batches: Vec<(Vec<(&str, &str, i64, Resolution, CheckStep)>, [i64; 3])> = vec![
        (vec![], [30, 5, 0]),
        (
            vec![
                ("a", "u", 10, Paid, Verify),
                ("b", "u", 20, Closed, Reverse),
                ("c", "v", 5, Pending, Expire),
                ("d", "w", 7, Paid, LateCredit),
                ("e", "w", 9, Closed, Void),
                ("f", "w", 9, Unknown, Void),
            ],
            [10, 0, 7],
        ),
        // The same again does nothing, but that a paid one is found paid once more.
        (
            vec![
                ("a", "u", 10, Paid, Verify),
                ("b", "u", 20, Closed, None),
                ("c", "v", 5, Unknown, None),
                ("d", "w", 7, Paid, Verify),
                ("e", "w", 9, Closed, None),
                ("f", "w", 9, Pending, None),
            ],
            [10, 0, 7],
        ),
        (vec![("b", "u", 20, Paid, Reinstate), ("e", "w", 9, Paid, Reinstate)], [30, 0, 16]),
        // What was found paid before: archived, pending again, closed.
        (
            vec![
                ("a", "u", 10, Unknown, None),
                ("b", "u", 20, Closed, Reverse),
                ("d", "w", 7, Pending, Dead(Reason::Expired)),
                ("e", "w", 9, Closed, Reverse),
            ],
            [10, 0, 7],
        ),
    ];
    for (batch, balances) in batches {
        let checks: Vec<Check> =
            batch.iter().map(|(payment, user, points, finding, _)| check(payment, user, *points, *finding)).collect();
        let expected: Vec<_> = batch.iter().map(|(_, _, points, _, step)| (*step, *points)).collect();
        assert_eq!(steps(&*ledger, &checks), expected);
        let now = ["u", "v", "w"].map(|user| ledger.balance(user).unwrap());
        assert_eq!(now, balances, "{batch:?}");
        assert_eq!(ledger.verify().unwrap().violations, 0);
    }
    // A message that comes later than all that is a duplicate: it never ends credited.
    let duplicates = [credit("e", "w", 9), credit("f", "w", 9), credit("b", "u", 20)];
    assert_eq!(verdicts(&*ledger, &duplicates), vec![DUPLICATE; 3]);
    // A person decides: the credit stays, and one that is absent is voided all the same.
    let parked = ledger
        .check(&[check("a", "u", 10, Closed), check("g", "v", 3, Pending)], OnUnpaid::Dead, Patience::Usual, later())
        .unwrap();
    assert_eq!(parked.iter().map(|it| it.step).collect::<Vec<_>>(), [Dead(Reason::Unpaid), Void]);
    assert_right(&*ledger, 7);

    let story = ledger.payment("b").unwrap().unwrap();
    let told: Vec<_> =
        story.adjustments.iter().map(|a| (a.seq, a.kind.as_str(), a.points, a.reason.as_str())).collect();
    assert_eq!(
        told,
        [(1, "reversal", -20, "closed"), (2, "reinstatement", 20, "paid after all"), (3, "reversal", -20, "closed")]
    );
    assert_eq!(story.state, "reversed");
    assert!(story.verified_at.is_some(), "a reversal leaves it");
    let void = ledger.payment("f").unwrap().unwrap();
    assert_eq!((void.state.as_str(), void.verified_at), ("reversed", Option::None));
    assert_eq!(void.adjustments[0].reason, "expired before it was credited");
}

fn a_duplicate_needs_no_check_once_it_is_verified_or_parked(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    let batch = ["paid", "parked", "closed", "open"].map(|payment| credit(payment, "u", 10));
    ledger.credit(&batch, Patience::Usual).unwrap();
    let needs_no_check = |expected: [bool; 4]| {
        let expected = expected.map(|checked| Verdict::Duplicate { checked });
        assert_eq!(ledger.credit(&batch, Patience::Usual).unwrap(), expected);
    };
    let asked_at = |payment: &str| ledger.payment(payment).unwrap().unwrap().asked_at;
    let person =
        |payment: &str| Check { claim: None, ..check(payment, "u", 10, Resolution::ForPerson(Reason::Unrecognised)) };
    needs_no_check([false; 4]);
    // One that is not in the ledger gets no row by it.
    steps(&*ledger, &[check("closed", "u", 10, Resolution::Closed), check("paid", "u", 10, Resolution::Paid)]);
    steps(&*ledger, &[person("absent"), person("closed"), person("parked")]);
    needs_no_check([true, true, false, false]);
    assert!(ledger.payment("absent").unwrap().is_none());
    assert_eq!((asked_at("paid"), asked_at("closed")), (None, None), "only what counts waits for a person");
    let first = asked_at("parked");
    std::thread::sleep(Duration::from_millis(5));
    steps(&*ledger, &[person("paid"), person("parked")]);
    assert!(first.is_some() && asked_at("parked") == first && asked_at("paid").is_some(), "the first time counts");
    // Cleared when it is verified or reversed.
    steps(&*ledger, &[check("paid", "u", 10, Resolution::Closed), check("parked", "u", 10, Resolution::Paid)]);
    assert_eq!((asked_at("paid"), asked_at("parked")), (None, None));
    needs_no_check([false, true, false, false]);
    assert_right(&*ledger, 4);
}

fn unverified_and_overdue_credits_are_counted(kind: Kind) {
    let (place, ledger) = ledger(kind);
    let batch = ["paid", "parked", "closed", "old", "new"].map(|payment| credit(payment, "u", 10));
    ledger.credit(&batch, Patience::Usual).unwrap();
    place.execute("UPDATE points_credits SET credited_at = '2020-01-01T00:00:00.000Z' WHERE payment_id <> 'new'");
    let person = Check { claim: None, ..check("parked", "u", 10, Resolution::ForPerson(Reason::Unrecognised)) };
    steps(&*ledger, &[check("closed", "u", 10, Resolution::Closed), check("paid", "u", 10, Resolution::Paid), person]);
    let counted = ledger.count_unverified(Duration::from_secs(3600)).unwrap();
    assert_eq!((counted.unverified, counted.overdue), (3, 1));
    let counted = ledger.count_unverified(Duration::from_secs(100 * 365 * 86_400)).unwrap();
    assert_eq!((counted.unverified, counted.overdue), (3, 0));
}

fn the_reason_of_another_spelling_names_it(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    ledger.credit(&[credit("007", "u", 10)], Patience::Usual).unwrap();
    let check = Check { spelling: Some("7".into()), ..check("007", "u", 10, Resolution::Misspelt) };
    assert_eq!(steps(&*ledger, &[check]), [(CheckStep::Reverse, 10)]);
    let story = ledger.payment("007").unwrap().unwrap();
    assert_eq!((story.state.as_str(), story.adjustments[0].reason.as_str()), ("reversed", "another spelling of 7"));
    assert_right(&*ledger, 1);
}

fn the_ledgers_own_row_counts_and_not_the_message(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    ledger.credit(&[credit("a", "u", 10), credit("b", "u", 10)], Patience::Usual).unwrap();
    let checked = ledger
        .check(
            &[check("a", "thief", 99, Resolution::Closed), check("b", "thief", 99, Resolution::Paid)],
            OnUnpaid::Reverse,
            Patience::Usual,
            later(),
        )
        .unwrap();
    let told: Vec<_> = checked.iter().map(|it| (it.step, it.user_id.as_str(), it.points)).collect();
    assert_eq!(told, [(CheckStep::Reverse, "u", 10), (CheckStep::Verify, "u", 10)]);
    assert_eq!((ledger.balance("u").unwrap(), ledger.balance("thief").unwrap()), (10, 0));
    assert_right(&*ledger, 2);
}

fn a_reversal_may_make_a_balance_negative(kind: Kind) {
    let (place, ledger) = ledger(kind);
    ledger.credit(&[credit("a", "u", 10)], Patience::Usual).unwrap();
    // The points were spent by somebody else's program, which this ledger books as a balance only: `verify` would tell.
    place.execute("UPDATE points_balances SET balance = 3 WHERE user_id = 'u'");
    assert_eq!(steps(&*ledger, &[check("a", "u", 10, Resolution::Closed)]), [(CheckStep::Reverse, 10)]);
    assert_eq!(ledger.balance("u").unwrap(), -7);
    assert_eq!(steps(&*ledger, &[check("a", "u", 10, Resolution::Closed)]), [(CheckStep::None, 10)], "once");
    assert_eq!(ledger.balance("u").unwrap(), -7);
    assert_eq!(steps(&*ledger, &[check("a", "u", 10, Resolution::Paid)]), [(CheckStep::Reinstate, 10)]);
    assert_eq!(ledger.balance("u").unwrap(), 3);
}

/// Credits and checks of overlapping payments, from writers in every order: no deadlock, and whatever came first, each
/// payment ends as its finding says.
fn checks_and_credits_of_the_same_payments_at_once(kind: Kind) {
    let (place, ledger) = ledger(kind);
    let finding = |n: usize| [Resolution::Paid, Resolution::Closed, Resolution::Pending][n % 3];
    let payment = |round: usize, n: usize| format!("{round:02}-{n:03}");
    // Which of them is the first depends on who sorts: the database's own collation is not that of the columns.
    let user = |n: usize| ["a", "B", "c", "D", "é", "Z", "z"][n % 7];
    std::thread::scope(|scope| {
        for writer in 0..4 {
            // Two that credit and two that check; two share a pool, the others are another daemon's.
            let ledger = if writer % 2 == 0 || kind == Kind::Sqlite { Arc::clone(&ledger) } else { place.open() };
            scope.spawn(move || {
                for round in 0..30 {
                    if writer < 2 {
                        let mut batch: Vec<Credit> = (0..100).map(|n| credit(&payment(round, n), user(n), 2)).collect();
                        if writer == 1 {
                            batch.reverse();
                        }
                        ledger.credit(&batch, Patience::Usual).unwrap();
                    } else {
                        let batch: Vec<Check> =
                            (0..100).map(|n| check(&payment(round, n), user(n), 2, finding(n))).collect();
                        ledger.check(&batch, OnUnpaid::Reverse, Patience::Usual, later()).unwrap();
                    }
                }
            });
        }
    });
    assert_right(&*ledger, 3000);
    for n in 0..100 {
        let state = ledger.payment(&payment(7, n)).unwrap().unwrap().state;
        assert_eq!(state, if finding(n) == Resolution::Paid { "credited" } else { "reversed" }, "{n}");
    }
}

fn a_check_out_of_range_leaves_no_trace(kind: Kind) {
    let (place, ledger) = ledger(kind);
    ledger.credit(&[credit("a", "rich", 5)], Patience::Usual).unwrap();
    place.execute(&format!("UPDATE points_balances SET balance = {MAX_BALANCE} WHERE user_id = 'rich'"));
    let batch = [check("b", "poor", 1, Resolution::Paid), check("c", "rich", 1, Resolution::Paid)];
    let error = ledger.check(&batch, OnUnpaid::Reverse, Patience::Usual, later()).unwrap_err();
    assert_eq!(error.class(), Class::Permanent, "{error}");
    assert!(ledger.payment("b").unwrap().is_none() && ledger.balance("poor").unwrap() == 0, "nothing of it");
    assert_eq!(steps(&*ledger, &batch[..1]), [(CheckStep::LateCredit, 1)]);
}

fn a_check_that_nobody_waits_for_any_more_is_not_committed(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    ledger.credit(&[credit("a", "u", 10)], Patience::Usual).unwrap();
    let batch = [check("a", "u", 10, Resolution::Closed), check("b", "u", 10, Resolution::Paid)];
    let error = ledger.check(&batch, OnUnpaid::Reverse, Patience::Usual, Instant::now()).unwrap_err();
    assert!(error.to_string().contains("deadline exceeded before commit"), "{error}");
    assert_eq!((ledger.balance("u").unwrap(), ledger.payment("b").unwrap()), (10, None));
    assert_right(&*ledger, 1);
}

fn credits_that_no_check_has_found_paid_are_counted_and_listed(kind: Kind) {
    let (place, ledger) = ledger(kind);
    let page = |reversed, after: Option<(String, String)>| UnverifiedPage {
        reversed,
        older_than: Duration::ZERO,
        newer_than: None,
        after,
        limit: 2,
    };
    let ids = |page: &UnverifiedPage| -> Vec<(String, String)> {
        ledger.unverified(page).unwrap().into_iter().map(|it| (it.since, it.payment_id)).collect()
    };
    ledger.credit(&["a", "b", "c", "d", "e"].map(|id| credit(id, "u", 1)), Patience::Usual).unwrap();
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(ledger.count_unverified(Duration::ZERO).unwrap().unverified, 5);
    steps(&*ledger, &[check("b", "u", 1, Resolution::Paid), check("e", "u", 1, Resolution::Closed)]);
    assert_eq!(
        (ledger.count_unverified(Duration::ZERO).unwrap().unverified, ledger.verify().unwrap().unverified),
        (3, 3)
    );

    let first = ids(&page(false, None));
    let second = ids(&page(false, first.last().cloned()));
    let told: Vec<&str> = first.iter().chain(&second).map(|(_, id)| id.as_str()).collect();
    assert_eq!((told, first.len()), (vec!["a", "c", "d"], 2), "page by page, each once");
    assert!(ids(&page(false, second.last().cloned())).is_empty());
    std::thread::sleep(Duration::from_millis(5));
    let reversed = ids(&page(true, None));
    assert_eq!(reversed.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["e"]);
    assert!(ids(&page(true, reversed.last().cloned())).is_empty());

    let past = match kind {
        Kind::Sqlite => "strftime('%Y-%m-%dT%H:%M:%fZ', 'now', '-2 hours')",
        Kind::Postgres => "now() - interval '2 hours'",
    };
    place.execute(&format!("UPDATE points_credits SET credited_at = {past} WHERE payment_id = 'd'"));
    let hour = Duration::from_secs(3600);
    let old = ids(&UnverifiedPage { older_than: hour, ..page(false, None) });
    assert_eq!(old.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["d"]);
    let new = ids(&UnverifiedPage { newer_than: Some(hour), ..page(false, None) });
    assert_eq!(new.iter().map(|(_, id)| id.as_str()).collect::<Vec<_>>(), ["a", "c"]);
}

fn reading_makes_no_ledger(kind: Kind) {
    if let DatabaseUrl::Sqlite(file) = Place::new(kind).parsed() {
        let options = pointsd::ledger::Options {
            pool_size: 1,
            timeout: Duration::from_secs(1),
            access: pointsd::ledger::Access::Read,
            events: None,
        };
        let missing = file.with_file_name("missing.db");
        let ledger = pointsd::ledger::open(&DatabaseUrl::Sqlite(missing.clone()), &options);
        let error = ledger.schema().unwrap_err();
        assert!(error.to_string().contains("there is no ledger"), "{error}");
        assert!(!missing.exists());
    }
}

fn a_check_without_a_claim_leaves_nothing_where_nothing_stands(kind: Kind) {
    let (_place, ledger) = ledger(kind);
    ledger.credit(&[credit("b", "u", 20), credit("d", "u", 5)], Patience::Usual).unwrap();
    let looked_up = |payment: &str, finding| Check { claim: Option::None, ..check(payment, "nobody", 1, finding) };
    // Beside one that has a claim, in one batch and one order.
    let batch = [
        looked_up("a", Resolution::Closed),
        looked_up("b", Resolution::Closed),
        check("c", "v", 7, Resolution::Paid),
        looked_up("d", Resolution::Paid),
        looked_up("e", Resolution::Paid),
        looked_up("f", Resolution::Pending),
    ];
    use CheckStep::{LateCredit, None, Reverse, Verify};
    let expected = [(None, 0), (Reverse, 20), (LateCredit, 7), (Verify, 5), (None, 0), (None, 0)];
    assert_eq!(steps(&*ledger, &batch), expected);
    for payment in ["a", "e", "f"] {
        assert_eq!(ledger.payment(payment).unwrap(), Option::None, "{payment}");
    }
    assert_eq!((ledger.balance("u").unwrap(), ledger.balance("v").unwrap()), (5, 7));
    assert_eq!(ledger.verify().unwrap().violations, 0);
}

fn what_is_rolled_back_is_not_made_known(kind: Kind) {
    let (place, quiet) = ledger(kind);
    let options = pointsd::ledger::Options {
        pool_size: 1,
        timeout: Duration::from_secs(10),
        access: pointsd::ledger::Access::Write,
        events: Some("events".into()),
    };
    let ledger = pointsd::ledger::open(&place.parsed(), &options);
    let outbox = pointsd::ledger::open_outbox(&place.parsed(), Duration::from_secs(10));
    quiet.credit(&[credit("quiet", "u", 1)], Patience::Usual).unwrap();
    place.execute(&format!("UPDATE points_balances SET balance = {} WHERE user_id = 'u'", MAX_BALANCE - 5));
    ledger.credit(&[credit("first", "v", 1), credit("too-much", "u", 10)], Patience::Usual).unwrap_err();
    ledger.check(&[check("late", "u", 10, Resolution::Paid)], OnUnpaid::Reverse, Patience::Usual, later()).unwrap_err();
    let past = Instant::now();
    ledger.check(&[check("quiet", "u", 1, Resolution::Closed)], OnUnpaid::Reverse, Patience::Usual, past).unwrap_err();
    assert_eq!(outbox.summary().unwrap().rows, 0, "nothing of it was committed");
    // A duplicate makes nothing known either, and neither does a void.
    let verdicts = ledger
        .credit(&[credit("first", "v", 1), credit("first", "v", 1), credit("quiet", "u", 1)], Patience::Usual)
        .unwrap();
    assert_eq!(verdicts, [Verdict::Credited, Verdict::Duplicate { checked: true }, DUPLICATE]);
    let checks = [check("first", "v", 1, Resolution::Closed), check("never", "w", 3, Resolution::Pending)];
    assert_eq!(steps(&*ledger, &checks), [(CheckStep::Reverse, 1), (CheckStep::Void, 3)]);
    assert!(outbox.take_turn().unwrap());
    let keys: Vec<(Option<String>, String)> =
        outbox.fresh(100).unwrap().into_iter().map(|row| (row.key, row.routing_key)).collect();
    let of = |key: &str, kind: &str| (Some(key.to_owned()), kind.to_owned());
    assert_eq!(keys, [of("first", "points.credited"), of("first", "points.reversed")]);
}

/// A statement is planned once a connection, perhaps while a table is empty, and used when it is large.
#[test]
fn rows_are_found_by_their_keys_also_by_statements_that_were_planned_on_an_empty_table() {
    use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, sql_query, sql_types::BigInt};

    #[derive(QueryableByName)]
    struct Reads {
        #[diesel(sql_type = BigInt)]
        sessions: i64,
        #[diesel(sql_type = BigInt)]
        read_through: i64,
    }

    let (place, ledger) = ledger(Kind::Postgres);
    let batch: Vec<Credit> = (0..20).map(|n| credit(&format!("p{n}"), "u", 1)).collect();
    let checks: Vec<Check> = (10..20).map(|n| check(&format!("p{n}"), "u", 1, Resolution::Paid)).collect();
    let work = || {
        assert_eq!(ledger.credit(&batch, Patience::Usual).unwrap().len(), 20);
        ledger.check(&checks, OnUnpaid::Reverse, Patience::Usual, Instant::now() + Duration::from_secs(60)).unwrap();
    };
    // PostgreSQL keeps a plan after five uses.
    (0..10).for_each(|_| work());
    place.execute(
        "INSERT INTO points_credits (payment_id, user_id, points) SELECT 'x' || n, 'x', 1 FROM generate_series(1, 20000) n",
    );
    let mut connection = PgConnection::establish(&place.url).unwrap();
    let mut reads = || -> Reads {
        sql_query(
            "SELECT seq_tup_read AS read_through, (SELECT count(*) FROM pg_stat_activity WHERE datname = \
             current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend') AS sessions \
             FROM pg_stat_user_tables WHERE relname = 'points_credits'",
        )
        .get_result(&mut connection)
        .unwrap()
    };
    // A session tells its counts at the latest when it ends.
    let before = reads();
    work();
    drop(ledger);
    let after = eventually("all counts are told", || Some(reads()).filter(|now| now.sessions == 0));
    let read_through = after.read_through - before.read_through;
    assert!(read_through < 20_000, "{read_through} rows were read");
}

/// A constraint of somebody else's that is looked at when the transaction ends.
#[test]
fn a_commit_that_fails_is_an_error_and_leaves_nothing() {
    let (place, ledger) = ledger(Kind::Postgres);
    place.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;
         CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON points_credits DEFERRABLE INITIALLY DEFERRED
         FOR EACH ROW WHEN (NEW.user_id = 'refused') EXECUTE FUNCTION refuse()",
    );
    let batch = [credit("a", "u", 1), credit("b", "refused", 1)];
    for _ in 0..10 {
        let error = ledger.credit(&batch, Patience::Usual).unwrap_err();
        assert!(error.to_string().contains("not today"), "{error}");
    }
    assert_right(&*ledger, 0);
    assert_eq!(ledger.credit(&batch[..1], Patience::Usual).unwrap(), [Verdict::Credited]);
    assert_right(&*ledger, 1);
}
