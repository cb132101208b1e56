//! A pooler in front of PostgreSQL.

use crate::support::{
    daemon::{Setup, told},
    eventually, free_port, is_root,
    ledger::{Kind, Place},
    postgres, program, rabbit,
};
use diesel::{Connection, PgConnection};
use std::process::{Child, Command, Stdio};

/// A private pgbouncer, ended when it is dropped.
struct Pooler {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Pooler {
    fn start(mode: &str, server: &str) -> Self {
        let (folder, port) = (tempfile::tempdir().unwrap(), free_port());
        let place = server.rsplit_once('@').unwrap().1;
        let (host_and_port, _) = place.split_once('/').unwrap();
        let (host, server_port) = host_and_port.split_once(':').unwrap();
        let file = folder.path().join("pgbouncer.ini");
        let text = format!(
            "[databases]\n* = host={host} port={server_port}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n\
             unix_socket_dir =\nauth_type = any\npool_mode = {mode}\nignore_startup_parameters = extra_float_digits\n"
        );
        // `auth_type = any` takes the user from the database's entry.
        std::fs::write(&file, text.replace(&format!("port={server_port}"), &format!("port={server_port} user=points")))
            .unwrap();
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        let mut command = Command::new(program("pgbouncer", &["/usr/sbin/pgbouncer"], "pgbouncer"));
        if is_root() {
            command.args(["-u", "postgres"]);
        }
        let child = command.arg(&file).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let pooler = Self { child, port, _folder: folder };
        eventually("pgbouncer answers", || PgConnection::establish(&pooler.through(server)).ok());
        pooler
    }

    fn through(&self, server: &str) -> String {
        let (user, place) = server.rsplit_once('@').unwrap();
        format!("{user}@127.0.0.1:{}/{}", self.port, place.split_once('/').unwrap().1)
    }
}

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_pooler_without_sessions_is_refused_with_what_to_do_and_one_with_sessions_is_used() {
    let place = Place::new(Kind::Postgres);
    place.open().migrate().unwrap();
    for mode in ["transaction", "statement"] {
        let pooler = Pooler::start(mode, &place.url);
        let setup = Setup::new(&rabbit::shared().url(), &pooler.through(&place.url), "");
        let mut daemon = setup.start();
        daemon.wait_for("it ends", |daemon| daemon.log().contains("pool_mode").then_some(()));
        assert!(!daemon.wait().success(), "{mode}");
        let log = daemon.log();
        assert!(log.contains("set pool_mode = session for this database"), "{mode}: {log}");
        let verified = setup.run(&["verify"]);
        assert!(!verified.status.success() && told(&verified).contains("pool_mode = session"), "{}", told(&verified));
    }
    let pooler = Pooler::start("session", &place.url);
    let setup = Setup::new(&rabbit::shared().url(), &pooler.through(&place.url), "");
    let daemon = setup.start();
    daemon.wait_ready();
    daemon.stop();
}

#[test]
fn a_payment_table_behind_a_pooler_without_sessions_pauses_the_checks_and_says_so() {
    let payments = postgres::shared().database();
    postgres::Postgres::execute(&payments, "CREATE TABLE payments (id bigint PRIMARY KEY, status text NOT NULL)");
    let pooler = Pooler::start("transaction", &payments);
    let place = Place::new(Kind::Sqlite);
    let setup = Setup::new(&rabbit::shared().url(), &place.url, "");
    let text = std::fs::read_to_string(setup.config()).unwrap();
    let more = format!(
        "[compensation]\nfirst = \"100ms\"\n[pay_status]\nsource = \"sql\"\n[pay_status.sql]\nurl = {:?}\n\
         table = \"payments\"\nid_column = \"id\"\nstatus_column = \"status\"\npaid = [\"PAID\"]\npending = [\"NEW\"]\n\
         closed = [\"CLOSED\"]\n",
        pooler.through(&payments)
    );
    std::fs::write(setup.config(), format!("{text}\n{more}")).unwrap();
    let daemon = setup.start();
    daemon.wait_ready();
    let client = crate::support::amqp::Client::connect(&rabbit::shared().url());
    let body = br#"{"paymentId":1,"userId":"u","integral":1}"#.to_vec();
    client.publish(&setup.exchange, &setup.key, [(body, lapin::BasicProperties::default())]);
    daemon.wait_for("the checks pause, and say why", |daemon| {
        let (status, text) = daemon.get("/readyz")?;
        (status == 200 && text.contains("pool_mode = session")).then_some(())
    });
    daemon.stop();
}
