use super::*;
use crate::domain::{
    check_outcome::CheckOutcome,
    check_schedule::{CheckDelay, CheckPolicy},
    retry::{Delay, RetryPolicy},
    settlement::{Destination, Settlement},
};
use CheckStep::{Dead, Expire, LateCredit, None, Recheck, Reinstate, Reverse, Verify, Void};
use LedgerState::{Absent, Credited, Reversed, Verified};
use PaymentStatus::{Closed, Paid, Pending, Unknown, Unrecognised};
use proptest::prelude::*;

/// The steps with `on_unpaid = "reverse"`, for each state of the ledger (absent, credited, verified, reversed), before
/// and at the last check.
const TABLE: [(PaymentStatus, [CheckStep; 4], [CheckStep; 4]); 5] = [
    (Paid, [LateCredit, Verify, Verify, Reinstate], [LateCredit, Verify, Verify, Reinstate]),
    (Pending, [Recheck; 4], [Void, Expire, Dead(Reason::Expired), None]),
    (Unknown, [Recheck; 4], [Void, Expire, None, None]),
    (Closed, [Void, Reverse, Reverse, None], [Void, Reverse, Reverse, None]),
    (Unrecognised, [Recheck; 4], [Dead(Reason::Unrecognised); 4]),
];

fn policy(delays: &[&str]) -> CheckPolicy {
    let delay = |text: &&str| Delay::parse(text).unwrap();
    CheckPolicy::new(delay(&"1s"), delays.iter().map(delay).collect(), OnUnpaid::Reverse)
}

#[test]
fn every_cell_of_the_table_is_as_documented() {
    assert_eq!(TABLE.map(|(status, ..)| status), PaymentStatus::ALL);
    for (status, before, at_the_last) in TABLE {
        for (index, state) in [Absent, Credited, Verified, Reversed].into_iter().enumerate() {
            for (used_up, row) in [(false, before), (true, at_the_last)] {
                let reverse = row[index];
                assert_eq!(
                    decide(status, state, used_up, OnUnpaid::Reverse),
                    reverse,
                    "{status:?} {state:?} {used_up}"
                );
                let dead = match reverse {
                    Expire => Dead(Reason::Expired),
                    Reverse => Dead(Reason::Unpaid),
                    other => other,
                };
                assert_eq!(decide(status, state, used_up, OnUnpaid::Dead), dead, "{status:?} {state:?} {used_up}");
            }
        }
    }
}

#[test]
fn the_ledger_is_asked_exactly_where_it_matters_and_decides_by_the_same_table() {
    for status in PaymentStatus::ALL {
        for used_up in [false, true] {
            for on_unpaid in [OnUnpaid::Reverse, OnUnpaid::Dead] {
                let steps = LedgerState::ALL.map(|state| decide(status, state, used_up, on_unpaid));
                match Resolution::of(status, used_up) {
                    Option::None => assert!(steps.iter().all(|step| *step == steps[0]), "{status:?} {used_up}"),
                    Some(resolution) => {
                        assert_eq!(LedgerState::ALL.map(|state| resolution.decide(state, on_unpaid)), steps);
                    }
                }
            }
        }
    }
}

#[test]
fn another_spelling_of_an_id_never_counts() {
    for (on_unpaid, credited) in [(OnUnpaid::Reverse, Reverse), (OnUnpaid::Dead, Dead(Reason::Conflict))] {
        let steps = LedgerState::ALL.map(|state| Resolution::Misspelt.decide(state, on_unpaid));
        assert_eq!(steps, [Void, credited, credited, None]);
    }
    let check = Check {
        payment_id: PaymentId::new("007").unwrap(),
        claim: Option::None,
        resolution: Resolution::Misspelt,
        spelling: Some("7".into()),
        closing: Option::None,
    };
    assert_eq!(check.reason(Reverse), "another spelling of 7");
}

#[test]
fn every_step_that_can_be_counted_begins_at_zero() {
    let possible = possible();
    for status in PaymentStatus::ALL {
        for state in LedgerState::ALL {
            for used_up in [false, true] {
                for on_unpaid in [OnUnpaid::Reverse, OnUnpaid::Dead] {
                    assert!(possible.contains(&(status, decide(status, state, used_up, on_unpaid))));
                }
            }
        }
    }
    assert!(possible.contains(&(Pending, Reverse)) && !possible.contains(&(Unknown, Reverse)));
}

#[test]
fn a_step_done_twice_leaves_the_ledger_as_once() {
    for status in PaymentStatus::ALL {
        for used_up in [false, true] {
            for on_unpaid in [OnUnpaid::Reverse, OnUnpaid::Dead] {
                for state in LedgerState::ALL {
                    let once = decide(status, state, used_up, on_unpaid).leaves(state);
                    let again = decide(status, once, used_up, on_unpaid);
                    assert_eq!(again.leaves(once), once, "{status:?} {state:?} {used_up}");
                    assert!(!again.is_reversal(), "nothing is reversed twice");
                }
            }
        }
    }
}

#[test]
fn checks_are_numbered_and_wait_for_their_own_delay() {
    let policy = policy(&["2s", "3s"]);
    let attempts: Vec<_> = (0..5)
        .map(|done| {
            let attempt = policy.attempt(done);
            let next = attempt.next();
            (attempt.used_up, attempt.confirming, policy.delays()[next.index()].as_str(), next.checks_done())
        })
        .collect();
    assert_eq!(
        attempts,
        [
            (false, false, "2s", 1),
            (false, false, "3s", 2),
            (true, false, "3s", 3),
            (true, true, "3s", 4),
            // The number of delays was reduced while the check waited.
            (true, true, "3s", 5),
        ]
    );
    assert_eq!(policy.beginning(), CheckDelay { checks_done: 0, delay: 0 });
    let single = self::policy(&[]).attempt(0);
    assert!(single.used_up && !single.confirming && single.next().index() == 0);
    assert_eq!(self::policy(&[]).attempt(u32::MAX).next().checks_done(), u32::MAX);
}

#[test]
fn what_was_not_paid_in_time_is_confirmed_even_when_the_daemon_died_in_between() {
    let policy = policy(&["2s"]);
    let (last, confirming) = (policy.attempt(1), policy.attempt(2));
    let confirmation = Some(CheckDelay { checks_done: 2, delay: 1 });
    for (attempt, status, step, state, wait) in [
        (policy.attempt(0), Pending, Recheck, Credited, Some(CheckDelay { checks_done: 1, delay: 1 })),
        (last, Pending, Expire, Reversed, confirmation),
        (last, Unknown, Void, Reversed, confirmation),
        // The credit is reversed already, by an earlier delivery of this very message.
        (last, Pending, None, Reversed, confirmation),
        (confirming, Pending, None, Reversed, Option::None),
        (confirming, Pending, Expire, Reversed, confirmation),
        // The record of the payment was archived.
        (last, Unknown, None, Verified, Option::None),
        (last, Closed, Reverse, Reversed, Option::None),
        (last, Closed, Void, Reversed, Option::None),
        (last, Closed, None, Reversed, Option::None),
        (last, Paid, Verify, Verified, Option::None),
        (last, Unrecognised, Dead(Reason::Unrecognised), Credited, Option::None),
    ] {
        assert_eq!(attempt.wait_after(status, step, state), wait, "{attempt:?} {status:?} {step:?}");
    }
}

#[test]
fn a_credit_or_a_reinstatement_by_a_check_is_confirmed_after_the_first_delay_and_not_without_end() {
    // n = 2.
    let policy = policy(&["2s"]);
    for (done, wait) in [(0, Some(1)), (1, Some(2)), (2, Some(3)), (3, Option::None), (9, Option::None)] {
        for step in [LateCredit, Reinstate] {
            let next = policy.attempt(done).wait_after(Paid, step, Verified);
            assert_eq!(next, wait.map(|checks_done| CheckDelay { checks_done, delay: 0 }), "{done} {step:?}");
        }
    }
    assert_eq!(policy.arrival().confirming_paid(), Some(CheckDelay { checks_done: 1, delay: 0 }));
    assert_eq!(policy.arrival().next(), policy.beginning());
}

proptest! {
    /// In any sequence of statuses, a payment is checked as often as there are delays, and at most three times more:
    /// for a confirmed expiry and a confirmed reinstatement.
    #[test]
    fn a_message_is_checked_a_bounded_number_of_times(
        said in prop::collection::vec(prop::sample::select(PaymentStatus::ALL.to_vec()), 60),
        delays in 0..20_usize,
        absent in any::<bool>(),
    ) {
        let policy = policy(&vec!["1s"; delays]);
        let mut state = if absent { Absent } else { Credited };
        let (mut done, mut checks) = (0, 0);
        for status in said {
            checks += 1;
            let attempt = policy.attempt(done);
            let step = decide(status, state, attempt.used_up, policy.on_unpaid);
            state = step.leaves(state);
            match attempt.wait_after(status, step, state) {
                Some(wait) => done = wait.checks_done(),
                Option::None => break,
            }
        }
        prop_assert!(checks <= delays + 4, "{checks} checks for {delays} delays");
    }
}

#[test]
fn each_outcome_of_a_check_has_its_label_and_its_settlement() {
    let (status, retry) = (Pending, RetryPolicy::new(vec![Delay::parse("5s").unwrap()]));
    let wait = policy(&["2s"]).attempt(0).next();
    let dead = |reason| Settlement::Forward(Destination::Dead(reason));
    let parked = |reason| CheckOutcome::Parked { status, reason, error: "why".into() };
    let malformed = || "why".to_owned();
    let failed = |taken| CheckOutcome::after_failure("perhaps".into(), taken, &retry);
    let table = [
        (CheckOutcome::Checked { status, step: Verify, next: Option::None }, "checked", Settlement::Ack),
        (CheckOutcome::Ignored, "ignored", Settlement::Ack),
        (failed(0), "retry", Settlement::Forward(Destination::Retry(retry.next(0).unwrap()))),
        (CheckOutcome::Malformed(malformed()), "malformed", Settlement::Ack),
        (CheckOutcome::Conflict { error: "why".into(), decision: Option::None }, "conflict", dead(Reason::Conflict)),
        (CheckOutcome::Rejected("why".into()), "rejected", dead(Reason::Rejected)),
        (failed(1), "exhausted", dead(Reason::Exhausted)),
        (parked(Reason::Unpaid), "unpaid", dead(Reason::Unpaid)),
        (parked(Reason::Expired), "expired", dead(Reason::Expired)),
        (parked(Reason::Unrecognised), "unrecognised", dead(Reason::Unrecognised)),
    ];
    assert_eq!(table.each_ref().map(|(_, label, _)| *label), CheckOutcome::LABELS);
    for (outcome, label, settlement) in table {
        assert_eq!((outcome.label(), outcome.settlement()), (label, settlement));
    }
    let unreadable = CheckOutcome::Unreadable(malformed());
    assert_eq!((unreadable.label(), unreadable.settlement()), ("malformed", dead(Reason::Malformed)));
    for (step, label) in [(LateCredit, "credited"), (Verify, "duplicate"), (Reverse, "checked")] {
        let outcome = CheckOutcome::Checked { status, step, next: Option::None };
        assert_eq!(outcome.label_on_arrival(), label);
        assert!(CheckOutcome::LABELS_ON_ARRIVAL.contains(&label));
    }
    let misspelt = CheckOutcome::Misspelt { status: Paid, step: Reverse };
    assert_eq!((misspelt.label(), misspelt.settlement()), ("conflict", Settlement::Ack));
    let again = CheckOutcome::Checked { status, step: Recheck, next: Some(wait) };
    assert_eq!((again.label(), again.settlement()), ("checked", Settlement::Forward(Destination::Check(wait))));
}
