//! The least rights of the daemon's database role, and what a missing one is: an outage that is named, and that no message is
//! charged for.

use crate::support::{
    amqp::Client,
    daemon::{Daemon, Setup},
    postgres::{self, Postgres},
    rabbit,
};
use lapin::BasicProperties;

/// The daemon's rights, as `docs/guides/database-rights.md` lists them.
fn documented_rights() -> String {
    let text = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/guides/database-rights.md")).unwrap();
    let (_, rest) = text.split_once("<!-- the daemon's rights -->\n```sql\n").expect("the page lists the rights");
    rest.split_once("```").unwrap().0.to_owned()
}

fn body(payment: u64, user: &str) -> (Vec<u8>, BasicProperties) {
    let body = format!(r#"{{"paymentId":"{payment}","userId":"{user}","integral":1}}"#);
    (body.into_bytes(), BasicProperties::default().with_delivery_mode(2))
}

fn outcome(daemon: &Daemon, queue: &str, outcome: &str) -> f64 {
    daemon.metric(&format!(r#"pointsd_messages_total{{queue="{queue}",outcome="{outcome}"}}"#))
}

#[test]
fn the_documented_rights_are_enough_and_a_missing_one_is_an_outage_that_names_it() {
    let owner = postgres::shared().database();
    let role = format!("shop_{}", std::process::id());
    let url = owner.replace("points@", &format!("{role}@"));
    let setup = Setup::new(&rabbit::shared().url(), &url, "");
    let text = std::fs::read_to_string(setup.config()).unwrap();
    let more = format!(
        "[events]\nenabled = true\nexchange = \"{}.events\"\n[compensation]\nfirst = \"200ms\"\ndelays = [\"1h\"]\n\
         [pay_status]\nsource = \"sql\"\n[pay_status.sql]\nurl = {owner:?}\ntable = \"payments\"\nid_column = \"id\"\n\
         status_column = \"status\"\npaid = [\"PAID\"]\npending = [\"NEW\"]\nclosed = [\"CLOSED\"]\n",
        setup.exchange
    );
    std::fs::write(setup.config(), format!("{text}\n{more}").replace("auto_migrate = true", "auto_migrate = false"))
        .unwrap();
    let migrated = setup.command(&["migrate"]).env("POINTSD_LEDGER__URL", &owner).output().unwrap();
    assert!(migrated.status.success(), "{migrated:?}");
    Postgres::execute(
        &owner,
        "CREATE TABLE payments (id bigint PRIMARY KEY, status text NOT NULL); \
         INSERT INTO payments SELECT n, CASE WHEN n % 2 = 0 THEN 'PAID' ELSE 'CLOSED' END FROM generate_series(0, 99) AS n",
    );
    Postgres::execute(&owner, &format!("CREATE ROLE {role} LOGIN; REVOKE ALL ON SCHEMA public FROM PUBLIC"));
    Postgres::execute(&owner, &documented_rights().replace("pointsd", &role));
    let daemon = setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rabbit::shared().url());
    client.publish(&setup.exchange, &setup.key, (0..40).map(|id| body(id, "u")));
    daemon.wait_for("all are checked", |daemon| outcome(daemon, "check", "checked").eq(&40.0).then_some(()));
    daemon.wait_for("the events are published", |daemon| daemon.metric("pointsd_outbox_rows").eq(&0.0).then_some(()));
    assert_eq!(setup.json(&["balance", "u", "--json"])["balance"], 20, "{}", daemon.log());

    let mut next = 40;
    for (right, table) in [
        ("INSERT", "points_outbox"),
        ("INSERT", "points_balances"),
        ("UPDATE", "points_balances"),
        ("INSERT", "points_credits"),
    ] {
        let credited = outcome(&daemon, "credit", "credited");
        Postgres::execute(&owner, &format!("REVOKE {right} ON {table} FROM {role}"));
        // Users who have no balance yet.
        client.publish(&setup.exchange, &setup.key, (next..next + 10).map(|id| body(id, &format!("u{id}"))));
        next += 10;
        daemon.wait_not_ready(&format!("permission denied for table {table}"));
        Postgres::execute(&owner, &format!("GRANT {right} ON {table} TO {role}"));
        daemon.wait_for("they are credited", |daemon| {
            outcome(daemon, "credit", "credited").eq(&(credited + 10.0)).then_some(())
        });
        daemon.wait_ready();
    }
    // A right that only checks need pauses only these.
    Postgres::execute(&owner, &format!("REVOKE INSERT ON points_adjustments FROM {role}"));
    client.publish(&setup.exchange, &setup.key, (next..next + 10).map(|id| body(id, "u")));
    daemon.wait_for("the checks pause, and say why", |daemon| {
        let (status, text) = daemon.get("/readyz")?;
        (status == 200 && text.contains("permission denied for table points_adjustments")).then_some(())
    });
    Postgres::execute(&owner, &format!("GRANT INSERT ON points_adjustments TO {role}"));
    daemon.wait_for("all are checked", |daemon| outcome(daemon, "check", "checked").eq(&90.0).then_some(()));
    for queue in ["credit", "check"] {
        for label in ["retry", "exhausted", "rejected"] {
            assert_eq!(outcome(&daemon, queue, label), 0.0, "{queue} {label}: {}", daemon.log());
        }
    }
    assert_eq!(client.ready(&setup.dead_queue), Some(0));
    assert_eq!(setup.json(&["verify", "--json"])["violations"], 0);
    daemon.stop();
}

#[test]
fn a_user_who_may_not_write_to_the_default_exchange_is_named_by_topology_check() {
    let rabbit = rabbit::shared();
    let user = crate::support::unique("limited");
    rabbit.ctl(&["add_user", &user, "s3cret"]);
    // May declare, consume and publish to exchanges of its own names, but not to amq.default.
    rabbit.ctl(&["set_permissions", &user, ".*", "^t-.*", ".*"]);
    let folder = tempfile::tempdir().unwrap();
    let ledger = format!("sqlite:{}", folder.path().join("pointsd.db").display());
    let setup = Setup::new(&rabbit.url(), &ledger, "");
    assert!(setup.run(&["topology", "declare"]).status.success());
    let url = rabbit.url().replace("guest:guest", &format!("{user}:s3cret"));
    let check = setup.command(&["topology", "check"]).env("POINTSD_BROKER__URL", url).output().unwrap();
    let said = crate::support::daemon::told(&check);
    assert_eq!(check.status.code(), Some(1), "{said}");
    assert!(said.contains("grant the user write access to \"amq.default\"") && !said.contains("s3cret"), "{said}");
}
