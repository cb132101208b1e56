//! A ledger that works, but too slowly.

use crate::support::{
    amqp::Client,
    daemon::Setup,
    ledger::{Kind, Place},
    rabbit,
};
use lapin::BasicProperties;

#[test]
fn a_ledger_that_is_too_slow_is_named_in_the_log_and_makes_the_daemon_unready() {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    place.execute(
        "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(0.03); RETURN NEW; END $$;
         CREATE TRIGGER slow BEFORE INSERT ON points_credits FOR EACH ROW EXECUTE FUNCTION slow()",
    );
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let daemon = setup.start_with(|command| {
        command.env("POINTSD_LEDGER__TIMEOUT", "2s").env("POINTSD_HEALTH__STALLED_AFTER", "3s");
    });
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    client.publish(
        &setup.exchange,
        &setup.key,
        (0..300).map(|id| {
            let body = format!(r#"{{"paymentId":"p{id}","userId":"u{id}","integral":1}}"#);
            (body.into_bytes(), BasicProperties::default())
        }),
    );
    daemon.wait_not_ready("ledger: no commit for");
    assert!(daemon.metric(r#"pointsd_oldest_in_flight_seconds{queue="credit"}"#) > 3.0);
    let log = daemon.log();
    let line = log.lines().find(|line| line.contains("commit timed out")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("size=") && line.contains("waited_seconds=") && line.contains("statement timeout"), "{line}");
    assert!(log.contains("stalled: no commit while deliveries wait"), "{log}");
    daemon.wait_for("parts of it are small enough", |daemon| {
        let credited = daemon.metric(r#"pointsd_messages_total{queue="credit",outcome="credited"}"#);
        credited.eq(&300.0).then_some(())
    });
    daemon.wait_ready();
    daemon.wait_for("nothing waits any more", |daemon| {
        daemon.metric(r#"pointsd_oldest_in_flight_seconds{queue="credit"}"#).eq(&0.0).then_some(())
    });
    assert!(daemon.log().contains("no longer stalled"), "{}", daemon.log());
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    daemon.stop();
}
