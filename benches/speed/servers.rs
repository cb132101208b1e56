//! The servers that everything is measured against, and ledgers in them.

use crate::support::{postgres::Postgres, rabbit::Rabbit};
use diesel::{Connection, PgConnection, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types::Double};
use pointsd::{
    database::DatabaseUrl,
    ledger::{Access, Options, open},
};
use serde::Serialize;
use std::{
    cell::OnceCell,
    path::Path,
    process::Command,
    time::{Duration, SystemTime},
};

/// Which ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub enum Ledger {
    /// An empty one in PostgreSQL.
    Postgres,
    /// One in PostgreSQL that holds many credits with random ids.
    Grown,
    /// An empty one in a SQLite file.
    Sqlite,
}

/// So much memory that what is written stays in it, and so much room for the log that no checkpoint comes in between.
const SETTINGS: &[&str] = &["shared_buffers=512MB", "max_wal_size=4GB"];

/// The same, and it remembers when each transaction was committed.
const STAMPED_SETTINGS: &[&str] = &["shared_buffers=512MB", "max_wal_size=4GB", "track_commit_timestamp=on"];

/// Private servers; those that not every run needs start when they are needed.
pub struct Servers {
    pub rabbit: Rabbit,
    // Before the server that it stands in: it goes away first.
    grown: OnceCell<Place>,
    postgres: Postgres,
    stamped: OnceCell<Postgres>,
    /// How many credits the grown ledger holds.
    grown_credits: u64,
}

impl Servers {
    pub fn start(grown_credits: u64) -> Self {
        let (rabbit, postgres) = (Rabbit::start_as_it_comes(), Postgres::start_with(SETTINGS));
        Self { rabbit, postgres, stamped: OnceCell::new(), grown: OnceCell::new(), grown_credits }
    }

    /// Runs `work` with a ledger that is migrated, and drops it then, unless it is the grown one.
    pub fn with_ledger<T>(&self, ledger: Ledger, work: impl FnOnce(&Place) -> T) -> T {
        match ledger {
            Ledger::Postgres => work(&Place::postgres(&self.postgres)),
            Ledger::Sqlite => work(&Place::sqlite()),
            Ledger::Grown => {
                let place = self.grown.get_or_init(|| {
                    let place = Place::postgres(&self.postgres);
                    place.grow(self.grown_credits);
                    place
                });
                // What is written first after a checkpoint costs more: everybody begins there.
                place.execute("CHECKPOINT");
                work(place)
            }
        }
    }

    /// A ledger that can tell when a payment was committed.
    pub fn with_stamped_ledger<T>(&self, work: impl FnOnce(&Place) -> T) -> T {
        let server = self.stamped.get_or_init(|| Postgres::start_with(STAMPED_SETTINGS));
        work(&Place::postgres(server))
    }
}

/// A database with the ledger's tables. It goes away with this.
pub struct Place {
    pub url: String,
    folder: Option<tempfile::TempDir>,
}

impl Place {
    fn postgres(server: &Postgres) -> Self {
        Self { url: server.database(), folder: None }.migrated()
    }

    fn sqlite() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite:{}", folder.path().join("pointsd.db").display());
        Self { url, folder: Some(folder) }.migrated()
    }

    fn migrated(self) -> Self {
        let url = DatabaseUrl::parse(&self.url, None).unwrap();
        let options = Options { pool_size: 1, timeout: Duration::from_secs(10), access: Access::Write, events: None };
        open(&url, &options).migrate().unwrap();
        self
    }

    /// Has another program make the tables: it may refuse those of this one as too new.
    pub fn migrate_with(&self, program: &Path) {
        match DatabaseUrl::parse(&self.url, None).unwrap() {
            DatabaseUrl::Postgres(_) => self.execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public"),
            DatabaseUrl::Sqlite(file) => std::fs::remove_file(file).unwrap(),
        }
        let mut migrate = Command::new(program);
        migrate.arg("migrate").env("POINTSD_LEDGER__URL", &self.url);
        assert!(migrate.status().unwrap().success());
    }

    /// Runs SQL on a ledger in PostgreSQL.
    pub fn execute(&self, sql: &str) {
        Postgres::execute(&self.url, sql);
    }

    /// Fills it with credits, as months of payments with random ids would.
    fn grow(&self, credits: u64) {
        self.execute(&format!(
            "BEGIN;
             ALTER TABLE points_adjustments DROP CONSTRAINT points_adjustments_payment_id_fkey;
             ALTER TABLE points_credits DROP CONSTRAINT points_credits_pkey;
             INSERT INTO points_credits (payment_id, user_id, points, verified_at)
               SELECT md5(n::text), 'user-' || n % 50000, 5, now() FROM generate_series(1, {credits}) AS n;
             INSERT INTO points_balances (user_id, balance)
               SELECT user_id, sum(points) FROM points_credits GROUP BY user_id;
             ALTER TABLE points_credits ADD PRIMARY KEY (payment_id);
             ALTER TABLE points_adjustments ADD FOREIGN KEY (payment_id) REFERENCES points_credits;
             COMMIT;"
        ));
        self.execute("VACUUM ANALYZE");
    }

    /// When each payment was committed, in the order of their ids.
    pub fn commit_times(&self) -> Vec<SystemTime> {
        #[derive(diesel::QueryableByName)]
        struct Stamp {
            #[diesel(sql_type = Double)]
            at: f64,
        }
        let mut connection = PgConnection::establish(&self.url).unwrap();
        let stamps: Vec<Stamp> = sql_query(
            "SELECT extract(epoch FROM pg_xact_commit_timestamp(xmin))::float8 AS at FROM points_credits \
             ORDER BY payment_id",
        )
        .load(&mut connection)
        .unwrap();
        stamps.into_iter().map(|stamp| SystemTime::UNIX_EPOCH + Duration::from_secs_f64(stamp.at)).collect()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.folder.is_none() {
            let (server, database) = self.url.rsplit_once('/').unwrap();
            let mut connection = PgConnection::establish(&format!("{server}/postgres")).unwrap();
            connection.batch_execute(&format!("DROP DATABASE {database} WITH (FORCE)")).unwrap();
        }
    }
}
