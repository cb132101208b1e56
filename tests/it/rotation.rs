//! Credentials that are rotated under a running daemon.

use crate::support::{
    amqp::Client,
    daemon::{Daemon, Setup},
    gateway::{Gateway, Reply},
    ledger::{Kind, Place},
    postgres::{NEEDS_PASSWORD, Postgres},
    rabbit, unique,
};
use std::{path::PathBuf, sync::Arc, sync::Mutex};

/// A daemon whose secrets are in files, with a role and a user of its own.
struct Rotated {
    setup: Setup,
    place: Place,
    user: String,
    files: [PathBuf; 3],
}

impl Rotated {
    fn new(gateway: &Gateway) -> Self {
        let (place, user) = (Place::new(Kind::Postgres), unique("rotated").replace('-', "_"));
        let database = place.url.rsplit('/').next().unwrap();
        place.execute(&format!(
            "DO $$ BEGIN CREATE ROLE {NEEDS_PASSWORD}; EXCEPTION WHEN duplicate_object THEN END $$; \
             CREATE ROLE {user} LOGIN PASSWORD 'first-s3cret' IN ROLE {NEEDS_PASSWORD}; \
             ALTER DATABASE {database} OWNER TO {user}"
        ));
        let rabbit = rabbit::shared();
        rabbit.ctl(&["add_vhost", &user]);
        rabbit.ctl(&["add_user", &user, "first-s3cret"]);
        rabbit.ctl(&["set_permissions", "-p", &user, &user, ".*", ".*", ".*"]);
        let more = format!(
            "[compensation]\nfirst = \"200ms\"\ndelays = [\"1h\"]\n[pay_status]\nsource = \"http\"\n{}",
            gateway.settings()
        );
        let setup = Setup::new("BROKER", "LEDGER", &more);
        let files = ["broker.url", "ledger.url", "gateway.headers"].map(|name| setup.folder.path().join(name));
        let text = std::fs::read_to_string(setup.config()).unwrap();
        let text = text
            .replace("url = \"BROKER\"", &format!("url_file = \"{}\"", files[0].display()))
            .replace("url = \"LEDGER\"", &format!("url_file = \"{}\"", files[1].display()))
            .replace("[pay_status.http]\n", &format!("[pay_status.http]\nheaders_file = \"{}\"\n", files[2].display()));
        std::fs::write(setup.config(), text).unwrap();
        let rotated = Self { setup, place, user, files };
        rotated.write_broker("first-s3cret");
        rotated.write_ledger("first-s3cret");
        rotated.write(2, "Authorization: first-s3cret\n");
        rotated
    }

    fn write(&self, file: usize, text: &str) {
        std::fs::write(&self.files[file], text).unwrap();
    }

    fn broker_url(&self, password: &str) -> String {
        format!("amqp://{0}:{password}@127.0.0.1:{1}/{0}", self.user, rabbit::shared().port)
    }

    fn write_broker(&self, password: &str) {
        self.write(0, &format!("{}\n", self.broker_url(password)));
    }

    fn write_ledger(&self, password: &str) {
        self.write(1, &format!("{}\n", self.place.url.replace("points@", &format!("{}:{password}@", self.user))));
    }

    fn end_database_sessions(&self) {
        let user = &self.user;
        let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{user}'");
        Postgres::execute(&self.place.url, &sql);
    }

    fn end_broker_sessions(&self) {
        rabbit::shared().ctl(&["close_all_connections", "--vhost", &self.user, "rotated"]);
    }

    /// Publishes a payment, which must be credited and found paid.
    fn credit(&self, client: &Client, daemon: &Daemon, payment: u32) {
        let body = format!(r#"{{"paymentId":{payment},"userId":"u","integral":1}}"#).into_bytes();
        client.publish(&self.setup.exchange, &self.setup.key, [(body, lapin::BasicProperties::default())]);
        let credited = |daemon: &Daemon| daemon.metric("pointsd_points_credited_total").eq(&f64::from(payment));
        daemon.wait_for("it is credited", |daemon| credited(daemon).then_some(()));
    }

    fn wait_verified(daemon: &Daemon, count: f64) {
        let verified = r#"pointsd_checks_total{status="paid",step="verify"}"#;
        daemon.wait_for("it is verified", |daemon| daemon.metric(verified).eq(&count).then_some(()));
    }
}

#[test]
fn credentials_in_files_are_read_again_without_a_restart() {
    let accepted = Arc::new(Mutex::new("first-s3cret"));
    let accepts = Arc::clone(&accepted);
    let gateway = Gateway::start(move |_, headers| {
        let given = headers.get("authorization").map_or(&b""[..], |value| value.as_bytes());
        if given == accepts.lock().unwrap().as_bytes() { Reply::trade("TRADE_SUCCESS") } else { Reply::status(401) }
    });
    let rotated = Rotated::new(&gateway);
    let daemon = rotated.setup.start();
    daemon.wait_ready();
    let client = Client::connect(&rotated.broker_url("first-s3cret"));
    rotated.credit(&client, &daemon, 1);
    Rotated::wait_verified(&daemon, 1.0);

    // The gateway: the checks pause, and the message loses no attempt.
    *accepted.lock().unwrap() = "second-s3cret";
    rotated.credit(&client, &daemon, 2);
    daemon.wait_for("the checks pause", |daemon| daemon.get("/readyz")?.1.contains("answered 401").then_some(()));
    std::fs::remove_file(&rotated.files[2]).unwrap();
    let missing = format!("{} cannot be read", rotated.files[2].display());
    daemon.wait_for("the present reason", |daemon| daemon.get("/readyz")?.1.contains(&missing).then_some(()));
    rotated.write(2, "Authorization: second-s3cret\n");
    Rotated::wait_verified(&daemon, 2.0);
    assert_eq!(daemon.metric(r#"pointsd_messages_total{queue="check",outcome="retry"}"#), 0.0);

    // The ledger: present sessions go on, and new ones need the new password.
    let role = format!("ALTER ROLE {} PASSWORD 'second-s3cret'", rotated.user);
    Postgres::execute(&rotated.place.url, &role);
    rotated.end_database_sessions();
    daemon.wait_not_ready("password authentication failed");
    rotated.write(1, "postgres://u:first-s3cret@h:x/db");
    daemon.wait_not_ready(&format!("{}: has a port that is not a number", rotated.files[1].display()));
    rotated.write_ledger("second-s3cret");
    daemon.wait_ready();
    rotated.credit(&client, &daemon, 3);

    // The broker.
    rabbit::shared().ctl(&["change_password", &rotated.user, "second-s3cret"]);
    rotated.end_broker_sessions();
    daemon.wait_not_ready("broker: cannot connect");
    rotated.write(0, "nothing\n");
    daemon.wait_not_ready(&format!("{}: must begin with amqp:// or amqps://", rotated.files[0].display()));
    rotated.write_broker("second-s3cret");
    daemon.wait_ready();
    let client = Client::connect(&rotated.broker_url("second-s3cret"));
    rotated.credit(&client, &daemon, 4);
    Rotated::wait_verified(&daemon, 4.0);
    let log = daemon.log();
    daemon.stop();
    assert!(!log.contains("s3cret"), "{log}");
}
