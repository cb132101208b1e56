//! A private PostgreSQL cluster from Debian's package: own port, own folder, a user that is not root.

use super::{Held, daemon::Signal, eventually, free_port, is_root, unique};
use diesel::{Connection, PgConnection, connection::SimpleConnection};
use rustix::process::Pid;
use std::{path::PathBuf, process::Command, sync::OnceLock};

/// A cluster that ends when it is dropped.
pub struct Postgres {
    folder: tempfile::TempDir,
    port: u16,
    /// More of the server's settings, as `name=value`.
    settings: &'static [&'static str],
    server: Option<Held>,
}

/// Members of this role, which a test makes, need a password.
pub const NEEDS_PASSWORD: &str = "needs_password";

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

impl Drop for Postgres {
    fn drop(&mut self) {
        // One that is stopped takes no other signal.
        if self.folder.path().join("data/postmaster.pid").exists() {
            self.signal(Signal::CONT);
        }
    }
}

impl Postgres {
    /// Makes a cluster, starts it, and waits until it answers.
    pub fn start() -> Self {
        Self::start_with(&[])
    }

    /// The same with more settings, as `name=value`.
    pub fn start_with(settings: &'static [&'static str]) -> Self {
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
        // Whoever is in this role needs a password; everybody else is trusted.
        shell(&format!("{user}sed -i '1i host all +{NEEDS_PASSWORD} all scram-sha-256' {at}/data/pg_hba.conf"));
        let mut postgres = Self { folder, port, settings, server: None };
        postgres.boot();
        postgres
    }

    /// Starts the server (again, on the same data) and waits until it answers.
    pub fn boot(&mut self) {
        let (bin, user, port) = (binaries(), as_user(), self.port);
        let (bin, at) = (bin.display(), self.folder.path().display());
        let settings = self.settings.iter().fold(String::new(), |all, setting| all + "-c " + setting + " ");
        let server = format!(
            "exec {user}{bin}/postgres -D {at}/data -p {port} -c listen_addresses=127.0.0.1 \
             -c unix_socket_directories={at} -c max_connections=60 -c log_min_messages=fatal {settings}>>{at}/log 2>&1"
        );
        // SIGINT: fast shutdown. `runuser` passes signals on.
        let stop = format!("[ ! -e {at}/data/postmaster.pid ] || kill -INT $(head -n 1 {at}/data/postmaster.pid)");
        self.server = Some(Held::start(self.folder.path(), &server, &stop, |command| {
            command.current_dir("/");
        }));
        eventually("PostgreSQL answers", || PgConnection::establish(&self.url_of("postgres")).ok());
    }

    /// The server's processes: the first one, its children, and `runuser`.
    fn processes(&self) -> Vec<Pid> {
        let file = std::fs::read_to_string(self.folder.path().join("data/postmaster.pid")).unwrap();
        let first: i32 = file.lines().next().unwrap().parse().unwrap();
        let parent_of = |pid: i32| -> Option<i32> {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
            status.lines().find_map(|line| line.strip_prefix("PPid:"))?.trim().parse().ok()
        };
        let all = std::fs::read_dir("/proc").unwrap().flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let children = all.filter(|pid| parent_of(*pid) == Some(first));
        // `runuser` stops itself when what it runs is stopped, and must be told to go on, too.
        let runuser = parent_of(first).filter(|_| is_root());
        runuser.into_iter().chain([first]).chain(children).filter_map(Pid::from_raw).collect()
    }

    /// Sends a signal to all of it.
    pub fn signal(&self, signal: Signal) {
        for pid in self.processes() {
            // A child may have ended meanwhile.
            let _ = rustix::process::kill_process(pid, signal);
        }
    }

    /// SIGKILL for all of it. Its data stay.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        // Its number may be another's by the time that somebody reads it there.
        std::fs::remove_file(self.folder.path().join("data/postmaster.pid")).unwrap();
        self.server.take().unwrap().stop();
    }

    /// An empty database.
    pub fn database(&self) -> String {
        let name = unique("pointsd").replace('-', "_");
        let mut connection = PgConnection::establish(&self.url_of("postgres")).unwrap();
        // Its texts sort as people would sort them, and not by their bytes: ours must say what they want.
        let collation = "TEMPLATE template0 LOCALE_PROVIDER icu ICU_LOCALE 'en-US' LOCALE 'C.UTF-8'";
        connection.batch_execute(&format!("CREATE DATABASE {name} {collation}")).unwrap();
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
