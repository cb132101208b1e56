//! Thousands of payments whose statuses change while they are checked, by daemons that are killed: in the end the ledger
//! is what the table prescribes.

use crate::{
    compensation::{assert_right, body, setup_at, start},
    support::{
        amqp::{Client, check_entry, check_message},
        daemon::{Daemon, Setup, Signal},
        eventually,
        flow::Dice,
        ledger::{Kind, Place},
        payments::Payments,
        proxy::{Network, Proxy},
        rabbit::Rabbit,
    },
};
use lapin::BasicProperties;
use pointsd::database::DatabaseUrl;
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

/// What happens to a payment: what its row says at first and from then on (`""`: no row), whether its points message
/// reaches the credit queue, and how it must end in the ledger: its state, and whether it was found paid.
struct Fate {
    first: &'static str,
    then: &'static str,
    credited_at_once: bool,
    ends: (&'static str, bool),
}

const PAID: &str = "TRADE_SUCCESS";
const PENDING: &str = "WAIT_BUYER_PAY";
const CLOSED: &str = "TRADE_CLOSED";

/// Every row of the table. `then` comes before the last check.
const FATES: [Fate; 14] = [
    Fate { first: PAID, then: PAID, credited_at_once: true, ends: ("credited", true) },
    Fate { first: PAID, then: PAID, credited_at_once: false, ends: ("credited", true) },
    Fate { first: PENDING, then: PAID, credited_at_once: true, ends: ("credited", true) },
    Fate { first: PENDING, then: PAID, credited_at_once: false, ends: ("credited", true) },
    Fate { first: "", then: PAID, credited_at_once: true, ends: ("credited", true) },
    Fate { first: PENDING, then: PENDING, credited_at_once: true, ends: ("reversed", false) },
    Fate { first: PENDING, then: PENDING, credited_at_once: false, ends: ("reversed", false) },
    Fate { first: "", then: "", credited_at_once: true, ends: ("reversed", false) },
    Fate { first: "", then: "", credited_at_once: false, ends: ("reversed", false) },
    Fate { first: CLOSED, then: CLOSED, credited_at_once: true, ends: ("reversed", false) },
    Fate { first: CLOSED, then: CLOSED, credited_at_once: false, ends: ("reversed", false) },
    Fate { first: PENDING, then: CLOSED, credited_at_once: true, ends: ("reversed", false) },
    Fate { first: "ODD", then: "ODD", credited_at_once: true, ends: ("credited", false) },
    Fate { first: "ODD", then: PAID, credited_at_once: true, ends: ("credited", true) },
];

/// Closed at first, and paid after all: another message of it, which is published after that, reinstates it.
const REINSTATED: usize = FATES.len();

const COUNT: u64 = 5000;
const TOGETHER: u64 = 250;
/// Kills that must have found checks in the daemon's hands.
const KILLS: u32 = 5;

/// Where a daemon is when it is killed with checks in its hands.
#[derive(Debug, Clone, Copy)]
enum Strike {
    /// Looking up.
    Source,
    /// Before the ledger's commit, or in it.
    Ledger,
    /// After the commit: neither copies nor acknowledgements get through to the broker.
    Broker,
}

const STRIKES: [Strike; 3] = [Strike::Source, Strike::Broker, Strike::Ledger];

/// Kills the daemon while it certainly holds checks: whether it did.
fn kill_with_checks_in_hand(daemon: Daemon, strike: Strike, place: &Place, payments: &Payments, proxy: &Proxy) -> bool {
    let mut lock = Some(match (strike, place.parsed()) {
        (Strike::Ledger, DatabaseUrl::Postgres(_)) => crate::recovery::hold_the_ledger(place),
        _ => payments.hold(),
    });
    let begun = Instant::now();
    let in_hand = loop {
        if daemon.metric(r#"pointsd_in_flight{queue="check"}"#) > 0.0 {
            break true;
        }
        if begun.elapsed() > Duration::from_millis(1500) {
            break false;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    if let Strike::Ledger = strike {
        // The look-up takes no time: then it is the ledger that they wait for.
        std::thread::sleep(Duration::from_millis(300));
    }
    if let Strike::Broker = strike {
        proxy.set(Network::Stalled);
        lock = None;
        // Time for the look-up and the commit; what should follow does not get through.
        std::thread::sleep(Duration::from_millis(1500));
    }
    daemon.kill();
    drop(lock);
    // What was on its way never arrives.
    proxy.set(Network::Cut);
    proxy.set(Network::Up);
    in_hand
}

fn all_end_as_the_table_says(kind: Kind) {
    let rabbit = Rabbit::start(None);
    let (place, payments) = (Place::new(kind), Payments::new());
    let delays = ("2s", r#"["6s", "7s"]"#);
    let proxy = Proxy::to(rabbit.port);
    let proxied = format!("amqp://guest:guest@127.0.0.1:{}/%2f", proxy.port);
    let setup = setup_at(&proxied, &place, "sql", &payments.settings(), delays.0, delays.1);
    let start = || {
        let daemon = setup.start_with(|command| {
            command.env("POINTSD_COMPENSATION__BRAKE_AFTER", "1000000");
        });
        daemon.wait_ready();
        daemon
    };
    let mut daemon = Some(start());
    // A second daemon on the same queues, where the ledger allows it.
    let second = (kind == Kind::Postgres).then(start);
    let client = Client::connect(&rabbit.url());
    let mut dice = Dice::new(kind as u64 + 3);
    let fate_of: Vec<usize> =
        (0..COUNT).map(|_| usize::try_from(dice.below(FATES.len() as u64 + 1)).unwrap()).collect();
    let message =
        |id: u64| (body(id, &format!("u{}", id % 50), 1 + id % 9), BasicProperties::default().with_delivery_mode(2));
    let first_delay = setup.check_delay_queue(delays.0);
    let (mut kills, mut tried) = (0, 0_usize);
    let mut begun = 0;
    while begun < COUNT {
        let batch: Vec<u64> = (begun..begun + TOGETHER).collect();
        begun += TOGETHER;
        let status = |id: &u64, first: bool| -> Option<(u64, &'static str)> {
            let fate = fate_of[usize::try_from(*id).unwrap()];
            let status = match (fate == REINSTATED, first) {
                (true, _) => CLOSED,
                (false, true) => FATES[fate].first,
                (false, false) => FATES[fate].then,
            };
            (!status.is_empty()).then_some((*id, status))
        };
        payments.set_all(&batch.iter().filter_map(|id| status(id, true)).collect::<Vec<_>>());
        let (mut whole, mut check_only) = (Vec::new(), Vec::new());
        for id in &batch {
            let fate = fate_of[usize::try_from(*id).unwrap()];
            for _ in 0..if dice.below(10) == 0 { 2 } else { 1 } {
                if FATES.get(fate).is_none_or(|fate| fate.credited_at_once) {
                    whole.push(message(*id));
                } else {
                    check_only.push(check_entry(&id.to_string(), &format!("u{}", id % 50), 1 + id % 9));
                }
            }
        }
        client.publish(&setup.exchange, &setup.key, whole);
        let scheduled = check_only.chunks(7).map(|entries| check_message(entries, 0));
        client.publish("", &first_delay, scheduled.collect::<Vec<_>>());
        // The statuses change after the first look and before the last check.
        std::thread::sleep(Duration::from_millis(200));
        if begun % (4 * TOGETHER) == 0 && tried < 20 {
            tried += 1;
            kills += u32::from(kill_with_checks_in_hand(
                daemon.take().unwrap(),
                STRIKES[tried % 3],
                &place,
                &payments,
                &proxy,
            ));
            daemon = Some(start());
        }
        if begun >= 4 * TOGETHER {
            let old = begun - 4 * TOGETHER..begun - 3 * TOGETHER;
            payments.set_all(&old.filter_map(|id| status(&id, false)).collect::<Vec<_>>());
        }
    }
    let last = COUNT - 3 * TOGETHER..COUNT;
    let then: Vec<(u64, &str)> = last
        .filter_map(|id| FATES.get(fate_of[usize::try_from(id).unwrap()]).map(|fate| (id, fate.then)))
        .filter(|(_, status)| !status.is_empty())
        .collect();
    payments.set_all(&then);
    while kills < KILLS {
        tried += 1;
        assert!(tried < 40, "only {kills} of {tried} kills found checks in the daemon's hands");
        kills +=
            u32::from(kill_with_checks_in_hand(daemon.take().unwrap(), STRIKES[tried % 3], &place, &payments, &proxy));
        daemon = Some(start());
    }
    let daemon = daemon.unwrap();
    // Paid after all, and told so by another message.
    let reinstated: Vec<u64> = (0..COUNT).filter(|id| fate_of[usize::try_from(*id).unwrap()] == REINSTATED).collect();
    wait_until_quiet(&client, &setup, &daemon);
    payments.set_all(&reinstated.iter().map(|id| (*id, PAID)).collect::<Vec<_>>());
    client.publish(&setup.exchange, &setup.key, reinstated.iter().map(|id| message(*id)));
    wait_until_quiet(&client, &setup, &daemon);

    assert_ends(&client, &setup, &place, &fate_of);
    daemon.stop();
    if let Some(second) = second {
        second.stop();
    }
}

/// Each payment as its fate says, the balances, and what is parked.
fn assert_ends(client: &Client, setup: &Setup, place: &Place, fate_of: &[usize]) {
    let mut balances: BTreeMap<u64, u64> = BTreeMap::new();
    let ends = states(place);
    assert_eq!(ends.len(), usize::try_from(COUNT).unwrap());
    for id in 0..COUNT {
        let fate = fate_of[usize::try_from(id).unwrap()];
        let expected = FATES.get(fate).map_or(("credited", true), |fate| fate.ends);
        let (state, verified) = &ends[&id.to_string()];
        assert_eq!((state.as_str(), *verified), expected, "payment {id}, fate {fate}");
        if state == "credited" {
            *balances.entry(id % 50).or_default() += 1 + id % 9;
        }
    }
    for (user, balance) in balances.iter().step_by(7) {
        assert_eq!(setup.json(&["balance", &format!("u{user}"), "--json"])["balance"], *balance);
    }
    assert_right(setup);
    let odd = fate_of.iter().filter(|fate| **fate == 12).count();
    let parked = client.drain(&setup.dead_queue);
    let parked: std::collections::BTreeSet<Vec<u8>> = parked.into_iter().map(|it| it.delivery.data.clone()).collect();
    assert_eq!(parked.len(), odd, "what is unrecognised is parked, and nothing else");
    let check_retries = format!("{}.retry.1h", setup.check_queue);
    for queue in [&setup.never_used(), &check_retries] {
        assert_eq!(client.ready(queue), Some(0), "no delayed retry was taken");
    }
}

/// Nothing waits for a check or is being checked any more.
fn wait_until_quiet(client: &Client, setup: &Setup, daemon: &Daemon) {
    let queues = ["2s", "6s", "7s"].map(|delay| setup.check_delay_queue(delay));
    let all: Vec<&String> = queues.iter().chain([&setup.check_queue, &setup.credit_queue]).collect();
    let mut quiet_since = Instant::now();
    eventually("all checks are done", || {
        let waiting: u32 = all.iter().map(|queue| client.ready(queue).unwrap()).sum();
        let in_flight = daemon.metric(r#"pointsd_in_flight{queue="check"}"#)
            + daemon.metric(r#"pointsd_in_flight{queue="credit"}"#);
        if waiting > 0 || in_flight > 0.0 {
            quiet_since = Instant::now();
        }
        // A message on its way from one queue to the next is in neither.
        (quiet_since.elapsed() > Duration::from_secs(2)).then_some(())
    });
}

/// Every payment's state in the ledger, and whether it was found paid.
fn states(place: &Place) -> BTreeMap<String, (String, bool)> {
    use diesel::{
        Connection, PgConnection, QueryableByName, RunQueryDsl, SqliteConnection, sql_query,
        sql_types::{Bool, Text},
    };
    #[derive(QueryableByName)]
    struct Row {
        #[diesel(sql_type = Text)]
        payment_id: String,
        #[diesel(sql_type = Text)]
        state: String,
        #[diesel(sql_type = Bool)]
        verified: bool,
    }
    let query = sql_query("SELECT payment_id, state, verified_at IS NOT NULL AS verified FROM points_credits");
    let rows: Vec<Row> = match place.parsed() {
        DatabaseUrl::Postgres(url) => query.load(&mut PgConnection::establish(&url).unwrap()).unwrap(),
        DatabaseUrl::Sqlite(file) => {
            query.load(&mut SqliteConnection::establish(file.to_str().unwrap()).unwrap()).unwrap()
        }
    };
    rows.into_iter().map(|row| (row.payment_id, (row.state, row.verified))).collect()
}

#[test]
fn five_thousand_payments_end_as_the_table_says_in_sqlite() {
    all_end_as_the_table_says(Kind::Sqlite);
}

#[test]
fn five_thousand_payments_end_as_the_table_says_in_postgresql() {
    all_end_as_the_table_says(Kind::Postgres);
}

#[test]
fn the_check_path_loses_nothing_when_the_broker_is_killed() {
    let mut rabbit = Rabbit::start(None);
    let (place, payments) = (Place::new(Kind::Postgres), Payments::new());
    let setup = setup_at(&rabbit.url(), &place, "sql", &payments.settings(), "1s", r#"["1s", "2s", "3s"]"#);
    payments.set_all(&(0..3000).filter(|id| id % 3 == 0).map(|id| (id, PAID)).collect::<Vec<_>>());
    payments.set_all(&(0..3000).filter(|id| id % 3 == 1).map(|id| (id, PENDING)).collect::<Vec<_>>());
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_COMPENSATION__BRAKE_AFTER", "1000000");
    });
    daemon.wait_ready();
    for round in 0..3_u64 {
        let client = Client::connect(&rabbit.url());
        let messages = (round * 1000..(round + 1) * 1000)
            .map(|id| (body(id, "u", 1), BasicProperties::default().with_delivery_mode(2)));
        client.publish(&setup.exchange, &setup.key, messages);
        drop(client);
        // Killed with checks in the daemon's hands, and others waiting in the delay queues.
        let lock = payments.hold();
        daemon.wait_for("checks are in flight", |daemon| {
            daemon.metric(r#"pointsd_in_flight{queue="check"}"#).gt(&0.0).then_some(())
        });
        rabbit.kill();
        drop(lock);
        daemon.wait_not_ready("broker");
        rabbit.boot();
        daemon.wait_ready();
    }
    let client = Client::connect(&rabbit.url());
    eventually("every credit is found paid or is reversed", || {
        let ends = states(&place);
        let done = |(state, verified): &(String, bool)| state == "reversed" || *verified;
        (ends.len() == 3000 && ends.values().all(done)).then_some(())
    });
    for (id, (state, _)) in states(&place) {
        let paid = id.parse::<u64>().unwrap() % 3 == 0;
        assert_eq!(state, if paid { "credited" } else { "reversed" }, "payment {id}");
    }
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    assert_right(&setup);
    daemon.stop();
}

#[test]
fn a_daemon_that_stops_gives_back_the_checks_that_it_holds() {
    let rabbit = Rabbit::start(None);
    let (place, payments) = (Place::new(Kind::Sqlite), Payments::new());
    let setup = setup_at(&rabbit.url(), &place, "sql", &payments.settings(), "200ms", r#"["1h"]"#);
    payments.set_all(&(0..50).map(|id| (id, PAID)).collect::<Vec<_>>());
    let daemon = start(&setup);
    let client = Client::connect(&rabbit.url());
    let lock = payments.hold();
    client.publish(&setup.exchange, &setup.key, (0..50).map(|id| (body(id, "u", 1), BasicProperties::default())));
    daemon.wait_for("checks are in flight", |daemon| {
        daemon.metric(r#"pointsd_in_flight{queue="check"}"#).gt(&0.0).then_some(())
    });
    daemon.signal(Signal::TERM);
    let mut daemon = daemon;
    assert!(daemon.wait().success());
    drop(lock);
    let mut back = 0;
    eventually("they are all back", || {
        back += client.drain_checks(&setup.check_queue).len();
        back.eq(&50).then_some(())
    });
    let check_retries = format!("{}.retry.1h", setup.check_queue);
    assert_eq!((client.ready(&check_retries), client.ready(&setup.dead_queue)), (Some(0), Some(0)));
}
