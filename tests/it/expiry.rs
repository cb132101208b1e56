//! Orders that expire: each ends paid and credited once, or closed and not credited.

use crate::{
    compensation::assert_right,
    support::{
        amqp::Client,
        daemon::Setup,
        eventually,
        flow::Dice,
        ledger::{Kind, Place},
        payments::Payments,
        rabbit, unique,
    },
};
use diesel::{Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query};
use lapin::BasicProperties;
use std::time::{Duration, Instant};

const ORDERS: u64 = 5000;

#[derive(QueryableByName)]
struct Count {
    #[diesel(sql_type = diesel::sql_types::BigInt)]
    count: i64,
}

fn count(payments: &Payments, status: &str) -> u64 {
    let mut connection = PgConnection::establish(&payments.url).unwrap();
    let query = format!("SELECT count(*) AS count FROM shop.payments WHERE \"Status\" = '{status}'");
    u64::try_from(sql_query(query).get_result::<Count>(&mut connection).unwrap().count).unwrap()
}

fn setup(place: &Place, payments: &Payments, name: &str) -> Setup {
    let more = format!(
        "[compensation]\nbrake_after = 1000\n[pay_status]\nsource = \"sql\"\n{}user_column = \"buyer\"\npoints_column = \"points\"\n\
         [[source]]\nname = \"orders\"\nexchange = \"{name}\"\nrouting_key = \"order.placed\"\nqueue = \"{name}.q\"\n\
         format = \"payment_id\"\nexpire = true\nfirst = \"2s\"\ndelays = [\"1s\", \"1500ms\"]\n[events]\nenabled = true\n\
         exchange = \"{name}.events\"\n",
        payments.settings()
    );
    Setup::new(&rabbit::shared().url(), &place.url, &more)
}

/// A third of the orders is paid at random moments around the last check, by a shop that does not pay what is closed; the
/// daemon is killed in the middle of it.
fn all_orders_end_one_way_or_the_other(kind: Kind) {
    let (place, payments, name) = (Place::new(kind), Payments::new(), unique("expiry"));
    payments.execute(&format!(
        "ALTER TABLE shop.payments ADD points bigint; INSERT INTO shop.payments (id, \"Status\", buyer, points) \
         SELECT n, 'WAIT_BUYER_PAY', 'u' || n % 50, 10 FROM generate_series(1, {ORDERS}) AS n"
    ));
    let setup = setup(&place, &payments, &name);
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    crate::notifications::wait_for_queue(&daemon, &format!("{name}.q"));
    // Whatever is made known is kept.
    client.declare_queue(&format!("{name}.heard"), &[]);
    eventually("the exchange of events is there", || {
        client.try_bind(&format!("{name}.heard"), &format!("{name}.events"), "#")
    });
    let begun = Instant::now();
    client.publish(
        &name,
        "order.placed",
        (1..=ORDERS).map(|id| (id.to_string().into_bytes(), BasicProperties::default())),
    );

    let url = payments.url.clone();
    let buyers = std::thread::spawn(move || {
        let mut connection = PgConnection::establish(&url).unwrap();
        let mut dice = Dice::new(kind as u64 + 11);
        let mut moments: Vec<(Duration, u64)> =
            (1..=ORDERS).step_by(3).map(|id| (Duration::from_millis(2500 + dice.below(6000)), id)).collect();
        moments.sort_unstable();
        for (moment, id) in moments {
            std::thread::sleep((begun + moment).saturating_duration_since(Instant::now()));
            let pay =
                "UPDATE shop.payments SET \"Status\" = 'TRADE_SUCCESS' WHERE \"Status\" = 'WAIT_BUYER_PAY' AND id =";
            connection.batch_execute(&format!("{pay} {id}")).unwrap();
        }
    });
    std::thread::sleep((begun + Duration::from_millis(5000)).saturating_duration_since(Instant::now()));
    daemon.kill();
    let daemon = setup.start();
    daemon.wait_ready();
    buyers.join().unwrap();
    daemon.wait_for("nothing is pending", |_| count(&payments, "WAIT_BUYER_PAY").eq(&0).then_some(()));
    let (paid, closed) = (count(&payments, "TRADE_SUCCESS"), count(&payments, "TRADE_CLOSED"));
    assert_eq!(paid + closed, ORDERS);
    assert!(paid > 50, "some were paid: {paid}");
    assert!(closed > 2 * ORDERS / 3, "some that a buyer wanted to pay were closed before: {closed}");
    daemon.wait_for("what is paid is credited", |_| {
        setup.json(&["verify", "--json"])["credits"].as_u64()?.eq(&paid).then_some(())
    });
    let report = setup.json(&["verify", "--json"]);
    assert_eq!((&report["points"], &report["adjustments"]), (&(paid * 10).into(), &0.into()));
    // And nothing else is: whatever was credited is paid.
    assert_right(&setup);
    let ledger = place.open();
    let mut connection = PgConnection::establish(&payments.url).unwrap();
    connection
        .batch_execute("CREATE TEMP TABLE paid AS SELECT id FROM shop.payments WHERE \"Status\" = 'TRADE_SUCCESS'")
        .unwrap();
    for id in (1..=ORDERS).step_by(41) {
        let credited = ledger.payment(&id.to_string()).unwrap().is_some();
        assert_eq!(credited, payments.status(id) == "TRADE_SUCCESS", "order {id}");
    }
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    // Each of them was made known, by one id however often.
    let mut heard: std::collections::BTreeMap<String, String> = std::collections::BTreeMap::new();
    daemon.wait_for("every one was made known", |_| {
        for message in client.drain(&format!("{name}.heard")) {
            let event: serde_json::Value = serde_json::from_slice(&message.delivery.data).unwrap();
            let id = message.delivery.properties.message_id().as_ref().unwrap().to_string();
            assert_eq!(event["event_id"], id.as_str());
            heard.insert(id, event["type"].as_str().unwrap().to_owned());
        }
        (heard.len() as u64).ge(&ORDERS).then_some(())
    });
    let of = |kind: &str| heard.values().filter(|heard| *heard == kind).count() as u64;
    assert_eq!((of("points.credited"), of("payments.closed")), (paid, closed));
    daemon.stop();
}

#[test]
fn orders_are_either_paid_and_credited_once_or_closed_and_not_credited_on_postgres() {
    all_orders_end_one_way_or_the_other(Kind::Postgres);
}

#[test]
fn orders_are_either_paid_and_credited_once_or_closed_and_not_credited_on_sqlite() {
    all_orders_end_one_way_or_the_other(Kind::Sqlite);
}
