//! A private PostgreSQL cluster from Debian's package: own port, own folder, a user that is not root.

use super::{Held, eventually, free_port, is_root, unique};
use diesel::{Connection, PgConnection, connection::SimpleConnection};
use std::{path::PathBuf, process::Command, sync::OnceLock};

/// A cluster that ends when it is dropped.
pub struct Postgres {
    _folder: tempfile::TempDir,
    port: u16,
    _server: Held,
}

/// The cluster that tests share which do not stop it: each has a database of its own.
pub fn shared() -> &'static Postgres {
    static SHARED: OnceLock<Postgres> = OnceLock::new();
    SHARED.get_or_init(Postgres::start)
}

fn binaries() -> PathBuf {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions.map(|version| version.path().join("bin")).filter(|bin| bin.join("initdb").exists()).max();
    newest.expect("PostgreSQL is not installed: apt-get install postgresql (dev/test does it)")
}

/// PostgreSQL refuses to run as root: then the package's own user runs it.
fn as_user() -> &'static str {
    if is_root() { "runuser -u postgres -- " } else { "" }
}

impl Postgres {
    /// Makes a cluster, starts it, and waits until it answers.
    pub fn start() -> Self {
        let folder = tempfile::Builder::new().prefix("pointsd-postgres-").tempdir().unwrap();
        let (port, bin, user) = (free_port(), binaries(), as_user());
        let at = folder.path().display();
        let shell = |script: &str| {
            let output = Command::new("sh").arg("-c").arg(script).current_dir("/").output().unwrap();
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        };
        if !user.is_empty() {
            shell(&format!("chown postgres {at}"));
        }
        let bin = bin.display();
        shell(&format!("{user}{bin}/initdb -D {at}/data -U points -A trust -E UTF8 --locale=C.UTF-8 -N"));
        let server = format!(
            "exec {user}{bin}/postgres -D {at}/data -p {port} -c listen_addresses=127.0.0.1 \
             -c unix_socket_directories={at} -c max_connections=60 -c log_min_messages=fatal >{at}/log 2>&1"
        );
        // SIGINT: fast shutdown. `runuser` passes signals on.
        let server = Held::start(
            folder.path(),
            &server,
            &format!("kill -INT $(head -n 1 {at}/data/postmaster.pid)"),
            |command| {
                command.current_dir("/");
            },
        );
        let postgres = Self { _folder: folder, port, _server: server };
        eventually("PostgreSQL answers", || PgConnection::establish(&postgres.url_of("postgres")).ok());
        postgres
    }

    /// An empty database.
    pub fn database(&self) -> String {
        let name = unique("pointsd").replace('-', "_");
        let mut connection = PgConnection::establish(&self.url_of("postgres")).unwrap();
        connection.batch_execute(&format!("CREATE DATABASE {name}")).unwrap();
        self.url_of(&name)
    }

    /// Runs SQL in a database.
    pub fn execute(url: &str, sql: &str) {
        PgConnection::establish(url).unwrap().batch_execute(sql).unwrap();
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://points@127.0.0.1:{}/{database}", self.port)
    }
}
