//! The settings of payment sources.

use super::{Header, Identifier, TableName, UrlTemplate};
use crate::{
    database::DatabaseUrl,
    domain::{id_rule::IdRule, status::StatusValues, valuation::Valuation},
};
use std::{path::PathBuf, time::Duration};

/// `[pay_status]`: what knows whether payments are paid.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one")]
pub enum PayStatusSettings {
    /// Nothing: there are no checks.
    None,
    /// A table.
    Sql(SqlSourceSettings),
    /// A service or gateway.
    Http(HttpSourceSettings),
    /// The table first; where it is not certain, the gateway.
    SqlThenHttp(SqlSourceSettings, HttpSourceSettings),
}

impl PayStatusSettings {
    /// Whether there are checks.
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Which payment ids the source can be asked for.
    pub fn payment_ids(&self) -> IdRule {
        match self {
            Self::None | Self::Sql(_) => IdRule::Any,
            Self::Http(http) | Self::SqlThenHttp(_, http) => http.payment_ids.clone(),
        }
    }
}

/// `[pay_status.sql]`: a table.
#[derive(Debug, Clone)]
pub struct SqlSourceSettings {
    /// In which database: the ledger's unless another one is given.
    pub url: DatabaseUrl,
    /// Its name.
    pub table: TableName,
    /// The column with the payment's id.
    pub id_column: Identifier,
    /// The column with its status.
    pub status_column: Identifier,
    /// The column with its user, where the message's user must match.
    pub user_column: Option<Identifier>,
    /// The column with its points or its amount, where payments are credited from their records.
    pub value_column: Option<Identifier>,
    /// How that becomes points; there exactly where the column is.
    pub valuation: Option<Valuation>,
    /// What the statuses mean.
    pub values: StatusValues,
}

/// `[pay_status.http]`: a service.
#[derive(Debug, Clone)]
pub struct HttpSourceSettings {
    /// Where a payment is asked for.
    pub url: UrlTemplate,
    /// Where the status stands in the answer: a JSON Pointer.
    pub status_pointer: String,
    /// What the statuses mean.
    pub values: StatusValues,
    /// Of one request, its answer's body included.
    pub timeout: Duration,
    /// Most requests at a time.
    pub concurrency: usize,
    /// Sent with every request. Secrets.
    pub headers: Vec<Header>,
    /// The authorities that are trusted, instead of the system's: PEM.
    pub ca: Option<Vec<u8>>,
    /// `url_file`, `headers_file` and `ca_file`: read again while the daemon runs.
    pub files: HttpFiles,
    /// Which payment ids are accepted.
    pub payment_ids: IdRule,
}

/// The files of `[pay_status.http]`.
#[derive(Debug, Clone, Default)]
pub struct HttpFiles {
    /// Holds the URL.
    pub url: Option<PathBuf>,
    /// Holds the headers, one a line.
    pub headers: Option<PathBuf>,
    /// Holds the authorities.
    pub ca: Option<PathBuf>,
}
