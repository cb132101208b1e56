//! The settings of payment sources.

use super::{Header, Identifier, TableName, UrlTemplate};
use crate::{
    database::DatabaseUrl,
    domain::{id_rule::IdRule, status::StatusValues, valuation::Valuation},
};
use std::{path::PathBuf, time::Duration};

/// The settings of the payment source (`[pay_status]`).
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "only one value exists")]
pub enum PayStatusSettings {
    /// No payment source, and so no checks.
    None,
    /// A payment table.
    Sql(SqlSourceSettings),
    /// A gateway.
    Http(HttpSourceSettings),
    /// The payment table first; for payments without a final status there, the gateway.
    SqlThenHttp(SqlSourceSettings, HttpSourceSettings),
}

impl PayStatusSettings {
    /// Returns whether there are checks.
    pub fn is_some(&self) -> bool {
        !matches!(self, Self::None)
    }

    /// Returns the rule for the payment IDs that the source can be asked about.
    pub fn payment_ids(&self) -> IdRule {
        match self {
            Self::None | Self::Sql(_) => IdRule::Any,
            Self::Http(http) | Self::SqlThenHttp(_, http) => http.payment_ids.clone(),
        }
    }
}

/// The settings of a payment table (`[pay_status.sql]`).
#[derive(Debug, Clone)]
pub struct SqlSourceSettings {
    /// The URL of the database: the ledger's unless another one is given.
    pub url: DatabaseUrl,
    /// The name of the table.
    pub table: TableName,
    /// The column that contains the payment ID.
    pub id_column: Identifier,
    /// The column that contains the status.
    pub status_column: Identifier,
    /// The column that contains the user, if the user of the message must match.
    pub user_column: Option<Identifier>,
    /// The column that contains the points or the amount, if payments are credited from their records.
    pub value_column: Option<Identifier>,
    /// The rule that converts the value to points; present exactly when `value_column` is.
    pub valuation: Option<Valuation>,
    /// The values that represent each status.
    pub values: StatusValues,
}

/// The settings of a gateway (`[pay_status.http]`).
#[derive(Debug, Clone)]
pub struct HttpSourceSettings {
    /// The URL of a payment.
    pub url: UrlTemplate,
    /// The place of the status in the response: a JSON Pointer.
    pub status_pointer: String,
    /// The values that represent each status.
    pub values: StatusValues,
    /// The timeout of one request, including the body of the response.
    pub timeout: Duration,
    /// The most concurrent requests.
    pub concurrency: usize,
    /// The headers of every request. They are secrets.
    pub headers: Vec<Header>,
    /// The trusted certificate authorities, instead of the system's (PEM).
    pub ca: Option<Vec<u8>>,
    /// The files `url_file`, `headers_file` and `ca_file`, which are read again while the daemon runs.
    pub files: HttpFiles,
    /// The rule for payment IDs.
    pub payment_ids: IdRule,
}

/// The files of `[pay_status.http]`.
#[derive(Debug, Clone, Default)]
pub struct HttpFiles {
    /// The file that contains the URL.
    pub url: Option<PathBuf>,
    /// The file that contains the headers, one per line.
    pub headers: Option<PathBuf>,
    /// The file that contains the certificate authorities.
    pub ca: Option<PathBuf>,
}
