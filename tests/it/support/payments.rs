//! A shop's payment table in PostgreSQL.

use super::postgres::{self, Postgres};
use diesel::{
    Connection, PgConnection, QueryableByName, RunQueryDsl, connection::SimpleConnection, sql_query, sql_types::Text,
};

/// A database with a table `shop.payments`: numbers as ids, texts as statuses.
pub struct Payments {
    pub url: String,
}

#[derive(QueryableByName)]
struct Status {
    #[diesel(sql_type = Text)]
    status: String,
}

impl Payments {
    pub fn new() -> Self {
        let payments = Self { url: postgres::shared().database() };
        payments.execute(
            "CREATE SCHEMA shop; CREATE TABLE shop.payments (\
             id bigint PRIMARY KEY, \"Status\" varchar(20) NOT NULL, buyer text, created_at timestamptz DEFAULT now())",
        );
        payments
    }

    pub fn execute(&self, sql: &str) {
        Postgres::execute(&self.url, sql);
    }

    /// A row, or a change of one.
    pub fn set(&self, id: u64, status: &str) {
        self.set_all(&[(id, status)]);
    }

    pub fn set_all(&self, rows: &[(u64, &str)]) {
        if rows.is_empty() {
            return;
        }
        let rows: Vec<String> = rows.iter().map(|(id, status)| format!("({id}, '{status}', 'u')")).collect();
        self.execute(&format!(
            "INSERT INTO shop.payments (id, \"Status\", buyer) VALUES {} \
             ON CONFLICT (id) DO UPDATE SET \"Status\" = excluded.\"Status\"",
            rows.join(", ")
        ));
    }

    pub fn status(&self, id: u64) -> String {
        let mut connection = PgConnection::establish(&self.url).unwrap();
        let query = sql_query(format!("SELECT \"Status\"::text AS status FROM shop.payments WHERE id = {id}"));
        query.get_result::<Status>(&mut connection).unwrap().status
    }

    /// Nobody reads the table while this connection lives.
    pub fn hold(&self) -> PgConnection {
        let mut connection = PgConnection::establish(&self.url).unwrap();
        connection.batch_execute("BEGIN; LOCK TABLE shop.payments IN ACCESS EXCLUSIVE MODE").unwrap();
        connection
    }

    /// `[pay_status.sql]`.
    pub fn settings(&self) -> String {
        format!(
            "[pay_status.sql]\nurl = {:?}\ntable = \"shop.payments\"\nid_column = \"id\"\nstatus_column = \"Status\"\n\
             paid = [\"TRADE_SUCCESS\"]\npending = [\"WAIT_BUYER_PAY\"]\nclosed = [\"TRADE_CLOSED\"]\n",
            self.url
        )
    }
}
